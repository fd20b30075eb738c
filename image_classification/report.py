# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What runs have reached, from their logs.

    python -m image_classification.report RUN_DIR...                    # a table
    python -m image_classification.report RUN_DIR --case NAME --output FOLDER --seconds S

With --case it prints the result block of the Ascend scripts and writes their key files.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.atomic_file import atomic_file
from image_classification.data_index import printable
from image_classification.errors import DataError, UsageError, UserError, tell
from image_classification.option_parser import OptionParser

COLUMNS = ("NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version", "batch_size")
_LOG = "metrics.jsonl"


@dataclass(frozen=True)
class RunLog:
    """The last start of a run, and the epochs of all its starts.

    Attributes:
        parameters: Its settings.
        epochs: Metrics of each epoch, in order; an epoch that was repeated counts as repeated.
        train: Metrics of the log lines within epochs.
    """

    parameters: dict[str, Any]
    epochs: list[dict[str, Any]]
    train: list[dict[str, Any]]

    @property
    def top1(self) -> float | None:
        """Validation top-1 (%) after the last epoch, of the average where there is one."""
        last = self.epochs[-1] if self.epochs else {}
        found = last.get("val_ema.top1", last.get("val.top1"))
        return None if found is None else float(found)

    @property
    def images_per_second(self) -> float | None:
        """Training throughput over all devices: images of all epochs / their time."""
        rates = [row["train.total_ips"] for row in self.epochs if row.get("train.total_ips")]
        # Epochs have equal numbers of images: their harmonic mean is images / time.
        return len(rates) / sum(1.0 / rate for rate in rates) if rates else None

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last epoch."""
        return self.epochs[-1].get("train.loss") if self.epochs else None

    @property
    def global_batch(self) -> int:
        """Images per optimizer step over all devices."""
        return int(self.parameters.get("optimizer_batch_size") or 0)


def read_run(folder: Path) -> RunLog:
    """Read a run's metrics.jsonl.

    Args:
        folder: The run's folder.

    Returns:
        What the log says. Rows that are cut off (the run was killed) are passed over.

    Raises:
        DataError: There is no log, or no run in it.
    """
    path = folder / _LOG
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            f"{printable(path)} cannot be read ({error.strerror}); give the folder of a run"
        ) from error
    kinds: dict[str, list[dict[str, Any]]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            kind, data = row["type"], dict(row["data"])
        except (ValueError, KeyError, TypeError):
            continue
        if kind == "epoch":
            epochs[int(row["epoch"])] = data
        kinds.setdefault(kind, []).append(data)
    if not kinds.get("parameter"):
        raise DataError(f"{printable(path)} holds no run")
    ordered = [epochs[number] for number in sorted(epochs)]
    return RunLog(kinds["parameter"][-1], ordered, kinds.get("train", []))


def result_table(runs: Sequence[RunLog]) -> str:
    """A Markdown table with a row for each run; "-" stands for what a run did not measure."""
    rows = [COLUMNS, *(_row(run) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join(f":{'-' * width}:" for width in widths) + "|")
    return "\n".join(lines)


def _row(run: RunLog) -> tuple[str, ...]:
    settings = run.parameters
    processes = settings.get("processes") or 1
    name = f"{processes}p-{str(settings.get('device_type', '?')).upper()}"
    precision = str(settings.get("amp_type", "-"))
    torch_version = str(settings.get("torch") or "-").partition("+")[0]
    return (
        name, _number(run.top1, 2), _number(run.images_per_second, 0), str(len(run.epochs)),
        precision, torch_version, str(run.global_batch),
    )  # fmt: skip


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def result_block(run: RunLog, seconds: float) -> str:
    """The lines that the Ascend scripts end with.

    Args:
        run: The run.
        seconds: Time from the script's start to its end.
    """
    return "\n".join([
        "------------------ Final result ------------------",
        f"Final Performance images/sec : {_number(run.images_per_second, 2)}",
        f"Final Train Accuracy : {_number(run.top1, 2)}",
        f"E2E Training Duration sec : {seconds:.0f}",
    ])  # fmt: skip


def write_case(run: RunLog, case: str, network: str, folder: Path, seconds: float) -> None:
    """Write <case>.log, and for several processes train_<case>_perf_report.log.

    Args:
        run: The run.
        case: The case's name.
        network: The network's name in it.
        folder: Existing folder for the files.
        seconds: Time from the script's start to its end.

    Raises:
        UsageError: The folder cannot be written.
    """
    rate, processes = run.images_per_second, int(run.parameters.get("processes") or 1)
    step_ms = None if not rate else run.global_batch * 1000.0 / rate
    values = {
        "Network": network, "RankSize": processes, "BatchSize": run.global_batch,
        "DeviceType": platform.machine(), "CaseName": case, "ActualFPS": _number(rate, 2),
        "TrainingTime": _number(step_ms, 2), "TrainAccuracy": _number(run.top1, 2),
        "ActualLoss": _number(run.loss, 5), "E2ETrainingTime": f"{seconds:.0f}",
    }  # fmt: skip
    _write(folder / f"{case}.log", [f"{key} = {value}" for key, value in values.items()])
    if processes > 1:
        _write(folder / f"train_{case}_perf_report.log", _performance(run, seconds))


def _performance(run: RunLog, seconds: float) -> list[str]:
    training = sum(row.get("train.epoch_time") or 0.0 for row in run.epochs)
    images = sum(
        (row.get("train.epoch_time") or 0.0) * (row.get("train.total_ips") or 0.0)
        for row in run.epochs
    )
    rates = [row["train.total_ips"] for row in (*run.train, *run.epochs)
             if row.get("train.total_ips")]  # fmt: skip
    evaluation = [
        row["val.seen"] / row["val.total_ips"]
        for row in run.epochs if row.get("val.seen") and row.get("val.total_ips")
    ]  # fmt: skip
    values = {
        "train_training_time": f"{training:.2f}",
        "train_eval_time": f"{sum(evaluation):.2f}",
        "total_time": f"{seconds:.2f}",
        "training maximum images/sec": _number(max(rates, default=None), 2),
        "training average images/sec": _number(run.images_per_second, 2),
        "end to end average images/sec": _number(images / seconds if seconds > 0 else None, 2),
    }
    return [f"{key} : {value}" for key, value in values.items()]


def _write(path: Path, lines: list[str]) -> None:
    try:
        with atomic_file(path) as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error


def build_parser() -> OptionParser:
    """Declare the options."""
    parser = OptionParser(
        prog="python -m image_classification.report", description="What runs have reached.",
        epilog="exit codes: 0 done, 2 usage, 3 no log",
    )  # fmt: skip
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    add("--case", metavar="NAME", help="print the result block of one run and write its key files")
    add("--network", default="Resnet50_cifar_for_PyTorch", metavar="NAME", help="of the case")
    add("--output", type=Path, metavar="FOLDER", help="where the key files of --case go")
    add("--seconds", type=float, metavar="S", help="duration of the whole case")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print what was asked for."""
    logs = [read_run(folder) for folder in options.runs]
    if options.case is None:
        print(result_table(logs))
        return
    if len(logs) != 1 or options.output is None or options.seconds is None:
        raise UsageError("--case needs one RUN_DIR, --output and --seconds")
    write_case(logs[0], options.case, options.network, options.output, options.seconds)
    print(result_block(logs[0], options.seconds))


def main(argv: list[str] | None = None) -> int:
    """The command; user errors become one line and an exit code."""
    try:
        run(build_parser().parse_or_raise(argv))
    except UserError as error:
        return tell("report", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
