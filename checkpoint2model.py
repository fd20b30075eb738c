#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the weights of a training checkpoint as a file of their own.

python checkpoint2model.py --checkpoint-path model_best.pth.tar --weight-path resnet50.pth
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from image_classification.atomic_file import atomic_file
from image_classification.errors import CheckpointError, UsageError, printable, run_program
from image_classification.option_parser import OptionParser

if TYPE_CHECKING:
    from image_classification.presets import EvalPreset


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="checkpoint2model.py",
        description="Write the weights of a training checkpoint: a state_dict on the CPU.",
        epilog="exit codes: 0 done, 2 usage, 4 checkpoint",
    )
    add = parser.add_argument
    add("--checkpoint-path", metavar="PATH", required=True, help="checkpoint to read")
    add("--weight-path", metavar="PATH", required=True, help="file to write")
    add("--ema", action="store_true", help="take the averaged weights (main.py --use-ema)")
    return parser


def convert(checkpoint_path: str, weight_path: str, ema: bool) -> str:
    """Read a checkpoint and write its weights.

    Args:
        checkpoint_path: checkpoint of this package, NVIDIA's or Cambricon's.
        weight_path: file to write; replaced only by a complete one.
        ema: take the averaged weights.

    Returns:
        What was found, and how to use the weights.

    Raises:
        CheckpointError: the checkpoint cannot be read, has no such weights, or the disk is full.
        UsageError: the file cannot be written there.
    """
    from image_classification.device_table import import_torch_or_explain

    torch = import_torch_or_explain("cpu")
    from image_classification.safe_load import load_tensors
    from image_classification.trained_network import saved_preset
    from image_classification.weight_files import extract_weights

    if os.path.realpath(checkpoint_path) == os.path.realpath(weight_path):
        raise UsageError("--weight-path is the checkpoint itself; choose another name")
    content = load_tensors(checkpoint_path)
    weights = extract_weights(content, source=checkpoint_path, ema=ema)
    told = describe(content, saved_preset(content, checkpoint_path), weight_path, weights.averaged)
    # Copies, because a tensor that is part of a larger one would bring all of it along.
    state = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in weights.state.items()
    }
    try:
        with atomic_file(weight_path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch reports a full disk so
        raise CheckpointError(f"--weight-path {weight_path} cannot be written: {error}") from error
    except OSError as error:
        raise UsageError(
            f"--weight-path {weight_path} cannot be written: {error.strerror}"
        ) from error
    return told


def describe(
    content: Mapping[str, Any], preset: EvalPreset | None, weight_path: str, averaged: bool
) -> str:
    """Say what a checkpoint holds, whose entries are not trusted, and how to use its weights."""
    arch, accuracy = content.get("arch"), content.get("best_prec1")
    if isinstance(arch, tuple | list) and arch:  # Cambricon's: name, configuration, classes
        arch = arch[0]
    arch = printable(arch, 60) if isinstance(arch, str) else "model"
    known = isinstance(accuracy, int | float) and 0 <= accuracy <= 100
    kind = ", averaged weights (EMA)" if averaged else ""
    lines = [f"Loaded {arch}{kind}, acc : {accuracy if known else 'unknown'}"]
    if preset:  # which the weights alone do not tell
        lines.append(f"classify.py --weights {weight_path} --arch {arch} {preset.as_options}")
        options = content.get("model_options")
        epsilon = options.get("bn_epsilon") if isinstance(options, dict) else None
        if isinstance(epsilon, float):
            lines[-1] += f" --bn-epsilon {epsilon:g}"
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line and an exit code."""

    def action() -> None:
        args = build_parser().parse_or_raise(argv)
        print(convert(args.checkpoint_path, args.weight_path, args.ema))

    return run_program("checkpoint2model.py", action)


if __name__ == "__main__":
    sys.exit(main())
