# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""An index as the arrays of a numpy file, without pickled objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classification.data_index import ImageIndex


def index_arrays(index: ImageIndex) -> dict[str, Any]:
    """The arrays to be saved."""
    return {
        "labels": index.labels,
        "path_bytes": index.path_bytes,
        "path_offsets": index.path_offsets,
        "classes": names_array(index.classes),
    }


def index_from_arrays(saved: Mapping[str, NDArray[Any]], root: Path, split: str) -> ImageIndex:
    """The index of saved arrays.

    Args:
        saved: What `index_arrays` returned.
        root: Folder that the stored paths start from.
        split: "train" or "val".

    Raises:
        KeyError: An array is missing.
        ValueError: The arrays contradict each other.
    """
    labels, offsets = saved["labels"], saved["path_offsets"]
    index = ImageIndex(
        root=root,
        labels=labels,
        classes=array_names(saved["classes"]),
        path_bytes=saved["path_bytes"],
        path_offsets=offsets,
        split=split,
        source="folder",
    )
    kinds = {array.dtype for array in (labels, offsets)} == {np.dtype(np.int64)}
    if not kinds or len(offsets) != len(labels) + 1 or not len(labels) or offsets[0] != 0:
        raise ValueError("labels and paths do not belong together")
    if offsets[-1] != len(index.path_bytes) or (np.diff(offsets) < 0).any():
        raise ValueError("paths overlap")
    if labels.min() < 0 or labels.max() >= len(index.classes):
        raise ValueError("labels beyond the classes")
    return index


def names_array(names: list[str]) -> NDArray[np.uint8]:
    """Names as bytes; surrogates, which stand for bytes that are no UTF-8, survive as escapes."""
    return np.frombuffer(json.dumps(names).encode("ascii"), dtype=np.uint8)


def array_names(array: NDArray[np.uint8]) -> list[str]:
    """What `names_array` was given.

    Raises:
        ValueError: Not a list of texts.
    """
    names = json.loads(array.tobytes())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("not a list of names")
    return names
