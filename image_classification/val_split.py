# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Takes a validation set out of the training images, class by class, by the seed alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from image_classification.augmentation import hash64
from image_classification.data_index import ImageIndex, few
from image_classification.datasets import Splits, check_split_names, load_splits
from image_classification.errors import UsageError, printable
from image_classification.list_files import check_class_names, describe_left_out, write_image_list

# As those of augmentation.py and bad_images.py: no two kinds of draws share a hash.
_STREAM_SPLIT = 4
# All runs on a data set see the same division, whatever their own seed.
_SEED = 0


def stratified_split(
    labels: ArrayLike, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images between train and val so that each class has the same share in both.

    Of a class with n images round(n * share) go to val, but at least one and at most n - 1. A class
    with one image keeps it in train: `lone_classes` names it. For one seed the val set of a larger
    share holds that of a smaller one.

    Args:
        labels: int [N], each >= 0.
        share: Share of each class that goes to val, 0 < share < 1.
        seed: Any integer; another seed takes other images.

    Returns:
        Positions in `labels` for train and for val, int64, ascending; each position is in one.

    Raises:
        UsageError: The share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"val share {share:g}: must be above 0 and below 1, such as 0.1")
    classes = np.asarray(labels, dtype=np.int64)
    order = np.lexsort((hash64(seed, _STREAM_SPLIT, np.arange(len(classes))), classes))
    counts = np.bincount(classes)
    # Rounded half up, not half to even as numpy does: of 5 images at 0.1 one goes to val anyway.
    wanted = np.floor(counts * share + 0.5).astype(np.int64)
    to_val = np.where(counts >= 2, np.clip(wanted, 1, np.maximum(counts - 1, 1)), 0)
    places_in_class = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_val = np.zeros(len(classes), dtype=bool)
    is_val[order] = places_in_class < to_val[classes[order]]
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def lone_classes(labels: ArrayLike, classes: list[str]) -> str | None:
    """A line about the classes that cannot be in val, since they have one image only.

    Args:
        labels: int [N], before the split.
        classes: Class names; the position is the label.

    Returns:
        The line, None where there are no such classes.
    """
    lone = np.flatnonzero(np.bincount(np.asarray(labels, dtype=np.int64)) == 1).tolist()
    if not lone:
        return None
    return (
        f"{len(lone)} of {len(classes)} classes have one image, which stays in train; val has none "
        f"of {few(classes[label] for label in lone)}: add images, or remove these classes"
    )


def split_index(index: ImageIndex, share: float, seed: int) -> tuple[ImageIndex, ImageIndex]:
    """The same for an index: its images as a train and a val index, see `stratified_split`.

    Raises:
        UsageError: The share is not between 0 and 1, or no class has two images.
    """
    train, val = stratified_split(index.labels, share, seed)
    if not len(val):
        raise UsageError(f"val share {share:g}: every class has one image only, val would be empty")
    return replace(index.select(train), split="train"), replace(index.select(val), split="val")


def make_splits(
    data: Path, share: float, *, train: bool, layout: str = "auto", num_classes: int | None = None
) -> Splits:
    """Index the training images of a data folder and take a validation set out of them.

    Args:
        data: DIR, with train/ or train.txt, or with nothing but class folders.
        share: Share of each class that becomes val, 0..1.
        train: Whether the training images are wanted, too.
        layout: See `datasets.load_splits`.
        num_classes: See `datasets.load_splits`.

    Returns:
        The splits; a warning names classes that are too small to be divided.

    Raises:
        DataError: Missing, unreadable, empty or malformed data, a folder that is a split by another
            name, or a class that no list can hold.
        UsageError: Every class has one image only.
    """
    whole_train = data / "train"
    check_split_names(
        data,
        f"give {printable(whole_train)} as DIR" if whole_train.is_dir() else
        "put all class folders below a folder train/",
    )  # fmt: skip
    whole = load_splits(
        data, train=True, val=False, layout=layout, num_classes=num_classes, flat=True
    )
    assert isinstance(whole.train, ImageIndex)
    check_class_names(whole.classes, data)
    kept, val = split_index(whole.train, share, _SEED)
    lone = lone_classes(whole.train.labels, whole.classes)
    return replace(
        whole, train=kept if train else None, val=val,
        warnings=[*whole.warnings, *([] if lone is None else [lone])],
    )  # fmt: skip


def write_lists(splits: Splits, data: Path, folder: Path) -> list[str]:
    """Write the lists of a division that `make_splits` has made, train.txt and val.txt.

    Args:
        splits: Both splits.
        data: DIR: put into it, the lists make the division permanent.
        folder: Where to; made if it is missing.

    Returns:
        A line for each list that lacks images.

    Raises:
        UsageError: They cannot be written.
    """
    warnings = []
    for index in (splits.train, splits.val):
        if not isinstance(index, ImageIndex):
            continue
        above = os.fsencode(os.path.relpath(index.root, data))
        images = (
            (os.path.normpath(os.path.join(above, index.relative_path(place))), int(label))
            for place, label in enumerate(index.labels)
        )
        path = folder / f"{index.split}.txt"
        left_out = write_image_list(path, images, f"{index.split}, taken from train")
        if left_out:
            warnings.append(describe_left_out(left_out, path))
    return warnings
