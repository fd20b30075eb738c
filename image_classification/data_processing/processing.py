# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One command from what a user has to a data set: gather, examine, split, write lists, report."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex, scan_class_folders
from image_classification.data_processing.duplicates import equal_groups
from image_classification.data_processing.examination import Findings, examine
from image_classification.data_processing.gathering import (
    PUBLISHED,
    SPLITS,
    Sources,
    check_names,
    check_source,
    check_target,
    gather,
)
from image_classification.data_processing.placing import STATE_FOLDER, Workplace
from image_classification.data_processing.summary import Summary
from image_classification.datasets import load_splits
from image_classification.errors import DataError, UsageError, printable
from image_classification.list_files import (
    check_class_names,
    describe_left_out,
    is_listable,
    is_our_list,
    write_image_list,
)
from image_classification.packing import INDEX_ENDING
from image_classification.progress import CountLine
from image_classification.val_split import lone_classes, stratified_split

DEFAULT_VAL_SHARE = 0.1


@dataclass(frozen=True)
class Settings:
    """What a user can choose.

    Attributes:
        sources: Where the images come from, and how many processes work.
        target: Folder of the data set.
        val_share: Share of each class that goes to val where there is none; None: the default, and
            an error where another folder looks like val.
        seed: Of the split.
        similar: Also look for the same picture saved another time in train and val.
    """

    sources: Sources
    target: Path
    val_share: float | None
    seed: int
    similar: bool


@dataclass(frozen=True)
class _Data:
    """The splits as they lie in the target.

    Attributes:
        indices: Train and val, as far as they are there; labels are positions in `classes`.
        classes: Class names.
        prefix: What paths of train start with in a list of both splits; None where val has images
            of its own, or train is missing.
        notes: One-line texts for the user.
    """

    indices: list[ImageIndex]
    classes: list[str]
    prefix: bytes | None
    notes: list[str]


def process(settings: Settings, out: TextIO) -> Summary:
    """Make a data set, or what is missing of it.

    What is there already is neither made again nor changed, but for lists that this function wrote.

    Args:
        settings: See there.
        out: For progress and messages.

    Returns:
        What was found; it has also been written into the target.

    Raises:
        DataError: Damaged, hostile or contradictory data, or none at all.
        UsageError: The target cannot be written, holds something else, or the disk is too small.
    """
    target = settings.target
    check_source(settings.sources)
    if any(target.glob(f"*{INDEX_ENDING}")):
        raise UsageError(f"{printable(target)} is packed already; give the original images")
    if settings.val_share is None:
        check_names(settings.sources)
    check_target(settings.sources, target)
    with contextlib.closing(Workplace(target)) as workplace:
        gather(settings.sources, workplace, out)
        _remove_our_lists(target)
        data = _find_data(target)
        check_class_names(data.classes, target)
        summary = Summary(str(settings.sources.folder), str(target), data.classes, data.notes)
        examined = [(index, _examine(index, settings, out)) for index in data.indices]
        for index, found in examined:
            summary.note_other_files(index)
            if settings.sources.archive(index.split) is not None:
                _compare_with_published(index, summary)
            if not found.good.any():
                raise DataError(f"{printable(index.root)}: no image of {index.split} can be read")
        if data.prefix is None and settings.val_share is not None:
            data.notes.append("--val-share changes nothing: val is there")
        if data.prefix is not None:
            ((index, found),) = examined
            examined = _split(index, found, settings, summary)
        for index, found in examined:
            summary.add_split(index, found)
            _write_list(target, index, found, data.prefix or b"", summary)
        _write_class_names(target, data.classes, summary)
        summary.add_duplicates(examined)
        if settings.similar and len(examined) == 2:
            summary.add_similar(*examined)
        summary.write(target)
    return summary


def _remove_our_lists(target: Path) -> None:
    """They are written anew at the end; until then the folders count."""
    for split in SPLITS:
        path = target / f"{split}.txt"
        if is_our_list(path):
            path.unlink()


