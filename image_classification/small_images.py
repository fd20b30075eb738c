# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of small images in memory: CIFAR's archives, and folders whose images have one size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from image_classification.affinity import usable_cores
from image_classification.cifar import CIFAR_SETS, SOURCE, CifarFiles, find_cifar, load_cifar
from image_classification.data_index import ImageIndex
from image_classification.datasets import Splits
from image_classification.download import download
from image_classification.errors import DataError, printable
from image_classification.image_reading import open_image, read_image
from image_classification.pixel_index import PixelIndex

# Of pixels, over both splits: what any training machine has to spare.
_MAX_BYTES = 4 << 30


def cifar_files(
    data: Path, wanted: str, say: Callable[[str], None], *, create: bool = False
) -> CifarFiles:
    """Find CIFAR's archives, or fetch them.

    Args:
        data: Where they are or shall be, see `find_cifar`.
        wanted: "cifar10" or "cifar100".
        say: Receives lines about a download.
        create: Make the folder if it is missing: nobody has named it, nobody can have mistyped it.

    Returns:
        The files.

    Raises:
        DataError: They are not there and cannot be downloaded, or something else is there.
    """
    if (found := find_cifar(data, wanted)) is not None:
        return found
    kind = CIFAR_SETS[wanted]
    if (other := find_cifar(data)) is not None:
        raise DataError(
            f"{printable(data)} holds {other.kind.name}, --dataset asks for {wanted}; give the "
            "other folder or the other name"
        )
    if not data.is_dir() and not create:
        raise DataError(
            f"{printable(data)} does not exist; give the folder that holds {kind.folder}/ or "
            f"{kind.archive}, or an existing folder that shall receive the archive"
        )
    archive = data / kind.archive
    download(SOURCE + kind.archive, archive, checksum=f"md5 {kind.md5}", size=kind.size, say=say)
    return CifarFiles(kind, archive)


def load_cifar_splits(
    files: CifarFiles, *, train: bool, val: bool, num_classes: int | None = None
) -> Splits:
    """Read the splits of a run from CIFAR's archives; see `datasets.load_splits`."""
    wanted = [split for split, asked in (("train", train), ("val", val)) if asked]
    found = load_cifar(files, wanted)
    classes = found[wanted[0]].classes
    if num_classes not in (None, len(classes)):
        raise DataError(
            f"--num-classes {num_classes} contradicts the data: {files.kind.name} has "
            f"{len(classes)} classes; leave the option out"
        )
    return Splits(found.get("train"), found.get("val"), classes, len(classes), [])


def into_memory(splits: Splits, side: int) -> Splits:
    """Read a folder of small images as a whole, if all of them have one size.

    Args:
        splits: Of a folder or list.
        side: Side in pixels that all images must have.

    Returns:
        Splits of pixels; `splits` itself where an image has another size or cannot be read, or
        where there are too many: loaders of files deal with that.
    """
    parts = [part for part in (splits.train, splits.val) if isinstance(part, ImageIndex)]
    if sum(len(part) for part in parts) * side * side * 3 > _MAX_BYTES:
        return splits
    pixels = {part.split: found for part in parts if (found := _decode(part, side)) is not None}
    if len(pixels) < len(parts):
        return splits
    return replace(splits, train=pixels.get("train"), val=pixels.get("val"))


def _decode(index: ImageIndex, side: int) -> PixelIndex | None:
    """All images of a split; None as soon as one is not as large as it should be."""
    images = np.empty((len(index), side, side, 3), dtype=np.uint8)

    def read(i: int) -> bool:
        try:
            image = read_image(index.path(i))
        except DataError:
            return False
        if image.size != (side, side):
            return False
        images[i] = np.asarray(image)
        return True

    try:
        with open_image(index.path(0)) as first:  # most data sets are of large images: look once
            if first.size != (side, side):
                return None
    except DataError:
        return None
    with ThreadPoolExecutor(usable_cores()) as pool:
        for done in pool.map(read, range(len(index)), chunksize=256):
            if not done:
                pool.shutdown(cancel_futures=True)
                return None
    return PixelIndex(index.root, index.labels, index.classes, images, index.split, "folder")
