# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Tables, pages and result blocks from logs of runs."""

from __future__ import annotations

import base64
import io
import json
import math
import platform
import re
import shutil
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from image_classification.report import __main__ as report
from image_classification.report.plots import thinned
from image_classification.report.run_log import read_run

SETTINGS = {
    "processes": 8, "amp_type": "float16", "optimizer_batch_size": 128,
    "environment": {"device": "npu", "versions": {"torch": "2.4.1+cpu"}},
}  # fmt: skip


def write_log(folder: Path, rows: list[tuple[str, Any, dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"type": kind, "epoch": epoch, "data": data}) for kind, epoch, data in rows]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def epoch(top1: float | None, rate: float, **more: float) -> dict[str, Any]:
    return {"train.loss": 1.25, "train.total_ips": rate, "train.epoch_time": 640 / rate,
            "val.top1": top1, "val.seen": 100, "val.total_ips": 50.0, **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_log(tmp_path / "run", [
        ("parameter", None, {**SETTINGS, "processes": 1}),
        ("epoch", 0, epoch(10.0, 100.0)),
        ("epoch", 1, epoch(99.0, 1.0)),  # lost: the second start repeats it
        ("parameter", None, SETTINGS),
        ("train", 1, {"train.total_ips": 250.0}),
        ("epoch", 1, epoch(61.65, 200.0)),
        ("summary", None, {"run.top1_best": 61.65}),
    ])  # fmt: skip


def test_the_table_has_the_documents_columns(folder: Path, tmp_path: Path, capsys) -> None:
    settings = {"environment": {"versions": {"torch": "2.9.0"}}}
    other = write_log(tmp_path / "new", [("parameter", None, settings)])
    assert report.main([str(folder), str(other), "--no-html"]) == 0
    header, rule, first, second, *names = capsys.readouterr().out.splitlines()
    assert names == ["", "rows:", str(folder), str(other)]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (header, first, second)
    ]
    assert cells[0] == ["NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version", "batch_size"]
    # 640 images in 6.4 s and 640 in 3.2 s are 133.3 images/s.
    assert cells[1] == ["8p-NPU", "61.65", "133", "2", "float16", "2.4.1", "128"]
    assert cells[2] == ["1p-?", "-", "-", "0", "-", "2.9.0", "0"]
    assert set(rule) == set("|:-")


