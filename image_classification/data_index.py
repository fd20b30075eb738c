# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The index of one split: which files, which labels, which class names.

Paths lie end to end in one byte array, so that a million images cost their path lengths plus
16 bytes each, and no worker process ever touches the reference counts of a million strings.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from image_classification.errors import DataError, printable

# The names that torchvision's ImageFolder takes, so that both see the same samples.
IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip

# From here on the mean accuracy says little of the small classes.
_IMBALANCE = 10

# The coarsest time stamps of file systems.
_SETTLED_S = 2.0


@dataclass(frozen=True)
class ImageIndex:
    """Files and labels of one split in flat arrays.

    Attributes:
        root: Folder that the stored paths start from.
        labels: int64 [N], each in 0 .. len(classes) - 1.
        classes: Class names; the position is the label.
        path_bytes: uint8, all relative paths end to end, in the file system's encoding.
        path_offsets: int64 [N + 1]; path i is path_bytes[path_offsets[i]:path_offsets[i + 1]].
        split: "train" or "val".
        source: "folder" or "list".
    """

    root: Path
    labels: NDArray[np.int64]
    classes: list[str]
    path_bytes: NDArray[np.uint8]
    path_offsets: NDArray[np.int64]
    split: str
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """The full path of image `i`."""
        return os.path.join(self.root, os.fsdecode(self.relative_path(i)))

    def paths(self, indices: Iterable[int] | NDArray[np.int64]) -> list[bytes]:
        """The full paths of several images, as bytes in the file system's encoding."""
        prefix = os.path.join(os.fsencode(self.root), b"")
        return [prefix + self.relative_path(i) for i in indices]

    def select(self, rows: Iterable[int] | NDArray[np.int64]) -> ImageIndex:
        """The index of some of the images, in the order of `rows`."""
        builder = IndexBuilder()
        for i in rows:
            builder.add(self.relative_path(i), int(self.labels[i]))
        return builder.build(self.root, self.classes, self.split, self.source)

    def relative_path(self, i: int | np.integer) -> bytes:
        """The path of image `i` as it is stored, from `root`."""
        start, end = self.path_offsets[i], self.path_offsets[i + 1]
        return self.path_bytes[start:end].tobytes()


@dataclass
class IndexBuilder:
    """Collects paths and labels in flat buffers."""

    _blob: bytearray = field(default_factory=bytearray)
    _offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    _labels: array[int] = field(default_factory=lambda: array("q"))

    def add(self, relative_path: bytes, label: int) -> None:
        """Append one image."""
        self._blob += relative_path
        self._offsets.append(len(self._blob))
        self._labels.append(label)

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> NDArray[np.int64]:
        """int64 [N], a view of the labels so far; add nothing while it is in use."""
        return np.frombuffer(self._labels, dtype=np.int64)

    def relative_path(self, i: int) -> bytes:
        """The path of image `i` as it was added."""
        return bytes(self._blob[self._offsets[i] : self._offsets[i + 1]])

    def relative_paths(self) -> Iterator[bytes]:
        """The paths in order."""
        return map(self.relative_path, range(len(self)))

    def build(self, root: Path, classes: list[str], split: str, source: str) -> ImageIndex:
        """The finished index."""
        return ImageIndex(
            root=root,
            labels=np.array(self._labels, dtype=np.int64),
            classes=classes,
            path_bytes=np.frombuffer(bytes(self._blob), dtype=np.uint8),
            path_offsets=np.array(self._offsets, dtype=np.int64),
            split=split,
            source=source,
        )


def describe_imbalance(counts: ArrayLike, classes: list[str]) -> str | None:
    """A line about classes with far more images than others, None where they are much alike.

    Args:
        counts: int [C], the images of each class, of which one has some.
        classes: Class names.
    """
    counts = np.asarray(counts, dtype=np.int64)
    present = np.flatnonzero(counts)
    least, most = present[np.argmin(counts[present])], int(np.argmax(counts))
    ratio = counts[most] / counts[least]
    if ratio < _IMBALANCE:
        return None
    return (
        f"{printable(classes[most], 60)} has {ratio:.0f} times as many images as "
        f"{printable(classes[least], 60)} ({counts[most]} and {counts[least]}): look at the "
        "accuracy per class, not only the mean"
    )


