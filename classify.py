#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Names what is on images, with a trained checkpoint.

python classify.py --checkpoint models/resnet50/model_best.pth.tar cat.jpg holiday_photos/
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from image_classification.atomic_file import atomic_file
from image_classification.device import DEVICE_TYPES, import_torch_or_explain
from image_classification.errors import DataError, UsageError, run_program
from image_classification.network_options import add_preset_options, check_options
from image_classification.option_parser import OptionParser
from image_classification.option_types import POSITIVE, RUNTIMES
from models import model_names

if TYPE_CHECKING:
    from image_classification.inference import Prediction

OUTPUT_ENDINGS = (".csv", ".jsonl")


def build_parser() -> OptionParser:
    """Return the parser; importing this file and `-h` do not import torch."""
    parser = OptionParser(
        prog="classify.py",
        description="Print the most probable classes of images.",
        epilog="exit codes: 0 done, 2 usage or device, 3 no readable image, 4 checkpoint",
    )
    parser.intermixed = True
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image file, or folder searched at any depth")
    add("--image", action="append", default=[], metavar="PATH", help="the same as IMAGE")

    network = parser.add_argument_group("network")
    add_preset_options(network)
    add = network.add_argument
    add(
        "--checkpoint",
        "--resume",
        metavar="PATH",
        help="checkpoint of main.py, or a .onnx file of export.py or quantize.py: it brings "
        "network, class names and preprocessing",
    )
    add(
        "--weights",
        "--pretrained-from-file",
        metavar="PATH",
        help="bare weights instead; see --arch and --class-names",
    )
    add(
        "-a",
        "--arch",
        metavar="NAME",
        help=f"network of --weights (default: resnet50): {', '.join(model_names())}",
    )
    add(
        "--class-names",
        metavar="FILE",
        help="class names instead of the checkpoint's, one in each line or as a JSON list",
    )
    add(
        "--bn-epsilon",
        "--bn_epsilon",
        type=POSITIVE,
        metavar="E",
        help="BatchNorm's epsilon of --weights (default: what the file tells, else the network's)",
    )
    add(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the averaged weights, or not (default: where the checkpoint has them)",
    )

    add = parser.add_argument_group("device").add_argument
    add("--device", choices=["auto", "gpu", *DEVICE_TYPES], help="default: auto")
    add("--cpu", action="store_true", help="the same as --device cpu")
    add(
        "--precision",
        choices=["AMP", "FP16", "FP32"],
        default="AMP",
        type=str.upper,
        help="mixed precision, half-precision weights, or single precision (default: AMP)",
    )
    add(
        "--runtime",
        choices=RUNTIMES,
        default="eager",
        metavar="NAME",
        help=f"what runs the network: {', '.join(RUNTIMES)} (default: eager)",
    )
    add(
        "-b",
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="images that go through the network together (default: 32)",
    )

    add = parser.add_argument_group("output").add_argument
    add("--topk", type=int, default=5, metavar="K", help="classes for each image (default: 5)")
    add("--output", metavar="FILE", help="write FILE.csv or FILE.jsonl instead of printing")
    return parser  # fmt: skip


def validate_args(args: argparse.Namespace) -> None:
    """Check the options against each other and resolve those that are short for others.

    Raises:
        UsageError: one line for each problem, all of them at once.
    """
    args.images += args.image
    output = Path(args.output) if args.output else None
    rules = [
        (not args.images, "no image given; name image files or folders"),
        (not (args.checkpoint or args.weights), "no network given; add --checkpoint PATH"),
        (bool(args.checkpoint and args.weights), "give either --checkpoint or --weights"),
        (args.cpu and args.device not in (None, "cpu"),
         f"--cpu contradicts --device {args.device}"),
        (args.topk < 1, f"--topk must be at least 1, got {args.topk}"),
        (args.batch_size < 1, f"--batch-size must be at least 1, got {args.batch_size}"),
        (output is not None and output.suffix not in OUTPUT_ENDINGS,
         f"--output must end in {' or '.join(OUTPUT_ENDINGS)}, got {args.output}"),
    ]  # fmt: skip
    args.device = "cpu" if args.cpu else args.device or "auto"
    if args.arch is None and args.weights and not args.weights.lower().endswith(".onnx"):
        args.arch = "resnet50"
    check_options(rules, args.output, args.arch)


