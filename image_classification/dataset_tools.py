# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Tools for whole data sets.

    python -m image_classification.dataset_tools check DIR [--list FILE] [-j N]
    python -m image_classification.dataset_tools pack SRC DST [--short-side 400] [--quality 90]
    python -m image_classification.dataset_tools process SOURCE [TARGET] [options]

check decodes every image of train and val and reports those that cannot be read. pack writes them
as smaller JPEGs into a few large files, which every backend reads like a folder. process makes a
data set: it unpacks ImageNet's archives, checks all images, takes a val set where there is none,
writes the lists and a report (scripts/run_process_data.sh is the same).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from image_classification.affinity import MAX_THREADS, default_threads
from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex
from image_classification.data_processing.examination import State, examine
from image_classification.data_processing.gathering import Sources
from image_classification.data_processing.processing import (
    DEFAULT_VAL_SHARE,
    Settings,
    process,
)
from image_classification.data_processing.summary import TEXT_NAME
from image_classification.datasets import has_split, load_split
from image_classification.errors import DataError, UsageError, UserError, printable, tell
from image_classification.image_reading import unreadable
from image_classification.option_parser import OptionParser
from image_classification.packing import INDEX_ENDING, PackSettings, pack_split
from image_classification.progress import CountLine

_PACKING = (400, 90)  # short side in pixels, JPEG quality


@dataclass
class CheckReport:
    """What a check has found.

    Attributes:
        images: Number of images that were decoded.
        by_pillow: How many of the good ones the fast loader leaves to Pillow.
        bad: Path and reason of those that cannot be read.
    """

    images: int = 0
    by_pillow: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


def check(data: Path, processes: int, out: TextIO) -> CheckReport:
    """Check both splits of a data folder, as far as they are there.

    Args:
        data: Folder with train/ and val/, or train.txt and val.txt.
        processes: Number of processes that decode, >= 1.
        out: For the progress and the result.

    Returns:
        What was found.

    Raises:
        DataError: A split is there and cannot be indexed, or neither is there.
    """
    report = CheckReport()
    for index in _splits(data, out):
        with contextlib.closing(CountLine(out, index.split, len(index))) as progress:
            found = examine(
                index, processes, None, lambda done, bad: progress.show(done, f", {bad} bad")
            )
        report.images += len(index)
        report.by_pillow += int((found.states == State.PILLOW).sum())
        report.bad += [(index.path(i), reason) for i, reason in sorted(found.reasons.items())]
        print(f"{index.split}: {len(index)} images in {len(index.classes)} classes", file=out)
    for path, reason in report.bad:
        print(unreadable(path, None, reason), file=out)
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
        try:
            splits.append(load_split(data, split))
        except DataError as error:
            if has_split(data, split):
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
        with contextlib.closing(CountLine(out, index.split, len(index))) as progress:
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
    add.add_argument(
        "-j", "--workers", type=int, metavar="N", help="processes (default: all cores)"
    )
    add.add_argument("--list", type=Path, metavar="FILE", help="write path and reason of bad files")
    add = commands.add_parser("pack", help="write smaller JPEGs into a few large files")
    add.add_argument("source", type=Path, metavar="SRC", help="folder with train/ and val/")
    add.add_argument("target", type=Path, metavar="DST", help="folder for the packed data")
    _add_pack_options(add)
    add.add_argument("-j", "--workers", type=int, metavar="N", help="threads (default: all cores)")
    _add_process_parser(commands.add_parser(
        "process", help="unpack, check, split and list: make a data set for main.py"))  # fmt: skip
    return parser


def _add_pack_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--short-side",
        type=int,
        default=_PACKING[0],
        metavar="PX",
        help=f"short side that larger images are packed with (default: {_PACKING[0]})",
    )
    parser.add_argument(
        "--quality", type=int, default=_PACKING[1], help=f"JPEG quality (default: {_PACKING[1]})"
    )


