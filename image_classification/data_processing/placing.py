# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Class folders out of archives and other folders: each appears complete or not at all.

A class is written as .<class>.part and renamed when it is whole. A journal names the finished ones,
with what they were made from and how large they are: they are not made again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from image_classification.data_index import IMAGE_EXTENSIONS, few
from image_classification.data_processing.tar_reader import TarMember, tar_members
from image_classification.data_processing.workers import ordered_map
from image_classification.errors import DataError, UsageError, printable

STATE_FOLDER = ".process_data"
# Far above any class of ImageNet (1,300 images, 1 MB at most in a file but for a few).
MAX_CLASS_FILES = 100_000
MAX_FILE_BYTES = 1 << 28
_COPY_BYTES = 1 << 20


class Slice(NamedTuple):
    """A file of a class: its name in the class folder, and where its bytes are in an archive."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class ArchiveClass:
    """A class whose images lie in an archive: an archive within it, or single members.

    Attributes:
        split: "train" or "val".
        name: Of the class.
        archive: Path of the archive.
        offset: Where the archive of the class begins; with `slices` unused.
        size: Length of that archive in bytes, or of all slices together.
        slices: The members, where they have no archive of their own.
    """

    split: str
    name: str
    archive: str
    offset: int
    size: int
    slices: tuple[Slice, ...] = ()

    @property
    def known_files(self) -> int:
        """Number of images, 0 where only the archive of the class knows it."""
        return len(self.slices)

    def fill(self, folder: str) -> None:
        """Write the images into an empty folder."""
        with open(self.archive, "rb") as file:
            slices = self.slices
            if not slices:
                shown = f"{self.archive}: {self.name}.tar"
                members = tar_members(file, shown, self.offset, self.size)
                slices = tuple(image_slices(members, shown))
            for name, offset, size in slices:
                file.seek(offset)
                with open(os.path.join(folder, name), "xb") as image:
                    _copy(file, image, size, self.archive)


@dataclass(frozen=True)
class FolderClass:
    """A class whose images are files elsewhere: linked where that is possible, else copied.

    Attributes:
        split: "train" or "val".
        name: Of the class.
        files: Path of each file, and its path in the class folder.
        size: Bytes that their copies take; 0 where they are linked.
    """

    split: str
    name: str
    files: tuple[tuple[str, str], ...]
    size: int

    @property
    def known_files(self) -> int:
        """Number of images."""
        return len(self.files)

    def fill(self, folder: str) -> None:
        """Link or copy the images into an empty folder."""
        for source, name in self.files:
            file_status(source)
            target, source = os.path.join(folder, name), os.path.realpath(source)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                    raise
                shutil.copyfile(source, target)


def file_status(path: str) -> os.stat_result:
    """The status of an ordinary file; links are followed.

    Raises:
        DataError: It is something else, or a link to nothing.
    """
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            return status
    raise DataError(f"{printable(path)} is missing or no ordinary file; remove it")


ClassJob = ArchiveClass | FolderClass


def _copy(file: Any, image: Any, size: int, archive: str) -> None:
    left = size
    while left:
        block = file.read(min(left, _COPY_BYTES))
        if not block:
            raise DataError(f"{printable(archive)} ends within a member; get it again")
        image.write(block)
        left -= len(block)


def image_slices(members: Iterator[TarMember], archive: str) -> Iterator[Slice]:
    """The images of an archive, checked: they land in one folder and nowhere else.

    Args:
        members: What the archive holds.
        archive: Its name for the errors.

    Raises:
        DataError: Anything but images and folders is in it, a name that leaves the folder or that
            comes twice, an empty or enormous file, or too many.
    """
    seen: set[str] = set()
    for name, kind, offset, size in members:
        if kind == "folder":
            continue
        problem = _problem(name, kind, size)
        if name in seen:
            problem = "the name comes twice"
        if len(seen) >= MAX_CLASS_FILES:
            problem = f"more than {MAX_CLASS_FILES} files"
        if problem:
            raise DataError(
                f"{printable(archive)}: {printable(name, 100)}: {problem}; this is not the "
                "original archive, nothing of this class is unpacked"
            )
        seen.add(name)
        yield Slice(name, offset, size)


def _problem(name: str, kind: str, size: int) -> str | None:
    if kind != "file":
        return f"kind of member: {kind}, expected image files"
    if name != PurePosixPath(name).name or name.startswith(".") or not name.isprintable():
        return "not a plain file name"
    if not name.lower().endswith(IMAGE_EXTENSIONS):
        return "not an image by its name"
    if not 0 < size <= MAX_FILE_BYTES:
        return f"{size} bytes, expected 1 to {MAX_FILE_BYTES}"
    return None


class Workplace:
    """The target folder of one command at a time, and its journal of finished classes.

    Args:
        target: Folder of the data set; made if it is missing.

    Raises:
        UsageError: It cannot be written, or another process is at work in it.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.state = target / STATE_FOLDER
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.state / "lock", "w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._journal = self._read_journal()
        except BlockingIOError as error:
            raise UsageError(
                f"another process prepares data in {printable(target)}: wait for it"
            ) from error
        except OSError as error:
            raise UsageError(
                f"{printable(target)} cannot be written ({error.strerror}); give another TARGET"
            ) from error

    def close(self) -> None:
        """Let others work here."""
        self._lock.close()

    def _read_journal(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The finished classes; of a line that a power cut has halved nothing is taken."""
        finished = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.state / "placed.jsonl").read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    note = json.loads(line)
                    finished[note["split"], note["class"]] = note
        return finished

    def has_begun(self, split: str) -> bool:
        """Whether classes of this split were made here."""
        return any(found == split for found, _ in self._journal)

    def place(
        self, jobs: list[ClassJob], origin: str, processes: int, tell: Callable[[int, int], None]
    ) -> int:
        """Make the class folders that are not there yet.

        Args:
            jobs: The classes, all of one split.
            origin: What they are made from, and in which state.
            processes: Number of processes, >= 1.
            tell: Called with the number of classes done and of all.

        Returns:
            How many were made.

        Raises:
            UsageError: The disk is full or too small, or a folder of this name is somebody else's.
            DataError: An archive is damaged or not what it should be.
        """
        todo = [job for job in jobs if not self._is_done(job, origin)]
        if not todo:
            return 0
        folder = self.target / todo[0].split
        foreign = [job.name for job in todo if (folder / job.name).exists()]
        if foreign:
            raise UsageError(
                f"{printable(folder)} holds {few(foreign)}, not (wholly) made from {origin}: "
                "remove this, or give another TARGET"
            )
        self._check_space(todo)
        try:
            folder.mkdir(exist_ok=True)
            tasks = [(job, str(folder / f".{job.name}.part")) for job in todo]
            with open(self.state / "placed.jsonl", "a", encoding="utf-8") as journal:
                made = ordered_map(_make_folder, tasks, processes)
                for number, (job, _) in enumerate(zip(todo, made, strict=True), 1):
                    note = {"split": job.split, "class": job.name, "origin": origin,
                            "files": job.known_files}  # fmt: skip
                    # First the note, then the name: a folder without a note is never ours. The line
                    # feed comes first: half a line that a power cut left spoils no other.
                    journal.write("\n" + json.dumps(note))
                    journal.flush()
                    os.fsync(journal.fileno())
                    os.rename(folder / f".{job.name}.part", folder / job.name)
                    self._journal[job.split, job.name] = note
                    tell(len(jobs) - len(todo) + number, len(jobs))
        except OSError as error:
            raise UsageError(
                f"{printable(folder)} cannot be made ({error.strerror or error}: "
                f"{printable(error.filename or '')}); what is finished is kept, the same command "
                "goes on"
            ) from error
        return len(todo)

    def _is_done(self, job: ClassJob, origin: str) -> bool:
        """Whether a class is there; a power cut leaves files without content behind."""
        note = self._journal.get((job.split, job.name), {})
        if (note.get("origin"), note.get("files")) != (origin, job.known_files):
            return False
        folder = self.target / job.split / job.name
        return folder.is_dir() and (isinstance(job, FolderClass) or _no_empty_file(folder))

    def _check_space(self, todo: list[ClassJob]) -> None:
        needed = sum(job.size for job in todo)
        free = shutil.disk_usage(self.target).free
        if needed > free:
            raise UsageError(
                f"{printable(self.target)} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB "
                "are needed: make room, or give a TARGET on another disk"
            )


def _make_folder(task: tuple[ClassJob, str]) -> None:
    """Makes a class folder under its temporary name."""
    job, folder = task
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)  # of a run that was killed
    os.mkdir(folder)
    job.fill(folder)


def _no_empty_file(folder: Path) -> bool:
    paths = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return all(map(os.path.getsize, paths))
