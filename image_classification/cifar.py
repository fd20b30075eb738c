# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their original Python archives.

The archive or the folder that it unpacks to is read as it is; nothing is unpacked or written.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classification.data_index import few, printable
from image_classification.errors import DataError
from image_classification.pixel_index import PixelIndex
from image_classification.plain_pickle import load_plain_pickle

SIDE = 32
# Far above any member of the archives: 31 MB and 155 MB.
_MAX_MEMBER_BYTES = 1 << 29


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
        DataError: The folder is there and lacks files.
    """
    kinds = [kind for name, kind in CIFAR_SETS.items() if wanted in (None, name)]
    for kind in kinds:
        for folder in (data, data / kind.folder):
            if all((folder / name).is_file() for name in (*kind.files["val"], kind.names_file[0])):
                return CifarFiles(kind, folder)
    for kind in kinds:
        usual = data.name.startswith(kind.archive.removesuffix(".tar.gz"))
        if data.is_file() and (usual or wanted is not None):
            return CifarFiles(kind, data)
        if (data / kind.archive).is_file():
            return CifarFiles(kind, data / kind.archive)
    for kind in kinds:
        for folder in (data, data / kind.folder):
            if folder.name == kind.folder and folder.is_dir() and any(folder.iterdir()):
                raise DataError(_lacking(folder, kind))
    return None


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
        content = read(kind.names_file[0])
        classes = [_name(text) for text in content.get(kind.names_file[1], [])]
        if not classes:
            raise DataError(f"{printable(files.path)}: {kind.names_file[0]} names no class")
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
    try:
        archive = tarfile.open(files.path)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{printable(files.path)} cannot be read: {error}") from error
    with archive:
        yield lambda name: load_plain_pickle(
            _read_member(archive, f"{files.kind.folder}/{name}", files.path),
            f"{printable(files.path)}: {name}",
        )


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MAX_MEMBER_BYTES:
            raise DataError(f"{printable(path)} is too large for a batch of CIFAR")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from error


def _read_member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    """A member's content; nothing of the archive is written anywhere."""
    try:
        member = archive.getmember(name)
        stream = archive.extractfile(member)
        if stream is None or member.size > _MAX_MEMBER_BYTES:
            raise DataError(f"{printable(path)}: {name} is not an ordinary file of its size")
        content = stream.read()
    except KeyError as error:
        raise DataError(f"{printable(path)} holds no {name}; get the archive again") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{printable(path)} is damaged ({error}); get it again") from error
    if len(content) != member.size:
        raise DataError(f"{printable(path)} ends within {name}; get it again")
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


def _name(text: Any) -> str:
    return os.fsdecode(text) if isinstance(text, bytes) else str(text)