def test_the_result_block_and_the_key_files(folder: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    output.mkdir()
    case = ["--case", "Net_bs128_8p_acc", "--network", "Net", "--output", str(output)]
    assert report.main([str(folder), *case, "--seconds", "20"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "------------------ Final result ------------------",
        "Final Performance images/sec : 133.33",
        "Final Train Accuracy : 61.65",
        "E2E Training Duration sec : 20",
    ]
    assert (output / "Net_bs128_8p_acc.log").read_text().splitlines() == [
        "Network = Net", "RankSize = 8", "BatchSize = 128", f"DeviceType = {platform.machine()}",
        "CaseName = Net_bs128_8p_acc", "ActualFPS = 133.33", "TrainingTime = 960.00",
        "TrainAccuracy = 61.65", "ActualLoss = 1.25000", "E2ETrainingTime = 20",
    ]  # fmt: skip
    assert (output / "train_Net_bs128_8p_acc_perf_report.log").read_text().splitlines() == [
        "train_training_time : 9.60", "train_eval_time : 4.00", "total_time : 20.00",
        "training maximum images/sec : 250.00", "training average images/sec : 133.33",
        "end to end average images/sec : 64.00",
    ]  # fmt: skip


def test_one_process_has_no_report_of_scaling(folder: Path, tmp_path: Path) -> None:
    write_log(
        folder, [("parameter", None, {**SETTINGS, "processes": 1}), ("epoch", 0, epoch(5, 10.0))]
    )
    assert (
        report.main([str(folder), "--case", "c", "--output", str(tmp_path), "--seconds", "1"]) == 0
    )
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["c.log"]


def test_the_average_counts_where_there_is_one(tmp_path: Path) -> None:
    rows = [("parameter", None, SETTINGS), ("epoch", 0, epoch(5.0, 10.0) | {"val_ema.top1": 7.0})]
    assert read_run(write_log(tmp_path, rows)).top1 == 7.0


def test_a_log_that_was_cut_off(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"type": "epoch", "epo\n[]\nnull\n')
    assert len(read_run(folder).epochs) == 2


def test_no_log_is_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    assert report.main([str(tmp_path / "none")]) == 3
    assert "give the folder of a run" in capsys.readouterr().err
    assert report.main([str(folder), "--case", "x"]) == 2
    assert "--case needs one RUN_DIR" in capsys.readouterr().err


# ---- the page

CLASSES = ["ant", "<script>alert(1)</script>", "cat & co"]
ANSWERS = {"group": "val", "epoch": 1, "top1": 50.0, "classes": CLASSES,
           "confusion": [[0, 0, 1], [0, 1, 2], [1, 1, 2], [2, 1, 1]]}  # fmt: skip


class Page(HTMLParser):
    """What a browser would see and fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "style", "srcset", "action"):
                self.fetched += re.findall(r"url\(([^)]*)\)", value or "")
                self.fetched += [] if name == "style" else [value or ""]

    def handle_data(self, data: str) -> None:
        self.words += data + "\n"


def train_row(epoch: int, iteration: int, rate: float, start: str, seconds: float) -> str:
    data = {"train.total_ips": rate, "train.data_wait": 3.0, "train.lr": 0.1 / iteration}
    return json.dumps({"type": "train", "epoch": epoch, "iteration": iteration, "run_id": start,
                       "elapsed": seconds, "data": data})  # fmt: skip


def make_page(capsys: Any, *arguments: str | Path) -> Page:
    assert report.main([str(argument) for argument in arguments]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("page: "))
    return Page(path.read_text("utf-8"))


def test_the_page_shows_the_run_and_fetches_nothing(folder: Path, capsys) -> None:
    (folder / "confusion.json").write_text(json.dumps(ANSWERS))
    with open(folder / "metrics.jsonl", "a") as log:
        text = "images/s fell <b>"
        row = {"type": "message", "data": {"level": "warning", "text": text}}
        log.write(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    page = make_page(capsys, folder)
    assert page.tags.count("svg") == 4
    assert "script" not in page.tags and "link" not in page.tags
    assert all(target.startswith("#") for target in page.fetched), page.fetched
    for expected in (
        "61.65 %", "best top-1 (epoch 2)", "133.3", "learning rate", "waiting for data (%)",
        "Best epoch (2): 50.00 % of 6 validation images are right.", "cat & co",
        "<script>alert(1)</script>", "<script>alert(1)</script> (2)",
        "images/s fell <b> (2 times)", "optimizer_batch_size", "2.4.1+cpu",
    ):  # fmt: skip
        assert expected in page.words, expected
    again = (folder / "report.html").read_bytes()
    make_page(capsys, folder)
    assert (folder / "report.html").read_bytes() == again


def test_several_runs_beside_each_other(folder: Path, tmp_path: Path, capsys) -> None:
    other = write_log(tmp_path / "cost_$x_in_$", [
        ("parameter", None, {**SETTINGS, "processes": 2}), ("epoch", 0, epoch(40.0, 100.0)),
    ])  # fmt: skip
    page = make_page(capsys, folder, other, "--html", tmp_path / "both.html")
    words = page.words.split("\n")
    assert "2 runs" in words and "2p-NPU" in words and "8p-NPU" in words
    assert sum("cost_$x_in_$" in word for word in words) >= 4  # table, legends, settings


def test_many_classes_are_an_image(folder: Path, capsys) -> None:
    classes = [f"class {number}" for number in range(1500)]
    confusion = [[number, number, 1] for number in range(1500)]
    (folder / "confusion.json").write_text(
        json.dumps({**ANSWERS, "classes": classes, "confusion": confusion})
    )
    page = make_page(capsys, folder)
    (image,) = [target for target in page.fetched if not target.startswith("#")]
    assert image.startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2])))
    assert picture.size == (1000, 1000)
    assert picture.getpixel((0, 0)) == (0, 114, 178)  # class 0 is always recognised
    assert picture.getpixel((999, 0)) == (255, 255, 255)


def test_an_evaluation_has_no_curves(tmp_path: Path, capsys) -> None:
    rows = [("parameter", None, SETTINGS), ("summary", None, {"val.top1": 71.5})]
    folder = write_log(tmp_path / "evaluated", rows)
    (folder / "confusion_evaluation.json").write_text(json.dumps({**ANSWERS, "epoch": None}))
    page = make_page(capsys, folder)
    assert "svg" not in page.tags and "71.50 %" in page.words
    assert "Evaluation: 50.00 % of 6 validation images are right." in page.words


def test_an_evaluation_does_not_change_what_was_trained(folder: Path, capsys) -> None:
    with open(folder / "metrics.jsonl", "a") as log:
        for kind, data in (
            ("parameter", {**SETTINGS, "evaluate": True, "amp_type": "FP32"}),
            ("summary", {"val.top1": 1.0}),
        ):
            log.write(json.dumps({"type": kind, "epoch": None, "data": data}) + "\n")
    (folder / "confusion.json").write_text(json.dumps(ANSWERS))
    (folder / "confusion_evaluation.json").write_text(json.dumps({**ANSWERS, "epoch": None}))
    page = make_page(capsys, folder)
    assert read_run(folder).parameters["amp_type"] == "float16" and "61.65 %" in page.words
    assert "Best epoch (2)" in page.words


def test_the_runs_of_several_seeds(folder: Path, tmp_path: Path, capsys) -> None:
    for seed in (10, 2):
        shutil.copytree(folder, tmp_path / f"seeds/seed_{seed}")
    page = make_page(capsys, tmp_path / "seeds")
    assert (tmp_path / "seeds/report.html").exists() and "2 runs" in page.words
    assert page.words.index("seed_2") < page.words.index("seed_10")


def test_epochs_without_log_lines_have_their_own_rate(tmp_path: Path, capsys) -> None:
    rows = [("parameter", None, SETTINGS), ("epoch", 0, epoch(5.0, 10.0))]
    page = make_page(capsys, write_log(tmp_path / "short", rows))
    assert page.words.count("not measured") == 2  # learning rate; waiting for data


def test_a_run_in_several_starts_is_one_curve(tmp_path: Path) -> None:
    folder = write_log(tmp_path, [("parameter", None, SETTINGS)])
    with open(folder / "metrics.jsonl", "a") as log:
        for row in (
            train_row(0, 10, 100.0, "first", 5.0),
            train_row(0, 20, 1.0, "first", 9.0),
            train_row(0, 20, 110.0, "second", 3.0),
            train_row(1, 10, 120.0, "second", 7.0),
        ):
            log.write(row + "\n")  # fmt: skip
    run = read_run(folder)
    assert [row[:3] for row in run.train] == [(0, 10, 5.0), (0, 20, 12.0), (1, 10, 16.0)]
    assert [row.metrics["train.total_ips"] for row in run.train] == [100.0, 110.0, 120.0]
    assert run.seconds == 16.0


def test_long_curves_are_thinned_with_their_own_average() -> None:
    rates = [(float(x), 100.0 if x % 2 else 300.0) for x in range(1200)]
    thin = thinned([*rates, (1200.0, math.nan)], statistics.harmonic_mean)
    assert len(thin) == 600 and thin[0] == (1.0, pytest.approx(150.0))
    assert thinned([], statistics.fmean) == []


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"classes": []}', "null", "\xff",
     json.dumps({**ANSWERS, "confusion": [[0, 9, 1]]})],
)  # fmt: skip
def test_a_damaged_confusion_is_told_and_left_out(folder: Path, content: str, capsys) -> None:
    (folder / "confusion.json").write_text(content, "latin-1")
    page = make_page(capsys, folder)
    assert "confusion.json cannot be used" in page.words and "Confusion matrix" not in page.words


def test_without_matplotlib_the_table_is_there(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert report.main([str(folder)]) == 2
    shown = capsys.readouterr()
    assert "8p-NPU" in shown.out and "pip install matplotlib" in shown.err
    assert len(shown.err.splitlines()) == 1 and not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    assert report.main([str(folder), "--html", str(tmp_path / "none" / "page.html")]) == 2
    assert "choose another with --html FILE" in capsys.readouterr().err


# ---- logs that nobody of ours has written

HUGE = "1" + "0" * 400
STRANGE = ["Infinity", "-Infinity", "NaN", "1e400", HUGE, "-1", "1.5", "true", '"x"', "[]", "{}",
           "null", '"\\ud800"', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("value", STRANGE, ids=lambda text: text[:12])
def test_no_value_of_a_log_is_taken_on_trust(folder: Path, value: str, capsys) -> None:
    rows = []
    for kind in ("epoch", "train", "summary", "parameter", "message"):
        for name in ("epoch", "iteration", "elapsed", "data", "type", "run_id"):
            row = {"type": kind, "epoch": 5, "iteration": 3, "elapsed": 1.0, "run_id": "r"}
            row["data"] = {
                "train.total_ips": 5.0,
                "val.top1": 50.0,
                "text": "t",
                "level": "warning",
            }
            rows.append(json.dumps({**row, name: "@"}).replace('"@"', value))
        for name in ("train.total_ips", "train.lr", "train.loss", "val.top1", "train.data_wait",
                     "processes", "optimizer_batch_size", "environment", "amp_type", "evaluate",
                     "text", "level"):  # fmt: skip
            data = {"environment": {"versions": {}}, "train.total_ips": 4.0, name: "@"}
            row = {"type": kind, "epoch": 6, "iteration": 3, "elapsed": 2.0, "data": data}
            rows.append(json.dumps(row).replace('"@"', value))
        for name in ("versions", "device", "device_memory"):
            row = {"type": kind, "data": {"environment": {name: "@"}}, "epoch": 7}
            rows.append(json.dumps(row).replace('"@"', value))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write("\n".join(rows) + "\n")
    for name in ("group", "epoch", "top1", "classes", "confusion"):
        text = json.dumps({**ANSWERS, name: "@"}).replace('"@"', value)
        (folder / "confusion.json").write_text(text)
        read_run(folder)
    assert report.main([str(folder)]) == 0
    case = ["--case", "c", "--output", str(folder), "--seconds", "1"]
    assert report.main([str(folder), *case]) == 0


def test_the_table_is_safe_to_print(tmp_path: Path, capsys) -> None:
    evil = {**SETTINGS, "amp_type": "\x1b]0;pwn\x07 | x\nnew line"}
    report.main([str(write_log(tmp_path, [("parameter", None, evil)])), "--no-html"])
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 3 and "\x1b" not in shown and "\x07" not in shown
    assert {line.count("|") for line in shown.splitlines()} == {8}


def test_epochs_that_a_later_start_gave_up_do_not_count(folder: Path) -> None:
    with open(folder / "metrics.jsonl", "a") as log:
        log.write(train_row(1, 1, 90.0, "third", 2.0) + "\n")
    assert sorted(read_run(folder).epochs) == [0]


def test_very_many_warnings(folder: Path, capsys) -> None:
    with open(folder / "metrics.jsonl", "a") as log:
        for number in range(30_000):
            data = {"level": "warning", "text": f"warning {number}"}
            log.write(json.dumps({"type": "message", "data": data}) + "\n")
    page = make_page(capsys, folder)
    assert "warning 199" in page.words and "warning 200\n" not in page.words
    assert "and 29800 more, in metrics.jsonl" in page.words


def test_every_identifier_of_the_page_is_its_own(folder: Path, capsys) -> None:
    make_page(capsys, folder)
    identifiers = re.findall(r'\bid="([^"]+)"', (folder / "report.html").read_text())
    assert len(identifiers) > 50 and len(set(identifiers)) == len(identifiers)
