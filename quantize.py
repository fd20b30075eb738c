#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Makes the 8-bit ONNX form of a trained network for CPUs, and measures what it costs and gives.

python quantize.py --checkpoint models/resnet50/model_best.pth.tar /path/to/imagenet
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classification import option_types as kind
from image_classification.device_table import import_torch_or_explain
from image_classification.errors import UsageError, run_program
from image_classification.network_options import add_network_options, load_network, settle_output
from image_classification.option_parser import OptionParser

if TYPE_CHECKING:
    from image_classification.datasets import Splits
    from image_classification.trained_network import TrainedNetwork

PACKAGE_ROOT = Path(__file__).resolve().parent
ENDING = ".int8.onnx"


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="quantize.py",
        description="Write the 8-bit ONNX form of a trained network and compare top-1, speed and "
        "size with the network's own on this CPU.",
        epilog="exit codes: 0 done, 2 usage or a missing package, 3 data, 4 checkpoint",
    )
    add_network_options(parser, f"{ENDING}; the figures go into a .json file beside it")
    add = parser.add_argument
    add("data", metavar="DIR", help="folder with train/ and val/, CIFAR, or sample:digits")
    add("--val-split", type=kind.CHANCE, metavar="SHARE",
        help="where DIR has no val: the share that --val-split of main.py took in the training, "
        "such as 0.2; the same images are held out again")
    add("--images", type=kind.COUNT, default=512, metavar="N",
        help="training images, evenly spread, that show the ranges of the activations "
        "(default: 512)")
    add("--weight-bits", type=int, choices=(7, 8),
        help="7 for x86 CPUs without VNNI (default: as this CPU needs it)")
    add = parser.add_argument_group("measurement").add_argument
    add("--val-images", type=kind.COUNT, metavar="N",
        help="judge on N validation images, evenly spread (default: all)")
    add("-b", "--batch-size", type=kind.COUNT, default=32, metavar="N",
        help="images that go through the network together (default: 32)")
    add("--rounds", type=kind.COUNT, default=5, metavar="N",
        help="timed stretches of each contender (default: 5)")
    add("--threads", type=kind.COUNT, metavar="N", help="threads of the CPU (default: torch's)")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Load the network, quantise it, measure both forms."""
    torch = import_torch_or_explain("cpu")
    from image_classification import data_sources, quantization
    from image_classification.exporter import export

    quantization.require_packages()
    if args.threads:
        torch.set_num_threads(args.threads)
    network = load_network(args, print)
    splits = data_sources.load_for_network(
        args.data, network.classes, train=True, val_share=args.val_split,
        samples=PACKAGE_ROOT / "data", say=print,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "fp32.onnx"
        print(export(network, float_file, "onnx")[0])
        write_quantized(args, network, splits, float_file)
        compare(args, network, splits, float_file)


def write_quantized(
    args: argparse.Namespace, network: TrainedNetwork, splits: Splits, float_file: Path
) -> None:
    """Show the calibration images to the network and write its 8-bit form."""
    from benchmarks.inference import evaluation_loader
    from image_classification import data_sources, model_card, quantization

    weight_bits, reason = quantization.choose_weight_bits()
    if args.weight_bits is None:
        args.weight_bits = weight_bits
        print(reason)
    index = data_sources.evenly_spread(splits.train, args.images)
    loader = evaluation_loader(index, network.preset, args.batch_size)
    card = model_card.describe(network.arch, network.options, network.classes, network.preset)
    quantization.quantize(
        float_file, args.output, (images for images, _ in loader), card,
        weight_bits=args.weight_bits,
    )  # fmt: skip
    loader.close()
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB, calibrated with "
          f"{len(index)} training images")  # fmt: skip


def compare(
    args: argparse.Namespace, network: TrainedNetwork, splits: Splits, float_file: Path
) -> None:
    """Print the table and write it as JSON."""
    import torch

    from benchmarks import environment, inference, measure
    from benchmarks.inference_contenders import onnx_engines, torch_engines
    from image_classification.data_sources import evenly_spread
    from image_classification.device import Device

    described = environment.capture(Device.select("cpu"))
    print("", environment.text(described), "", sep="\n", flush=True)
    threads = torch.get_num_threads()
    checkpoint = Path(args.checkpoint)
    engines = torch_engines(checkpoint, checkpoint.name, network.model)
    for path in (float_file, args.output):
        engines += onnx_engines(path, path.name, threads)
    loader = inference.evaluation_loader(
        evenly_spread(splits.val, args.val_images), network.preset, args.batch_size
    )
    effort = inference.Effort(batch_size=args.batch_size, rounds=args.rounds)
    found = inference.compare(engines, loader, network.preset.image_size, effort, inference.say)
    loader.close()
    print(found.table())
    settings: dict[str, Any] = {**vars(args), "output": args.output.name}
    record = {"benchmark": "quantize", "schema": measure.SCHEMA, "environment": described,
              "arch": network.arch, "image_size": network.preset.image_size,
              "settings": settings, **found.record()}  # fmt: skip
    measure.save(record, args.output.with_suffix(".json"), Device.select("cpu"))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""

    def action() -> None:
        args = build_parser().parse_or_raise(argv)
        settle_output(args, ENDING)
        if args.output.suffix != ".onnx":
            raise UsageError(f"--output {args.output} must end in .onnx")
        run(args)

    return run_program("quantize.py", action)


if __name__ == "__main__":
    sys.exit(main())
