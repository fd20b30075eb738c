#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs all benchmarks, writes one result file and the tables and plots of docs/performance.md.

    python benchmarks/run.py                           # all of it; 30 minutes on two cores
    python benchmarks/run.py --quick                   # tiny sizes: does everything run?
    python benchmarks/run.py --parts train_step loader --compare benchmarks/results/OLD.json

Every part is a program of this folder, which measures this package beside its peers in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure, performance_page
from benchmarks.comparison import compare, require_same_machine
from benchmarks.loader_contenders import index_of
from benchmarks.photographs import write_photographs
from benchmarks.program import add_device, add_json, create_parser, say
from image_classification.device import Device
from image_classification.errors import DataError, UsageError, run_program
from image_classification.export_formats import missing_packages
from image_classification.report.plots import require_matplotlib

PEERS = ("torchvision", "timm", "onnxruntime", "openvino")
_TINY = ("--image-size", "32", "--batch-size", "4", "--rounds", "1")


class Part(NamedTuple):
    """A benchmark.

    Attributes:
        program: Its file in this folder.
        title: Heading of its tables.
        cpu: Its arguments on a CPU, besides --device and --json; elsewhere it has its defaults.
        always: Its arguments on any device.
        quick: Those of --quick instead of `cpu`.
        wants_images: Whether a folder of images is its first argument.
    """

    program: str
    title: str
    cpu: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    wants_images: bool = False


PARTS = {
    "train_step": Part(
        "train_step.py", "Training step, ResNet-50",
        ("--batch-size", "16", "--rounds", "5", "--steps", "2"), (),
        ("--arch", "resnet18", *_TINY, "--steps", "1", "--warmup", "1"),
    ),
    "train_step_b0": Part(
        "train_step.py", "Training step, EfficientNet-B0",
        ("--batch-size", "16", "--rounds", "7", "--steps", "2"), ("--arch", "efficientnet-b0"),
        (*_TINY, "--steps", "1", "--warmup", "1"),
    ),
    "runtimes": Part(
        "runtimes.py", "Inference", ("--rounds", "7"), (),
        ("--arch", "resnet18", "--image-size", "32", "--batch-sizes", "2", "--rounds", "1",
         "--images", "2"),
    ),
    "loader": Part(
        "loader.py", "Data loading, and a network that is fed",
        ("--arch", "resnet18", "--batch-size", "32", "--rounds", "3", "--steps", "6"), (),
        ("--arch", "resnet18", *_TINY, "--steps", "1", "--memory-epochs", "2"), True,
    ),
    "cifar": Part(
        "cifar.py", "CIFAR",
        ("--batch-size", "64", "--rounds", "3", "--steps", "100", "--train-steps", "2"), (),
        ("--images", "400", "--batch-size", "8", "--rounds", "1", "--steps", "2",
         "--train-steps", "1"),
    ),
    "reliability": Part(
        "reliability_overhead.py", "What reliability costs", ("--rounds", "5"), (),
        ("--arch", "resnet18", *_TINY, "--steps", "1", "--saves", "1"),
    ),
    "startup": Part(
        "startup.py", "Start-up", (), (), ("--arch", "resnet18", *_TINY),
    ),
    "memory": Part(
        "memory.py", "Memory", (), (),
        ("--arch", "resnet18", "--image-size", "32", "--batch-size", "4"),
    ),
    "scaling": Part(
        "scaling.py", "Two processes",
        ("--arch", "resnet18", "--rounds", "2", "--steps", "3"), ("--parts", "measured"),
        ("--arch", "resnet18", *_TINY, "--steps", "2"),
    ),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="NAME",
        help=f"default: all, {', '.join(PARTS)}")
    add("--quick", action="store_true",
        help="tiny sizes: shows that everything runs; neither a result file nor the page, which "
        "is written by a run of all parts without --json")
    add("--peers", action="store_true",
        help=f"refuse to start where one of the peers is missing ({', '.join(PEERS)})")
    add_device(parser)
    add("--images", type=Path, metavar="DIR",
        help="JPEG files for the loader and the start (default: made ones)")
    add("--compare", type=Path, metavar="OLD.json",
        help="an earlier result: name what has become slower than the spread; then the exit code "
        "is 1")
    add_json(parser, "run")
    return parser  # fmt: skip


def measure_part(
    part: Part, device: Device, images: Path, quick: bool, folder: Path
) -> dict[str, Any]:
    """Runs a program.

    Args:
        part: Which one.
        device: Where.
        images: Folder with JPEG files.
        quick: At a tiny size.
        folder: For its result file.

    Returns:
        JSON types: command, seconds, and record with what was printed, or why it failed.
    """
    sizes = part.quick if quick else () if device.is_accelerator else part.cpu
    options = [*part.always, *sizes, "--device", device.type]
    shown = " ".join(["python", f"benchmarks/{part.program}",
                      *(["DIR"] if part.wants_images else []), *options])  # fmt: skip
    say(f"==== {shown}")
    result, started = folder / "part.json", time.perf_counter()
    result.unlink(missing_ok=True)
    program = str(Path(__file__).with_name(part.program))
    done = subprocess.run(
        [sys.executable, program, *([str(images)] if part.wants_images else []), *options,
         "--json", str(result)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, Any] = {"command": shown, "seconds": time.perf_counter() - started}
    if done.returncode or not result.exists():
        return found | {"failed": f"exit code {done.returncode}"}
    return found | {"printed": done.stdout.strip(), "record": json.loads(result.read_text())}


def read_result(path: Path) -> dict[str, Any]:
    """Reads what this program has written.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), dict) for name in ("environment", "settings", "parts")
    )
    if not whole or found.get("benchmark") != "run":
        raise DataError(f"{path} is no result of benchmarks/run.py")
    return found


def run(args: argparse.Namespace) -> int:
    """Measures, writes, draws and compares; returns the exit code."""
    missing = missing_packages(PEERS) if args.peers else ()
    if missing:
        raise UsageError(f"--peers: missing {', '.join(missing)}; pip install {' '.join(missing)}")
    old = read_result(args.compare) if args.compare else None
    draws = not (args.quick or args.json) and set(args.parts) == set(PARTS)
    if draws:
        require_matplotlib()
    device = Device.select(args.device)
    if args.images:
        index_of(args.images)  # what is wrong with the folder is told now
    described = environment.capture(device)
    if old is not None:
        require_same_machine(old["environment"], described)
    say(environment.text(described))
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = args.images or write_photographs(folder / "data" / "train", 400)
        for name in args.parts:
            parts[name] = measure_part(PARTS[name], device, images, args.quick, folder)
            print(f"\n{PARTS[name].title}\n\n{parts[name].get('printed', 'failed')}", flush=True)
    record = {
        "benchmark": "run", "schema": measure.SCHEMA, "environment": described,
        "settings": {"images": "given" if args.images else "made", "quick": args.quick},
        "parts": {name: {"title": PARTS[name].title, **part} for name, part in parts.items()},
    }  # fmt: skip
    if args.json or not args.quick:
        measure.save(record, args.json, device)
    failed = [name for name, part in parts.items() if "failed" in part]
    if draws and not failed:
        say(f"written to {performance_page.write(environment.ROOT)}")
    if failed:
        raise DataError(f"{', '.join(failed)}: failed, see above")
    if old is None:
        return 0
    text, slower = compare(old, record)
    print(f"\n{text}")
    return 1 if slower else 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    codes: list[int] = []
    ended = run_program("run.py", lambda: codes.append(run(build_parser().parse_args(argv))))
    return ended or codes[0]


if __name__ == "__main__":
    sys.exit(main())
