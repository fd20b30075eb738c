# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Where log rows go beside the DLLL report: the terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from image_classification.atomic_file import atomic_file
from image_classification.dlll_log import Fields, Moment, Sink, Step, printed_message
from image_classification.errors import UsageError
from image_classification.metric_names import METRICS, metric_spec
from image_classification.progress import ProgressBar, sanitize

#: Version of the layout of metrics.jsonl; it changes when a reader has to change.
JSONL_SCHEMA = 1

_ROW_TYPES = {0: "summary", 1: "epoch", 2: "train", 3: "validation"}


class TerminalSink(Sink):
    """A terminal: a bar for what is under way, one line per epoch and for the run.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._bar = ProgressBar(stream)
        self._epochs = 0
        self._shown: tuple[str, list[str]] = ("", [])

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Print the row of an epoch or of the run as one short line."""
        if isinstance(step, str) or len(step) > 1:
            return
        parts = [_human(metric_spec(name).human, data[name]) for name in _in_order(data)]
        if any(parts):
            title = self._epoch_title(step[0]) if step else "Best values"
            self._bar.write_parts(title, [part for part in parts if part])

    def message(self, moment: Moment, level: str, text: str) -> None:
        """Print a text above the bar."""
        self._bar.write_lines(printed_message(level, text))

    def progress(
        self, phase: str, epoch: int, epochs: int, step: int, num_steps: int, fields: Fields
    ) -> None:
        """Move the bar."""
        self._epochs = epochs
        title = f"{self._epoch_title(epoch)} {phase}"
        if fields is not None:
            parts = [_shown_field(name, fields[name]) for name in _in_order(fields)]
            self._shown = (title, [part for part in parts if part])
        parts = self._shown[1] if self._shown[0] == title else []
        self._bar.update(title, f"{epoch + 1}/{epochs} {phase}", step, num_steps, parts)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.clear()

    def _epoch_title(self, epoch: int) -> str:
        # People count from 1; the files count from 0, as NVIDIA's do.
        total = f"/{self._epochs}" if self._epochs else ""
        return f"Epoch {epoch + 1:>{len(total) - 1 if total else 1}}{total}"


def _in_order(names: Iterable[str]) -> list[str]:
    """Bring declared metrics into the order of METRICS, behind what is not declared."""
    order = {name: place for place, name in enumerate(METRICS)}
    return sorted(names, key=lambda name: order.get(name, -1))


def _human(template: str, value: object) -> str:
    return "" if not template or value is None else template.format(value)


def _shown_field(name: str, value: str | float | None) -> str:
    if isinstance(value, str):
        return sanitize(f"{name} {value}" if name else value)
    return _human(metric_spec(name).bar, value)


class JsonlSink(Sink):
    """Appends one valid JSON object per line: rows and texts, each with run and time.

    The keys are schema, run_id, time (ISO 8601 with zone), elapsed (s), type, epoch, iteration,
    validation_iteration (null where they do not apply) and data. NaN and the infinities, which
    JSON lacks, are the strings "NaN", "Infinity", "-Infinity"; null means: not measured.

    Args:
        path: the file.
        run_id: names the start of the program that wrote a line.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self._file = open(path, "a", encoding="utf-8")
        self._folder = path.parent
        self._run_id = run_id

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Write a row, whatever its verbosity."""
        if isinstance(step, str):
            self._write(moment, "parameter", (), data)
        else:
            self._write(moment, _ROW_TYPES[len(step)], step, data)

    def message(self, moment: Moment, level: str, text: str) -> None:
        """Write a text as data.level and data.text."""
        self._write(moment, "message", (), {"level": level, "text": sanitize(text, multiline=True)})

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file beside this one; it replaces an earlier one as a whole."""
        with atomic_file(self._folder / name) as file:
            file.write(json.dumps(_strict(content), allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(
        self, moment: Moment, kind: str, position: tuple[int, ...], data: Mapping[str, Any]
    ) -> None:
        epoch, iteration, validation_iteration = (*position, None, None, None)[:3]
        row = {
            "schema": JSONL_SCHEMA,
            "run_id": self._run_id,
            "time": moment.timestamp.astimezone().isoformat(),
            "elapsed": round(moment.elapsed, 6),
            "type": kind,
            "epoch": epoch,
            "iteration": iteration,
            "validation_iteration": validation_iteration,
            "data": _strict(data),
        }
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()


def _strict(value: Any) -> Any:
    """Replace what strict JSON readers refuse: NaN, infinities, lone surrogates."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value


class TensorBoardSink(Sink):
    """Scalars for TensorBoard: iterations over training steps, epochs over epochs.

    Args:
        folder: where the event files go; each start adds one.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            tensorboard = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise UsageError(
                f"--tensorboard needs the tensorboard package, which cannot be imported ({error}); "
                "install it: pip install tensorboard"
            ) from error
        self._writer = tensorboard.SummaryWriter(log_dir=str(folder))
        self._steps_per_epoch = 0

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Write training iterations, epochs and parameters."""
        if isinstance(step, str):
            self._writer.add_text("parameters", json.dumps(data, indent=2, default=str))
        elif len(step) in (1, 2):
            group = "epoch" if len(step) == 1 else "iteration"
            position = step[0] * self._steps_per_epoch + step[1] if len(step) == 2 else step[0]
            for name, value in data.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{group}/{name}", value, position)
            self._writer.flush()

    def progress(
        self, phase: str, epoch: int, epochs: int, step: int, num_steps: int, fields: Fields
    ) -> None:
        """Learn how many steps an epoch has."""
        if phase == "train":
            self._steps_per_epoch = num_steps

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
