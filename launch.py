#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Starts main.py with the settings of a network, mode, precision and platform, as NVIDIA's does.

    python launch.py --model resnet50 --mode convergence --precision AMP --platform DGXA100 DIR
    python multiproc.py --nproc_per_node 8 launch.py --model efficientnet-b0 --mode \\
        benchmark_training --precision AMP --platform DGXA100 DIR

It becomes main.py: whatever else stands on the line is main.py's, and wins.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from image_classification import recipes
from image_classification.errors import UsageError, UserError, tell
from image_classification.option_parser import OptionParser

ROOT = Path(__file__).resolve().parent


def build_parser() -> OptionParser:
    """Declares the options that are not main.py's."""
    parser = OptionParser(
        prog="launch.py", usage="launch.py --model NAME --mode NAME --precision P --platform NAME "
        "DIR [options of main.py]", description="Start main.py with named settings.",
    )  # fmt: skip
    parser.add_argument("--model", required=True, help="network, see main.py --list-recipes")
    parser.add_argument("--mode", required=True,
                        help="benchmark_training, benchmark_training_short, benchmark_inference, "
                        "convergence or evaluate")  # fmt: skip
    parser.add_argument("--precision", required=True, help="AMP, FP32 or TF32")
    parser.add_argument("--platform", required=True,
                        help="DGX1V, DGX1V-16G, DGX1V-32G, DGX2V, DGXA100 or T4")  # fmt: skip
    parser.add_argument("--cfg_file", "--cfg-file", default=str(ROOT / "recipes.yml"),
                        help="recipes (default: those of this package)")  # fmt: skip
    return parser


def command(argv: list[str]) -> list[str]:
    """Translates a command line into main.py's.

    Raises:
        UsageError: An option of this program is missing, or there is no such recipe or mode.
    """
    try:
        options, rest = build_parser().parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(str(error).removeprefix("argument ")) from None
    book = recipes.read(options.cfg_file)
    words = book.find("-".join((options.model, options.platform, options.precision)).lower()).words
    mode = recipes.to_words(book.find_mode(options.mode))
    return [str(ROOT / "main.py"), *words, *mode, *rest]


def main(argv: list[str]) -> int:
    """Runs the command line; does not return where main.py takes over."""
    try:
        line = command(argv)
    except UserError as error:
        return tell("launch.py", error)
    print("launch.py: python", *(["main.py", *line[1:]]), flush=True)
    os.execv(sys.executable, [sys.executable, "-u", *line])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
