#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the data loaders of this package with their peers', in one run, in turns.

    python benchmarks/loader.py DIR                 # one core; all cores; a network alone and fed
    python benchmarks/loader.py DIR --parts core    # one core only

DIR holds images in any folders. Every contender decodes the same crops of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.loader_contenders import (
    BatchRunner,
    Crops,
    DaliRunner,
    NativeRunner,
    PeerRunner,
    TrainingRunner,
    epochs,
    index_of,
    loader_options,
)
from benchmarks.peers import loaders as peers
from benchmarks.program import add_device, add_json, create_parser, say
from benchmarks.train_contenders import set_up
from image_classification import option_types as kind
from image_classification.affinity import default_threads
from image_classification.augmentation import TrainPreset
from image_classification.data_index import ImageIndex
from image_classification.device import Device
from image_classification.errors import DataError, run_program
from image_classification.fast_loader.native import kernel_names
from image_classification.image_reading import read_image, train_pixels
from image_classification.packing import packed_index
from models import model_names

BASELINE = "pillow"
ALONE = "network alone"
PARTS = ("core", "end-to-end", "network", "memory")
LONG_EPOCH = 20_000


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="folder with images, searched at any depth")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all")
    add(
        "--packed",
        type=Path,
        metavar="DIR",
        help="also our core on this folder that dataset_tools pack made of the same files",
    )
    add("--image-size", type=kind.PIXELS, default=224, metavar="PX", help="default: 224")
    add("--batch-size", type=kind.COUNT, default=64, metavar="N", help="default: 64")
    add("--rounds", type=kind.COUNT, default=5, metavar="N", help="default: 5")
    add("--steps", type=kind.COUNT, default=12, metavar="N", help="batches in a round; default: 12")
    add("--workers", type=kind.COUNT, metavar="N",
        help="end to end: threads or processes; default: cores")  # fmt: skip
    add("--arch", default="resnet50", choices=model_names(), metavar="NAME",
        help="part network; default: resnet50")  # fmt: skip
    add_device(parser)
    add("--memory-epochs", type=kind.COUNT, default=50, metavar="N",
        help="part memory; default: 50")  # fmt: skip
    add_json(parser, "loader")
    return parser


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Bind this process, and the threads it starts, to one core."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def errors(crops: Crops, side: int) -> dict[str, dict[str, float]]:
    """Mean absolute difference to Pillow's pixels, of 255: mean over images, and the largest."""
    indices, boxes, flips = crops.batch(0)
    preset = TrainPreset(image_size=side)
    found: dict[str, dict[str, float]] = {}
    names = [*(name for name in peers.NAMES if name != BASELINE), "ours"]
    for name in names:
        with contextlib.suppress(measure.Unavailable):
            if name == "ours":
                runner = NativeRunner("plain", crops, side)
                runner.run(1)
                pixels = runner._output
            else:
                decode = peers.create(name)
                pixels = np.stack([
                    decode(crops.contents[i], tuple(box), flip, side)
                    for i, box, flip in zip(indices, boxes.tolist(), flips, strict=True)
                ])  # fmt: skip
            means = []
            for own, i, box, flip in zip(pixels, indices, boxes.tolist(), flips, strict=True):
                image = read_image(io.BytesIO(crops.contents[i]))
                exact = train_pixels(image, tuple(box), bool(flip), preset)
                means.append(np.abs(own.astype(int) - exact).mean())
            found[name] = {"mean": float(np.mean(means)), "largest": float(np.max(means))}
    return found


def compare_on_one_core(args: argparse.Namespace, crops: Crops) -> measure.Comparison:
    """From files in memory to crops in a batch, one thread each."""
    side = args.image_size
    contenders = [
        measure.Contender(
            name, peers.NAMES[name].__doc__ or "", _maker(PeerRunner, name, crops, side)
        )
        for name in peers.NAMES
    ]
    contenders.append(
        measure.Contender("dali", DaliRunner.__doc__ or "", _maker(DaliRunner, crops, side))
    )
    contenders += [
        measure.Contender(f"ours {name}", "C++ core", _maker(NativeRunner, name, crops, side))
        for name in ("avx512", "avx2", "neon", "plain")
    ]
    if args.packed is not None:
        packed = packed_index(args.packed, "train")
        if packed is None:
            raise DataError(f"{args.packed} holds no train.packed.npz")
        small = Crops(packed, args.batch_size)
        contenders.append(
            measure.Contender(
                "ours packed", "", _maker(NativeRunner, kernel_names()[0], small, side)
            )
        )
    with one_core():
        return _compare(args, contenders)


