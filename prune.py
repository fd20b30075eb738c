#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Makes a trained ResNet narrower; scripts/run_pruning.sh also trains what is left.

python prune.py --checkpoint models/resnet50/model_best.pth.tar --keep 0.7
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from image_classification.device_table import import_torch_or_explain
from image_classification.errors import UsageError, UserError, tell
from image_classification.option_parser import OptionParser
from image_classification.option_types import Number


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="prune.py",
        description="Remove channels from a trained ResNet; the result needs training: "
        "main.py --pretrained-weights FILE.",
        epilog="exit codes: 0 done, 2 usage or a missing package, 4 checkpoint",
    )
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True,
        help="checkpoint of main.py, or bare weights and --arch")
    share = Number(float, 0, 1, open_low=True, open_high=True)
    add("--keep", type=share, default=0.7, metavar="SHARE",
        help="share of the channels that is left, rounded to multiples of 8; parameters and "
        "multiply-adds are left with about its square (default: 0.7)")
    add("--output", metavar="FILE",
        help="file to write (default: beside the checkpoint, .pruned.pth.tar)")
    add("-a", "--arch", metavar="NAME", help="network of bare weights")
    add("--ema", action=argparse.BooleanOptionalAction,
        help="take the averaged weights, or not (default: where the checkpoint has them)")
    return parser  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Load the network, prune it, save it."""
    import_torch_or_explain("cpu")
    from image_classification.pruning import prune, save
    from image_classification.trained_network import load_trained_network

    stem = args.checkpoint.removesuffix(".tar").removesuffix(".pth")
    output = Path(args.output or f"{stem}.pruned.pth.tar")
    if os.path.realpath(output) == os.path.realpath(args.checkpoint):
        raise UsageError("--output is the checkpoint itself; choose another name")
    network = load_trained_network(args.checkpoint, ema=args.ema, arch=args.arch)
    for note in network.notes:
        print(note)
    pruned = prune(network, args.keep)
    save(pruned, output)
    before, after = (
        sum(parameter.numel() for parameter in one.model.parameters()) / 1e6
        for one in (network, pruned)
    )
    print(f"{output}: {after:.2f} M of {before:.2f} M parameters, "
          f"channels {pruned.options['channels']}")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""
    try:
        run(build_parser().parse_or_raise(argv))
    except UserError as error:
        return tell("prune.py", error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
