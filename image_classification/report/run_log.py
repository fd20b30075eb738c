# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Reads what a run has left in its folder. Logs may be cut off, and come from anywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from image_classification.confusion import Confusion, class_report
from image_classification.errors import DataError, printable
from image_classification.run_files import CONFUSION_NAME, EVALUATION_NAME, METRICS_NAME

#: Metric -> value; NaN and the infinities are floats again.
Metrics = dict[str, float]

_LARGEST = 2**53  # numbers up to here are exact in every reader of JSON
_NOT_FINITE = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class TrainRow(NamedTuple):
    """A log line within an epoch.

    Attributes:
        epoch: From 0.
        iteration: From 1.
        seconds: Time that all starts of the run had taken by then.
        metrics: Values since the line before.
    """

    epoch: int
    iteration: int
    seconds: float
    metrics: Metrics


@dataclass(frozen=True)
class Answers:
    """The answers of one validation, from confusion.json.

    Attributes:
        epoch: Epoch from 0, None for an evaluation.
        averaged: Whether the averaged weights (EMA) gave them.
        classes: Name of each class.
        confusion: Which classes were taken for which.
    """

    epoch: int | None
    averaged: bool
    classes: list[str]
    confusion: Confusion


@dataclass
class RunLog:
    """A run: the settings of its last start, the metrics of all starts.

    Attributes:
        name: The folder, as it was given.
        parameters: Its settings.
        epochs: Metrics of each epoch by its number; an epoch that was repeated counts as repeated.
        epoch_seconds: Time that all starts of the run had taken by the end of each epoch.
        train: The log lines within epochs, in order; lines that were repeated count as repeated.
        summary: The last row of the run itself: of an evaluation all there is.
        warnings: What the runs warned of.
        seconds: Time that all starts took together.
        answers: Those of the best validation (or of the evaluation), None where there are none.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    epochs: dict[int, Metrics] = field(default_factory=dict)
    epoch_seconds: dict[int, float] = field(default_factory=dict)
    train: list[TrainRow] = field(default_factory=list)
    summary: Metrics = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    answers: Answers | None = None

    @property
    def environment(self) -> dict[str, Any]:
        """Machine and software of the last start."""
        found = self.parameters.get("environment")
        return found if isinstance(found, dict) else {}

    @property
    def processes(self) -> int:
        """Number of processes, one for each device."""
        return _count(self.parameters.get("processes")) or 1

    @property
    def top1(self) -> float | None:
        """Validation top-1 (%) after the last epoch, of the average where there is one."""
        return _top1(self.epochs[max(self.epochs)] if self.epochs else self.summary)

    @property
    def best(self) -> tuple[float, int] | None:
        """The highest validation top-1 (%) and its epoch from 0; the average's if there is one."""
        found = [
            (top1, -epoch)
            for epoch, row in self.epochs.items()
            if (top1 := _top1(row)) is not None
        ]
        return (max(found)[0], -max(found)[1]) if found else None

    @property
    def images_per_second(self) -> float | None:
        """Training throughput over all devices: images of all epochs / their time."""
        rates = [row.get("train.total_ips", 0.0) for row in self.epochs.values()]
        rates = [rate for rate in rates if 0.0 < rate < math.inf]
        # Epochs have equal numbers of images: their harmonic mean is images / time.
        return len(rates) / sum(1.0 / rate for rate in rates) if rates else None

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last epoch."""
        return self.epochs[max(self.epochs)].get("train.loss") if self.epochs else None

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all devices."""
        return _count(self.parameters.get("optimizer_batch_size")) or 0


def _top1(row: Metrics) -> float | None:
    return row.get("val_ema.top1", row.get("val.top1"))


def read_run(folder: Path) -> RunLog:
    """Read a run's metrics.jsonl and confusion.json.

    Args:
        folder: The run's folder.

    Returns:
        What the files say. Rows that are cut off (the run was killed) are passed over.

    Raises:
        DataError: There is no log, or no run in it.
    """
    path = folder / METRICS_NAME
    found = RunLog(printable(folder))
    start, before, seen = None, 0.0, 0.0
    for row in _rows(path):
        if row["run_id"] != start:  # a new start of the program: its clock begins at 0
            start, before = row["run_id"], seen
        seen = before + row["elapsed"]
        _add(found, row, seen)
    found.seconds = seen
    if not found.parameters:
        raise DataError(f"{printable(path)} holds no run")
    name = CONFUSION_NAME if (folder / CONFUSION_NAME).exists() else EVALUATION_NAME
    try:
        found.answers = read_answers(folder / name)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        found.warnings.append(f"{name} cannot be used: {printable(str(error), 200)}")
    return found


