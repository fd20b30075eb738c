# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Brings what a user has into one folder with train/<class>/ and val/<class>/.

Known are ILSVRC2012's archives, Kaggle's folder of the same images, and folders of one's own. What
is in the target already stays there.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from image_classification.data_index import IMAGE_EXTENSIONS, ImageIndex, few, scan_class_folders
from image_classification.data_processing.placing import (
    ArchiveClass,
    ClassJob,
    FolderClass,
    Slice,
    Workplace,
    file_status,
    image_slices,
)
from image_classification.data_processing.tar_reader import tar_members
from image_classification.data_processing.val_labels import (
    FORMS,
    WNID,
    find_val_labels,
    read_val_labels,
)
from image_classification.datasets import check_split_names
from image_classification.errors import DataError, UsageError, printable
from image_classification.list_files import check_class_names, is_our_list
from image_classification.progress import CountLine

SPLITS = ("train", "val")
ARCHIVES = {split: f"ILSVRC2012_img_{split}.tar" for split in SPLITS}
# Images and classes of the whole archives.
PUBLISHED = {"train": (1_281_167, 1000), "val": (50_000, 1000)}
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC"
# ImageNet's largest edition has 22 thousand.
_MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Sources:
    """What the images are made from.

    Attributes:
        folder: SOURCE.
        val_labels: The file with the classes of ILSVRC2012's validation images, if it is named.
        synsets: A list of wnids, for such a file with numbers only.
        processes: Number of processes that unpack and copy, >= 1.
    """

    folder: Path
    val_labels: Path | None
    synsets: Path | None
    processes: int

    @property
    def images(self) -> Path:
        """The folder above train/ and val/."""
        kaggle = self.folder / KAGGLE_FOLDER
        return kaggle if kaggle.is_dir() else self.folder

    def archive(self, split: str) -> Path | None:
        """The archive of a split, None where there is none."""
        path = self.folder / ARCHIVES[split]
        return path if path.is_file() else None


def gather(sources: Sources, workplace: Workplace, out: TextIO) -> None:
    """Unpack, sort, link or copy whatever the target lacks.

    Args:
        sources: What there is.
        workplace: The target.
        out: For progress and messages.

    Raises:
        DataError: A damaged or hostile archive, no labels for the validation images, no images.
        UsageError: The target cannot be written or holds something else.
    """
    for split in SPLITS:
        archive, folder = sources.archive(split), workplace.target / split
        if archive is not None and (not folder.exists() or workplace.has_begun(split)):
            _unpack(archive, split, sources, workplace, out)
        elif archive is not None:
            out.write(f"{folder} is there: {archive.name} is not unpacked\n")
        elif (sources.images / split).is_dir():
            _bring(split, sources, workplace, out)
    has_splits = any(sources.archive(split) or (sources.images / split).is_dir()
                     for split in SPLITS)  # fmt: skip
    if not has_splits and not _same(sources.images, workplace.target):
        index = scan_class_folders(sources.images, "train")
        _place(_folder_jobs(index, workplace.target), f"{sources.images}", sources, workplace, out)


def check_source(sources: Sources) -> None:
    """Make sure that there is something.

    Raises:
        DataError: SOURCE is no folder.
    """
    if not sources.folder.is_dir():
        what = "is not a folder" if sources.folder.exists() else "does not exist"
        raise DataError(
            f"SOURCE {printable(sources.folder)} {what}; give the folder of archives or images"
        )


def check_names(sources: Sources) -> None:
    """Make sure that no folder is taken for a class, or left out, that is a split by another name.

    Raises:
        DataError: There is such a folder.
    """
    check_split_names(
        sources.images, "say so with --val-share",
        [split for split in SPLITS if sources.archive(split) is None],
    )  # fmt: skip


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def check_target(sources: Sources, target: Path) -> None:
    """Make sure that a folder is not copied into itself, nor images away from the user's list.

    Raises:
        UsageError: They would be.
    """
    images, path = sources.images, sources.images / "train.txt"
    if _same(images, target) or any(map(sources.archive, SPLITS)):
        return
    if images.resolve() in target.resolve().parents:
        raise UsageError(f"TARGET {printable(target)} must not lie in SOURCE {printable(images)}")
    if path.is_file() and not is_our_list(path):
        raise UsageError(
            f"{printable(path)} is a list of images: process its folder in place (leave TARGET out)"
        )


def _unpack(archive: Path, split: str, sources: Sources, workplace: Workplace, out: TextIO) -> None:
    origin = f"{archive.name} ({archive.stat().st_size} bytes)"
    if split == "train":
        _place(_train_jobs(archive), origin, sources, workplace, out)
        return
    labels_file, listed = _labels_file(sources), workplace.target / "val.txt"
    kept = listed.with_name("val.txt.original")
    moves = labels_file == listed and not is_our_list(listed)
    if moves and os.path.lexists(kept):
        raise UsageError(
            f"{printable(kept)} exists and is not overwritten with val.txt: remove one of the two"
        )
    _place(_val_jobs(archive, labels_file, sources, workplace.target), origin, sources, workplace,
           out)  # fmt: skip
    if moves:
        # Its paths were those of the images side by side; the new list takes its place.
        os.rename(listed, kept)
        out.write(f"{listed} is kept as {kept.name}: its images have moved\n")


def _place(
    jobs: list[ClassJob], origin: str, sources: Sources, workplace: Workplace, out: TextIO
) -> None:
    split = jobs[0].split
    with contextlib.closing(CountLine(out, f"{split}: {origin}", len(jobs), "classes")) as line:
        made = workplace.place(jobs, origin, sources.processes, lambda done, _: line.show(done))
    kept = f", {len(jobs) - made} were there" if made < len(jobs) else ""
    out.write(f"{split}: {made} classes made from {printable(origin)}{kept}\n")