def _add_process_parser(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=_folder, metavar="SOURCE", help="folder with ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar, with train/ and val/, or with one folder per class")  # fmt: skip
    add("target", type=_folder, nargs="?", metavar="TARGET",
        help="folder of the data set; images of folders are linked there, or copied to another "
        "disk (default: SOURCE)")  # fmt: skip
    add("--val-share", type=float, metavar="SHARE", help="of each class, where there is no val "
        f"(default: {DEFAULT_VAL_SHARE:g})")  # fmt: skip
    add("--seed", type=int, default=0, help="of that choice (default: 0)")
    add("--val-labels", type=Path, metavar="FILE", help="classes of ImageNet's validation images "
        "(default: the development kit or another known file in SOURCE)")  # fmt: skip
    add("--synsets", type=Path, metavar="FILE", help="wnids, where --val-labels has numbers only")
    add("--similar", action="store_true",
        help="also name pairs of train and val that look the same")  # fmt: skip
    add("--pack", type=Path, metavar="DST", help="at the end pack the data set into this folder")
    _add_pack_options(parser)
    parser.set_defaults(short_side=None, quality=None)
    add("-j", "--workers", type=int, metavar="N", help="processes (default: all cores)")
    add("-C", "--directory", type=Path, metavar="DIR", default=Path(),
        help="folder that relative paths start from (default: the current one)")  # fmt: skip


def _folder(text: str) -> Path:
    """A path, but not that of the current folder for a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a folder is empty")
    return Path(text)


def run(options: argparse.Namespace) -> int:
    """Run a command; returns the exit code."""
    if options.workers is not None and not 1 <= options.workers <= MAX_THREADS:
        raise UsageError(f"-j {options.workers}: must be between 1 and {MAX_THREADS}")
    workers = options.workers or default_threads("none", 1, computes=False)
    if options.command == "pack":
        settings = PackSettings(options.short_side, options.quality)
        pack(options.source, options.target, settings, workers, sys.stdout)
        return 0
    if options.command == "process":
        make_data_set(options, workers)
        return 0
    if options.list is not None:
        _write_list(options.list, [])  # hours later would be too late to hear that it cannot be
    report = check(options.data, workers, sys.stdout)
    if options.list is not None:
        _write_list(options.list, report.bad)
    return DataError.exit_code if report.bad else 0


def make_data_set(options: argparse.Namespace, workers: int) -> None:
    """Run the command process: see `data_processing`.

    Raises:
        UserError: The data or the options are not what they should be.
    """
    sizes = [options.short_side, options.quality]
    if options.pack is None and sizes != [None, None]:
        raise UsageError("--short-side and --quality need --pack DST")
    packing = PackSettings(
        *(default if size is None else size for size, default in zip(sizes, _PACKING, strict=True))
    )
    share = options.val_share
    if share is not None and not 0 < share < 1:
        raise UsageError(f"--val-share {share:g}: must be above 0 and below 1, such as 0.1")
    base = options.directory

    def path(given: Path | None) -> Path | None:
        return None if given is None else Path(os.path.abspath(base / given))

    source, packed = Path(os.path.abspath(base / options.source)), path(options.pack)
    sources = Sources(source, path(options.val_labels), path(options.synsets), workers)
    target = path(options.target) or sources.images
    if packed is not None:
        _check_apart(target, packed)
    summary = process(Settings(sources, target, share, options.seed, options.similar), sys.stdout)
    print("\n".join(summary.lines()))
    print(f"report: {target / TEXT_NAME}")
    if packed is not None:
        pack(target, packed, packing, workers, sys.stdout)
    else:
        print(f"done; give this folder to main.py as DIR: {target}")


def _write_list(path: Path, bad: list[tuple[str, str]]) -> None:
    lines = [f"{printable(name, 4096)}\t{reason}\n" for name, reason in bad]
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
        print("\ndataset_tools: interrupted; process and pack go on where they were, with the same "
              "command", file=sys.stderr)  # fmt: skip
        return 130


if __name__ == "__main__":
    sys.exit(main())
