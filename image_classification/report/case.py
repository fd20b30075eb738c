# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The result block and the key files with which the Ascend scripts end."""

from __future__ import annotations

import platform
from pathlib import Path

from image_classification.atomic_file import atomic_file
from image_classification.errors import UsageError
from image_classification.report.run_log import RunLog
from image_classification.report.table import number


def result_block(run: RunLog, seconds: float) -> str:
    """The lines that the Ascend scripts end with.

    Args:
        run: The run.
        seconds: Time from the script's start to its end.
    """
    return "\n".join([
        "------------------ Final result ------------------",
        f"Final Performance images/sec : {number(run.images_per_second, 2)}",
        f"Final Train Accuracy : {number(run.top1, 2)}",
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
    rate, processes = run.images_per_second, run.processes
    step_ms = None if not rate else run.global_batch * 1000.0 / rate
    values = {
        "Network": network, "RankSize": processes, "BatchSize": run.global_batch,
        "DeviceType": platform.machine(), "CaseName": case, "ActualFPS": number(rate, 2),
        "TrainingTime": number(step_ms, 2), "TrainAccuracy": number(run.top1, 2),
        "ActualLoss": number(run.loss, 5), "E2ETrainingTime": f"{seconds:.0f}",
    }  # fmt: skip
    _write(folder / f"{case}.log", [f"{key} = {value}" for key, value in values.items()])
    if processes > 1:
        _write(folder / f"train_{case}_perf_report.log", _performance(run, seconds))


def _performance(run: RunLog, seconds: float) -> list[str]:
    training = sum(row.get("train.epoch_time") or 0.0 for row in run.epochs.values())
    images = sum(
        (row.get("train.epoch_time") or 0.0) * (row.get("train.total_ips") or 0.0)
        for row in run.epochs.values()
    )
    rows = [*(row.metrics for row in run.train), *run.epochs.values()]
    rates = [row["train.total_ips"] for row in rows if row.get("train.total_ips")]
    evaluation = [
        row["val.seen"] / row["val.total_ips"]
        for row in run.epochs.values() if row.get("val.seen") and row.get("val.total_ips")
    ]  # fmt: skip
    values = {
        "train_training_time": f"{training:.2f}",
        "train_eval_time": f"{sum(evaluation):.2f}",
        "total_time": f"{seconds:.2f}",
        "training maximum images/sec": number(max(rates, default=None), 2),
        "training average images/sec": number(run.images_per_second, 2),
        "end to end average images/sec": number(images / seconds if seconds > 0 else None, 2),
    }
    return [f"{key} : {value}" for key, value in values.items()]


def _write(path: Path, lines: list[str]) -> None:
    try:
        with atomic_file(path) as file:
            file.write(("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error
