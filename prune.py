#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a trained ResNet narrower; scripts/run_pruning.sh also trains what is left.

python prune.py --checkpoint models/resnet50/model_best.pth.tar --keep 0.7
"""

from __future__ import annotations

import argparse
import sys

from image_classification.errors import run_program
from image_classification.network_options import add_network_options, load_network, settle_output
from image_classification.option_parser import OptionParser
from image_classification.option_types import Number

ENDING = ".pruned.pth.tar"


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="prune.py",
        description="Remove channels from a trained ResNet; the result needs training: "
        "main.py --pretrained-weights FILE.",
        epilog="exit codes: 0 done, 2 usage or a missing package, 4 checkpoint",
    )
    add_network_options(parser, ENDING)
    add = parser.add_argument
    share = Number(float, 0, 1, open_low=True, open_high=True)
    add("--keep", type=share, default=0.7, metavar="SHARE",
        help="share of the channels that is left, rounded to multiples of 8; parameters and "
        "multiply-adds are left with about its square (default: 0.7)")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Load the network, prune it, save it."""
    network = load_network(args, print)
    from image_classification.pruning import prune, save

    pruned = prune(network, args.keep)
    save(pruned, args.output)
    before, after = (
        sum(parameter.numel() for parameter in one.model.parameters()) / 1e6
        for one in (network, pruned)
    )
    print(f"{args.output}: {after:.2f} M of {before:.2f} M parameters, "
          f"channels {pruned.options['channels']}")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""

    def action() -> None:
        args = build_parser().parse_or_raise(argv)
        settle_output(args, ENDING)
        run(args)

    return run_program("prune.py", action)


if __name__ == "__main__":
    sys.exit(main())
