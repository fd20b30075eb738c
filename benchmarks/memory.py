#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Measures the memory of a training step with the options that change it.

    python benchmarks/memory.py
    python benchmarks/memory.py --arch resnet152 --batch-size 64 --device cuda

Each row is a `main.py --check` of its own. On a CPU it is the process that is measured, PyTorch
itself included; what the peers' steps take on an accelerator is in the table of train_step.py.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.program import add_device, add_json, add_network, create_parser, say
from image_classification import option_types as kind
from image_classification.device import Device
from image_classification.errors import DataError, run_program

#: Options by their name in the table; the first row is what the others are compared with.
WAYS = {
    "default": [],
    "--amp": ["--amp"],
    "--grad-checkpointing": ["--grad-checkpointing"],
    "--amp --grad-checkpointing": ["--amp", "--grad-checkpointing"],
    "--use-ema 0.9999": ["--use-ema", "0.9999"],
}
_SAID = re.compile(r"a training step takes ([0-9.]+) (GiB|MiB)")


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_device(parser)
    add_network(parser)
    add("--batch-size", type=kind.COUNT, metavar="N", help="default: 256 (cpu: 16)")
    add_json(parser, "memory")
    return parser


def step_memory(options: list[str]) -> float:
    """Returns the bytes that a training step takes, as `main.py --check` says it.

    Raises:
        DataError: It says something else.
    """
    command = [sys.executable, str(environment.ROOT / "main.py"), "--check", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    found = _SAID.search(done.stdout)
    if found is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DataError(f"main.py --check did not measure: {said[-1] if said else 'no output'}")
    return float(found[1]) * (2**30 if found[2] == "GiB" else 2**20)


def run(args: argparse.Namespace) -> None:
    """Measures, prints the table, writes the JSON file."""
    device = Device.select(args.device)
    batch = args.batch_size or (256 if device.is_accelerator else 16)
    described = environment.capture(device)
    say(environment.text(described))
    mixed, why = device.amp_dtype()
    common = ["--data-backend", "synthetic", "--device", device.type, "--arch", args.arch,
              "--image-size", str(args.image_size), "-b", str(batch)]  # fmt: skip
    taken, left_out = {}, {}
    for name, options in WAYS.items():
        if "--amp" in options and mixed is None:
            left_out[name] = why
        else:
            taken[name] = step_memory([*common, *options])
            say(f"{name}: {taken[name] / 2**30:.2f} GiB")
    default = taken["default"]
    rows = [["options", "GiB", "of the default's"]]
    rows += [[name, f"{size / 2**30:.2f}", f"{size / default:.2f}"] for name, size in taken.items()]
    print(f"\nA training step of {args.arch}, {args.image_size} px, batch {batch}, {device}\n\n"
          + measure.markdown_table(rows))  # fmt: skip
    for name, reason in left_out.items():
        print(f"{name}: left out: {reason}")
    record: dict[str, Any] = {
        "benchmark": "memory", "schema": measure.SCHEMA, "environment": described,
        "settings": {"arch": args.arch, "image_size": args.image_size, "batch_size": batch},
        "bytes": taken, "left_out": left_out,
    }  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("memory.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
