#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares CIFAR from memory with torchvision's DataLoader, in one run, in turns.

    python benchmarks/cifar.py                           # the data alone, then a network fed
    python benchmarks/cifar.py --arch resnet50_cifar --device cuda --batch-size 512

The images are random: what they show does not matter to the speed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.loader_contenders import BatchRunner, TrainingRunner, endless, loader_options
from benchmarks.peers import cifar_loop
from benchmarks.program import add_device, add_json, create_parser, say
from benchmarks.train_contenders import Setup, set_up
from image_classification import option_types as kind
from image_classification.augmentation import ShiftPreset
from image_classification.dataloaders import create_loader
from image_classification.device import Device
from image_classification.errors import UsageError, run_program
from image_classification.pixel_index import PixelIndex
from models import model_names

PEER, OURS, ALONE = "DataLoader", "resident", "network alone"


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_device(parser)
    add("--arch", default="resnet18_cifar", choices=model_names(), metavar="NAME",
        help="default: resnet18_cifar")  # fmt: skip
    add("--batch-size", type=kind.COUNT, default=128, metavar="N", help="default: 128")
    add("--images", type=kind.COUNT, default=50_000, metavar="N", help="default: 50000")
    add("--workers", type=kind.COUNT, metavar="N", help="of the DataLoader; default: cores")
    add("--rounds", type=kind.COUNT, default=5, metavar="N", help="default: 5")
    add("--steps", type=kind.COUNT, default=600, metavar="N",
        help="batches, data alone; default: 600")  # fmt: skip
    add("--train-steps", type=kind.COUNT, default=8, metavar="N", help="steps, network; default: 8")
    add_json(parser, "cifar")
    return parser


def make_index(count: int) -> PixelIndex:
    """Random images of 10 classes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    classes = [str(label) for label in range(10)]
    labels = rng.integers(0, 10, count)
    return PixelIndex(Path("random"), labels, classes, images, "train", "cifar")


def resident_batches(index: PixelIndex, device: Device, setup: Setup) -> Iterator[Any]:
    """Endless batches of this package's loader."""
    size = len(setup.target)
    loader = create_loader(
        "resident", index, ShiftPreset(), device=device, batch_size=size, global_batch=size,
        **loader_options(setup),
    )  # fmt: skip
    return endless(loader)


def on_device(batches: Iterator[Any], device: Device, setup: Setup) -> Iterator[Any]:
    """Batches of host memory on the device, in the setup's precision and layout."""
    for images, target in batches:
        yield (
            images.to(
                device.torch_device, setup.images.dtype, memory_format=setup.memory_format,
                non_blocking=True,
            ),
            target.to(device.torch_device, non_blocking=True),
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark; prints tables and writes one JSON file."""
    device, size = Device.select(args.device), args.batch_size
    if args.images < size:
        raise UsageError(f"--images {args.images}: less than a batch of {size}")
    workers = args.workers or len(os.sched_getaffinity(0))
    described = environment.capture(device)
    print(environment.text(described), file=sys.stderr)
    index = make_index(args.images)
    setup = set_up(device, 32, size, amp=True)

    def peer() -> Iterator[Any]:
        return cifar_loop.batches(index.images, index.labels, size, workers)

    def ours() -> Iterator[Any]:
        return resident_batches(index, device, setup)

    def train(batches: Iterator[Any]) -> TrainingRunner:
        return TrainingRunner(args.arch, device, setup, batches)

    processes = f"{workers} processes"
    data = [
        measure.Contender(PEER, processes, lambda: BatchRunner(peer(), size)),
        measure.Contender(OURS, "in memory", lambda: BatchRunner(ours(), size)),
    ]
    trained = [
        measure.Contender(ALONE, args.arch, lambda: TrainingRunner(args.arch, device, setup)),
        measure.Contender(OURS, args.arch, lambda: train(ours())),
        measure.Contender(PEER, args.arch, lambda: train(on_device(peer(), device, setup))),
    ]
    record: dict[str, Any] = {
        "benchmark": "cifar", "schema": measure.SCHEMA, "environment": described,
        "settings": {"arch": args.arch, "batch_size": size, "images": args.images},
    }  # fmt: skip
    for name, contenders, steps, lead, baseline in (
        ("data", data, args.steps, 2 * workers + 2, PEER),
        ("training", trained, args.train_steps, 2 * workers + 2, ALONE),
    ):
        found = measure.compare(
            contenders, device=device, rounds=args.rounds, steps=steps, warmup=2, lead=lead,
            say=say,
        )  # fmt: skip
        print(f"\n{name}, batch {size}, {device}\n\n" + found.table(baseline))
        record[name] = [result.record() for result in found.results]
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("cifar.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