def find_runs(folder: Path) -> list[Path]:
    """Returns the folders of runs that a folder stands for: itself, or one for each seed."""
    seeds = sorted(folder.glob(f"seed_*/{METRICS_NAME}"), key=lambda path: _seed(path.parent))
    if (folder / METRICS_NAME).exists() or not seeds:
        return [folder]
    return [path.parent for path in seeds]


def _seed(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("seed_")
    return (int(number) if number.isdecimal() else 0, number)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the log that have the parts that all rows have."""
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            f"{printable(path)} cannot be read ({error.strerror}); give the folder of a run"
        ) from error
    for line in lines:
        try:
            row = json.loads(line)
            elapsed, epoch = row.get("elapsed"), _count(row.get("epoch"))
            is_time = isinstance(elapsed, (int, float)) and 0 <= elapsed < _LARGEST
            if row["type"] in ("epoch", "train") and epoch is None:
                continue
            yield {
                "type": row["type"],
                "data": dict(row["data"]),
                "run_id": row.get("run_id"),
                "elapsed": float(elapsed) if is_time else 0.0,
                "epoch": epoch,
                "iteration": _count(row.get("iteration")) or 0,
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


def _count(value: Any) -> int | None:
    """A whole number from 0 that can be one, else None."""
    return value if type(value) is int and 0 <= value <= _LARGEST else None


def _add(found: RunLog, row: dict[str, Any], seconds: float) -> None:
    kind, data, epoch = row["type"], row["data"], row["epoch"]
    if kind == "parameter":
        # An evaluation in the folder of a training does not change what was trained.
        if not data.get("evaluate") or not found.parameters or found.parameters.get("evaluate"):
            found.parameters = data
    elif kind == "epoch":
        _forget(found, epoch + 1, 0)
        found.epochs[epoch] = _numbers(data)
        found.epoch_seconds[epoch] = seconds
    elif kind == "train":
        _forget(found, epoch, row["iteration"])
        found.train.append(TrainRow(epoch, row["iteration"], seconds, _numbers(data)))
    elif kind == "summary":
        found.summary = _numbers(data)
    elif kind == "message" and data.get("level") in ("warning", "error"):
        found.warnings.append(str(data.get("text")))


def _forget(found: RunLog, epoch: int, iteration: int) -> None:
    """Drops what lies behind the place at which a later start went on."""
    while found.train and found.train[-1][:2] >= (epoch, iteration):
        found.train.pop()
    for lost in [number for number in found.epochs if number >= epoch]:
        del found.epochs[lost]


def _numbers(data: dict[str, Any]) -> Metrics:
    values = {
        name: _NOT_FINITE.get(value) if isinstance(value, str) else value
        for name, value in data.items()
    }
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, float) or (type(value) is int and abs(value) <= _LARGEST)
    }


def class_table(folder: Path, evaluated: bool) -> str:
    """Describe how each class fared, see `confusion.class_report`.

    Args:
        folder: The run's; without the answers of a validation, the text is empty.
        evaluated: Take the answers of --evaluate, not those of the best epoch.

    Raises:
        As `read_answers`.
    """
    answers = read_answers(folder / (EVALUATION_NAME if evaluated else CONFUSION_NAME))
    if answers is None:
        return ""
    of_which = "" if answers.epoch is None else f"the best epoch, {answers.epoch}:\n"
    return of_which + class_report(answers.confusion, answers.classes)


def read_answers(path: Path) -> Answers | None:
    """Read a validation's answers, None where there is no such file.

    Raises:
        OSError: It cannot be read.
        ValueError, TypeError, KeyError, RecursionError: It holds something else.
    """
    if not path.exists():
        return None
    content = json.loads(path.read_text("utf-8"))
    classes = [str(name) for name in content["classes"]]
    epoch = content["epoch"]
    if epoch is not None and _count(epoch) is None:
        raise ValueError("its epoch is no number of one")
    return Answers(
        epoch, content["group"] == "val_ema", classes,
        Confusion.from_json(content["confusion"], len(classes)),
    )  # fmt: skip
