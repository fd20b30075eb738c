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
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex, IndexBuilder
from image_classification.errors import DataError, UsageError
from image_classification.image_reading import read_image
from image_classification.index_arrays import (
    array_names,
    index_arrays,
    index_from_arrays,
    names_array,
)

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
            if "source" in saved:
                index = replace(index, source=array_names(saved["source"])[0])
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
    index: ImageIndex,
    target: Path,
    settings: PackSettings,
    threads: int,
    tell: Callable[[int], None],
) -> list[str]:
    """Pack one split; what an interrupted run has finished is kept.

    Args:
        index: The images.
        target: Existing folder that gets the shards and the index.
        settings: Size and quality.
        threads: Threads that read and write images, >= 1.
        tell: Called after each image with the number of those that are done.

    Returns:
        Why some images were left out, a line each.

    Raises:
        DataError: No image can be read.
        UsageError: The folder cannot be written, or holds a data set that was packed otherwise.
    """
    builder, shards, problems = IndexBuilder(), {}, []
    complete = (target / (index.split + INDEX_ENDING)).exists()
    for left_over in target.glob(f".{index.split}-*.tmp"):  # of a packing that was killed
        left_over.unlink(missing_ok=True)
    with ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(range(0, len(index), SHARD_IMAGES)):
            places = range(start, min(start + SHARD_IMAGES, len(index)))
            name = f"{index.split}-{number:05d}.pack"
            origin = _origin(index, places, settings)
            lengths, left_out = _finished(target / name, origin, complete)
            if lengths is None:
                images = pool.map(lambda place: _pack_image(index.path(place), settings), places)
                lengths, left_out = _write_shard(
                    _counted(images, start, tell),
                    target / name,
                    origin,
                )
            problems += left_out
            offset = 0
            for place, length in zip(places, lengths.tolist(), strict=True):
                if length > 0:
                    builder.add(f"{name}@{offset}+{length}".encode(), int(index.labels[place]))
                offset += length
            shards[name] = offset
    if not len(builder):
        raise DataError(f"{index.root}: no image of {index.split} can be read")
    packed = builder.build(target, index.classes, index.split, "folder")
    sizes = np.frombuffer(json.dumps(shards).encode(), dtype=np.uint8)
    _write(target / (index.split + INDEX_ENDING), lambda file: np.savez(
        file, **index_arrays(packed), shards=sizes,
        # Unlike folders, lists may leave classes out of val.
        source=names_array([index.source])))  # fmt: skip
    return problems


def _counted(
    images: Iterator[bytes | str], done: int, tell: Callable[[int], None]
) -> Iterator[bytes | str]:
    for number, image in enumerate(images, done + 1):
        yield image
        tell(number)


class _Origin(NamedTuple):
    """What a shard is made from: which files with which settings, and in which state."""

    signature: str
    state: str


def _origin(index: ImageIndex, places: range, settings: PackSettings) -> _Origin:
    signature = hashlib.sha256(repr((2, settings, len(places))).encode())
    state = hashlib.sha256()
    for path in index.paths(places):
        signature.update(path + b"\0")
        try:
            status = os.stat(path)
            state.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            state.update(b"missing ")
    return _Origin(signature.hexdigest(), state.hexdigest())


def _finished(
    shard: Path, origin: _Origin, complete: bool
) -> tuple[NDArray[np.int64] | None, list[str]]:
    """The lengths of the images in a shard that an earlier run has finished, else None.

    A shard of a complete data set is not replaced by one that is made from something else.
    """
    try:
        note = json.loads(_note_of(shard).read_text("utf-8"))
        lengths, problems = np.array(note["lengths"], dtype=np.int64), note["problems"]
        same, unchanged = note["signature"] == origin.signature, note["state"] == origin.state
        sum_noted = note["sum"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, []
    if complete and not same:
        raise UsageError(
            f"{shard.parent} holds a data set that was packed from other images or with other "
            "settings: give another folder, or remove it"
        )
    whole = same and unchanged and _sum_of(shard) == sum_noted
    return (lengths, problems) if whole else (None, [])


def _sum_of(shard: Path) -> int | None:
    total = 0
    if not shard.is_file():
        return None
    with open(shard, "rb") as file:
        while chunk := file.read(1 << 20):
            total = zlib.crc32(chunk, total)
    return total


def _note_of(shard: Path) -> Path:
    return shard.with_name(shard.name + ".json")


def _write_shard(
    images: Iterator[bytes | str], shard: Path, origin: _Origin
) -> tuple[NDArray[np.int64], list[str]]:
    lengths: list[int] = []
    problems: list[str] = []
    total = 0

    def write(file: Any) -> None:
        nonlocal total
        for content in images:
            if isinstance(content, str):
                problems.append(content)
                lengths.append(0)
            else:
                lengths.append(len(content))
                total = zlib.crc32(content, total)
                file.write(content)

    _write(shard, write)
    note = {**origin._asdict(), "lengths": lengths, "problems": problems, "sum": total}
    _write(_note_of(shard), lambda file: file.write(json.dumps(note).encode()))
    return np.array(lengths, dtype=np.int64), problems


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
