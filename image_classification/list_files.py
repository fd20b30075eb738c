# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""List files: DIR/train.txt and DIR/val.txt with one line `relative/path label` per image."""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from image_classification.atomic_file import atomic_file
from image_classification.data_index import IndexBuilder, few
from image_classification.errors import DataError, UsageError, printable

# A label is a position in the classifier's output; a larger one is a slip of the pen.
MAX_LABEL = 999_999
# Up to this many lines every file is looked up, beyond it only a sample of this size: on a network
# file system a million look-ups take longer than the error they would find is worth.
FULL_CHECK_LINES = 20_000
SAMPLE_CHECK_LINES = 200

_INTEGER = re.compile(rb"[+-]?[0-9]+")
# How the lists that this package makes begin: those of others are never replaced.
_OUR_HEAD = b"# relative/path label, made by image_classification: "


@dataclass(frozen=True)
class ImageList:
    """What a list file says, before class names are settled.

    Attributes:
        builder: Paths relative to `base`, and labels.
        base: Folder that the paths start from: DIR/<split> or DIR.
        names: The labels' names where the file has names instead of numbers, otherwise None.
        folders: Top folder of each label's images, where labels and folders match one to one.
    """

    builder: IndexBuilder
    base: Path
    names: list[str] | None
    folders: dict[int, str] | None


def read_image_list(path: Path, data: Path, split: str) -> ImageList:
    """Read a list file.

    Each line is `relative/path label`: the label comes last, the path may contain spaces and starts
    from DIR/<split>/ or from DIR (the first line decides). Labels are numbers from 0 or, if the
    first one is not a number, class names. Blank lines and lines starting with # are skipped.

    Args:
        path: The list file.
        data: DIR.
        split: "train" or "val".

    Returns:
        Paths and labels.

    Raises:
        DataError: A malformed line (with its number), a path that leaves DIR, a label that is
            negative or too large, an image with two labels, missing files, an unreadable or empty
            list.
    """
    builder = IndexBuilder()
    base: Path | None = None
    name_labels: dict[bytes, int] | None = None
    for number, line in _numbered_lines(path):
        image, label = _split_line(line, path, number)
        if base is None:
            base = _base_folder(image, data, split, path, number)
            name_labels = None if _INTEGER.fullmatch(label) else {}
        if name_labels is None:
            builder.add(image, _label_number(label, path, number))
        else:
            builder.add(image, name_labels.setdefault(label, len(name_labels)))
    if base is None:
        raise DataError(f"{printable(path)}: no image in this list; expected lines 'path label'")
    _check_one_label(builder, path)
    _check_files(builder, base, path)
    names = [os.fsdecode(name) for name in name_labels] if name_labels is not None else None
    return ImageList(builder, base, names, _folder_of_labels(builder, base, data, split))


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that say something, with their numbers, stripped of the white space around."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                line = line.strip()
                if line and not line.startswith(b"#"):
                    yield number, line
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot read this list ({error.strerror})") from error


def _error(path: Path, number: int, line: bytes, problem: str) -> DataError:
    return DataError(f"{printable(path)}, line {number}: {problem}; the line: {printable(line)}")


def _split_line(line: bytes, path: Path, number: int) -> tuple[bytes, bytes]:
    parts = line.rsplit(None, 1)
    if len(parts) != 2:
        raise _error(path, number, line, "expected 'relative/path label'")
    image, label = parts
    if image.startswith(b"/"):
        raise _error(path, number, line, "the path must be relative, not start with /")
    if b".." in image and b".." in image.split(b"/"):
        raise _error(path, number, line, "the path must not leave the data folder through '..'")
    if b"\0" in image:
        raise _error(path, number, line, "the path holds a zero byte")
    return image.removeprefix(b"./"), label


def _label_number(label: bytes, path: Path, number: int) -> int:
    if not _INTEGER.fullmatch(label):
        raise _error(path, number, label, "expected a number as label, as in the first line")
    # Bounded length: int() of a very long digit string is refused by Python itself.
    value = int(label[:20])
    if value < 0:
        raise _error(path, number, label, "negative label; labels count from 0")
    if value > MAX_LABEL:
        raise _error(path, number, label, f"label too large; at most {MAX_LABEL} is allowed")
    return value


def _base_folder(image: bytes, data: Path, split: str, path: Path, number: int) -> Path:
    """The folder that the paths start from, by looking where the first image is."""
    for base in (data / split, data):
        if os.path.exists(os.path.join(os.fsencode(base), image)):
            return base
    problem = f"no such file, neither below {printable(data / split)} nor below {printable(data)}"
    raise _error(path, number, image, problem)