def _find_data(target: Path) -> _Data:
    listed = {split: (target / f"{split}.txt").is_file() for split in SPLITS}
    there = {split: listed[split] or (target / split).is_dir() for split in SPLITS}
    if not any(there.values()):
        index = scan_class_folders(target, "train")
        return _Data([index], index.classes, b"", [])
    if listed["train"] and not there["val"]:
        raise DataError(
            f"{printable(target)} has a train.txt of yours and no val: add a val.txt, or remove "
            "the list where folders say the classes"
        )
    splits = load_splits(target, train=there["train"], val=there["val"])
    indices = [index for index in (splits.train, splits.val) if isinstance(index, ImageIndex)]
    prefix = None if there["val"] else b"train/"
    return _Data(indices, splits.classes, prefix, list(splits.warnings))


def _compare_with_published(index: ImageIndex, summary: Summary) -> None:
    found = (len(index), len(np.unique(index.labels)))
    if found != PUBLISHED[index.split]:
        summary.notes.append(
            "{}: {:,} images in {:,} classes, but ILSVRC2012 has {:,} in {:,}".format(
                index.split, *found, *PUBLISHED[index.split]
            )
        )


def _examine(index: ImageIndex, settings: Settings, out: TextIO) -> Findings:
    notes = settings.target / STATE_FOLDER / "examined"
    with contextlib.closing(CountLine(out, f"{index.split}: examined", len(index))) as line:
        return examine(
            index, settings.sources.processes, notes,
            lambda done, bad: line.show(done, f", {bad} cannot be read"),
        )  # fmt: skip


def _split(
    index: ImageIndex, found: Findings, settings: Settings, summary: Summary
) -> list[tuple[ImageIndex, Findings]]:
    """Val out of the training images; equal files of a class stay together."""
    good = np.flatnonzero(found.good)
    labels = index.labels[good]
    keys = equal_groups(found.digests, found.good)[good] * len(index.classes) + labels
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    share = DEFAULT_VAL_SHARE if settings.val_share is None else settings.val_share
    _, chosen = stratified_split(labels[first], share, settings.seed)
    if not len(chosen):
        raise DataError(f"{printable(index.root)}: one image per class, nothing is left for val")
    is_val = np.zeros(len(index), dtype=bool)
    is_val[good] = np.isin(group.reshape(-1), chosen)
    summary.val_share, summary.seed = share, settings.seed
    if (line := lone_classes(labels[first], index.classes)) is not None:
        summary.notes.append(line)
    sides = (("train", np.flatnonzero(~is_val)), ("val", np.flatnonzero(is_val)))
    return [(replace(index.select(places), split=split), found.select(places))
            for split, places in sides]  # fmt: skip


def _write_list(
    target: Path, index: ImageIndex, found: Findings, prefix: bytes, summary: Summary
) -> None:
    """The list of the readable images, unless the user has one."""
    path, bad = target / f"{index.split}.txt", len(index) - int(found.good.sum())
    if index.source == "list":
        if bad:
            summary.notes.append(f"{path.name} is yours and stays as it is, with {bad} bad images")
        return
    images = [(prefix + index.relative_path(i), int(index.labels[i]))
              for i in np.flatnonzero(found.good).tolist()]  # fmt: skip
    made = f"split {summary.val_share:g} with seed {summary.seed}" if summary.val_share else "all"
    count = sum(is_listable(image) for image, _ in images)
    left_out = write_image_list(path, images, f"{count} images, {made}")
    if left_out:
        summary.notes.append(describe_left_out(left_out, path))


def _write_class_names(target: Path, classes: list[str], summary: Summary) -> None:
    """classes.txt names the labels where no folder does; one that is not ours stays.

    It holds names and nothing else, so a copy tells whether it is ours.
    """
    path, copy = target / "classes.txt", target / STATE_FOLDER / "classes.txt"
    text = "".join(f"{name}\n" for name in classes).encode("utf-8", "surrogateescape")
    try:
        there = path.read_bytes() if path.exists() else text
        if there == text or (copy.exists() and there == copy.read_bytes()):
            for written in (copy, path):
                with atomic_file(written) as file:
                    file.write(text)
        else:
            summary.notes.append("classes.txt is yours and stays, though it has other names")
    except OSError as error:
        raise UsageError(f"{printable(path)} cannot be written ({error.strerror})") from error
