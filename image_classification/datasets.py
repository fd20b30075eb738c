# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From a data folder to checked indices: layout, class names, agreement of train and val.

A split is either a folder tree (train/<class>/...) or a list file (train.txt). Whatever a user can
get wrong about labels is found here, before the first step, not by a device-side assertion later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from image_classification.data_index import ImageIndex, few, scan_class_folders
from image_classification.errors import DataError, printable
from image_classification.index_cache import load_index, save_index
from image_classification.list_files import ImageList, read_class_names, read_image_list
from image_classification.packing import INDEX_ENDING, packed_index
from image_classification.pixel_index import PixelIndex
from image_classification.samples import SAMPLES, Sample, prepare_sample

__all__ = [
    "LAYOUTS",
    "SAMPLES",
    "ImageIndex",
    "Sample",
    "Splits",
    "adopt_classes",
    "check_split_names",
    "has_split",
    "load_split",
    "load_splits",
    "match_classes",
    "prepare_sample",
]  # fmt: skip

LAYOUTS = ("auto", "folder", "list")
AnyIndex = TypeVar("AnyIndex", bound=ImageIndex | PixelIndex)

# Names that other tools give to the two splits, in letters of either case.
OTHER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test", "testing"),
}


@dataclass(frozen=True)
class Splits:
    """The data of one run.

    Attributes:
        train: Index of the training images, None if not asked for.
        val: Index of the validation images, None if not asked for; labels are train's.
        classes: Class names; the position is the label.
        num_classes: len(classes), the size of the classifier.
        warnings: One-line texts for the user, worth a look but no error.
    """

    train: ImageIndex | PixelIndex | None
    val: ImageIndex | PixelIndex | None
    classes: list[str]
    num_classes: int
    warnings: list[str]

    @property
    def in_memory(self) -> bool:
        """Whether the images are in memory."""
        return isinstance(self.train or self.val, PixelIndex)


@dataclass(frozen=True)
class _Part:
    """One split as found. `numbered`: the labels are numbers that may have no names."""

    index: ImageIndex
    numbered: bool = False
    folders: dict[int, str] | None = None


def load_split(data: Path, split: str, layout: str = "auto") -> ImageIndex:
    """Index one split by itself.

    Args:
        data: DIR, the folder that holds train/ and val/ or the lists.
        split: "train" or "val".
        layout: "folder", "list" (DIR/<split>.txt), or "auto": the list where there is one.

    Returns:
        The index, with class names from the folders, else DIR/classes.txt, else the label numbers.

    Raises:
        DataError: Missing, unreadable, empty or malformed data.
    """
    part = _read_part(Path(data), split, layout)
    return replace(part.index, classes=_class_names(part, Path(data), None, []))


def load_splits(
    data: str | Path,
    *,
    train: bool,
    val: bool,
    layout: str = "auto",
    num_classes: int | None = None,
    flat: bool = False,
) -> Splits:
    """Index the splits of a run and check that they belong together.

    Train and val are matched by class name: each val label becomes the label of train's class of
    the same name. Class folders must be the same in both. List files with numbers share train's
    numbers; there a class without images is a warning, since no label can shift.

    Args:
        data: DIR, the folder that holds train/ and val/ or the lists.
        train: Index the training images.
        val: Index the validation images.
        layout: "auto", "folder" or "list", see `load_split`.
        num_classes: What the user asked for. It must equal what the data hold; only lists with
            numbers may use fewer labels.
        flat: Where DIR has no training split, its own folders are the classes.

    Returns:
        Both indices and the class names.

    Raises:
        DataError: Missing, unreadable, empty, malformed or contradictory data.
        ValueError: Neither split was asked for.
    """
    if not (train or val):
        raise ValueError("load_splits: neither train nor val was asked for")
    data = Path(data)
    warnings: list[str] = []
    parts = {
        split: _read_part(data, split, layout, flat)
        for split, wanted in (("train", train), ("val", val))
        if wanted
    }
    first = parts.get("train") or parts["val"]
    classes = _class_names(first, data, num_classes, warnings)
    _check_num_classes(first, classes, num_classes)
    indices = {first.index.split: replace(first.index, classes=classes)}
    if len(parts) == 2:
        indices["val"] = _match_val(parts["val"], parts["train"], classes, warnings)
    _warn_of_numeric_order(first, classes, warnings)
    return Splits(indices.get("train"), indices.get("val"), classes, len(classes), warnings)


def has_split(data: Path, split: str) -> bool:
    """Whether a data folder holds the images of a split, packed or not, or a list of them."""
    return any((data / form).exists() for form in (split, f"{split}.txt", split + INDEX_ENDING))