def _train_jobs(archive: Path) -> list[ClassJob]:
    """A class for each archive within the archive of the training images."""
    jobs: dict[str, ClassJob] = {}
    with open(archive, "rb") as file:
        for name, kind, offset, size in tar_members(file, archive.name):
            wnid = name.removesuffix(".tar")
            if kind == "folder":
                continue
            if kind != "file" or not WNID.fullmatch(wnid) or name == wnid or wnid in jobs:
                raise DataError(
                    f"{printable(archive)}: {printable(name, 100)} ({kind}): expected one archive "
                    "n01440764.tar for each class; this is not the original archive"
                )
            jobs[wnid] = ArchiveClass("train", wnid, str(archive), offset, size)
            if len(jobs) > _MAX_CLASSES:
                raise DataError(f"{printable(archive)}: more than {_MAX_CLASSES} classes")
    if not jobs:
        raise DataError(f"{printable(archive)} is empty; get it again")
    return [jobs[wnid] for wnid in sorted(jobs)]


def _val_jobs(archive: Path, labels_file: Path, sources: Sources, target: Path) -> list[ClassJob]:
    """A class for each of those that the labels give to the members of the archive."""
    with open(archive, "rb") as file:
        slices = list(image_slices(tar_members(file, archive.name), str(archive)))
    labels = read_val_labels(
        labels_file, [image.name for image in slices], _train_classes(target), sources.synsets
    )
    classes: dict[str, list[Slice]] = defaultdict(list)
    for image in slices:
        classes[labels[image.name]].append(image)
    return [
        ArchiveClass("val", name, str(archive), 0, sum(s.size for s in found), tuple(found))
        for name, found in sorted(classes.items())
    ]


def _labels_file(sources: Sources) -> Path:
    path = sources.val_labels or find_val_labels(sources.folder) or find_val_labels(sources.images)
    if path is None:
        raise DataError(
            f"nothing in {printable(sources.folder)} says the classes of the validation images: "
            f"put a file with them there, or name it: --val-labels FILE; known: {FORMS}"
        )
    return path


def _train_classes(target: Path) -> list[str] | None:
    folder = target / "train"
    if not folder.is_dir():
        return None
    return sorted(entry.name for entry in folder.iterdir()
                  if entry.is_dir() and not entry.name.startswith("."))  # fmt: skip


def _flat_images(folder: Path) -> list[str]:
    """The images that lie directly in a split's folder, not in one of its classes."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries
            if entry.name.lower().endswith(IMAGE_EXTENSIONS) and not entry.name.startswith(".")
            and entry.is_file()
        )  # fmt: skip


def _bring(split: str, sources: Sources, workplace: Workplace, out: TextIO) -> None:
    """A split's folder of the source, where that is not the target; val sorted by class."""
    folder, target = sources.images / split, workplace.target
    in_place = _same(sources.images, target)
    flat = _flat_images(folder) if split == "val" else []
    if in_place and (not flat or _listed(target, sources)):
        return
    if flat:
        labels = read_val_labels(
            _labels_file(sources), flat, _train_classes(target), sources.synsets
        )
        if in_place:
            _sort(folder, labels, out)
            return
        classes: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for image, name in labels.items():
            classes[name].append((str(folder / image), image))
        jobs: list[ClassJob] = [
            _folder_job("val", name, files, target) for name, files in sorted(classes.items())
        ]
    else:
        jobs = _folder_jobs(scan_class_folders(folder, split), target)
    _place(jobs, f"{folder}", sources, workplace, out)


def _listed(target: Path, sources: Sources) -> bool:
    """Whether the user's own val.txt says the classes of images that lie side by side."""
    path = target / "val.txt"
    return sources.val_labels is None and path.is_file() and not is_our_list(path)


def _sort(folder: Path, labels: dict[str, str], out: TextIO) -> None:
    """Move images into class folders; after an interruption the others are moved.

    Raises:
        UsageError: Something has the name of a class folder or of an image in it: nothing is moved.
    """
    taken = [name for name in sorted(set(labels.values()))
             if os.path.lexists(folder / name) and not (folder / name).is_dir()]  # fmt: skip
    taken += [f"{name}/{image}" for image, name in labels.items()
              if os.path.lexists(folder / name / image)]  # fmt: skip
    if taken:
        raise UsageError(
            f"{printable(folder)}: the images directly in it would be moved over what is there: "
            f"{few(taken)}; nothing is moved: remove these or the former, whichever are wrong"
        )
    try:
        for name in sorted(set(labels.values())):
            (folder / name).mkdir(exist_ok=True)
        for image, name in labels.items():
            os.rename(folder / image, folder / name / image)
    except OSError as error:
        raise UsageError(f"{printable(folder)} cannot be sorted ({error.strerror})") from error
    out.write(f"val: {len(labels)} images moved into {len(set(labels.values()))} class folders\n")


def _folder_jobs(index: ImageIndex, target: Path) -> list[ClassJob]:
    check_class_names(index.classes, index.root)
    files: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for i, label in enumerate(index.labels.tolist()):
        name = os.fsdecode(index.relative_path(i)).partition("/")[2]
        files[label].append((index.path(i), name))
    return [
        _folder_job(index.split, name, files[label], target)
        for label, name in enumerate(index.classes)
    ]


def _folder_job(split: str, name: str, files: list[tuple[str, str]], target: Path) -> FolderClass:
    """The files of a class; their size where they have to be copied to another disk."""
    size = 0
    if file_status(files[0][0]).st_dev != os.stat(target).st_dev:
        size = sum(file_status(path).st_size for path, _ in files)
    return FolderClass(split, name, tuple(files), size)
