#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Counts the bytes that a training step must move, and what a memory's bandwidth makes of them.

    python benchmarks/memory_bound.py
    python benchmarks/memory_bound.py --arch efficientnet-b0 --bandwidth 4.8 --measured 4000

Per image, activations in 16 bits, each operation reading its inputs from memory and writing its
outputs there; weights are shared by the batch and left out. "eager" has an operation for each
layer; "fused" joins normalisation, addition and activation, as a compiler does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import markdown_table
from benchmarks.program import add_network, create_parser
from image_classification import option_types as kind
from image_classification.errors import run_program
from models import create_model

BYTES = 2
#: Published bandwidths in TB/s (NVIDIA's data sheets).
BANDWIDTHS = {"V100": 0.9, "A100 80 GB": 2.039, "H100 SXM": 3.35, "H200": 4.8}


class Traffic(NamedTuple):
    """Elements that one image moves in a training step.

    Attributes:
        convolutions: Forward: input, output. Backward: both, for each of the two gradients.
        eager: All else, an operation for each layer.
        fused: All else, joined.
    """

    convolutions: int
    eager: int
    fused: int


def count(arch: str, image_size: int) -> Traffic:
    """Counts what one image moves, by the shapes of the layers' inputs and outputs.

    BatchNorm in training reads its input for the statistics and again to normalise, and writes:
    3, backward 5 (twice both gradient and input, one result); an activation 2 and 3; an addition 3
    and 3. Multiplications by gates are left out. Fused: the statistics are read (1), then
    normalisation, addition and activation read and write once (2); backward reads gradient and
    input twice and writes (5); an addition reads one more tensor (1), and its gradient is written
    and read once more (2).
    """
    found = {"convolutions": 0, "eager": 0, "fused": 0}

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        size, out = inputs[0].numel(), output.numel()
        if isinstance(module, nn.Conv2d):
            found["convolutions"] += 3 * (size + out)
        elif isinstance(module, nn.BatchNorm2d):
            found["eager"] += 8 * out
            found["fused"] += 8 * out
        elif isinstance(module, nn.ReLU | nn.SiLU):
            found["eager"] += 5 * out
        elif isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            found["eager"] += 2 * (size + out)
            found["fused"] += 2 * (size + out)

    def joined(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found["eager"] += 6 * output.numel()
        found["fused"] += 3 * output.numel()

    with torch.device("meta"):
        model = create_model(arch, 1000).train()
        for module in model.modules():
            module.register_forward_hook(hook)
        for block in residual_blocks(model):
            block.register_forward_hook(joined)
        model(torch.empty(2, 3, image_size, image_size))
    return Traffic(**{name: number // 2 for name, number in found.items()})


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that add their input to what they have computed."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "downsample") or getattr(module, "residual", None) is True
    ]


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_network(parser)
    add("--bandwidth", type=kind.POSITIVE, metavar="TB/S", help="of your device's memory")
    add("--measured", type=kind.POSITIVE, metavar="IMG/S", help="what it trains, to see the share")
    return parser


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    found = count(args.arch, args.image_size)
    totals = {"eager": found.convolutions + found.eager, "fused": found.convolutions + found.fused}
    bytes_of = {name: BYTES * number for name, number in totals.items()}
    print(f"{args.arch}, {args.image_size} px, 16 bits, per image: convolutions "
          f"{BYTES * found.convolutions / 1e6:.0f} MB; with all else {bytes_of['eager'] / 1e6:.0f} "
          f"MB eager, {bytes_of['fused'] / 1e6:.0f} MB fused\n")  # fmt: skip
    bandwidths = {"yours": args.bandwidth} if args.bandwidth else BANDWIDTHS
    rows = [["memory", "TB/s", "img/s, eager", "fused"]]
    for name, bandwidth in bandwidths.items():
        most = [1e12 * bandwidth / size for size in bytes_of.values()]
        cells = [f"{rate:,.0f}" for rate in most]
        if args.measured:
            cells = [f"{rate:,.0f} (measured: {args.measured / rate:.0%})" for rate in most]
        rows.append([name, f"{bandwidth:g}", *cells])
    print(markdown_table(rows))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("memory_bound.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
