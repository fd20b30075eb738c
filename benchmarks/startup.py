#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Measures what happens before the first training step: `main.py -h`, imports, a whole start.

    python benchmarks/startup.py                       # on JPEG files that it makes
    python benchmarks/startup.py --data DIR --rounds 9

The index of DIR is in the cache, as it is from the second start on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.photographs import write_photographs
from benchmarks.program import add_device, add_json, add_network, create_parser, say
from image_classification import option_types as kind
from image_classification.device import Device
from image_classification.errors import DataError, run_program

MAIN = str(environment.ROOT / "main.py")
#: Programs whose whole time is measured, by their name in the table.
PROGRAMS = {
    "python": ["-c", "pass"],
    "main.py -h": [MAIN, "-h"],
    "import torch": ["-c", "import torch"],
}
_FIRST_STEP = "Epoch: 0 Iteration: 1 "


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="a training folder (default: 1,000 made images)")
    add_device(parser)
    add_network(parser)
    add("--batch-size", type=kind.COUNT, metavar="N", help="default: 256 (cpu: 16)")
    add("--rounds", type=kind.COUNT, default=5, metavar="N", help="default: 5")
    add_json(parser, "startup")
    return parser


def seconds_of(arguments: list[str]) -> float:
    """Runs Python with these arguments to its end; returns the time of all of it."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def until_first_step(command: list[str]) -> tuple[float, float]:
    """Starts a training; returns the seconds to its first log line, and those of its first step.

    Raises:
        DataError: It ends before.
    """
    started, step = time.perf_counter(), 0.0
    with subprocess.Popen(
        [sys.executable, "-u", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = ""
        for line in process.stdout:
            if " the first one " in line:  # what the rehearsal of a step says
                step = float(line.partition(" the first one ")[2].split()[0])
            if _FIRST_STEP in line:
                seconds = time.perf_counter() - started
                process.kill()
                return seconds, step
    raise DataError(f"the training ended before its first step: {line}")


def run(args: argparse.Namespace) -> None:
    """Measures, prints the table, writes the JSON file."""
    device = Device.select(args.device)
    batch = args.batch_size or (256 if device.is_accelerator else 16)
    described = environment.capture(device)
    say(environment.text(described))
    times: dict[str, list[float]] = {name: [] for name in (*PROGRAMS, "first step")}
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or write_photographs(Path(folder, "data", "train"), max(1000, batch))
        command = [MAIN, str(data), "--workspace", str(Path(folder, "run")), "--training-only",
                   "--no-checkpoints", "--epochs", "1", "--iters", "2", "-p", "1",
                   "--arch", args.arch, "--image-size", str(args.image_size),
                   "-b", str(batch), "--device", device.type]  # fmt: skip
        until_first_step(command)  # fills the caches
        for number in range(args.rounds):
            for name, arguments in PROGRAMS.items():
                times[name].append(seconds_of(arguments))
            seconds, step = until_first_step(command)
            times["first step"].append(seconds)
            steps.append(step)
            say(f"round {number + 1}/{args.rounds}")
    times["first step, beyond import torch"] = [
        whole - torch_alone
        for whole, torch_alone in zip(times["first step"], times["import torch"], strict=True)
    ]
    found = {name: measure.Spread.of(values) for name, values in times.items()}
    rows = [["from the start of Python to", "seconds"]]
    rows += [[name, spread.text(2)] for name, spread in found.items()]
    print(f"\n{args.arch}, {args.image_size} px, batch {batch}, {device}\n\n"
          + measure.markdown_table(rows))  # fmt: skip
    tried = measure.Spread.of(steps)
    print(f"of it, the step that is tried before the first one: {tried.text(1)} s")
    record: dict[str, Any] = {
        "benchmark": "startup", "schema": measure.SCHEMA, "environment": described,
        "settings": {"arch": args.arch, "image_size": args.image_size, "batch_size": batch,
                     "rounds": args.rounds},
        "seconds": {name: spread._asdict() for name, spread in found.items()},
        "tried_step": tried._asdict(),
    }  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("startup.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