def _check_one_label(builder: IndexBuilder, path: Path) -> None:
    """An image may be listed more than once, but not under different labels."""
    # Equal paths come to lie side by side in the order of their hashes: 24 bytes per line for a
    # moment, where a dictionary of a million paths would keep 150 MB.
    hashes = np.fromiter(map(hash, builder.relative_paths()), np.int64, len(builder))
    order = np.argsort(hashes, kind="stable")
    hashes, labels = hashes[order], builder.labels()[order]
    suspects = np.flatnonzero((hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1]))
    pairs = sorted((int(order[i]), int(order[i + 1])) for i in suspects)
    pairs = [(i, j) for i, j in pairs if builder.relative_path(i) == builder.relative_path(j)]
    if not pairs:
        return
    numbers = [number for number, _ in _numbered_lines(path)]
    places = [
        f"lines {numbers[i]} and {numbers[j]}: {os.fsdecode(builder.relative_path(i))}"
        for i, j in pairs
    ]
    raise DataError(
        f"{printable(path)}: the same image has two labels, {few(places)}; each image has one "
        "label: keep the right line"
    )


def _check_files(builder: IndexBuilder, base: Path, path: Path) -> None:
    total = len(builder)
    step = 1 if total < FULL_CHECK_LINES else total // SAMPLE_CHECK_LINES
    prefix = os.path.join(os.fsencode(base), b"")
    looked_for = [builder.relative_path(i) for i in range(0, total, step)]
    missing = [os.fsdecode(image) for image in looked_for if not os.path.isfile(prefix + image)]
    if missing:
        raise DataError(
            f"{printable(path)}: {len(missing)} of {len(looked_for)} files looked for do not exist "
            f"below {printable(base)}: {few(missing)}; correct the list or bring the files back"
        )


def _folder_of_labels(
    builder: IndexBuilder, base: Path, data: Path, split: str
) -> dict[int, str] | None:
    """Label -> top folder, or None where a label has several folders or a folder several labels."""
    split_prefix = os.fsencode(split) + b"/" if base == data else b""
    folder_of: dict[int, bytes] = {}
    for label, image in zip(builder.labels().tolist(), builder.relative_paths(), strict=True):
        folder, slash, _ = image.removeprefix(split_prefix).partition(b"/")
        if not slash or folder_of.setdefault(label, folder) != folder:
            return None
    if len(set(folder_of.values())) != len(folder_of):
        return None
    return {label: os.fsdecode(folder) for label, folder in folder_of.items()}


def read_class_names(path: Path, num_labels: int) -> list[str]:
    """Read classes.txt: one class name per line, the line's position is the label.

    Args:
        path: The file.
        num_labels: Largest label of the lists + 1.

    Returns:
        Class names, at least `num_labels`.

    Raises:
        DataError: Unreadable, too few names, or the same name twice.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot read the class names ({error})") from error
    names = [line.strip() for line in text.split("\n") if line.strip()]
    if len(names) < num_labels:
        raise DataError(
            f"{printable(path)}: {len(names)} class names, but the lists use labels up to "
            f"{num_labels - 1}; add the missing lines or remove the file"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{printable(path)}: class names appear twice: {few(twice)}; train and val are "
            "matched by name, so make each name unique"
        )
    return names


def check_class_names(classes: Iterable[str], folder: Path) -> None:
    """Make sure that lists and classes.txt can hold the images and the names of all classes.

    Args:
        classes: Class names.
        folder: Where they are from, for the message.

    Raises:
        DataError: A name with a line feed.
    """
    if broken := [name for name in classes if "\n" in name]:
        raise DataError(
            f"{printable(folder)}: line feeds in names of classes, which no list can hold: "
            f"{few(broken)}; rename these folders"
        )


def is_listable(image: bytes) -> bool:
    """Whether a list can hold the path of an image: a line holds no line feed."""
    return b"\n" not in image


def describe_left_out(images: list[bytes], path: Path) -> str:
    """A line about the images that `write_image_list` has left out of a list."""
    return (
        f"{len(images)} images are not in {path.name}: line feeds in names: "
        f"{few(map(os.fsdecode, images))}; rename them"
    )


def write_image_list(path: Path, images: Iterable[tuple[bytes, int]], note: str) -> list[bytes]:
    """Write a list that `read_image_list` reads; it appears complete or not at all.

    Args:
        path: The list, in an existing folder. A list that is there is replaced.
        images: Path and label of each image; a path starts from DIR/<split> or from DIR, the same
            for all.
        note: What the list is, one line of ASCII for its head.

    Returns:
        Paths of the images that are left out, see `is_listable`.

    Raises:
        UsageError: It cannot be written.
    """
    left_out = []
    try:
        with atomic_file(path) as file:
            file.write(_OUR_HEAD + note.encode("ascii") + b"\n")
            for image, label in images:
                if not is_listable(image):
                    left_out.append(image)
                    continue
                # "#" would make a comment of the line, white space at its start would be lost.
                prefix = b"./" if image[:1] == b"#" or image[:1].isspace() else b""
                file.write(b"%b%b %d\n" % (prefix, image, label))
    except OSError as error:
        raise UsageError(f"{printable(path)} cannot be written ({error.strerror})") from error
    return left_out


def is_our_list(path: Path) -> bool:
    """Whether a file is a list that `write_image_list` has written."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_OUR_HEAD)) == _OUR_HEAD
    except OSError:
        return False
