# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of some images of a folder, and what main.py makes of them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import ROOT
from image_classification.data_index import ImageIndex
from image_classification.errors import DataError, printable


def link(index: ImageIndex, labels: Iterable[int], place: Path, *, train: int, val: int) -> None:
    """Makes a data set of some images of some classes, as links; the same ones every time.

    Args:
        index: All images.
        labels: Of the classes to take.
        place: Folder of the data set, which is made.
        train: Training images of each class.
        val: Validation images of each class.

    Raises:
        DataError: A class has too few images, or none is wanted of each.
    """
    for label in labels:
        found = np.flatnonzero(index.labels == label).tolist()
        name = index.classes[label]
        if not val or not train or len(found) < val + train:
            raise DataError(
                f"{printable(index.root / name)} has {len(found)} images for {val} in val "
                f"and {train} in train: at least one each is needed, and no more than there are"
            )
        random.Random(0).shuffle(found)
        for split, chosen in (("val", found[:val]), ("train", found[val : val + train])):
            folder = place / split / name
            folder.mkdir(parents=True)
            for number, i in enumerate(chosen):
                image = Path(index.path(i)).resolve()
                (folder / f"{number}{image.suffix}").symlink_to(image)


def train(data: Path, workspace: Path, *flags: str) -> str:
    """Runs main.py and returns its output; where it fails, the program ends as it did."""
    command = [sys.executable, str(ROOT / "main.py"), str(data), "--workspace", str(workspace)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    return done.stdout


def epochs(workspace: Path) -> list[dict[str, Any]]:
    """The figures of a run's epochs, by the names that they have in metrics.jsonl."""
    rows = map(json.loads, (workspace / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["data"] for row in rows if row["type"] == "epoch"]