def check_split_names(data: Path, cure: str, splits: Iterable[str] = tuple(OTHER_NAMES)) -> None:
    """Make sure that no folder is taken for a class, or left out, that is a split by another name.

    Args:
        data: DIR.
        cure: What to do if the folder is no split, for the message.
        splits: The splits that may lie there.

    Raises:
        DataError: There is such a folder, and nothing by the right name.
    """
    for split in splits:
        other = None if has_split(data, split) else _other_name(data, split)
        if other is not None:
            raise DataError(
                f"{printable(data)} holds {other}/ and no {split}/: if that is what it is, rename "
                f"it (mv {other} {split}); if not, {cure}"
            )


def _other_name(data: Path, split: str) -> str | None:
    """The folder that is a split by another name."""
    known = OTHER_NAMES[split]
    try:
        names = [name for name in os.listdir(data) if name.lower() in known]
    except OSError:  # whoever reads the folder says why
        return None
    folders = (name for name in names if name != split and (data / name).is_dir())
    return min(folders, key=lambda name: (known.index(name.lower()), name), default=None)


def match_classes(index: AnyIndex, classes: list[str], owner: str) -> AnyIndex:
    """The same images with the labels that `classes` gives to their names.

    For validation without the training data: the labels must be those of the checkpoint.

    Args:
        index: Any index. Label numbers without names are taken as they are.
        classes: Class names in the wanted order.
        owner: Whose classes these are, for the message, such as "the checkpoint".

    Returns:
        An index whose `classes` are the given ones.

    Raises:
        DataError: A class of the data is not among `classes`.
    """
    position = {name: label for label, name in enumerate(classes)}
    names = index.classes
    unknown = [name for name in _used_names(index) if name not in position]
    if not unknown:
        mapping = np.array([position.get(name, -1) for name in names], dtype=np.int64)
        return replace(index, labels=mapping[index.labels], classes=classes)
    numbered = index.source == "list" and names == [str(label) for label in range(len(names))]
    if numbered and len(names) <= len(classes):
        return replace(index, classes=classes)
    raise DataError(
        f"{printable(index.root)}: {len(unknown)} of {len(names)} {index.split} classes are "
        f"unknown to {owner}: {few(unknown)}; {owner} has {len(classes)} classes: {few(classes)}"
    )


def adopt_classes(splits: Splits, classes: list[str], owner: str) -> Splits:
    """The same data with the labels of a checkpoint.

    Args:
        splits: What `load_splits` returned.
        classes: Class names in the order of the checkpoint's labels.
        owner: Whose classes these are, for the message, such as "the checkpoint".

    Returns:
        Splits whose labels are positions in `classes`.

    Raises:
        DataError: The data have a class that `classes` lacks.
    """
    train = splits.train and match_classes(splits.train, classes, owner)
    val = splits.val and match_classes(splits.val, classes, owner)
    return Splits(train, val, classes, len(classes), splits.warnings)


def _read_part(data: Path, split: str, layout: str, flat: bool = False) -> _Part:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, received {layout!r}")
    if not data.is_dir():
        what = "is not a folder" if data.exists() else "does not exist"
        raise DataError(
            f"data folder {printable(data)} {what}; give the folder that holds train/ and val/"
        )
    list_path = data / f"{split}.txt"
    if layout == "list" or (layout == "auto" and list_path.is_file()):
        if not list_path.is_file():
            raise DataError(
                f"{printable(list_path)} does not exist; the layout 'list' needs one line "
                "'relative/path label' per image there"
            )
        return _list_part(read_image_list(list_path, data, split), split)
    if layout == "auto" and (packed := packed_index(data, split)) is not None:
        return _Part(packed)
    folder = data if flat and not has_split(data, split) else data / split
    if not folder.is_dir():
        raise DataError(_missing_split_text(data, split))
    index = load_index(folder, split)
    if index is None:
        visited: dict[str, int] = {}
        index = scan_class_folders(folder, split, visited)
        save_index(index, visited)
    return _Part(index)


def _list_part(images: ImageList, split: str) -> _Part:
    """A list as a part; the label numbers stand in for the names that are not settled yet."""
    builder, base = images.builder, images.base
    if images.names is None:
        names = [str(label) for label in range(int(np.max(builder.labels())) + 1)]
        return _Part(builder.build(base, names, split, "list"), True, images.folders)
    # Sorted, as class folders would be.
    names = sorted(images.names)
    position = {name: label for label, name in enumerate(names)}
    mapping = np.array([position[name] for name in images.names], dtype=np.int64)
    index = builder.build(base, names, split, "list")
    return _Part(replace(index, labels=mapping[index.labels]))


def _missing_split_text(data: Path, split: str) -> str:
    text = f"{printable(data)} holds neither {split}/ nor {split}.txt"
    if (other := _other_name(data, split)) is not None:
        return f"{text}, but {other}/; rename it: mv {other} {split} (a link does as well)"
    if data.name in ("train", "val") and (data.parent / split).is_dir():
        return f"{text}; give the folder above it: {printable(data.parent)}"
    try:
        inside = sorted(name for name in os.listdir(data) if not name.startswith("."))
    except OSError as error:
        return f"{printable(data)}: cannot read this folder ({error.strerror})"
    found = f"; found: {few(inside, 5)}" if inside else "; the folder is empty"
    if split == "val" and inside:
        found += " (--val-split 0.2 takes it out of train, --training-only needs no val)"
    text += f"{found}; expected {split}/<class>/<image> or lines 'relative/path label'"
    if split == "train" and any((data / name).is_dir() for name in inside):
        text += "; where DIR holds nothing but class folders, --val-split 0.2 divides them"
    return text


