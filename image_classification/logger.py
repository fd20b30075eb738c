# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The log of a run: one object that receives rows, texts and progress, and feeds all sinks.

It receives Python numbers only and never touches the device. Files are opened to append and
handed to the operating system after every row, so a kill loses nothing and a resumed run goes
on in the same files.
"""

from __future__ import annotations

import contextlib
import numbers
import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from image_classification.dlll_log import Moment, Sink, Step, dlll_sinks
from image_classification.errors import UsageError
from image_classification.log_sinks import JsonlSink, TensorBoardSink, TerminalSink
from image_classification.metric_names import (
    DEFAULT,
    METRICS,
    VERBOSE,
    MetricSpec,
    metric_spec,
    summarize,
)
from image_classification.progress import sanitize
from image_classification.run_files import METRICS_NAME

__all__ = [
    "DEFAULT",
    "METRICS",
    "VERBOSE",
    "Logger",
    "MetricSpec",
    "create_logger",
    "metric_spec",
    "new_run_id",
    "sanitize",
    "summarize",
]

TENSORBOARD_NAME = "tensorboard"


class Logger:
    """Receives what a run has to say and hands it to its sinks; without sinks it is silent.

    A sink that fails never ends the run: a full disk is reported once and tried again with the
    next row, a standard output that is gone is left alone.

    Args:
        sinks: where rows and texts go; none on ranks that do not report.
        run_id: names this start of the program.
    """

    def __init__(self, sinks: Sequence[Sink] = (), run_id: str = "") -> None:
        self.run_id = run_id
        self._sinks = list(sinks)
        self._failed: set[Sink] = set()
        self._epoch_rows: dict[int, dict[str, Any]] = {}
        self._started = time.perf_counter()
        self._used = False
        self._lock = threading.RLock()

    @property
    def enabled(self) -> bool:
        """Whether anything is written; what only feeds the log need not be computed else."""
        return bool(self._sinks)

    def parameters(self, config: Mapping[str, Any]) -> None:
        """Write the PARAMETER row that every start of the program has.

        Args:
            config: option -> value; what JSON lacks is written as text. `run_id` is added.
        """
        self._row("PARAMETER", {"run_id": self.run_id, **_plain_parameters(config)}, DEFAULT)

    def log(
        self, step: Step, data: Mapping[str, float | int | None], verbosity: int = DEFAULT
    ) -> None:
        """Write a row of metrics.

        Args:
            step: (epoch, iteration) for training, (epoch, iteration, validation iteration),
                (epoch,) for the summary of an epoch, () for that of the run, or "PARAMETER".
                Epochs count from 0, iterations from 1.
            data: metric -> value in the unit that METRICS declares; None: not measured.
            verbosity: VERBOSE keeps the row out of standard output. In rows of an iteration,
                metrics declared as VERBOSE stay out of it anyway.

        Raises:
            TypeError: a value is no Python number; reading a device value is left to the
                caller, who knows where the host may wait.
            ValueError: the step has none of the forms above.
        """
        if not self._sinks:
            return
        if step == "PARAMETER":
            self.parameters(data)
            return
        if isinstance(step, str) or len(step) > 3:
            raise ValueError(f'step must be "PARAMETER" or up to three numbers; received {step!r}')
        row = {name: _plain_number(name, value) for name, value in data.items()}
        if len(step) == 1:
            self._epoch_rows.setdefault(step[0], {}).update(row)
        self._row(tuple(int(number) for number in step), row, verbosity)

    def summary(self, extra: Mapping[str, float | int | None] | None = None) -> None:
        """Write the row of the run: the lowest loss, the highest accuracy, the mean rate, ...

        It sums up the epochs that this process has logged; see `metric_names.aggregate`.

        Args:
            extra: metrics of the run itself, as run.duration.
        """
        self.log((), {**summarize(self._epoch_rows.values()), **(extra or {})})

    def message(self, *lines: str) -> None:
        """Tell something: standard output and metrics.jsonl. Terminal escapes are removed."""
        for line in lines:
            self._each("message", "info", line)

    def warning(self, *lines: str) -> None:
        """Tell of something that needs attention; each line is printed behind `Warning:`."""
        for line in lines:
            self._each("message", "warning", line)

    def document(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file beside metrics.jsonl, in the place of an earlier one.

        Args:
            name: name of the file.
            content: JSON types.
        """
        for sink in list(self._sinks):
            self._call(sink, "document", name, content)

    def progress(
        self,
        phase: str,
        epoch: int,
        epochs: int,
        step: int,
        num_steps: int,
        fields: Mapping[str, str | float | None] | None = None,
    ) -> None:
        """Move the bar on a terminal; cheap enough to be called after every step.

        Args:
            phase: "train" or "val".
            epoch: epoch, from 0.
            epochs: epochs in all.
            step: steps done in this phase, 1..num_steps.
            num_steps: steps of this phase.
            fields: what to show, the most important first: name -> text shown as "name text"
                (an empty name shows the text alone), or metric -> number. None shows the
                fields of the last call, for steps after which no value was read.
        """
        for sink in list(self._sinks):
            self._call(sink, "progress", phase, epoch, epochs, step, num_steps, fields)

    def close(self) -> None:
        """Leave a clean terminal and closed files; later calls do nothing."""
        with self._lock:
            sinks, self._sinks = self._sinks, []
            for sink in sinks:
                self._call(sink, "close")

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._record(error)
        self.close()

    def _record(self, error: BaseException) -> None:
        """Leave the reason of the end in the file; the terminal gets it from whoever catches it."""
        files = [sink for sink in self._sinks if isinstance(sink, JsonlSink)]
        if self._used:
            with self._lock:
                for sink in files:
                    text = str(error) or type(error).__name__
                    self._call(sink, "message", self._moment(), "error", text)

    def _moment(self) -> Moment:
        return Moment(datetime.now(), round(time.perf_counter() - self._started, 6))

    def _row(self, step: Step, data: Mapping[str, Any], verbosity: int) -> None:
        self._each("log", step, data, verbosity)

    def _each(self, method: str, *arguments: Any) -> None:
        with self._lock:
            self._used, moment = True, self._moment()
            for sink in list(self._sinks):
                self._call(sink, method, moment, *arguments)

    def _call(self, sink: Sink, method: str, *arguments: Any) -> None:
        with self._lock:
            try:
                getattr(sink, method)(*arguments)
            except OSError as error:
                self._report_failure(sink, error)

    def _report_failure(self, sink: Sink, error: OSError) -> None:
        stream = getattr(sink, "stream", None)
        if stream is not None and sink in self._sinks:
            self._sinks.remove(sink)
            _abandon(stream)
        if sink not in self._failed:
            self._failed.add(sink)
            what = "a log file cannot be written" if stream is None else "standard output is gone"
            self.warning(f"{what} ({error}); the run goes on")


