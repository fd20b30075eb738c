# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The DLLL report and the DLL lines: those of NVIDIA's dllogger 1.1, byte for byte.

That package writes them where it is installed; the two backends here write the same elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from image_classification.metric_names import (
    DEFAULT,
    METRICS,
    VERBOSE,
    format_metric,
    metric_spec,
)
from image_classification.progress import encodable, encoding_of, sanitize

#: "PARAMETER", or (epoch, iteration, validation iteration) without what does not apply.
Step = str | tuple[int, ...]

#: What a progress bar shows: name -> text, or metric -> number; None: what it showed before.
Fields = Mapping[str, str | float | None] | None

_STEP_NAMES = ("Epoch", "Iteration", "Validation Iteration")


class Moment(NamedTuple):
    """When something was logged."""

    timestamp: datetime  # local time, naive
    elapsed: float  # s since the logger was made


def format_step(step: Step) -> str:
    """Write a step as NVIDIA's lines do: `Epoch: 0 Iteration: 100 `, `Summary:`, `PARAMETER`."""
    if isinstance(step, str):
        return step
    if not step:
        return "Summary:"
    return "".join(f"{name}: {number} " for name, number in zip(_STEP_NAMES, step, strict=False))


class Sink:
    """A place where rows go. What a sink has no use for, it leaves out."""

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Take a row."""

    def message(self, moment: Moment, level: str, text: str) -> None:
        """Take a text; `level` is "info" or "warning"."""

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Take a document, which stands for the earlier ones of its name."""

    def progress(
        self, phase: str, epoch: int, epochs: int, step: int, num_steps: int, fields: Fields
    ) -> None:
        """Take note of a step done."""

    def close(self) -> None:
        """Write what is pending and let go of files."""


class DlllFile:
    """Backend: appends `DLLL {json}` lines to a file.

    Args:
        path: the file.
    """

    verbosity = VERBOSE

    def __init__(self, path: Path) -> None:
        self.file = open(path, "a", encoding="utf-8")

    def metadata(
        self, timestamp: datetime, elapsedtime: float, metric: str, metadata: Mapping[str, Any]
    ) -> None:
        """Write a METADATA row."""
        # The two kinds of rows have their time stamps in different order.
        self._write(
            timestamp=str(timestamp.timestamp()),
            elapsedtime=str(elapsedtime),
            datetime=str(timestamp.astimezone()),
            type="METADATA",
            metric=metric,
            metadata=metadata,
        )

    def log(
        self, timestamp: datetime, elapsedtime: float, step: Step, data: Mapping[str, Any]
    ) -> None:
        """Write a LOG row."""
        self._write(
            timestamp=str(timestamp.timestamp()),
            datetime=str(timestamp.astimezone()),
            elapsedtime=str(elapsedtime),
            type="LOG",
            step=step,
            data=data,
        )

    def flush(self) -> None:
        """Hand all lines to the operating system."""
        self.file.flush()

    def _write(self, **row: Any) -> None:
        self.file.write(f"DLLL {json.dumps(row)}\n")


class DlllStream:
    """Backend: writes `DLL <time> - <step> <metrics>` lines to a stream.

    Args:
        stream: standard output, or what stands for it.
    """

    verbosity = DEFAULT

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def metadata(
        self, timestamp: datetime, elapsedtime: float, metric: str, metadata: Mapping[str, Any]
    ) -> None:
        """Nothing to write: units are part of the lines."""

    def log(
        self, timestamp: datetime, elapsedtime: float, step: Step, data: Mapping[str, Any]
    ) -> None:
        """Write one line."""
        encoding = encoding_of(self._stream)
        metrics = " ".join(
            _printed_metric(encoding, name, {}, value) for name, value in data.items()
        )
        self._stream.write(f"DLL {timestamp} - {format_step(step)} {metrics}\n")

    def flush(self) -> None:
        """Hand all lines to the operating system."""
        self._stream.flush()


def _printed_metric(encoding: str, name: str, metadata: Mapping[str, Any], value: object) -> str:
    # The last three are what dllogger's `metric_format` receives; METRICS knows unit and format.
    return encodable(sanitize(format_metric(name, value)), encoding)


class DlllSink(Sink):
    """Feeds a backend: declares metrics before their first row, splits rows by verbosity.

    Args:
        backend: one of the two above, or dllogger's class of that purpose.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._declared: set[str] = set()

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Write a row, one of an iteration as up to two: what is printed too, and the rest."""
        if not isinstance(step, str):
            for name in data:
                self._declare(moment, name)
        is_iteration = not isinstance(step, str) and len(step) > 1
        for level in (DEFAULT, VERBOSE):
            row = {
                name: value
                for name, value in data.items()
                if level == max(verbosity, metric_spec(name).verbosity if is_iteration else DEFAULT)
            }
            if row and self._backend.verbosity >= level:
                self._backend.log(*moment, step, row)
        self._backend.flush()

    def close(self) -> None:
        """Close the file."""
        file = getattr(self._backend, "file", None)  # of both file backends, ours and dllogger's
        if file is not None:
            file.close()

    def _declare(self, moment: Moment, name: str) -> None:
        if name not in self._declared and (name in METRICS or metric_spec(name).metadata):
            self._backend.metadata(*moment, name, metric_spec(name).metadata)
        self._declared.add(name)


class StdoutSink(DlllSink):
    """Standard output that is no terminal: DLL lines and plain texts.

    Args:
        backend: writes the lines.
        stream: takes the texts.
    """

    def __init__(self, backend: Any, stream: TextIO) -> None:
        super().__init__(backend)
        self.stream = stream

    def log(self, moment: Moment, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        """Write a row at once: the one who follows a pipe sees it."""
        super().log(moment, step, data, verbosity)
        self.stream.flush()

    def message(self, moment: Moment, level: str, text: str) -> None:
        """Write a text."""
        line = encodable(printed_message(level, text), encoding_of(self.stream))
        self.stream.write(f"{line}\n")
        self.stream.flush()

    def close(self) -> None:
        """Flush; the stream stays open, it belongs to the process."""
        self.stream.flush()


def printed_message(level: str, text: str) -> str:
    """Write a text as people see it."""
    text = sanitize(text, multiline=True)
    return f"Warning: {text}" if level == "warning" else text


def dlll_sinks(report: Path, stream: TextIO | None) -> list[Sink]:
    """Make the sinks of the DLLL report and, with a stream, of the DLL lines.

    Args:
        report: the file of DLLL lines; opened to append.
        stream: standard output that is no terminal, or None for no lines.

    Returns:
        The sinks; dllogger's backends are inside where that package is installed.
    """
    dllogger = _dllogger()
    if dllogger is not None:
        sinks: list[Sink] = [
            DlllSink(dllogger.JSONStreamBackend(VERBOSE, str(report), append=True))
        ]
    else:
        sinks = [DlllSink(DlllFile(report))]
    if stream is None:
        return sinks
    if dllogger is not None and stream is sys.stdout:  # its backend prints, it takes no stream
        metric_format = functools.partial(_printed_metric, encoding_of(stream))
        backend = dllogger.StdOutBackend(
            DEFAULT, step_format=format_step, metric_format=metric_format
        )
    else:
        backend = DlllStream(stream)
    return [*sinks, StdoutSink(backend, stream)]


def _dllogger() -> Any:
    """Return the dllogger module if it is there and can append."""
    try:
        module = importlib.import_module("dllogger")
        can_append = "append" in inspect.signature(module.JSONStreamBackend).parameters
        return module if can_append and hasattr(module, "StdOutBackend") else None
    except (ImportError, AttributeError):
        return None
