# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What loaders do with images that cannot be read: replace, count, report, give up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_classification.augmentation import hash64
from image_classification.errors import DataError, ImageError, printable
from image_classification.sample_reader import SampleReader

# So few bad files never end a run, however small the data set.
ALWAYS_TOLERATED = 10
DEFAULT_MAX_BAD = 0.001

_STREAM_REPLACEMENT = 3
_ATTEMPTS = 100


class BadImages:
    """The bad files of one split, on one rank.

    Args:
        total: Images of the split.
        max_bad: Share of them that may be bad, 0..1; ten are tolerated in any case.
        tolerated: Whether bad images are replaced at all; otherwise the first one is an error.
        seed: Seed of the run.
        report: Called with path and error when a bad file is met for the first time; returns the
            paths of all bad files of the run, those of other ranks and earlier starts included.
        root: Folder of the split: only bad files below it count.

    Attributes:
        paths: The bad files that were met.
    """

    def __init__(
        self,
        total: int,
        *,
        max_bad: float = DEFAULT_MAX_BAD,
        tolerated: bool = True,
        seed: int = 0,
        report: Callable[[str, ImageError], Iterable[str]] | None = None,
        root: str = "",
    ) -> None:
        self.paths: set[str] = set()
        self._total = total
        self._tolerated = tolerated
        self._seed = seed
        self._limit = max(ALWAYS_TOLERATED, int(max_bad * total))
        self._report = report
        self._root = root

    def record(self, path: str, error: ImageError) -> None:
        """Note a bad file.

        Raises:
            DataError: Bad files are not tolerated, or these are too many.
        """
        if not self._tolerated:
            raise error
        if path in self.paths:
            return
        self.paths.add(path)
        listed = self._report(path, error) if self._report is not None else ()
        known = max(len(self.paths), sum(name.startswith(self._root) for name in listed or ()))
        if known > self._limit:
            raise DataError(
                f"{known} of {self._total} images cannot be read, more than the "
                f"{self._limit} that --max-bad allows; the last one: {error}"
            )

    def replace(
        self,
        epoch: int,
        index: int,
        output: NDArray[np.uint8],
        reader: SampleReader,
        error: ImageError,
    ) -> int:
        """Note a bad image and read another in its place, the same on any number of ranks.

        Args:
            epoch: Epoch number.
            index: Sample index of the bad image.
            output: uint8 [H, W, 3], the place of the image.
            reader: Reads the other image.
            error: Why it is bad.

        Returns:
            The sample index that was read.

        Raises:
            DataError: See `record`; or even after many attempts no image can be read.
        """
        self.record(reader.path(index), error)
        for attempt in range(_ATTEMPTS):
            other = hash64(self._seed, _STREAM_REPLACEMENT, epoch, index, attempt) % self._total
            try:
                reader.read(epoch, other, output)
            except DataError:
                continue
            return other
        raise DataError(f"{_ATTEMPTS} images in a row cannot be read; check the data set")


class BadFileLog:
    """Tells of bad files once each, and lists them in bad_files.txt: path, tab, reason.

    Args:
        folder: Folder of the run.
        warn: Called with one line per file.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self._path = folder / "bad_files.txt"
        self._warn = warn

    def add(self, path: str, error: ImageError) -> set[str]:
        """Note a bad file, unless an earlier start or another rank has listed it.

        Returns:
            The paths of all listed files.
        """
        self._warn(f"{error}; another image takes its place")
        line = f"{printable(path, 4096)}\t{error.reason}\n"
        known = ""
        try:
            known = self._path.read_text("utf-8") if self._path.exists() else ""
            if line not in known:
                with open(self._path, "a", encoding="utf-8") as file:  # one write: ranks share it
                    file.write(line)
        except OSError as problem:
            self._warn(f"{self._path} cannot be written ({problem.strerror})")
        return {*(listed.split("\t")[0] for listed in known.splitlines()), printable(path, 4096)}
