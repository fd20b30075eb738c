#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a trained network in a format of other programs, and checks what was written.

python export.py --checkpoint models/resnet50/model_best.pth.tar --format onnx
"""

from __future__ import annotations

import argparse
import sys

from image_classification import option_types as kind
from image_classification.errors import run_program
from image_classification.network_options import (
    ENDINGS,
    add_network_options,
    add_preset_options,
    load_network,
    settle_output,
)
from image_classification.option_parser import OptionParser

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
    add_network_options(parser, "of the format")
    add = parser.add_argument
    add("--format", choices=ENDINGS, default="onnx", help="default: onnx")
    add_preset_options(parser)
    add("--batch", type=kind.COUNT, metavar="N",
        help="the file takes N images at a time (default: any number)")
    add("--images", nargs="+", default=[], metavar="PATH",
        help="compare with these images or folders too, with the first "
        f"{MOST_IMAGES} (default: random numbers alone)")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Load the network, write the file and say how it was checked."""
    network = load_network(args, print)
    from image_classification.exporter import export
    from image_classification.inference import find_images

    images = find_images(args.images)[:MOST_IMAGES]
    for line in export(network, args.output, args.format, batch_size=args.batch, images=images):
        print(line)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""

    def action() -> None:
        args = build_parser().parse_or_raise(argv)
        settle_output(args, ENDINGS[args.format])
        run(args)

    return run_program("export.py", action)


if __name__ == "__main__":
    sys.exit(main())
