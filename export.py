#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a trained network in a format of other programs, and checks what was written.

python export.py --checkpoint models/resnet50/model_best.pth.tar --format onnx
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from image_classification import option_types as kind
from image_classification.device_table import import_torch_or_explain
from image_classification.errors import UsageError, UserError, tell
from image_classification.option_parser import OptionParser
from models import find_arch

FORMATS = ("onnx", "torchscript", "safetensors", "exported_program")
MOST_IMAGES = 32


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="export.py",
        description="Write a trained network with its class names and preprocessing, read the "
        "file again and compare its outputs with PyTorch's.",
        epilog="exit codes: 0 done, 2 usage or a missing package, 3 an image cannot be read, "
        "4 checkpoint, or the file computes something else (it is not kept then)",
    )
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True,
        help="checkpoint of main.py, or bare weights and --arch")
    add("--format", choices=FORMATS, default="onnx", help="default: onnx")
    add("--output", metavar="FILE", help="file to write (default: beside the checkpoint)")
    add("-a", "--arch", metavar="NAME", help="network of bare weights")
    add("--ema", action=argparse.BooleanOptionalAction,
        help="take the averaged weights, or not (default: where the checkpoint has them)")
    add("--bn-epsilon", type=kind.POSITIVE, metavar="E",
        help="BatchNorm's epsilon, where the file does not tell it")
    add("--image-size", type=kind.COUNT, metavar="PIXELS",
        help="input size (default: the checkpoint's, else the network's)")
    add("--batch", type=kind.COUNT, metavar="N",
        help="the file takes N images at a time (default: any number)")
    add("--images", nargs="+", default=[], metavar="PATH",
        help="compare with these images or folders too, with the first "
        f"{MOST_IMAGES} (default: random numbers alone)")
    return parser  # fmt: skip


def validate_args(args: argparse.Namespace) -> None:
    """Check the options that are more than single values.

    Raises:
        UsageError: one line for each problem, all of them at once.
    """
    output = Path(args.output) if args.output else None
    rules = [
        (output is not None and not output.parent.is_dir(),
         f"--output {args.output}: there is no folder {output.parent if output else ''}"),
        (output is not None and os.path.realpath(output) == os.path.realpath(args.checkpoint),
         "--output is the checkpoint itself; choose another name"),
    ]  # fmt: skip
    problems = [text for wrong, text in rules if wrong]
    try:
        find_arch(args.arch or "resnet50")
    except UsageError as error:
        problems.append(f"--arch: {error}")
    if problems:
        raise UsageError("\n".join(problems))


def run(args: argparse.Namespace) -> None:
    """Load the network, write the file and say how it was checked."""
    import_torch_or_explain("cpu")
    from image_classification.export_formats import FORMATS as formats
    from image_classification.exporter import export
    from image_classification.inference import find_images
    from image_classification.trained_network import load_trained_network

    network = load_trained_network(
        args.checkpoint, ema=args.ema, arch=args.arch, image_size=args.image_size,
        bn_epsilon=args.bn_epsilon,
    )  # fmt: skip
    for note in network.notes:
        print(note)
    stem = args.checkpoint.removesuffix(".tar").removesuffix(".pth")
    output = args.output or f"{stem}{formats[args.format].ending}"
    images = find_images(args.images)[:MOST_IMAGES]
    for line in export(network, Path(output), args.format, batch_size=args.batch, images=images):
        print(line)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""
    try:
        args = build_parser().parse_or_raise(argv)
        validate_args(args)
        run(args)
    except UserError as error:
        return tell("export.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
