# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Writes small data sets in the original format of CIFAR's Python archives."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def colourful(count: int, num_classes: int, seed: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Images uint8 [N, 32, 32, 3] whose class can be seen from their colour, and their labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % num_classes).tolist()
    images = rng.integers(0, 90, (count, 32, 32, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., label % 3] += np.uint8(40 + 120 * (label // 3) // max(num_classes // 3, 1))
    return images, labels


def batch(images: NDArray[np.uint8], labels: list[int], key: bytes) -> dict[bytes, Any]:
    """What a file of an archive holds: rows of 1,024 red, 1,024 green and 1,024 blue values."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {
        b"batch_label": b"some images", key: labels, b"data": np.ascontiguousarray(rows),
        b"filenames": [b"image_%d.png" % i for i in range(len(images))],
    }  # fmt: skip


def write_pickle(path: Path, value: Any) -> None:
    """As the authors' Python 2 wrote it: protocol 2, and numpy's module of that time."""
    content = pickle.dumps(value, protocol=2)
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


def write_cifar10(root: Path, train: int = 50, val: int = 20, classes: int = 10) -> Path:
    """Writes root/cifar-10-batches-py and returns that folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [b"class %d" % i for i in range(classes)]
    write_pickle(folder / "batches.meta", {b"label_names": names, b"num_vis": 3072})
    images, labels = colourful(train, classes, 0)
    for i in range(5):
        part = slice(i * train // 5, (i + 1) * train // 5)
        made = batch(images[part], labels[part], b"labels")
        write_pickle(folder / f"data_batch_{i + 1}", made)
    write_pickle(folder / "test_batch", batch(*colourful(val, classes, 1), b"labels"))
    return folder


def write_cifar100(root: Path, train: int = 48, val: int = 24, classes: int = 6) -> Path:
    """Writes root/cifar-100-python and returns that folder."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    meta = {b"fine_label_names": [b"fine_%d" % i for i in range(classes)],
            b"coarse_label_names": [b"all"]}  # fmt: skip
    write_pickle(folder / "meta", meta)
    (folder / "file.txt~").touch()
    for name, count, seed in (("train", train, 0), ("test", val, 1)):
        made = batch(*colourful(count, classes, seed), b"fine_labels")
        write_pickle(folder / name, made | {b"coarse_labels": [0] * count})
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """The folder as the .tar.gz that is offered for download."""
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=folder.name)
    return archive
