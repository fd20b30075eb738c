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

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.runtime_contenders import BASELINE, NAMES, list_contenders
from image_classification.device import DEVICE_TYPES, Device
from image_classification.errors import run_program
from models import model_names


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--device", default="auto", choices=["auto", "gpu", *DEVICE_TYPES], help="default: auto")
    add("--arch", default="resnet50", choices=model_names(), metavar="NAME",
        help="default: resnet50")
    add("--contenders", nargs="+", default=list(NAMES), choices=list(NAMES), metavar="NAME",
        help=f"default: all that can run, of {', '.join(NAMES)}")
    add("--image-size", type=int, default=224, metavar="PX", help="default: 224")
    add("--batch-sizes", type=int, nargs="+", metavar="N", help="default: 1 256 (cpu: 1 16)")
    add("--rounds", type=int, default=9, metavar="N", help="default: 9")
    add("--images", type=int, metavar="N",
        help="in a stretch, of whole batches; default: 5120 (cpu: 48)")
    add("--threads", type=int, metavar="N", help="threads of the cpu; default: torch's")
    add("--json", type=Path, metavar="FILE", help="default: benchmarks/results/<date>-...")
    return parser  # fmt: skip


def say(line: str) -> None:
    """Tells of the progress."""
    print(line, file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> None:
    """Measures, prints a table for each batch size, writes the JSON file."""
    if args.threads:
        torch.set_num_threads(args.threads)
    device = Device.select(args.device)
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
        found = measure.compare(
            list_contenders(args.contenders, args.arch, device, args.image_size, size),
            device=device, rounds=args.rounds, steps=max(1, stretch // size), warmup=2, say=say,
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
