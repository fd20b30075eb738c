# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their original Python archives.

The archive or the folder that it unpacks to is read as it is; nothing is unpacked or written.
"""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classification.data_index import few
from image_classification.errors import DataError, first_line, printable
from image_classification.pixel_index import PixelIndex
from image_classification.plain_pickle import load_plain_pickle

SIDE = 32
# Far above any member of the archives: 31 MB and 155 MB.
_MAX_MEMBER_BYTES = 1 << 29
_BLOCK = 1 << 20


@dataclass(frozen=True)
class CifarSet:
    """One of the two data sets.

    Attributes:
        name: As on the command line.
        folder: Name of the folder in the archive.
        archive: Name of the archive.
        md5: Of the archive.
        size: Of the archive, in bytes.
        files: Names of the batches of each split.
        label_key: Key of the labels in a batch.
        names_file: Name of the file with the class names, and their key in it.
    """

    name: str
    folder: str
    archive: str
    md5: str
    size: int
    files: dict[str, tuple[str, ...]]
    label_key: str
    names_file: tuple[str, str]


# Addresses, names and sums are those that torchvision.datasets uses.
SOURCE = "https://www.cs.toronto.edu/~kriz/"
CIFAR_SETS = {
    "cifar10": CifarSet(
        name="cifar10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        size=170498071,
        files={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "val": ("test_batch",)},
        label_key="labels",
        names_file=("batches.meta", "label_names"),
    ),
    "cifar100": CifarSet(
        name="cifar100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        size=169001437,
        files={"train": ("train",), "val": ("test",)},
        label_key="fine_labels",
        names_file=("meta", "fine_label_names"),
    ),
}


@dataclass(frozen=True)
class CifarFiles:
    """A data set that has been found.

    Attributes:
        kind: Which one.
        path: The folder with the batches, or the archive.
    """

    kind: CifarSet
    path: Path


def find_cifar(data: Path, wanted: str | None = None) -> CifarFiles | None:
    """Look for a data set in its original form.

    Args:
        data: The folder with the batches, the folder above it, the archive, or its folder.
        wanted: "cifar10" or "cifar100"; None: either, by the archive's usual name.

    Returns:
        Where it is, None if it is not there. Unpacked comes before packed.

    Raises:
        DataError: The folder is there and lacks files, or both are there and none was asked for.
    """
    kinds = [kind for name, kind in CIFAR_SETS.items() if wanted in (None, name)]
    found = [
        CifarFiles(kind, path)
        for kind in kinds
        if (path := _place_of(kind, data, wanted)) is not None
    ]
    if len(found) > 1:
        raise DataError(
            f"{printable(data)} holds cifar10 and cifar100; say which one with --dataset"
        )
    if found:
        return found[0]
    for kind in kinds:
        for folder in (data, data / kind.folder):
            if folder.name == kind.folder and folder.is_dir() and any(folder.iterdir()):
                raise DataError(_lacking(folder, kind))
    return None


def _place_of(kind: CifarSet, data: Path, wanted: str | None) -> Path | None:
    """The folder with the batches, else the archive."""
    needed = (*kind.files["val"], kind.names_file[0])
    for folder in (data, data / kind.folder):
        paths = [folder / name for name in needed]
        if all(path.exists() and not path.is_dir() for path in paths):
            return folder
    usual = data.name.startswith(kind.archive.removesuffix(".tar.gz"))
    if data.is_file() and (usual or wanted is not None):
        return data
    return data / kind.archive if (data / kind.archive).is_file() else None


def _lacking(folder: Path, kind: CifarSet) -> str:
    names = (*kind.files["train"], *kind.files["val"], kind.names_file[0])
    missing = [name for name in names if not (folder / name).is_file()]
    return (
        f"{printable(folder)} lacks {few(missing)}; unpack {kind.archive} again, or give the "
        "archive itself"
    )


def load_cifar(files: CifarFiles, splits: list[str]) -> dict[str, PixelIndex]:
    """Read splits of a data set.

    Args:
        files: What `find_cifar` has found.
        splits: Of "train" and "val"; the latter is what the authors call test.

    Returns:
        An index for each of them.

    Raises:
        DataError: A file is missing, damaged, or holds anything but plain data.
    """
    kind = files.kind
    with _open(files) as read:
        classes = _names(read(kind.names_file[0]).get(kind.names_file[1]), kind, files.path)
        found = {}
        for split in splits:
            parts = [_check(read(name), kind, name, len(classes)) for name in kind.files[split]]
            images = np.concatenate([pixels for pixels, _ in parts])
            labels = np.concatenate([numbers for _, numbers in parts])
            found[split] = PixelIndex(files.path, labels, classes, images, split, "cifar")
    return found


@contextmanager
def _open(files: CifarFiles) -> Iterator[Any]:
    """Yields a function from the name of a batch to its dictionary."""
    if files.path.is_dir():
        yield lambda name: load_plain_pickle(
            _read_file(files.path / name), printable(files.path / name)
        )
        return
    with _intact(files.path), tarfile.open(files.path) as archive:
        members = {member.name.removeprefix("./"): member for member in archive.getmembers()}
        yield lambda name: load_plain_pickle(
            _read_member(archive, members.get(f"{files.kind.folder}/{name}"), files, name),
            f"{printable(files.path)}: {name}",
        )
        # gzip's own check sum stands at the end: without it a flipped bit would be a wrong pixel.
        while archive.fileobj is not None and archive.fileobj.read(_BLOCK):
            pass


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Makes one line of what the readers raise about a damaged archive."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{printable(path)} is damaged or no archive of CIFAR ({first_line(error, 100)}); get "
            "it again"
        ) from error


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MEMBER_BYTES:
            raise DataError(f"{printable(path)} is no ordinary file, or too large for CIFAR")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from error


def _read_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo | None, files: CifarFiles, name: str
) -> bytes:
    """A member's content; nothing of the archive is written anywhere."""
    path = printable(files.path)
    if member is None:
        raise DataError(f"{path} holds no {files.kind.folder}/{name}; get the archive again")
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None or member.size > _MAX_MEMBER_BYTES:
        raise DataError(f"{path}: {name} is not an ordinary file of its size")
    content = stream.read()
    if len(content) != member.size:
        raise DataError(f"{path} ends within {name}; get it again")
    return content


def _check(
    batch: dict[str, Any], kind: CifarSet, name: str, num_classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of a batch."""
    data, labels = batch.get("data"), batch.get(kind.label_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise DataError(f"{kind.folder}/{name} has no 'data' of 3,072 bytes an image")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise DataError(f"{kind.folder}/{name} has not one of {kind.label_key!r} for each image")
    if not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise DataError(f"{kind.folder}/{name} has labels outside 0..{num_classes - 1}")
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, dtype=np.int64)


def _names(found: Any, kind: CifarSet, path: Path) -> list[str]:
    """The class names, which are as many different texts."""
    texts = found if isinstance(found, list) else []
    names = [os.fsdecode(text) for text in texts if isinstance(text, bytes | str)]
    if not names or len(set(names)) < len(texts):
        raise DataError(
            f"{printable(path)}: {kind.names_file[0]} has no list of different class names as "
            f"{kind.names_file[1]!r}; get the archive again"
        )
    return names