def compare_end_to_end(args: argparse.Namespace, index: ImageIndex) -> measure.Comparison:
    """From files to batches of bytes, with all cores."""
    workers = args.workers or len(os.sched_getaffinity(0))
    contenders = [
        measure.Contender(
            name, f"{workers} {what}",
            lambda backend=backend: BatchRunner(
                epochs(backend, index, args.image_size, args.batch_size, workers), args.batch_size
            ),
        )
        for name, backend, what in (
            ("DataLoader", "pytorch", "processes, Pillow"), ("fast", "fast", "threads, C++ core"),
            ("DALI", "dali-cpu", "threads"),
        )
    ]  # fmt: skip
    return _compare(args, contenders, lead=_batches_ahead(workers))


def compare_with_network(args: argparse.Namespace, index: ImageIndex) -> measure.Comparison:
    """The loader alone, the network alone on synthetic data, and both together."""
    device = Device.select(args.device)
    workers = args.workers or default_threads("none", 1, computes=not device.is_accelerator)
    setup = set_up(device, args.image_size, args.batch_size, amp=True)

    def batches() -> Iterator[Any]:
        return epochs(
            "fast", index, args.image_size, args.batch_size, workers, device,
            **loader_options(setup),
        )  # fmt: skip

    contenders = [
        measure.Contender(
            "loader alone", f"{workers} threads, to the device",
            lambda: BatchRunner(batches(), args.batch_size),
        ),
        measure.Contender(
            ALONE, f"{args.arch} --amp, synthetic data",
            lambda: TrainingRunner(args.arch, device, setup),
        ),
        measure.Contender(
            "both", f"{args.arch} --amp, {workers} threads",
            lambda: TrainingRunner(args.arch, device, setup, batches()),
        ),
    ]  # fmt: skip
    return _compare(args, contenders, device, lead=_batches_ahead(workers))


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """What loader_memory.py says."""
    script = Path(__file__).with_name("loader_memory.py")
    command = [sys.executable, str(script), str(args.directory)]
    command += ["--image-size", str(args.image_size), "--epochs", str(args.memory_epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def _batches_ahead(workers: int) -> int:
    """More batches than any loader has ready when its turn begins: from then on it must work."""
    return 2 * max(workers, 2) + 2


def _maker(kind: Any, *arguments: Any) -> Any:
    return lambda: kind(*arguments)


def _compare(
    args: argparse.Namespace,
    contenders: list[measure.Contender],
    device: Device | None = None,
    lead: int = 1,
) -> measure.Comparison:
    return measure.compare(
        contenders, device=device or Device.select("cpu"), rounds=args.rounds, steps=args.steps,
        warmup=2, lead=lead, say=say,
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark; prints tables and writes one JSON file."""
    device = Device.select(args.device if "network" in args.parts else "cpu")
    described = environment.capture(device)
    print(environment.text(described), file=sys.stderr)
    index = index_of(args.directory)
    crops = Crops(index, args.batch_size)
    width, height = crops.sizes.mean(axis=0)
    about = (
        f"{len(index)} files, mean {width:.0f} x {height:.0f}, "
        f"{np.mean([len(content) for content in crops.contents]) / 1e3:.0f} kB, "
        f"crops of {args.image_size} px, batch {args.batch_size}"
    )
    print(about)
    record: dict[str, Any] = {
        "benchmark": "loader", "schema": measure.SCHEMA, "environment": described, "data": about,
    }  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the peers' tensor operations on one core
    if "core" in args.parts:
        record["errors"] = errors(crops, args.image_size)
        for name, error in record["errors"].items():
            print(f"difference to Pillow, {name}: mean {error['mean']:.2f}, largest image "
                  f"{error['largest']:.2f} of 255")  # fmt: skip
        found = compare_on_one_core(args, crops)
        print("\nOne core, files in memory, training crops\n\n" + found.table(BASELINE))
        record["core"] = [result.record() for result in found.results]
        record["left_out"] = found.left_out
    if "end-to-end" in args.parts:
        found = compare_end_to_end(args, index_of(args.directory, at_least=LONG_EPOCH))
        print("\nAll cores, from files to batches of bytes\n\n" + found.table("DataLoader"))
        record["end_to_end"] = [result.record() for result in found.results]
    if "network" in args.parts:
        torch.set_num_threads(threads)
        found = compare_with_network(args, index_of(args.directory, at_least=LONG_EPOCH))
        print(f"\nThe loader and {args.arch} on {device}\n\n" + found.table(ALONE))
        record["network"] = [result.record() for result in found.results]
    if "memory" in args.parts:
        record["memory"] = measure_memory(args)
        print("\nMemory of the fast loader beyond that of torch (MiB): " + ", ".join(
            f"{key.removesuffix('_mib').replace('_', ' ')} {value}"
            for key, value in record["memory"].items() if key.endswith("_mib")
        ))  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("loader.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
