# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Running `dataset_tools process`, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagenet_archives import jpeg

from image_classification import dataset_tools


def process(*words: Any, expect: int = 0) -> None:
    assert dataset_tools.main(["process", *map(str, words), "-j", "1"]) == expect


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data_report.json").read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """The visible files below a folder, with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    }


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def write_class(folder: Path, seeds: range) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
