# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The DLLL report: the lines of dllogger, with and without that package."""

from __future__ import annotations

import io
import json
import math
import sys
import time
import types
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification import dlll_log
from image_classification.dlll_log import DlllFile, DlllStream, format_step
from image_classification.logger import VERBOSE, Logger, create_logger

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


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_lines_are_written_byte_for_byte(tmp_path: Path, utc: None) -> None:
    moment = (datetime(2024, 5, 6, 7, 8, 9, 123456), 1.5)
    backend = DlllFile(tmp_path / "r")
    backend.metadata(*moment, "train.loss", {"unit": None, "format": ":.5f"})
    backend.log(*moment, (0, 100), {"train.loss": math.nan})
    backend.flush()
    assert (tmp_path / "r").read_text() == (
        'DLLL {"timestamp": "1714979289.123456", "elapsedtime": "1.5",'
        ' "datetime": "2024-05-06 07:08:09.123456+00:00", "type": "METADATA",'
        ' "metric": "train.loss", "metadata": {"unit": null, "format": ":.5f"}}\n'
        'DLLL {"timestamp": "1714979289.123456", "datetime": "2024-05-06 07:08:09.123456+00:00",'
        ' "elapsedtime": "1.5", "type": "LOG", "step": [0, 100], "data": {"train.loss": NaN}}\n'
    )
    stream = io.StringIO()
    DlllStream(stream).log(*moment, (0, 100), {"train.loss": 6.901234, "train.compute_ips": 812.34})
    assert stream.getvalue() == (
        "DLL 2024-05-06 07:08:09.123456 - Epoch: 0 Iteration: 100  "
        "train.loss : 6.90123 None train.compute_ips : 812.34 images/s\n"
    )


def test_lines_are_those_of_dllogger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dllogger = pytest.importorskip("dllogger")
    moment = (datetime(2024, 5, 6, 7, 8, 9), 0.000123)
    stream = io.StringIO()
    ours = (DlllFile(tmp_path / "ours"), DlllStream(stream))
    theirs = (
        dllogger.JSONStreamBackend(VERBOSE, str(tmp_path / "theirs"), append=True),
        dllogger.StdOutBackend(0, step_format=format_step),
    )
    metadata = {"train.loss": {"unit": None, "format": ":.5f"}, "train.lr": {}}
    for backend in (*ours, *theirs):
        for name, value in metadata.items():
            backend.metadata(*moment, name, value)
        backend.log(*moment, "PARAMETER", {"arch": "resnet50", "path": "a b", "none": None})
        for step in ((3, 20), (3, 20, 7), (3,), ()):
            backend.log(*moment, step, {"train.loss": math.inf, "train.lr": 1e-05, "x": 1})
        backend.flush()
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert stream.getvalue() == capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("PARAMETER", "PARAMETER"),
        ((0, 100), "Epoch: 0 Iteration: 100 "),
        ((2, 5, 7), "Epoch: 2 Iteration: 5 Validation Iteration: 7 "),
        ((89,), "Epoch: 89 "),
        ((), "Summary:"),
    ],
)
def test_steps_are_printed_as_nvidia_prints_them(step: Any, text: str) -> None:
    assert format_step(step) == text


def test_report_holds_parameters_metadata_and_rows(tmp_path: Path) -> None:
    with make_logger(tmp_path, run_id="r1") as logger:
        logger.parameters({"arch": "resnet50", "data": Path("/data"), "dtype": torch.bfloat16})
        logger.log((0, 10), TRAIN)
        logger.log((0, 10, 1), {"val.top1": 12.5})
        logger.log((0,), {**TRAIN, "val.top1": 12.5, "val.top3": 50})
        logger.log((), {"val.top1": 12.5})
    rows = report_rows(tmp_path / "raport.json")
    assert rows[0]["step"] == "PARAMETER"
    assert rows[0]["data"] == {
        "run_id": "r1",
        "arch": "resnet50",
        "data": "/data",
        "dtype": "torch.bfloat16",
    }
    logged = [row for row in rows[1:] if row["type"] == "LOG"]
    assert [row["step"] for row in logged] == [[0, 10], [0, 10], [0, 10, 1], [0], []]
    assert logged[0]["data"] == {name: TRAIN[name] for name in TRAIN if name != "train.data_time"}
    assert logged[1]["data"] == {"train.data_time": 0.01}
    declared: dict[str, Any] = {}
    for row in rows[1:]:
        if row["type"] == "METADATA":
            assert row["metric"] not in declared
            declared[row["metric"]] = row["metadata"]
        else:
            assert set(row["data"]) <= set(declared)
    assert declared["train.loss"] == {"unit": None, "format": ":.5f"}
    assert declared["train.total_ips"] == {"unit": "images/s", "format": ":.2f"}
    assert declared["val.top3"] == {"unit": "%", "format": ":.2f"}
    assert declared["train.lr"] == {}
    for row in rows:
        assert float(row["elapsedtime"]) >= 0
        zoned = datetime.fromisoformat(row["datetime"])
        assert zoned.timestamp() == pytest.approx(float(row["timestamp"]))


def fake_dllogger(with_append: bool) -> types.ModuleType:
    module = types.ModuleType("dllogger")

    class Appending(DlllFile):
        def __init__(self, verbosity: int, filename: str, append: bool = False) -> None:
            assert append
            super().__init__(Path(filename + ".theirs"))

    class Truncating(DlllFile):
        def __init__(self, verbosity: int, filename: str) -> None:
            raise AssertionError("would destroy the earlier report")

    class StdOut:
        def __init__(self, verbosity: int, step_format: Any, metric_format: Any) -> None:
            self.verbosity, self._step, self._metric = verbosity, step_format, metric_format

        def metadata(self, *arguments: Any) -> None: ...

        def log(self, timestamp: Any, elapsed: float, step: Any, data: dict[str, Any]) -> None:
            metrics = [self._metric(name, {}, value) for name, value in data.items()]
            sys.stdout.write(f"theirs {self._step(step)}{metrics}\n")

        def flush(self) -> None: ...

    module.JSONStreamBackend = Appending if with_append else Truncating  # type: ignore
    module.StdOutBackend = StdOut  # type: ignore
    return module


def test_dllogger_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "dllogger", fake_dllogger(with_append=True))
    with make_logger(tmp_path, stream=None) as logger:
        logger.log((0, 1), {"train.loss": 1.0, "train.data_time": 0.5})
    assert len(report_rows(tmp_path / "raport.json.theirs")) == 4
    assert capsys.readouterr().out == "theirs Epoch: 0 Iteration: 1 ['train.loss : 1.00000 None']\n"


def test_a_dllogger_that_cannot_append_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dllogger", fake_dllogger(with_append=False))
    with make_logger(tmp_path, stream=None) as logger:
        logger.log((0,), {"train.loss": 1.0})
    assert len(report_rows(tmp_path / "raport.json")) == 2
    assert dlll_log._dllogger() is None
