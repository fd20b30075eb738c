# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Tools for whole data sets.

    python -m image_classification.dataset_tools check DIR [--list FILE] [-j N]
    python -m image_classification.dataset_tools pack SRC DST [--short-side 400] [--quality 90]

check decodes every image of train and val and reports those that cannot be read. pack writes them
as smaller JPEGs into a few large files, which every backend reads like a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from image_classification.affinity import MAX_THREADS, default_threads
from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex, printable
from image_classification.datasets import load_split
from image_classification.errors import DataError, ImageError, UsageError, UserError, tell
from image_classification.fast_loader.native import CROP, NativeDecoder, Status, load_core
from image_classification.image_reading import pixel_limit, read_image
from image_classification.option_parser import OptionParser
from image_classification.packing import INDEX_ENDING, PackSettings, pack_split

_BATCH = 256
_PROGRESS_S = 10.0
_SIDE = 8  # of the pixels that a check makes and throws away


@dataclass
class CheckReport:
    """What a check has found.

    Attributes:
        images: Number of images that were decoded.
        by_pillow: How many of the good ones the fast loader leaves to Pillow.
        bad: Path and error of those that cannot be read.
    """

    images: int = 0
    by_pillow: int = 0
    bad: list[tuple[str, ImageError]] = field(default_factory=list)


def check_index(index: ImageIndex, threads: int, report: CheckReport) -> Iterator[int]:
    """Decode every image of a split as a whole.

    Args:
        index: The images.
        threads: Threads that decode, >= 1.
        report: Is added to.

    Yields:
        The number of images of the split that are done.
    """
    decoder = NativeDecoder(threads) if load_core() is not None else None
    with ThreadPoolExecutor(threads) as pool, contextlib.closing(decoder or _Nothing()):
        for start in range(0, len(index), _BATCH):
            places = np.arange(start, min(start + _BATCH, len(index)))
            left = places if decoder is None else places[~_decodes(decoder, index, places)]
            report.images += len(places)
            bad = list(filter(None, pool.map(_problem, map(index.path, left))))
            report.by_pillow += len(left) - len(bad)
            report.bad += bad
            yield start + len(places)


class _Nothing:
    def close(self) -> None:
        """Nothing to close."""


def _decodes(decoder: NativeDecoder, index: ImageIndex, places: Any) -> Any:
    """Which images the fast loader decodes from the first to the last block; bool [N]."""
    batch = decoder.load(index.paths(places))
    batch.wait()
    known = batch.statuses == Status.OK
    known &= batch.widths.astype(np.int64) * batch.heights <= pixel_limit()
    crops = np.zeros(len(places), dtype=CROP)
    for corner, size in ((2, batch.widths), (3, batch.heights)):
        crops["box"][:, corner] = crops["bounds"][:, corner] = size
    batch.decode(crops, ~known, np.empty((len(places), _SIDE, _SIDE, 3), dtype=np.uint8))
    batch.wait()
    known &= batch.statuses == Status.OK
    batch.free()
    return known


def _problem(path: str) -> tuple[str, ImageError] | None:
    try:
        read_image(path).close()
    except ImageError as error:
        return path, error
    return None


class _Progress:
    """How far a long command has come: one line that changes, or in a file a line now and then."""

    def __init__(self, out: TextIO, split: str, total: int) -> None:
        self._out, self._split, self._total = out, split, total
        self._told = time.monotonic()

    def show(self, done: int, extra: str = "") -> None:
        """Tell the number of images that are done."""
        terminal = self._out.isatty()
        if time.monotonic() - self._told < (0.1 if terminal else _PROGRESS_S):
            return
        self._told = time.monotonic()
        text = f"{self._split}: {done}/{self._total} images{extra}"
        self._out.write(f"\r{text} " if terminal else f"{text}\n")
        self._out.flush()

    def close(self) -> None:
        """Clear the line that changes."""
        if self._out.isatty():
            self._out.write("\r\x1b[K")


def check(data: Path, threads: int, out: TextIO) -> CheckReport:
    """Check both splits of a data folder, as far as they are there.

    Args:
        data: Folder with train/ and val/, or train.txt and val.txt.
        threads: Threads that decode, >= 1.
        out: For the progress and the result.

    Returns:
        What was found.

    Raises:
        DataError: A split is there and cannot be indexed, or neither is there.
    """
    report = CheckReport()
    for index in _splits(data, out):
        with contextlib.closing(_Progress(out, index.split, len(index))) as progress:
            for done in check_index(index, threads, report):
                progress.show(done, f", {len(report.bad)} bad")
        print(f"{index.split}: {len(index)} images in {len(index.classes)} classes", file=out)
    for _, error in report.bad:
        print(error, file=out)
    print(
        f"{report.images} images, {len(report.bad)} cannot be read, {report.by_pillow} are read by "
        "Pillow (not baseline JPEG: slower)",
        file=out,
    )
    return report


