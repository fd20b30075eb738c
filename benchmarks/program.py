# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from image_classification import option_types as kind
from image_classification.device import DEVICE_TYPES, Device
from models import model_names


def create_parser(description: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a program with this docstring, of which it shows the first line."""
    first = (description or "").splitlines()[0]
    return argparse.ArgumentParser(description=first, allow_abbrev=False)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declares --device."""
    choices = ["auto", "gpu", *DEVICE_TYPES]
    parser.add_argument("--device", default="auto", choices=choices, help="default: auto")


def add_network(parser: argparse.ArgumentParser) -> None:
    """Declares --arch and --image-size."""
    add = parser.add_argument
    add("--arch", default="resnet50", choices=model_names(), metavar="NAME",
        help="default: resnet50")  # fmt: skip
    add("--image-size", type=kind.PIXELS, default=224, metavar="PX", help="default: 224")


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Declares the device, the network and where its contenders run; see `apart.starter`."""
    add_device(parser)
    add_network(parser)
    add = parser.add_argument
    add("--threads", type=kind.COUNT, metavar="N", help="threads of the cpu; default: torch's")
    add("--together", action="store_true",
        help="all contenders in one process, as always on accelerators (cpu: each in its own, "
        "where this package keeps freed memory and its peers have the C library's defaults)",
    )  # fmt: skip


def select_device(args: argparse.Namespace) -> Device:
    """Selects --device; sets the --threads that `add_comparison` declares."""
    if args.threads:
        torch.set_num_threads(args.threads)
    return Device.select(args.device)


def add_json(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Declares --json, where the result goes; see `measure.save`."""
    parser.add_argument(
        "--json", type=_writable, metavar="FILE",
        help=f"default: benchmarks/results/<date>-<device>-{benchmark}.json",
    )  # fmt: skip


def _writable(text: str) -> Path:
    """A file that can be written at the end of an hour's measuring; makes its folder."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written: {error.strerror}") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} cannot be written: name a file")
    return path


def say(line: str) -> None:
    """Tells how far it is."""
    print(line, file=sys.stderr, flush=True)
