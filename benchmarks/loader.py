#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares the data loaders of this package with their peers', in one run, in turns.

    python benchmarks/loader.py DIR                 # one core, then all cores, from files
    python benchmarks/loader.py DIR --parts core    # one core only

DIR holds images in any folders. Every contender decodes the same crops of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.peers import loaders as peers
from image_classification.augmentation import (
    TrainPreset,
    horizontal_flips,
    random_resized_crop_boxes,
)
from image_classification.bad_images import BadImages
from image_classification.batch_schedule import BatchSchedule
from image_classification.data_index import ImageIndex, IndexBuilder
from image_classification.device import Device
from image_classification.errors import DataError
from image_classification.fast_loader.loader import FastLoader
from image_classification.fast_loader.native import CROP, NativeDecoder, Status, kernel_names
from image_classification.image_reading import read_image, train_pixels
from image_classification.packing import packed_index
from image_classification.pytorch_loader import PytorchLoader

BASELINE = "pillow"
PARTS = ("core", "end-to-end")
SEED = 0
LONG_EPOCH = 20_000
SETTLE_S = 1.5


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("directory", metavar="DIR", type=Path, help="folder with images, searched at any depth")
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all")
    add(
        "--packed",
        type=Path,
        metavar="DIR",
        help="also our core on this folder that dataset_tools pack made of the same files",
    )
    add("--image-size", type=int, default=224, metavar="PX", help="default: 224")
    add("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    add("--rounds", type=int, default=5, metavar="N", help="default: 5")
    add("--steps", type=int, default=4, metavar="N", help="batches in a round; default: 4")
    add("--workers", type=int, metavar="N", help="end to end: threads or processes; default: cores")
    add("--json", type=Path, metavar="FILE", help="default: benchmarks/results/<date>-...")
    return parser


def index_of(folder: Path, at_least: int = 1) -> ImageIndex:
    """All JPEG files below a folder as one class.

    Args:
        folder: The folder.
        at_least: The files are listed again and again up to so many: at the end of a short epoch
            every loader runs dry.

    Raises:
        DataError: There is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise DataError(f"{folder} holds no JPEG file")
    builder = IndexBuilder()
    for path in paths * -(-at_least // len(paths)):
        builder.add(os.fsencode(path.relative_to(folder)), 0)
    return builder.build(folder, ["all"], "train", "folder")


class Crops:
    """The files and crops of batch after batch, the same for every contender.

    Args:
        index: The files.
        batch_size: Images of a batch.
    """

    def __init__(self, index: ImageIndex, batch_size: int) -> None:
        decoder = NativeDecoder(1)
        batch = decoder.load(index.paths(range(len(index))))
        batch.wait()
        self.contents = [batch.content(i) for i in range(len(index))]
        self.sizes = np.stack([batch.widths, batch.heights], axis=1)
        batch.free()
        decoder.close()
        self.batch_size = batch_size

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Sample indices, boxes and flips of a batch."""
        first = number * self.batch_size
        indices = np.arange(first, first + self.batch_size) % len(self.contents)
        epoch = first // len(self.contents)
        width, height = self.sizes[indices].T
        boxes = random_resized_crop_boxes(SEED, epoch, indices, width, height)
        return indices, boxes, horizontal_flips(SEED, epoch, indices, 0.5)


class PeerRunner:
    """One thread that decodes image by image.

    Args:
        name: One of `peers.NAMES`.
        crops: What to decode.
        side: Side of the output.
    """

    def __init__(self, name: str, crops: Crops, side: int) -> None:
        self._decode = peers.create(name)
        self._crops, self._side, self._number = crops, side, 0

    def run(self, steps: int) -> int:
        """Decode batches; returns their images."""
        for _ in range(steps):
            indices, boxes, flips = self._crops.batch(self._number)
            self._number += 1
            batch = np.empty((len(indices), self._side, self._side, 3), dtype=np.uint8)
            for i, (index, box, flip) in enumerate(
                zip(indices, boxes.tolist(), flips, strict=True)
            ):
                batch[i] = self._decode(self._crops.contents[index], tuple(box), flip, self._side)
        return steps * self._crops.batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add."""
        return {}


class NativeRunner:
    """The C++ core with one thread.

    Args:
        kernels: Instruction set.
        crops: What to decode.
        side: Side of the output.
    """

    def __init__(self, kernels: str, crops: Crops, side: int) -> None:
        if kernels not in kernel_names():
            raise measure.Unavailable(f"this processor or build has {kernel_names() or 'none'}")
        self._decoder = NativeDecoder(1, kernels)
        self._crops, self._number = crops, 0
        self._output = np.empty((crops.batch_size, side, side, 3), dtype=np.uint8)

    def run(self, steps: int) -> int:
        """Decode batches; returns their images."""
        for _ in range(steps):
            indices, boxes, flips = self._crops.batch(self._number)
            self._number += 1
            batch = self._decoder.load_bytes([self._crops.contents[i] for i in indices])
            crops = np.zeros(len(indices), dtype=CROP)
            crops["box"] = crops["bounds"] = boxes
            crops["flip"] = flips
            batch.decode(crops, np.zeros(len(indices), dtype=bool), self._output)
            batch.wait()
            if (batch.statuses != Status.OK).any():
                raise DataError("the core cannot decode some of these files; give baseline JPEGs")
            batch.free()
        return steps * self._crops.batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add."""
        return {}


class HostFeeder:
    """Stands in for the copy to a device: batches stay as bytes in host memory."""

    def __call__(self, batches: Iterable[Any], copied: Any = None) -> Iterator[Any]:
        """Pass the batches on."""
        for batch in batches:
            yield batch
            if copied is not None:
                copied(None)


class EpochRunner:
    """A loader of this package from files to batches of bytes in host memory.

    Args:
        backend: Its name.
        index: The files.
        preset: How they are prepared.
        batch_size: Images of a batch.
        workers: Threads or processes.
    """

    def __init__(
        self, backend: str, index: ImageIndex, preset: TrainPreset, batch_size: int, workers: int
    ) -> None:
        schedule = BatchSchedule(
            len(index), batch_size=batch_size, rank=0, world_size=1, global_batch=batch_size,
            seed=SEED, training=True,
        )  # fmt: skip
        common: Any = {"schedule": schedule, "feeder": HostFeeder(), "prefetch": 2}
        common |= {"device": Device.select("cpu"), "bad": BadImages(len(index))}
        self._loader: Any
        if backend == "fast":
            self._loader = FastLoader(index, preset, threads=workers, **common)
        else:
            self._loader = PytorchLoader(index, preset, workers=workers, world_size=1, **common)
        self._batches: Iterator[Any] = iter(())
        self._batch_size = batch_size

    def run(self, steps: int) -> int:
        """Take batches, over the ends of epochs; returns their images."""
        for _ in range(steps):
            while next(self._batches, None) is None:
                self._batches = iter(self._loader)
        return steps * self._batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add; whoever reads ahead gets time to finish before another one's turn."""
        time.sleep(SETTLE_S)
        return {}


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
    preset = TrainPreset(image_size=args.image_size)
    contenders = [
        measure.Contender(
            name, f"{workers} {what}",
            _maker(EpochRunner, backend, index, preset, args.batch_size, workers),
        )
        for name, backend, what in (
            ("DataLoader", "pytorch", "processes, Pillow"), ("fast", "fast", "threads, C++ core"),
        )
    ]  # fmt: skip
    return _compare(args, contenders)


def _maker(kind: Any, *arguments: Any) -> Any:
    return lambda: kind(*arguments)


def _compare(args: argparse.Namespace, contenders: list[measure.Contender]) -> measure.Comparison:
    return measure.compare(
        contenders, device=Device.select("cpu"), rounds=args.rounds, steps=args.steps,
        warmup=2, say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; prints tables and writes one JSON file."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    described = environment.capture(Device.select("cpu"))
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
    path = args.json or measure.result_path("loader", described["date"][:10], Device.select("cpu"))
    measure.write_json(path, record)
    print(f"written to {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
