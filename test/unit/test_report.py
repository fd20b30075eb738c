# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and result blocks from logs of runs."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from image_classification import report

SETTINGS = {
    "processes": 8, "device_type": "npu", "amp_type": "float16", "torch": "2.4.1+cpu",
    "optimizer_batch_size": 128,
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
    other = write_log(tmp_path / "new", [("parameter", None, {"torch": "2.9.0"})])
    assert report.main([str(folder), str(other)]) == 0
    header, rule, first, second = capsys.readouterr().out.splitlines()
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
    assert report.read_run(write_log(tmp_path, rows)).top1 == 7.0


def test_a_log_that_was_cut_off(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"type": "epoch", "epo\n[]\nnull\n')
    assert len(report.read_run(folder).epochs) == 2


def test_no_log_is_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    assert report.main([str(tmp_path / "none")]) == 3
    assert "give the folder of a run" in capsys.readouterr().err
    assert report.main([str(folder), "--case", "x"]) == 2
    assert "--case needs one RUN_DIR" in capsys.readouterr().err