def _class_names(
    part: _Part, data: Path, num_classes: int | None, warnings: list[str]
) -> list[str]:
    """The class names of a part: its own, or those of the numbers that a list uses."""
    used = len(part.index.classes)
    if not part.numbered:
        return part.index.classes
    file = data / "classes.txt"
    if part.folders is not None:
        count = max(used, num_classes or 0)
        classes = [part.folders.get(label, f"label_{label}") for label in range(count)]
    elif file.is_file():
        classes = read_class_names(file, used)
    else:
        classes = [str(label) for label in range(max(used, num_classes or 0))]
    missing = len(classes) - len(np.unique(part.index.labels))
    if missing:
        split = part.index.split
        warnings.append(f"{split}.txt: {missing} of {len(classes)} classes have no image in it")
    return classes


def _check_num_classes(part: _Part, classes: list[str], num_classes: int | None) -> None:
    if num_classes is None or num_classes == len(classes):
        return
    where = f"{part.index.split}.txt" if part.index.source == "list" else part.index.root
    found = f"{len(classes)} classes"
    if part.numbered:
        found += f" (labels up to {len(classes) - 1})"
    raise DataError(
        f"--num-classes {num_classes} contradicts the data: {printable(where)} has {found}; "
        f"leave the option out or give --num-classes {len(classes)}"
    )


def _match_val(val: _Part, train: _Part, classes: list[str], warnings: list[str]) -> ImageIndex:
    """The val index with train's labels."""
    index = val.index
    if val.numbered and not _folders_known(val, classes):
        largest = int(np.max(index.labels))
        if largest >= len(classes):
            raise DataError(
                f"val.txt has labels up to {largest}, but train has {len(classes)} classes (labels "
                f"up to {len(classes) - 1}); correct the lists, or name all classes in classes.txt"
            )
        matched = replace(index, classes=classes)
    else:
        if val.folders is not None:
            names = [val.folders.get(label, "") for label in range(len(index.classes))]
            index = replace(index, classes=names)
        matched = _match_by_name(index, train.index, classes)
        if val.numbered and not np.array_equal(matched.labels, index.labels):
            warnings.append(
                "val.txt numbers the class folders differently from train; each image has the "
                "label of its folder's name"
            )
    _check_all_present(matched, train, warnings)
    return matched


def _folders_known(val: _Part, classes: list[str]) -> bool:
    """Whether the folders of a list with numbers are classes of train (not, say, shards)."""
    return val.folders is not None and not set(val.folders.values()).isdisjoint(classes)


def _used_names(index: ImageIndex | PixelIndex) -> list[str]:
    """The names of the classes that have images; a list with numbers may skip some."""
    return [index.classes[label] for label in np.unique(index.labels).tolist()]


def _match_by_name(index: ImageIndex, train: ImageIndex, classes: list[str]) -> ImageIndex:
    position = {name: label for label, name in enumerate(classes)}
    used = _used_names(index)
    unknown = [name for name in used if name not in position]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(used)} val classes are not in train: {few(unknown)}; "
            f"{printable(train.root)} has {len(classes)} classes: {few(classes)}"
        )
    mapping = np.array([position.get(name, -1) for name in index.classes], dtype=np.int64)
    return replace(index, labels=mapping[index.labels], classes=classes)


def _check_all_present(val: ImageIndex, train: _Part, warnings: list[str]) -> None:
    """Train classes without val images: an error between folders, else a warning."""
    missing = np.setdiff1d(np.unique(train.index.labels), np.unique(val.labels)).tolist()
    if not missing:
        return
    names = [val.classes[label] for label in missing]
    text = f"{len(names)} of {len(val.classes)} train classes are not in val: {few(names)}"
    if val.source == "folder" and train.index.source == "folder":
        raise DataError(f"{text}; {printable(val.root)} must have the same class folders as train")
    warnings.append(text)


def _warn_of_numeric_order(part: _Part, classes: list[str], warnings: list[str]) -> None:
    """Folders 1, 2, 10 sort as text to 1, 10, 2; other tools number them in natural order."""
    if part.numbered or not all(re.fullmatch("[0-9]+", name) for name in classes):
        return
    natural = sorted(classes, key=int)
    if natural != classes:
        label = next(i for i, name in enumerate(classes) if name != natural[i])
        warnings.append(
            f"the class names are numbers and sort as text: label {label} is class "
            f"{classes[label]}, not {natural[label]}; weights of tools that sort by number (timm) "
            "do not fit these labels"
        )