def _splits(data: Path, out: TextIO) -> list[ImageIndex]:
    """The splits of a data folder; one that is not there at all is a warning."""
    splits, missing = [], []
    for split in ("train", "val"):
        forms = (split, f"{split}.txt", split + INDEX_ENDING)
        try:
            splits.append(load_split(data, split))
        except DataError as error:
            if any((data / form).exists() for form in forms):
                raise
            missing.append(error)
    if not splits:
        raise missing[0]
    for problem in missing:
        print(f"Warning: {problem}", file=out)
    return splits


def pack(source: Path, target: Path, settings: PackSettings, threads: int, out: TextIO) -> None:
    """Pack both splits of a data folder, as far as they are there.

    Args:
        source: Folder with train/ and val/, or lists.
        target: Folder for the packed data; made if it is missing.
        settings: Size and quality.
        threads: Threads, >= 1.
        out: For the progress and the result.

    Raises:
        DataError: A split cannot be indexed, neither is there, or no image of one can be read.
        UsageError: The target cannot be written, is no folder of its own, or holds something else.
    """
    _check_apart(source, target)
    splits = _splits(source, out)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{target} cannot be made ({error.strerror})") from error
    for index in splits:
        with contextlib.closing(_Progress(out, index.split, len(index))) as progress:
            problems = pack_split(index, target, settings, threads, progress.show)
        for problem in problems:
            print(f"left out: {problem}", file=out)
        done = len(index) - len(problems)
        print(f"{index.split}: {done} of {len(index)} images, {len(problems)} left out", file=out)
    size = sum(path.stat().st_size for path in target.glob("*.pack"))
    print(f"{target}: {size / 1e6:.0f} MB; give this folder to main.py as DIR", file=out)


def _check_apart(source: Path, target: Path) -> None:
    """Packed data win over a folder's own images: they must not lie in it, nor be packed again."""
    inside, outside = target.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise UsageError(f"DST {target} and SRC {source} must not lie in each other")
    if any(source.glob(f"*{INDEX_ENDING}")):
        raise UsageError(f"SRC {source} is packed already; give the original images")


def build_parser() -> OptionParser:
    """Declare the options."""
    parser = OptionParser(
        prog="python -m image_classification.dataset_tools",
        description="Tools for whole data sets.",
        epilog="exit codes: 0 done, 2 usage, 3 bad data",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("check", help="decode every image and report the bad ones")
    add.add_argument("data", type=Path, metavar="DIR", help="folder with train/ and val/, or lists")
    add.add_argument("-j", "--workers", type=int, metavar="N", help="threads (default: all cores)")
    add.add_argument("--list", type=Path, metavar="FILE", help="write path and reason of bad files")
    add = commands.add_parser("pack", help="write smaller JPEGs into a few large files")
    add.add_argument("source", type=Path, metavar="SRC", help="folder with train/ and val/")
    add.add_argument("target", type=Path, metavar="DST", help="folder for the packed data")
    add.add_argument(
        "--short-side",
        type=int,
        default=400,
        metavar="PX",
        help="short side that larger images are reduced to (default: 400)",
    )
    add.add_argument("--quality", type=int, default=90, help="JPEG quality (default: 90)")
    add.add_argument("-j", "--workers", type=int, metavar="N", help="threads (default: all cores)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    if options.workers is not None and not 1 <= options.workers <= MAX_THREADS:
        raise UsageError(f"-j {options.workers}: must be between 1 and {MAX_THREADS}")
    threads = options.workers or default_threads("none", 1, computes=False)
    if options.command == "pack":
        settings = PackSettings(options.short_side, options.quality)
        pack(options.source, options.target, settings, threads, sys.stdout)
        return 0
    if options.list is not None:
        _write_list(options.list, [])  # hours later would be too late to hear that it cannot be
    report = check(options.data, threads, sys.stdout)
    if options.list is not None:
        _write_list(options.list, report.bad)
    return DataError.exit_code if report.bad else 0


def _write_list(path: Path, bad: list[tuple[str, ImageError]]) -> None:
    lines = [f"{printable(name, 4096)}\t{error.reason}\n" for name, error in bad]
    try:
        with atomic_file(path) as file:
            file.write("".join(lines).encode())
    except OSError as error:
        raise UsageError(f"--list {path} cannot be written ({error.strerror})") from error


def main(argv: list[str] | None = None) -> int:
    """The command; user errors become one line and an exit code."""
    try:
        return run(build_parser().parse_or_raise(argv))
    except UserError as error:
        return tell("dataset_tools", error)
    except KeyboardInterrupt:
        print("\ndataset_tools: interrupted; pack goes on after its last whole file of 4,096 "
              "images", file=sys.stderr)  # fmt: skip
        return 130


if __name__ == "__main__":
    sys.exit(main())
