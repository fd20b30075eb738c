# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A data set as a few large files of smaller JPEGs, made once and read by every backend.

A packed split is an index, `<split>.packed.npz`, and shards, `<split>-00000.pack`, ...: JPEG files
end to end. In the index an image has a path like any other, `<shard>@<offset>+<length>`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex, IndexBuilder
from image_classification.errors import DataError, UsageError
from image_classification.image_reading import read_image
from image_classification.index_arrays import index_arrays, index_from_arrays

SHARD_IMAGES = 4096
INDEX_ENDING = ".packed.npz"


@dataclass(frozen=True)
class PackSettings:
    """How images are made smaller.

    Attributes:
        short_side: Short side in pixels of the packed images; smaller ones keep their size.
        quality: JPEG quality, 1..95.
    """

    short_side: int
    quality: int

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UsageError(f"--short-side {self.short_side}: must be at least 1")
        if not 1 <= self.quality <= 95:
            raise UsageError(f"--quality {self.quality}: must be between 1 and 95")


def packed_index(folder: Path, split: str) -> ImageIndex | None:
    """The index of a packed split, None where there is none.

    Raises:
        DataError: It is damaged, or a shard is missing.
    """
    path = folder / (split + INDEX_ENDING)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            index = index_from_arrays(saved, folder, split)
            shards = json.loads(saved["shards"].tobytes())
    except Exception as error:  # numpy and zipfile raise nearly anything on damaged files
        raise DataError(f"{path} is damaged ({error}); pack the data set again") from error
    missing = [name for name, size in shards.items() if _size(folder / name) != size]
    if missing:
        raise DataError(f"{folder / missing[0]} is missing or damaged; pack the data set again")
    return index


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def pack_split(
    index: ImageIndex, target: Path, settings: PackSettings, threads: int
) -> Iterator[tuple[int, list[str]]]:
    """Pack one split; what an interrupted run has finished is kept.

    Args:
        index: The images.
        target: Existing folder that gets the shards and the index.
        settings: Size and quality.
        threads: Threads that read and write images, >= 1.

    Yields:
        After each shard: images done so far, and why some of them were left out.

    Raises:
        DataError: No image can be read.
        UsageError: The folder cannot be written.
    """
    builder, shards = IndexBuilder(), {}
    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(range(0, len(index), SHARD_IMAGES)):
            places = range(start, min(start + SHARD_IMAGES, len(index)))
            name = f"{index.split}-{number:05d}.pack"
            lengths, problems = _finished(index, places, target / name, settings)
            if lengths is None:
                lengths, problems = _write_shard(index, places, target / name, settings, pool)
            offset = 0
            for place, length in zip(places, lengths.tolist(), strict=True):
                if length > 0:
                    builder.add(f"{name}@{offset}+{length}".encode(), int(index.labels[place]))
                offset += length
            shards[name] = offset
            yield places.stop, problems
    if not len(builder):
        raise DataError(f"{index.root}: no image of {index.split} can be read")
    packed = builder.build(target, index.classes, index.split, "folder")
    sizes = np.frombuffer(json.dumps(shards).encode(), dtype=np.uint8)
    _write(target / (index.split + INDEX_ENDING), lambda file: np.savez(
        file, **index_arrays(packed), shards=sizes))  # fmt: skip


def _signature(index: ImageIndex, places: range, settings: PackSettings) -> str:
    """What a shard was made from."""
    digest = hashlib.sha256(repr((1, settings, len(places))).encode())
    for path in index.paths(places):
        digest.update(path + b"\0")
    return digest.hexdigest()


def _finished(
    index: ImageIndex, places: range, shard: Path, settings: PackSettings
) -> tuple[NDArray[np.int64] | None, list[str]]:
    """The lengths of the images in a shard that an earlier run has finished, else None."""
    try:
        note = json.loads(_note_of(shard).read_text("utf-8"))
        lengths = np.array(note["lengths"], dtype=np.int64)
        done = note["signature"] == _signature(index, places, settings)
        if done and _size(shard) == lengths.sum():
            return lengths, note["problems"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None, []


def _note_of(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _write_shard(
    index: ImageIndex,
    places: range,
    shard: Path,
    settings: PackSettings,
    pool: ThreadPoolExecutor,
) -> tuple[NDArray[np.int64], list[str]]:
    lengths, problems = np.zeros(len(places), dtype=np.int64), []

    def write(file: Any) -> None:
        images = pool.map(lambda place: _pack_image(index.path(place), settings), places)
        for i, content in enumerate(images):
            if isinstance(content, str):
                problems.append(content)
            else:
                lengths[i] = len(content)
                file.write(content)

    _write(shard, write)
    note = {
        "signature": _signature(index, places, settings),
        "lengths": lengths.tolist(),
        "problems": problems,
    }
    _write(_note_of(shard), lambda file: file.write(json.dumps(note).encode()))
    return lengths, problems


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    try:
        with atomic_file(path) as file:
            fill(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error


def _pack_image(path: str, settings: PackSettings) -> bytes | str:
    """The smaller JPEG file; the reason where the image cannot be read."""
    try:
        image = read_image(path)
    except DataError as error:
        return str(error)
    short = min(image.size)
    if short > settings.short_side:
        scale = settings.short_side / short
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.BICUBIC)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=settings.quality, optimize=True)
    return content.getvalue()
