# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Options of classify.py, export.py, quantize.py and prune.py: the network and its new form."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from image_classification.device_table import import_torch_or_explain
from image_classification.errors import UsageError
from image_classification.option_parser import OptionParser
from image_classification.option_types import PIXELS, POSITIVE
from image_classification.presets import INTERPOLATIONS
from models import find_arch

if TYPE_CHECKING:
    from image_classification.trained_network import TrainedNetwork

#: Formats of other programs, see `export_formats`, and the endings of their files.
ENDINGS = {
    "onnx": ".onnx",
    "torchscript": ".torchscript",
    "safetensors": ".safetensors",
    "exported_program": ".pt2",
}


def add_network_options(parser: OptionParser, ending: str) -> None:
    """Declares the options that name the network, and --output.

    Args:
        parser: Of the program.
        ending: What the default output adds to the checkpoint's name, for the help.
    """
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", required=True,
        help="checkpoint of main.py, or bare weights and --arch")
    add("--output", metavar="FILE",
        help=f"file to write (default: beside the checkpoint, with the ending {ending})")
    add("-a", "--arch", metavar="NAME", help="network of bare weights")
    add("--ema", action=argparse.BooleanOptionalAction,
        help="take the averaged weights, or not (default: where the checkpoint has them)")
    add("--bn-epsilon", type=POSITIVE, metavar="E",
        help="BatchNorm's epsilon, where the file does not tell it")  # fmt: skip


def add_preset_options(parser: argparse._ActionsContainer) -> None:
    """Declares the options that say how images are prepared.

    Args:
        parser: Of the program, or a group of its options.
    """
    add = parser.add_argument
    add("--image-size", type=PIXELS, metavar="PIXELS",
        help="input size (default: the checkpoint's, else the network's)")
    add("--val-resize", type=PIXELS, metavar="PIXELS",
        help="short side before the central crop (default: the checkpoint's, else 32 more than the "
        "input size)")
    add("--interpolation", choices=INTERPOLATIONS,
        help="filter of the resize (default: the checkpoint's, else bilinear)")  # fmt: skip


def settle_output(options: argparse.Namespace, ending: str) -> None:
    """Chooses the output and checks what can be known before torch is imported.

    Args:
        options: Those of the program; their output becomes a path.
        ending: What the default adds to the checkpoint's name.

    Raises:
        UsageError: One line for each problem, all of them at once.
    """
    stem = options.checkpoint.removesuffix(".tar").removesuffix(".pth")
    output = options.output = Path(options.output or f"{stem}{ending}")
    itself = os.path.realpath(output) == os.path.realpath(options.checkpoint)
    check_options(
        [(itself, "--output is the checkpoint itself; choose another name")], output, options.arch
    )


def check_options(
    rules: Iterable[tuple[bool, str]], output: str | Path | None, arch: str | None
) -> None:
    """Checks what the programs have in common, and rules of their own.

    Args:
        rules: Whether an option is wrong, and what to say then.
        output: The file to write, if any.
        arch: Name of the network, if any is given.

    Raises:
        UsageError: One line for each problem, all of them at once.
    """
    problems = [text for wrong, text in rules if wrong]
    if output and not (folder := Path(output).parent).is_dir():
        problems.append(f"--output {output}: there is no folder {folder}")
    elif output and not os.access(folder, os.W_OK | os.X_OK):
        problems.append(f"--output {output}: no permission to write into the folder {folder}")
    try:
        find_arch(arch or "resnet50")
    except UsageError as error:
        problems.append(f"--arch: {error}")
    if problems:
        raise UsageError("\n".join(problems))


def load_network(options: argparse.Namespace, say: Callable[[str], None]) -> TrainedNetwork:
    """Builds the network that the options name.

    Args:
        options: Those of the program, `add_preset_options` included where it has them.
        say: Receives lines about the file.

    Raises:
        CheckpointError: unreadable or unsafe file, or one that does not fit.
        UsageError: PyTorch is missing, bare weights come without --arch, or a size is out of range.
    """
    import_torch_or_explain("cpu")
    from image_classification.trained_network import load_trained_network

    preset = ("image_size", "val_resize", "interpolation")
    network = load_trained_network(
        options.checkpoint, ema=options.ema, arch=options.arch, bn_epsilon=options.bn_epsilon,
        **{name: getattr(options, name, None) for name in preset},
    )  # fmt: skip
    for note in network.notes:
        say(note)
    return network
