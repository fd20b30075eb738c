#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares files of one trained network on the CPU: top-1, images per second, latency, size.

    python benchmarks/inference.py model_best.pth.tar model_best.onnx --data DIR
    python benchmarks/inference.py model_best.pth.tar pruned.pth.tar --data sample:digits

A checkpoint runs in PyTorch, an ONNX file in onnxruntime and, where it is installed, in OpenVINO.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.inference_contenders import (
    Engine,
    contenders,
    onnx_engines,
    short_names,
    torch_engines,
)
from benchmarks.program import add_json, create_parser, say
from image_classification import data_sources
from image_classification import option_types as kind
from image_classification.augmentation import EvalPreset
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import Loader, choose_backend, create_loader
from image_classification.device import Device
from image_classification.errors import UsageError, run_program
from image_classification.pixel_index import PixelIndex
from image_classification.trained_network import TrainedNetwork, load_trained_network


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        batch_size: Images that go through a network together, for images per second.
        rounds: Timed stretches of each contender.
        steps: Batches in a stretch.
        latency_rounds: Single images of each contender.
    """

    batch_size: int = 32
    rounds: int = 5
    steps: int = 3
    latency_rounds: int = 50


@dataclass(frozen=True)
class Row:
    """What one engine did.

    Attributes:
        engine: As it was asked for.
        top1: Percent of the validation images.
        rate: Its batches, see `measure.Result`.
        latency: Its single images.
    """

    engine: Engine
    top1: float
    rate: measure.Result
    latency: measure.Result

    @property
    def milliseconds(self) -> tuple[float, float]:
        """Median and 90th percentile of the time of one image."""
        times = [1000 * entry["seconds"] for entry in self.latency.rounds]
        return float(np.median(times)), float(np.percentile(times, 90))

    def record(self) -> dict[str, Any]:
        """As JSON types."""
        median, p90 = self.milliseconds
        return {
            **self.rate.record(),
            "file": self.engine.path.name,
            "file_bytes": self.engine.path.stat().st_size,
            "top1": self.top1,
            "latency_ms": {"median": median, "p90": p90},
        }


@dataclass(frozen=True)
class Report:
    """What all engines did.

    Attributes:
        rows: The first is what the others are compared with.
        seen: Validation images.
        left_out: Name of each engine that could not run, and why.
    """

    rows: list[Row]
    seen: int
    left_out: Mapping[str, str]

    def table(self) -> str:
        """Formats the rows as Markdown, and names what could not run."""
        head = ["contender", "top-1", "lost", "img/s", "ratio", "ms/image", "p90", "MB"]
        lines, base = [head, ["-----"] * len(head)], self.rows[0]
        for row in self.rows:
            median, p90 = row.milliseconds
            size = row.engine.path.stat().st_size / 1e6
            rate = measure.Spread.of(row.rate.rates)
            lines.append([
                row.engine.name, f"{row.top1:.2f} %", f"{base.top1 - row.top1:+.2f}",
                rate.text(1), row.rate.ratio_to(base.rate).text(2), f"{median:.2f}", f"{p90:.2f}",
                f"{size:.1f}",
            ])  # fmt: skip
        text = ["| " + " | ".join(line) + " |" for line in lines]
        return "\n".join(
            [*text, *(f"{name}: left out: {why}" for name, why in self.left_out.items())]
        )

    def record(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "validation_images": self.seen,
            "contenders": [row.record() for row in self.rows],
            "left_out": dict(self.left_out),
        }


def compare(
    engines: Sequence[Engine], loader: Loader, image_size: int, effort: Effort,
    say: Callable[[str], None],
) -> Report:  # fmt: skip
    """Measures the accuracy of all engines on the same images, then their speed, in turns.

    Args:
        engines: What is compared; the first one has to run.
        loader: Validation images and their classes, on the CPU.
        image_size: Side of the networks' input in pixels.
        effort: How much is measured.
        say: Receives lines about the progress.
    """
    device = Device.select("cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(effort.batch_size, 3, image_size, image_size, generator=generator)
    rates = measure.compare(
        contenders(engines, images), device=device, rounds=effort.rounds, steps=effort.steps,
        warmup=1, say=say,
    )  # fmt: skip
    able = [engine for engine in engines if engine.name not in rates.left_out]
    latencies = measure.compare(
        contenders(able, images[:1].clone()), device=device, rounds=effort.latency_rounds, steps=1,
        warmup=3, say=lambda line: None,
    )  # fmt: skip
    say(f"top-1 on {loader.num_samples} validation images")
    correct, seen = count_correct(able, loader)
    found = zip(able, rates.results, latencies.results, strict=True)
    rows = [Row(one, 100 * correct[one.name] / seen, rate, time) for one, rate, time in found]
    return Report(rows, seen, rates.left_out)


def count_correct(engines: Sequence[Engine], loader: Loader) -> tuple[dict[str, int], int]:
    """Returns for each engine how many images it classifies right, and how many there are."""
    correct, seen = {engine.name: 0 for engine in engines}, 0
    loader.set_position(0, 0)
    for images, target in loader:
        for engine in engines:
            answers = engine.load()(images).argmax(1)
            correct[engine.name] += int((answers == target).sum())
        seen += len(target)
    return correct, seen


def evaluation_loader(
    index: ImageIndex | PixelIndex, preset: EvalPreset, batch_size: int
) -> Loader:
    """Shows images on the CPU as validation does, once and in order.

    Raises:
        UsageError: Images in memory are of another size than the network's.
    """
    if isinstance(index, PixelIndex) and preset.image_size != index.image_size:
        raise UsageError(f"the network takes images of {preset.image_size} pixels, these have "
                         f"{index.image_size}; use a folder of images")
    backend, _ = choose_backend("auto", None, in_memory=isinstance(index, PixelIndex))
    return create_loader(
        backend, index, preset, device=Device.select("cpu"), batch_size=batch_size,
        workers=0 if backend == "pytorch" else 1,
    )  # fmt: skip


def count_work(network: TrainedNetwork) -> tuple[int, int]:
    """Returns the parameters of a network, and the multiply-adds that one image takes."""
    from torch.utils.flop_counter import FlopCounterMode

    size = network.preset.image_size
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network.model(torch.zeros(1, 3, size, size))
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    return parameters, counter.get_total_flops() // 2


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE",
        help="checkpoints and .onnx files; a checkpoint comes first, the others are compared "
        "with it")
    add("--data", required=True, metavar="DIR", help="folder with val/, CIFAR, or sample:digits")
    add("--val-split", type=kind.CHANCE, metavar="SHARE",
        help="where DIR has no val: the share that --val-split of main.py took in the training")
    add("--arch", metavar="NAME", help="network of bare weights")
    add("--val-images", type=kind.COUNT, metavar="N",
        help="judge on N validation images, evenly spread (default: all)")
    add("-b", "--batch-size", type=kind.COUNT, default=Effort.batch_size, metavar="N",
        help=f"for images per second (default: {Effort.batch_size})")
    add("--rounds", type=kind.COUNT, default=Effort.rounds, metavar="N",
        help=f"timed stretches of each contender (default: {Effort.rounds})")
    add("--steps", type=kind.COUNT, default=Effort.steps, metavar="N",
        help=f"batches in a stretch (default: {Effort.steps})")
    add("--latency-rounds", type=kind.COUNT, default=Effort.latency_rounds, metavar="N",
        help=f"single images of each contender (default: {Effort.latency_rounds})")
    add("--threads", type=kind.COUNT, metavar="N", help="threads of the CPU (default: torch's)")
    add_json(parser, "inference")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures, prints the table, writes the JSON file."""
    if args.threads:
        torch.set_num_threads(args.threads)
    effort = Effort(args.batch_size, args.rounds, args.steps, args.latency_rounds)
    networks = {
        path: load_trained_network(path, arch=args.arch)
        for path in args.files if path.suffix != ".onnx"
    }  # fmt: skip
    if args.files[0] not in networks:
        raise UsageError("the first FILE must be a checkpoint; it knows classes and preprocessing")
    first = networks[args.files[0]]
    described = environment.capture(Device.select("cpu"))
    print(environment.text(described), "", sep="\n", flush=True)
    engines: list[Engine] = []
    labels = short_names(args.files)
    for path in labels:
        if path in networks:
            engines += torch_engines(path, labels[path], networks[path].model)
        else:
            engines += onnx_engines(path, labels[path], torch.get_num_threads())
    splits = data_sources.load_for_network(
        args.data, first.classes, train=False, val_share=args.val_split,
        samples=environment.ROOT / "data", say=say,
    )  # fmt: skip
    val = data_sources.evenly_spread(splits.val, args.val_images)
    loader = evaluation_loader(val, first.preset, effort.batch_size)
    work = {labels[path]: count_work(network) for path, network in networks.items()}
    found = compare(engines, loader, first.preset.image_size, effort, say)
    print(found.table())
    for name, (parameters, multiply_adds) in work.items():
        print(f"{name}: {parameters / 1e6:.2f} M parameters, {multiply_adds / 1e6:.1f} M "
              "multiply-adds per image")  # fmt: skip
    record = {
        "benchmark": "inference",
        "schema": measure.SCHEMA,
        "environment": described,
        "settings": {
            name: value for name, value in vars(args).items() if name not in ("json", "files")
        },
        "work": {
            name: {"parameters": parameters, "multiply_adds": multiply_adds}
            for name, (parameters, multiply_adds) in work.items()
        },
        **found.record(),
    }
    measure.save(record, args.json, Device.select("cpu"))


def main(argv: list[str]) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("inference.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
