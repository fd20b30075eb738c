#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The recipes by budget at small scale: accuracy and time beside a plain training's, over seeds.

    python benchmarks/budgets.py                      # on sample:digits
    python benchmarks/budgets.py DIR --budgets 16     # on a data set that main.py takes

A training of ImageNet takes GPUs; this shows on a CPU what the recipes are made of: images that
begin small and grow, averaged weights, a linear schedule. Sizes, images per step and the averaging
are those of recipes.yml in small. The plain training has the final size from the first step, and a
cosine schedule. Every run is one of main.py --seeds, whose accuracy is that of the averaged weights
where there are any. Both validate at the size of the training: larger validation images belong to
photographs, and digits of 8 pixels have nothing more to show in them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure, trainings
from benchmarks.program import add_device, add_json, create_parser, say
from image_classification import option_types as kind
from image_classification.device import Device
from image_classification.errors import run_program
from image_classification.metrics import mean_and_spread
from image_classification.run_files import SEEDS_NAME
from models import model_names

BUDGETS = ("16", "32", "50", "90", "250")
STEP = 64  # images; the recipes have 1024, and their rates are in proportion
COMMON = ("--optimizer-batch-size", STEP, "-b", STEP, "-p", 100, "--crop-scale", 0.25, 1,
          "--image-size", 96, "--val-size", 96, "--val-resize", 110)  # fmt: skip
#: Flags of a way to train for some epochs.
WAYS = {
    "recipe": ("--lr", 1.7 * STEP / 1024, "--progressive-resize", 64, "--use-ema", 0.99),
    "plain": ("--lr", 0.1, "--lr-schedule", "cosine", "--warmup", 2, "--label-smoothing", 0.1,
              "--momentum", 0.9, "--weight-decay", 1e-4),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("data", nargs="?", default="sample:digits", metavar="DIR", help="default: sample:digits")
    add_device(parser)
    add("--arch", default="resnet18", choices=model_names(), metavar="NAME",
        help="default: resnet18")
    add("--budgets", nargs="+", default=["16", "32"], choices=BUDGETS, metavar="EPOCHS",
        help=f"default: 16 32, of {', '.join(BUDGETS)}")
    add("--seeds", type=kind.COUNT, default=3, metavar="N", help="repetitions; default: 3")
    add_json(parser, "budgets")
    return parser  # fmt: skip


def train(data: str, workspace: Path, seeds: int, *flags: Any) -> dict[str, Any]:
    """Trains from several seeds: what seeds.json holds, and the seconds of training of each."""
    numbers = ",".join(map(str, range(seeds)))
    trainings.train(data, workspace, *map(str, flags), "--seeds", numbers)
    found: dict[str, Any] = json.loads((workspace / SEEDS_NAME).read_text("utf-8"))
    folders = sorted(path.parent for path in workspace.glob("*/metrics.jsonl"))
    found["seconds"] = [
        sum(row["train.epoch_time"] for row in trainings.epochs(folder)) for folder in folders
    ]
    return found


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark; prints a table and writes one JSON file."""
    device = Device.select(args.device)
    described = environment.capture(device)
    say(environment.text(described))
    runs: dict[str, Any] = {}
    rows = [["epochs", "", "top-1 (%)", "training (s)"]]
    with tempfile.TemporaryDirectory() as folder:
        for epochs in args.budgets:
            for name, flags in WAYS.items():
                own = ("--recipe", f"resnet50-{epochs}") if name == "recipe" else ()
                place = Path(folder, f"{name}-{epochs}")
                found = train(args.data, place, args.seeds, *own, *COMMON, *flags,
                              "--arch", args.arch, "--epochs", epochs,
                              "--device", device.type)  # fmt: skip
                runs[f"{name}, {epochs} epochs"] = found
                seconds = mean_and_spread(found["seconds"])
                top1 = mean_and_spread(found["top1"].values())
                rows.append([epochs, name, str(top1), str(seconds)])
                say(" | ".join(rows[-1]))
    print(f"\n{args.data}, {args.arch}, {device}\n")
    print(measure.markdown_table(rows))
    settings = {key: getattr(args, key) for key in ("data", "arch", "budgets", "seeds")}
    record = {"benchmark": "budgets", "schema": measure.SCHEMA, "environment": described,
              "settings": settings, "runs": runs}  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("budgets.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
