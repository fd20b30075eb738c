# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The result table of the Ascend document."""

from __future__ import annotations

from collections.abc import Sequence

from image_classification.report.run_log import RunLog

COLUMNS = ("NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version", "batch_size")


def result_table(runs: Sequence[RunLog]) -> str:
    """A Markdown table with a row for each run; "-" stands for what a run did not measure."""
    rows = [COLUMNS, *(result_row(run) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join(f":{'-' * width}:" for width in widths) + "|")
    return "\n".join(lines)


def result_row(run: RunLog) -> tuple[str, ...]:
    """The texts below COLUMNS."""
    versions = run.environment.get("versions") or {}
    return (
        f"{run.processes}p-{str(run.environment.get('device', '?')).upper()}",
        number(run.top1, 2),
        number(run.images_per_second, 0),
        str(len(run.epochs)),
        str(run.parameters.get("amp_type", "-")),
        str(versions.get("torch") or "-").partition("+")[0],
        str(run.global_batch),
    )


def number(value: float | None, digits: int) -> str:
    """A figure with so many digits behind the point, "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"
