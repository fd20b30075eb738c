#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares what --runtime of main.py and classify.py offers with the peers, in one run, in turns.

    python benchmarks/runtimes.py                                   # ResNet-50, batches of 1 and 16
    python benchmarks/runtimes.py --arch efficientnet-b0 --batch-sizes 1 8 64 --rounds 9

The weights are random and the images lie on the device: loading is not measured, nor accuracy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.apart import starter
from benchmarks.program import add_comparison, add_json, create_parser, say, select_device
from benchmarks.runtime_contenders import BASELINE, NAMES, list_contenders
from image_classification import option_types as kind
from image_classification.errors import run_program


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_comparison(parser)
    add("--contenders", nargs="+", default=list(NAMES), choices=list(NAMES), metavar="NAME",
        help=f"default: all that can run, of {', '.join(NAMES)}")
    add("--batch-sizes", type=kind.COUNT, nargs="+", metavar="N", help="default: 1 256 (cpu: 1 16)")
    add("--rounds", type=kind.COUNT, default=9, metavar="N", help="default: 9")
    add("--images", type=kind.COUNT, metavar="N",
        help="in a stretch, of whole batches; default: 5120 (cpu: 48)")
    add_json(parser, "runtimes")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures, prints a table for each batch size, writes the JSON file."""
    device = select_device(args)
    described = environment.capture(device)
    say(environment.text(described))
    accelerator = device.is_accelerator
    sizes = args.batch_sizes or ([1, 256] if accelerator else [1, 16])
    stretch = args.images or (5120 if accelerator else 48)
    record: dict[str, Any] = {
        "benchmark": "runtimes", "schema": measure.SCHEMA, "environment": described,
        "settings": {"arch": args.arch, "image_size": args.image_size, "batch_sizes": sizes,
                     "rounds": args.rounds, "images": stretch},
        "batches": {}, "left_out": {},
    }  # fmt: skip
    for size in sizes:
        with starter(device, together=args.together) as start:
            found = measure.compare(
                list_contenders(args.contenders, args.arch, device, args.image_size, size),
                device=device, rounds=args.rounds, steps=max(1, stretch // size), warmup=2,
                say=say, start=start,
            )  # fmt: skip
        print(f"\n{args.arch}, {args.image_size} px, batches of {size}, {device}\n\n"
              + found.table(BASELINE), flush=True)  # fmt: skip
        record["batches"][str(size)] = [result.record() for result in found.results]
        record["left_out"] |= found.left_out
    for name, reason in record["left_out"].items():
        print(f"{name}: left out: {reason}")
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("runtimes.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