def few(names: Iterable[str], count: int = 3) -> str:
    """The first names for a message, and how many more there are."""
    names = list(names)
    shown = ", ".join(printable(name, 60) for name in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def scan_class_folders(root: Path, split: str, visited: dict[str, int] | None = None) -> ImageIndex:
    """Index `root/<class>/**/<image>`; labels follow the sorted class names, as in torchvision.

    Hidden files and folders are skipped. Symbolic links are followed; each folder counts once per
    class, so a link to a parent folder does no harm.

    Args:
        root: Folder of the split.
        split: "train" or "val", for the index and the messages.
        visited: Gets every folder that was looked into: its full path, and when it was changed
            last before that (ns), 0 where this was too short ago to notice the next change.

    Returns:
        The index; samples are in the order of torchvision's ImageFolder.

    Raises:
        DataError: No class folder, a class folder without images, or an unreadable folder.
    """
    visited = {} if visited is None else visited
    visited[os.path.abspath(root)] = _settled_time(root)
    entries = _scan(root)
    classes = sorted(entry.name for entry in entries if _is_folder(entry))
    if not classes:
        raise DataError(_no_classes_text(root, split, entries))
    builder = IndexBuilder()
    empty = []
    for label, name in enumerate(classes):
        before = len(builder)
        for path in _class_images(os.path.join(root, name), name, visited):
            builder.add(os.fsencode(path), label)
        if len(builder) == before:
            empty.append(name)
    if empty:
        raise DataError(
            f"{printable(root)}: {len(empty)} of {len(classes)} class folders hold no image: "
            f"{few(empty)}; remove them or add images (known endings: "
            f"{' '.join(IMAGE_EXTENSIONS)}), an empty class would shift all labels after it"
        )
    return builder.build(root, classes, split, "folder")


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, unsorted."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: cannot read this folder ({error.strerror}); "
            "check that it exists and its permissions"
        ) from error


def _settled_time(folder: str | Path) -> int:
    """When a folder was changed last (ns); 0 if it may change again without a new time stamp."""
    try:
        changed = os.stat(folder).st_mtime_ns
    except OSError:  # reading it says why
        return 0
    return changed if time.time_ns() - changed > _SETTLED_S * 1e9 else 0


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _class_images(folder: str, relative: str, all_visited: dict[str, int]) -> list[str]:
    """The images below one class folder, relative to the split, in torchvision's order.

    torchvision sorts the folders by their full path, then the files of each by name.
    """
    found: list[tuple[str, list[str]]] = []
    open_folders = [(folder, relative)]
    visited = set()
    while open_folders:
        folder, relative = open_folders.pop()
        real_path = os.path.realpath(folder)
        if real_path in visited:
            continue
        visited.add(real_path)
        all_visited[os.path.abspath(folder)] = _settled_time(folder)
        names = []
        for entry in sorted(_scan(folder), key=lambda entry: entry.name, reverse=True):
            if _is_folder(entry):
                open_folders.append((entry.path, f"{relative}/{entry.name}"))
            elif entry.name.lower().endswith(IMAGE_EXTENSIONS):
                names.append(entry.name)
        found.append((relative, sorted(names)))
    return [f"{relative}/{name}" for relative, names in sorted(found) for name in names]


def _no_classes_text(root: Path, split: str, entries: list[os.DirEntry[str]]) -> str:
    images = sum(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in entries)
    if not images:
        text = f"{printable(root)}: empty; expected one folder of images per class"
        if split == "val":
            text += (
                "; or remove it: main.py --val-split 0.2 and run_process_data.sh take a share of "
                "train where there is no val"
            )
        return text
    text = f"{printable(root)}: {images} images lie directly in this folder"
    if split == "val":
        text += ", as in the flat ILSVRC validation set"
    elif root.name == split:
        text += (
            f", which is taken for all training images (if {split} is the name of a class, rename "
            f"the folder, or put all class folders below another folder {split}/)"
        )
    # A folder whose own folders are the classes has its list within.
    list_file = printable((root.parent if root.name == split else root) / f"{split}.txt")
    return (
        f"{text}, and nothing says their classes; write {list_file} with one line 'file label' per "
        "image, or move the images into one folder per class"
    )
