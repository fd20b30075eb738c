# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The log of a run: its files, standard output, and what may go wrong with them."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from image_classification.errors import UsageError
from image_classification.logger import VERBOSE, Logger, create_logger, new_run_id

ROOT = Path(__file__).resolve().parents[2]
OWN_SETTINGS = ("COLUMNS", "LINES", "PYTHONUNBUFFERED")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in OWN_SETTINGS},
    "PYTHONPATH": str(ROOT),
}
TRAIN = {"train.loss": 2.5, "train.total_ips": 812.345, "train.data_time": 0.01, "train.lr": 0.256}


def make_logger(workspace: Path, **options: Any) -> Logger:
    settings: dict[str, Any] = {
        "report_file": "raport.json",
        "primary": True,
        "append": True,
        "run_id": "run",
        "terminal": False,
        "stream": io.StringIO(),
    }
    return create_logger(workspace=workspace, **(settings | options))


def report_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="ascii").splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def json_lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_second_run_appends(tmp_path: Path) -> None:
    for run_id in ("first", "second"):
        with make_logger(tmp_path, run_id=run_id) as logger:
            logger.parameters({})
            logger.log((0,), {"train.loss": 1.0})
    rows = report_rows(tmp_path / "raport.json")
    starts = [row["data"]["run_id"] for row in rows if row.get("step") == "PARAMETER"]
    assert starts == ["first", "second"]
    assert len(rows) == 6
    assert {row["run_id"] for row in json_lines(tmp_path / "metrics.jsonl")} == {"first", "second"}


def test_half_a_line_stays_alone(tmp_path: Path) -> None:
    for name in ("raport.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"half": ')
    with make_logger(tmp_path) as logger:
        logger.log((0,), {"train.loss": 1.0})
    for name in ("raport.json", "metrics.jsonl"):
        lines = (tmp_path / name).read_text().splitlines()
        assert lines[0] == '{"half": '
        assert json.loads(lines[-1].removeprefix("DLLL "))["data"] == {"train.loss": 1.0}


def test_a_fresh_run_sets_older_files_aside(tmp_path: Path) -> None:
    for _ in range(3):
        with make_logger(tmp_path, append=False) as logger:
            logger.log((0,), {"train.loss": 1.0})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *("metrics.jsonl", "metrics.jsonl.1", "metrics.jsonl.2"),
        *("raport.json", "raport.json.1", "raport.json.2"),
    ]
    assert all(len(path.read_text().splitlines()) in (1, 2) for path in tmp_path.iterdir())


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
from image_classification.logger import create_logger
logger = create_logger(workspace=pathlib.Path({str(tmp_path)!r}), report_file="raport.json",
                       primary=True, append=True, run_id="r")
for iteration in range(1, 6):
    logger.log((0, iteration), {{"train.loss": 1.0}})
logger.message("last words")
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == -9
    assert len(report_rows(tmp_path / "raport.json")) == 6
    assert len(json_lines(tmp_path / "metrics.jsonl")) == 6
    assert result.stdout.count("Iteration:") == 5
    assert result.stdout.endswith("last words\n")


# --- metrics.jsonl ------------------------------------------------------------------------------


def test_json_lines_are_valid_and_complete(tmp_path: Path) -> None:
    with make_logger(tmp_path, run_id="r7") as logger:
        logger.parameters({"lr": math.inf, "name": "\udcff", "nested": {"steps": (30, {60})}})
        logger.log((1, 10), {"train.loss": math.nan, "train.grad_norm": -math.inf})
        logger.log((1, 10, 3), {"val.top1": None})
        logger.log((1,), {"val.correct": 3})
        logger.summary({"run.duration": 1.0})
        logger.warning("two\nlines \x1b[31mred")
    rows = json_lines(tmp_path / "metrics.jsonl")
    assert [row["type"] for row in rows] == [
        *("parameter", "train", "validation", "epoch", "summary", "message")
    ]
    positions = [(row["epoch"], row["iteration"], row["validation_iteration"]) for row in rows]
    none = (None, None, None)
    assert positions == [none, (1, 10, None), (1, 10, 3), (1, None, None), none, none]
    assert rows[0]["data"] == {
        "run_id": "r7",
        "lr": "Infinity",
        "name": "\\udcff",
        "nested": {"steps": [30, [60]]},
    }
    assert rows[1]["data"] == {"train.loss": "NaN", "train.grad_norm": "-Infinity"}
    assert rows[2]["data"] == {"val.top1": None}
    assert rows[4]["data"] == {"val.correct": 3, "run.duration": 1.0}
    assert rows[5]["data"] == {"level": "warning", "text": "two\nlines red"}
    for row in rows:
        assert (row["schema"], row["run_id"]) == (1, "r7")
        assert datetime.fromisoformat(row["time"]).tzinfo is not None
        assert row["elapsed"] >= 0


def test_values_must_be_numbers(tmp_path: Path) -> None:
    with make_logger(tmp_path) as logger:
        with pytest.raises(TypeError, match=r"train.loss must be a Python number.*Tensor"):
            logger.log((0,), {"train.loss": torch.tensor(1.0)})  # type: ignore[dict-item]
        logger.log((0,), {"val.seen": np.int64(7), "val.loss": np.float32(0.5), "x": np.float64(2)})
        with pytest.raises(ValueError, match="up to three numbers"):
            logger.log((0, 1, 2, 3), {})
    (row,) = json_lines(tmp_path / "metrics.jsonl")
    assert row["data"] == {"val.seen": 7, "val.loss": 0.5, "x": 2.0}