def _abandon(stream: TextIO) -> None:
    # What is still in the buffer of a broken pipe would make the interpreter's exit fail.
    if stream is sys.stdout:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def _plain_number(name: str, value: object) -> float | int | None:
    if value is None or isinstance(value, (bool, int, float)):
        # float() of NumPy's float64, which is a float, prints as one.
        return float(value) if isinstance(value, float) else value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"{name} must be a Python number or None; received {type(value).__name__}. "
        "Read device values first, where the host may wait"
    )


def _plain_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): _plain_parameter(value) for name, value in config.items()}


def _plain_parameter(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return _plain_parameters(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [_plain_parameter(item) for item in items]
    return str(value)


def new_run_id() -> str:
    """Name a start of the program: local time and a random part, fit for a file name."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def create_logger(
    *,
    workspace: Path,
    report_file: str,
    primary: bool,
    append: bool,
    run_id: str,
    terminal: bool | None = None,
    tensorboard: bool = False,
    stream: TextIO | None = None,
) -> Logger:
    """Open the log of a run.

    Args:
        workspace: folder of the run; made if it is missing.
        report_file: name of the DLLL report in the workspace, beside metrics.jsonl.
        primary: whether this process reports; all others get a silent logger.
        append: go on in the files that are there; otherwise they are renamed to `<name>.1`,
            `.2`, ... and new ones begin. Nothing is ever overwritten.
        run_id: names this start of the program, see `new_run_id`.
        terminal: progress bar and short lines instead of DLL lines; None: as the stream is.
        tensorboard: also write event files, to `<workspace>/tensorboard`.
        stream: standard output, if it is not sys.stdout.

    Returns:
        The logger; use it as a context manager, so that the terminal is left clean.

    Raises:
        UsageError: the files cannot be written, or TensorBoard is not installed.
    """
    if not primary:
        return Logger(run_id=run_id)
    stream = stream or sys.stdout
    terminal = stream.isatty() if terminal is None else terminal
    report = workspace / report_file
    jsonl = report.with_name(METRICS_NAME)
    if report.name in ("", METRICS_NAME) or report.is_dir():
        raise UsageError(
            f"--raport-file must name a file other than {METRICS_NAME} and no folder; "
            f"received {report_file!r}"
        )
    sinks: list[Sink] = []
    try:
        if tensorboard:
            sinks.append(TensorBoardSink(workspace / TENSORBOARD_NAME))
        report.parent.mkdir(parents=True, exist_ok=True)
        _prepare((report, jsonl), append)
        sinks += dlll_sinks(report, None if terminal else stream)
        sinks.append(JsonlSink(jsonl, run_id))
    except BaseException as error:
        Logger(sinks).close()
        if isinstance(error, OSError):
            raise UsageError(
                f"the log cannot be written to {sanitize(str(report.parent))} "
                f"({error.strerror}); choose another --workspace"
            ) from error
        raise
    if terminal:
        sinks.append(TerminalSink(stream))
    return Logger(sinks, run_id)


def terminal_logger(primary: bool) -> Logger:
    """Returns a logger that writes no files; all but the primary process are silent."""
    return Logger([TerminalSink(sys.stdout)] if primary else [])


def _prepare(paths: Sequence[Path], append: bool) -> None:
    """Make sure that what is appended starts on a new line, of a new file where wanted."""
    if append:
        for path in paths:
            _end_line(path)
        return
    number = 1
    while any(_aside(path, number).exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            path.rename(_aside(path, number))


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _end_line(path: Path) -> None:
    # A machine that lost power may have left half a line behind.
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