def read_class_names(path: str) -> list[str]:
    """Read one name from each line, a JSON list, or the values of a JSON object in their order.

    A byte order mark and empty lines at the end are no part of the names.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if text.lstrip()[:1] not in ("[", "{"):
            return text.rstrip().splitlines()
        names = json.loads(text)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"--class-names {path}: {reason}") from error
    names = names.values() if isinstance(names, dict) else names
    # Keras' ImageNet file has [WordNet id, name] for each index.
    return [str(name[-1]) if isinstance(name, list) and name else str(name) for name in names]


class Printer:
    """Writes to the terminal: the path, then one line for each class."""

    def write(self, prediction: Prediction) -> None:
        """Print one prediction."""
        from image_classification.errors import printable

        print(printable(prediction.path or "image"))
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            print(f"{printable(name)}: {100 * probability:.1f}%")

    def write_unreadable(self, path: str, reason: str) -> None:
        """The list of unreadable files goes to stderr, for every kind of output."""


class CsvWriter:
    """One row for each image and class; unreadable files have a row with the reason."""

    def __init__(self, file: io.TextIOBase) -> None:
        self._rows = csv.writer(file, lineterminator="\n")
        self._rows.writerow(["path", "rank", "class", "probability", "error"])

    def write(self, prediction: Prediction) -> None:
        """Write `topk` rows."""
        best = zip(prediction.classes, prediction.probabilities, strict=True)
        for rank, (name, probability) in enumerate(best, start=1):
            self._rows.writerow([prediction.path, rank, name, f"{probability:.6f}", ""])

    def write_unreadable(self, path: str, reason: str) -> None:
        """Write a row without classes."""
        self._rows.writerow([path, "", "", "", reason])


class JsonLinesWriter:
    """One JSON object for each image."""

    def __init__(self, file: io.TextIOBase) -> None:
        self._file = file

    def write(self, prediction: Prediction) -> None:
        """Write path, classes and probabilities."""
        probabilities = [round(value, 6) for value in prediction.probabilities]
        self._line(path=prediction.path, classes=prediction.classes, probabilities=probabilities)

    def write_unreadable(self, path: str, reason: str) -> None:
        """Write path and error."""
        self._line(path=path, error=reason)

    def _line(self, **values: object) -> None:
        self._file.write(json.dumps(values, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def open_output(path: str | None) -> Iterator[Printer | CsvWriter | JsonLinesWriter]:
    """Yield what receives the predictions; a file appears only when the block ends well.

    Raises:
        UsageError: the file cannot be written.
    """
    if path is None:
        yield Printer()
        return
    try:
        with atomic_file(path) as file:
            # A file name need not be valid text; written as \udcxx it stays readable.
            text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
            yield CsvWriter(text) if path.endswith(".csv") else JsonLinesWriter(text)
            text.detach()  # flushes; closing is left to atomic_file
    except OSError as error:
        raise UsageError(f"--output {path} cannot be written: {error.strerror}") from error


def run(args: argparse.Namespace) -> None:
    """Classify all images and report those that could not be read."""
    class_names = read_class_names(args.class_names) if args.class_names else None
    import_torch_or_explain(args.device)
    from image_classification.inference import find_images, load_classifier

    images = find_images(args.images)
    classifier = load_classifier(
        args.checkpoint or args.weights, args.device, args.precision.lower(),
        ema=args.ema, arch=args.arch, image_size=args.image_size, val_resize=args.val_resize,
        interpolation=args.interpolation, class_names=class_names, bn_epsilon=args.bn_epsilon,
        runtime=args.runtime, say=functools.partial(print, file=sys.stderr),
    )  # fmt: skip
    for note in classifier.notes:
        print(note, file=sys.stderr)
    unreadable: list[tuple[str, str]] = []
    with open_output(args.output) as output:
        for prediction in classifier.stream(
            images, args.topk, args.batch_size, lambda *failure: unreadable.append(failure)
        ):
            output.write(prediction)
        for path, reason in unreadable:
            print(reason, file=sys.stderr)
            output.write_unreadable(path, reason)
        if len(unreadable) == len(images):
            raise DataError(f"none of the {len(images)} images could be read")
    if unreadable:
        print(f"{len(unreadable)} of {len(images)} images could not be read", file=sys.stderr)
    if args.output:
        print(f"{len(images) - len(unreadable)} images classified, see {args.output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; user errors become one line each and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a class name is not worth a crash

    def action() -> None:
        args = build_parser().parse_or_raise(argv)
        validate_args(args)
        run(args)

    return run_program("classify.py", action)


if __name__ == "__main__":
    sys.exit(main())