def test_summary_covers_all_epochs(tmp_path: Path) -> None:
    with make_logger(tmp_path) as logger:
        for epoch, (loss, top1) in enumerate([(3.0, 10.0), (1.0, 30.0), (2.0, 20.0)]):
            logger.log((epoch,), {"train.loss": loss})
            logger.log((epoch,), {"val.top1": top1})
        logger.summary()
    assert json_lines(tmp_path / "metrics.jsonl")[-1]["data"] == {"train.loss": 1, "val.top1": 30}


# --- standard output that is no terminal ---------------------------------------------------------


def test_a_pipe_gets_dll_lines_and_texts(tmp_path: Path) -> None:
    stream = io.StringIO()
    with make_logger(tmp_path, stream=stream, terminal=None) as logger:
        logger.message("hello \x1b]0;title\x07world")
        logger.log((0, 10), TRAIN)
        logger.progress("train", 0, 1, 10, 20, {"loss": "2.5"})
        logger.log((0, 20), {"train.loss": 1.0}, VERBOSE)
        logger.warning("careful")
        logger.log((0,), TRAIN)
    lines = stream.getvalue().splitlines()
    now = r"DLL \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} - "
    assert lines[0] == "hello world"
    assert re.fullmatch(
        now + r"Epoch: 0 Iteration: 10  train\.loss : 2\.50000 None"
        r" train\.total_ips : 812\.3[45] images/s train\.lr : 0\.256 ",
        lines[1],
    )
    assert lines[2] == "Warning: careful"
    assert re.fullmatch(now + r"Epoch: 0  .* train\.data_time : 0\.01000 s .*", lines[3])
    assert len(lines) == 4


def test_an_ascii_stream_gets_escapes(tmp_path: Path) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with make_logger(tmp_path, stream=stream) as logger:
        logger.parameters({"data": "/caf\xe9"})
        logger.message("\xb5 \udc80")
    assert b"data : /caf\\xe9" in raw.getvalue()
    assert raw.getvalue().endswith(b"\\xb5 \\udc80\n")


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys
from image_classification.logger import create_logger
with create_logger(workspace=pathlib.Path({str(tmp_path)!r}), report_file="raport.json",
                   primary=True, append=True, run_id="r") as logger:
    sys.stdin.readline()
    for epoch in range(3):
        logger.log((epoch,), {{"train.loss": 1.0}})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        **dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE),
        env=ENVIRONMENT,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()
    rows = json_lines(tmp_path / "metrics.jsonl")
    assert [row["type"] for row in rows].count("epoch") == 3
    assert any("standard output is gone" in str(row["data"].get("text")) for row in rows)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "raport.json").symlink_to("/dev/full")
    stream = io.StringIO()
    with make_logger(tmp_path, stream=stream) as logger:
        for epoch in range(3):
            logger.log((epoch,), {"train.loss": 1.0})
    assert stream.getvalue().count("Warning: a log file cannot be written") == 1
    assert stream.getvalue().count("Epoch: ") == 3
    types_ = [row["type"] for row in json_lines(tmp_path / "metrics.jsonl")]
    assert types_.count("epoch") == 3


# --- silence, strings, errors --------------------------------------------------------------------


def test_other_ranks_are_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_logger(tmp_path / "w", primary=False, terminal=True, tensorboard=True) as logger:
        logger.parameters({"a": 1})
        logger.log((0,), {"train.loss": 1.0})
        logger.summary({"run.duration": 1.0})
        logger.message("text")
        logger.warning("text")
        logger.progress("train", 0, 1, 1, 1, {})
        assert not logger.enabled
    assert not (tmp_path / "w").exists()
    assert capsys.readouterr() == ("", "")


def test_a_closed_logger_is_silent(tmp_path: Path) -> None:
    stream = io.StringIO()
    logger = make_logger(tmp_path, stream=stream)
    assert logger.enabled
    logger.close()
    logger.close()
    logger.log((0,), {"train.loss": 1.0})
    logger.message("text")
    assert stream.getvalue() == ""


def test_run_ids_differ_and_are_file_names() -> None:
    names = {new_run_id() for _ in range(50)}
    assert len(names) == 50
    assert all(re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", name) for name in names)


def test_an_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written to .*--workspace"):
        make_logger(tmp_path / "file")
    for name in ("metrics.jsonl", "", "."):
        with pytest.raises(UsageError, match="--raport-file"):
            make_logger(tmp_path, report_file=name)


def test_an_absolute_report_path_wins(tmp_path: Path) -> None:
    with make_logger(tmp_path / "w", report_file=str(tmp_path / "logs" / "r.json")) as logger:
        logger.log((0,), {"train.loss": 1.0})
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
        *("metrics.jsonl", "r.json")
    ]


# --- optional packages --------------------------------------------------------------------------


def test_missing_tensorboard_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        make_logger(tmp_path / "w", tensorboard=True)
    assert not (tmp_path / "w").exists()


def test_tensorboard_receives_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            calls.append(("open", log_dir))

        def add_text(self, tag: str, text: str) -> None:
            calls.append((tag, json.loads(text)["arch"]))

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            calls.append((tag, value, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            calls.append(("close",))

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)  # type: ignore
    with make_logger(tmp_path, tensorboard=True) as logger:
        logger.parameters({"arch": "resnet50"})
        logger.progress("train", 2, 3, 10, 100)
        logger.progress("val", 2, 3, 1, 7)
        logger.log((2, 10), {"train.loss": 1.5})
        logger.log((2,), {"val.top1": 50.0, "val.top5": None})
    assert calls == [
        ("open", str(tmp_path / "tensorboard")),
        ("parameters", "resnet50"),
        ("iteration/train.loss", 1.5, 210),
        ("epoch/val.top1", 50.0, 2),
        ("close",),
    ]


def test_logging_needs_no_torch() -> None:
    code = "import sys, image_classification.logger as _; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT).returncode == 0
