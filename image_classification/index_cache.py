# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Remembers the index of a large folder tree: scanning a million files takes minutes.

A cached index holds the modification time of every folder that was scanned. Adding, removing or
renaming a file changes that of its folder, so the index is used only while all are as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex
from image_classification.index_arrays import (
    array_names,
    index_arrays,
    index_from_arrays,
    names_array,
)
from image_classification.user_cache import cache_folder

# A scan of fewer images takes less than a second.
WORTH_CACHING = 20_000

_FORMAT = 2


def _file_of(root: Path, split: str) -> Path | None:
    if (folder := cache_folder()) is None:
        return None
    name = hashlib.sha256(f"{_FORMAT}\0{os.path.realpath(root)}\0{split}".encode()).hexdigest()
    return folder / f"index-{name[:24]}.npz"


def load_index(root: Path, split: str) -> ImageIndex | None:
    """The remembered index of a split's folder, None where there is none that is still true."""
    file = _file_of(root, split)
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as saved:
            folders, times = array_names(saved["folders"]), saved["times"]
            if any(_time_of(path) != time for path, time in zip(folders, times, strict=True)):
                return None
            return index_from_arrays(saved, root, split)
    except Exception:  # no such file, or not one of ours: a damaged one raises nearly anything
        return None


def save_index(index: ImageIndex, folders: dict[str, int]) -> None:
    """Remember an index, unless it is small, a folder was changing, or the disk is full.

    Args:
        index: The index of a folder tree.
        folders: What `scan_class_folders` has visited.
    """
    target = _file_of(index.root, index.split)
    if target is None or len(index) < WORTH_CACHING or not all(folders.values()):
        return
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as file:
            np.savez(
                file,
                **index_arrays(index),
                folders=names_array(list(folders)),
                times=np.array(list(folders.values()), dtype=np.int64),
            )


def _time_of(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
