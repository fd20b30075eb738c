# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What DIR means: a built-in sample, CIFAR's archives, or a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from image_classification import small_images
from image_classification.cifar import CIFAR_SETS, find_cifar
from image_classification.data_index import ImageIndex, describe_imbalance
from image_classification.dataloaders import synthetic_splits
from image_classification.datasets import Splits, adopt_classes, has_split, load_splits
from image_classification.pixel_index import PixelIndex
from image_classification.samples import SAMPLE_PREFIX, is_sample, prepare_sample
from image_classification.val_split import make_splits, write_lists

__all__ = [
    "DATASETS", "evenly_spread", "load", "load_for_network", "settle_dataset", "synthetic_splits",
]  # fmt: skip

AnyIndex = TypeVar("AnyIndex", ImageIndex, PixelIndex)

DATASETS = ("auto", "folder", *CIFAR_SETS)


def settle_dataset(wanted: str, data: str) -> str:
    """The name of the data set that is meant.

    Args:
        wanted: One of DATASETS.
        data: DIR, or "sample:NAME".

    Returns:
        One of DATASETS, but "auto".
    """
    if is_sample(data):
        return "folder"
    if wanted != "auto":
        return wanted
    found = find_cifar(Path(data))
    return "folder" if found is None else found.kind.name


def load(
    data: str,
    dataset: str,
    *,
    train: bool,
    val: bool,
    layout: str,
    num_classes: int | None,
    samples: Path,
    small_side: int | None,
    create: bool,
    val_share: float | None = None,
    lists: Path | None = None,
    say: Callable[[str], None],
) -> Splits:
    """Index the images of a run, or bring them into memory where they are small.

    Args:
        data: DIR, or "sample:NAME".
        dataset: What `settle_dataset` has found.
        train: Index the training images.
        val: Index the validation images.
        layout: See `datasets.load_splits`.
        num_classes: What the user asked for.
        samples: Folder below which built-in data sets are written.
        small_side: A folder whose images all have this side in pixels is brought into memory.
        create: Make DIR for a download if it is missing.
        val_share: Share of the training images that becomes val where DIR has none, 0..1.
        lists: Folder into which the lists of such a division are written; None: nowhere.
        say: Receives lines about a download, and about a share that is of no use.

    Returns:
        The splits.

    Raises:
        DataError: Missing, unreadable, empty, malformed or contradictory data.
        UsageError: Unknown built-in data set.
    """
    if dataset in CIFAR_SETS:
        if val_share is not None:
            say(f"--val-split {val_share:g} changes nothing: {dataset} has a val of its own")
        files = small_images.cifar_files(Path(data), dataset, say, create=create)
        return small_images.load_cifar_splits(files, train=train, val=val, num_classes=num_classes)
    folder = Path(data)
    if is_sample(data):
        folder = prepare_sample(data, samples / data.removeprefix(SAMPLE_PREFIX))
    share = val_share if val and folder.is_dir() else None
    if share is not None and not has_split(folder, "val"):
        splits = make_splits(folder, share, train=train, layout=layout, num_classes=num_classes)
        if train and lists is not None:
            splits.warnings.extend(write_lists(splits, folder, lists))
    else:
        splits = load_splits(folder, train=train, val=val, layout=layout, num_classes=num_classes)
        if share is not None:
            say(f"--val-split {share:g} changes nothing: val is there")
    if splits.train is not None:
        line = describe_imbalance(np.bincount(splits.train.labels), splits.classes)
        if line is not None:
            splits.warnings.append(f"{line} (--class-report, --class-weights balanced)")
    return splits if small_side is None else small_images.into_memory(splits, small_side)


def load_for_network(
    data: str, classes: Sequence[str], *, train: bool, val_share: float | None = None,
    samples: Path, say: Callable[[str], None],
) -> Splits:  # fmt: skip
    """Index the images on which a trained network is judged.

    Args:
        data: DIR, CIFAR's folder or archive, or "sample:NAME".
        classes: Class names of the network, by index; where they are plain numbers, the labels of
            the data count.
        train: Index the training images too.
        val_share: As for `load`: with the share of the network's training its val comes out again.
        samples: Folder below which built-in data sets are written.
        say: Receives lines about the data.

    Returns:
        Splits whose labels are the network's.

    Raises:
        DataError: as for `load`, or a class that the network does not know.
        UsageError: as for `load`.
    """
    splits = load(
        data, settle_dataset("auto", data), train=train, val=True, layout="auto",
        num_classes=len(classes), samples=samples, small_side=None, create=False,
        val_share=val_share, say=say,
    )  # fmt: skip
    for warning in splits.warnings:
        say(warning)
    unnamed = list(classes) == [str(index) for index in range(len(classes))]
    if unnamed and not set(splits.classes) <= set(classes):
        return splits
    return adopt_classes(splits, list(classes), "the checkpoint")


def evenly_spread(index: AnyIndex, count: int | None) -> AnyIndex:
    """Take `count` images, evenly spread over an index and so over its classes; None: all."""
    if count is None or count >= len(index):
        return index
    return index.select(np.linspace(0, len(index) - 1, count).astype(np.int64))
