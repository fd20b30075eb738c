# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The result table of the Ascend document."""

from __future__ import annotations

import math
from collections.abc import Sequence

from image_classification.errors import printable
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
    versions = run.environment.get("versions")
    torch = versions.get("torch") if isinstance(versions, dict) else None
    return (
        f"{run.processes}p-{_word(run.environment.get('device', '?')).upper()}",
        number(run.top1, 2),
        number(run.images_per_second, 0),
        str(len(run.epochs)),
        _word(run.parameters.get("amp_type", "-")),
        _word(torch or "-").partition("+")[0],
        str(run.global_batch),
    )


def _word(value: object) -> str:
    """What a log says, safe to print, in a cell of a Markdown table."""
    return printable(str(value), 40).replace("|", "/")


def number(value: float | None, digits: int) -> str:
    """A figure with so many digits behind the point, "-" for none and for NaN."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
