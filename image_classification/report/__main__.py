# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What runs have reached, from their logs.

    python -m image_classification.report RUN_DIR...      # a table, and a page with curves
    python -m image_classification.report RUN_DIR --case NAME --output FOLDER --seconds S

With --case it prints the result block of the Ascend scripts and writes their key files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from image_classification.atomic_file import atomic_file
from image_classification.errors import UsageError, run_program
from image_classification.option_parser import OptionParser
from image_classification.report.case import result_block, write_case
from image_classification.report.run_log import RunLog, find_runs, read_run
from image_classification.report.table import result_table

PAGE_NAME = "report.html"


def build_parser() -> OptionParser:
    """Declare the options."""
    parser = OptionParser(
        prog="python -m image_classification.report", description="What runs have reached.",
        epilog="exit codes: 0 done, 2 usage, 3 no log",
    )  # fmt: skip
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, or of --seeds")
    add(
        "--html",
        type=Path,
        metavar="FILE",
        help=f"the page (default: {PAGE_NAME} in RUN_DIR; of several runs in the current folder)",
    )
    add("--no-html", action="store_true", help="only the table (needs no matplotlib)")
    add("--case", metavar="NAME", help="print the result block of one run and write its key files")
    add("--network", default="Resnet50_cifar_for_PyTorch", metavar="NAME", help="of the case")
    add("--output", type=Path, metavar="FOLDER", help="where the key files of --case go")
    add("--seconds", type=_seconds, metavar="S", help="duration of the whole case")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def run(options: argparse.Namespace) -> None:
    """Print and write what was asked for."""
    folders = [run for folder in options.runs for run in find_runs(folder)]
    logs = [read_run(folder) for folder in folders]
    if options.case is not None:
        if len(logs) != 1 or options.output is None or options.seconds is None:
            raise UsageError("--case needs one RUN_DIR, --output and --seconds")
        write_case(logs[0], options.case, options.network, options.output, options.seconds)
        print(result_block(logs[0], options.seconds))
        return
    print(result_table(logs))
    if len(logs) > 1:
        print("\n".join(["", "rows:", *(log.name for log in logs)]))
    if not options.no_html:
        folder = options.runs[0] if len(options.runs) == 1 else Path()
        print(f"page: {write_page(logs, options.html or folder / PAGE_NAME)}")


def write_page(logs: list[RunLog], path: Path) -> Path:
    """Write the page; a page that is there already is replaced.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    from image_classification.report.page import build_page

    content = build_page(logs).encode()
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}); choose another with --html FILE"
        ) from error
    return path


def main(argv: list[str] | None = None) -> int:
    """The command; user errors become one line and an exit code."""
    return run_program("report", lambda: run(build_parser().parse_or_raise(argv)))


if __name__ == "__main__":
    sys.exit(main())
