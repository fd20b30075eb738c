#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What pretrained weights are worth on few images: fine-tuning against training from scratch.

    python benchmarks/finetune.py DIR          # DIR/<class>/<image>, for example CIFAR-10 as JPEGs
    python benchmarks/finetune.py DIR --pretraining 2000 3 --images 200 --val 200   # a smaller DIR

The first half of the classes, by name, trains a network; a few images of the other half fine-tune
it. A network that starts from random weights sees the same images for as many epochs, all its
layers from the first one on, so that it has at least the same time. Every run is one of main.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import environment, measure, trainings
from benchmarks.program import add_device, add_json, create_parser, say
from image_classification import option_types as kind
from image_classification.data_index import scan_class_folders
from image_classification.device import Device
from image_classification.errors import DataError, printable, run_program
from image_classification.metrics import mean_and_spread

TUNED, SCRATCH = "fine-tuned", "from scratch"
# Each in settings of its own: what is best for random weights spoils good ones.
START = {
    TUNED: "--lr 0.01 --head-lr 0.05 --freeze backbone --unfreeze-after 2".split(),
    SCRATCH: "--lr 0.05".split(),
}


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("directory", type=Path, metavar="DIR", help="a folder for each class, four at least")
    add_device(parser)
    add("--arch", default="resnet18_cifar", metavar="NAME", help="default: resnet18_cifar")
    add("--images", type=kind.COUNT, default=400, metavar="N",
        help="of the second half of the classes, to fine-tune with; default: 400")
    add("--pretraining", type=kind.COUNT, nargs=2, default=[10000, 3], metavar=("N", "EPOCHS"),
        help="images of the first half, and epochs of the first training; default: 10000 3")
    add("--epochs", type=kind.COUNT, default=15, metavar="N", help="of fine-tuning; default: 15")
    add("--val", type=kind.COUNT, default=1000, metavar="N",
        help="validation images of each half; default: 1000")
    add("--seeds", type=kind.COUNT, default=3, metavar="N", help="repetitions; default: 3")
    add_json(parser, "finetune")
    return parser


def divide(source: Path, target: Path, train: tuple[int, int], val: int) -> tuple[Path, Path]:
    """Links two data sets together, one for each half of the classes.

    Args:
        source: A folder for each class.
        target: Where the data sets are made.
        train: Training images of each half, in equal numbers of each class, rounded down.
        val: Validation images of each half, likewise.

    Returns:
        The data sets.

    Raises:
        DataError: Fewer than four classes, or too few images of one.
    """
    index = scan_class_folders(source, "train")
    count = len(index.classes)
    if count < 4:
        raise DataError(f"{printable(source)} holds {count} class folders, 4 are needed")
    halves = range(count // 2), range(count // 2, count)
    made = target / "first", target / "few"
    for place, labels, images in zip(made, halves, train, strict=True):
        for_val, for_train = val // len(labels), images // len(labels)
        for label in labels:
            found = np.flatnonzero(index.labels == label).tolist()
            name, needed = index.classes[label], max(for_val, 1) + max(for_train, 1)
            if not for_val or not for_train or len(found) < needed:
                raise DataError(
                    f"{printable(source / name)} has {len(found)} images for {for_val} in val and "
                    f"{for_train} in train: at least one each is needed, and no more than there "
                    "are; see --val, --images, --pretraining"
                )
            random.Random(0).shuffle(found)
            for split, chosen in (("val", found[:for_val]),
                                  ("train", found[for_val : for_val + for_train])):  # fmt: skip
                folder = place / split / name
                folder.mkdir(parents=True)
                for number, i in enumerate(chosen):
                    image = Path(index.path(i)).resolve()
                    (folder / f"{number}{image.suffix}").symlink_to(image)
    return made


def train(data: Path, workspace: Path, *flags: str) -> tuple[float, float, str]:
    """Runs main.py; returns the top-1 (%) of the last epoch, the time (s), and its output."""
    started = time.perf_counter()
    output = trainings.train(data, workspace, *flags)
    seconds = time.perf_counter() - started
    return trainings.epochs(workspace)[-1]["val.top1"], seconds, output


def compare(args: argparse.Namespace, device: Device, folder: Path) -> dict[str, Any]:
    """Trains everything; returns what the record holds of it, and the table of classes."""
    common = ["--device", device.type, "--arch", args.arch, "--lr-schedule", "cosine",
              "--label-smoothing", "0.1", "--warmup", "1", "--crop-scale", "0.5", "1"]  # fmt: skip
    number, epochs = args.pretraining
    first, few = divide(args.directory, folder, (number, args.images), args.val)
    base = folder / "base"
    flags = ["-b", "64", "--lr", "0.1", "--seed", "0", "--epochs", str(epochs)]
    top1, seconds, _ = train(first, base, *common, *flags)
    say(f"pretraining: {top1:.2f} % in {seconds:.0f} s")
    start = {name: list(flags) for name, flags in START.items()}
    start[TUNED] += ["--pretrained-weights", str(base / "checkpoint.pth.tar")]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in start}
    classes = ""
    for seed in range(args.seeds):
        for name in list(start)[:: 1 if seed % 2 else -1]:  # in turns
            flags = ["-b", "32", "--epochs", str(args.epochs), "--seed", str(seed)]
            found = train(few, folder / f"{name}{seed}", *common, *start[name], *flags,
                          "--class-report")  # fmt: skip
            runs[name].append({"top1": found[0], "seconds": found[1]})
            say(f"{name}, seed {seed}: {found[0]:.2f} % in {found[1]:.0f} s")
            if name == TUNED:
                classes = found[2][found[2].index("\nclass ") : found[2].index("\nfinished")]
    gain = [one["top1"] - other["top1"] for one, other in zip(*runs.values(), strict=True)]
    return {"pretraining": {"top1": top1, "seconds": seconds}, "runs": runs, "gain": gain,
            "classes": classes.strip().splitlines()}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark; prints a table and writes one JSON file."""
    device = Device.select(args.device)
    described = environment.capture(device)
    say(environment.text(described))
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, device, Path(folder))
    print(f"\n{args.images} images, {args.epochs} epochs, {args.arch}, {device}\n")
    print("start | top-1 (%) | seconds\n----- | ----- | -----")
    for name, rows in found["runs"].items():
        cells = (str(mean_and_spread(row[key] for row in rows)) for key in ("top1", "seconds"))
        print(f"{name} | " + " | ".join(cells))
    print(f"\ngain: {mean_and_spread(found['gain'])} points\n")
    print("\n".join(found["classes"]))
    settings = {name: getattr(args, name) for name in
                ("arch", "images", "pretraining", "epochs", "val", "seeds")}  # fmt: skip
    record = {"benchmark": "finetune", "schema": measure.SCHEMA, "environment": described,
              "settings": settings, **found}  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("finetune.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
