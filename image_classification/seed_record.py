# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the same training has reached from several seeds: seeds.json above their folders."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from image_classification.atomic_file import atomic_file
from image_classification.metrics import mean_and_spread
from image_classification.run_files import SEEDS_NAME


def record_seed(folder: Path, seed: int, top1: float, recipe: str | None) -> str:
    """Adds the result of a seed to the record, or replaces an earlier one of the same seed.

    The record holds the recipe's name, the best top-1 of each seed in percent, their mean and,
    from two on, their sample standard deviation.

    Args:
        folder: The workspace, in which each seed has a folder.
        seed: Of the run that has ended.
        top1: Its best top-1 in percent.
        recipe: Name of the recipe; None: without one.

    Returns:
        A line about all seeds so far. Where the record cannot be written, it says so, and an
        earlier one stays.
    """
    path, found = folder / SEEDS_NAME, {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        earlier = json.loads(path.read_text("utf-8"))["top1"]
        found = {int(name): float(value) for name, value in earlier.items()}
    found = dict(sorted({**found, seed: top1}.items()))
    spread = mean_and_spread(found.values())
    record = {"recipe": recipe, "top1": found, "mean": spread.mean, "std": spread.std}
    line = f"top-1 over {len(found)} seeds: {spread} %"
    try:
        with atomic_file(path) as file:
            file.write(f"{json.dumps(record, indent=2)}\n".encode())
    except OSError as error:
        return f"{line}; {path} cannot be written: {error.strerror}"
    return f"{line}, in {path}"
