#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compares a training step of this package with its peers', in one run, in turns.

    python benchmarks/train_step.py                                   # all contenders, ResNet-50
    python benchmarks/train_step.py --contenders ours-amp torchvision-amp --rounds 20

All contenders train on one synthetic batch that lies on the device: no loader is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.apart import starter
from benchmarks.program import add_comparison, add_json, create_parser, say, select_device
from benchmarks.train_contenders import BASELINE, NAMES, PAIRS, list_contenders
from image_classification import option_types as kind
from image_classification.device import Device
from image_classification.errors import DeviceMemoryError, run_program


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add(
        "--contenders",
        nargs="+",
        default=list(NAMES),
        choices=list(NAMES),
        metavar="NAME",
        help=f"default: all that can run, of {', '.join(NAMES)}",
    )
    add_comparison(parser)
    add("--batch-size", type=kind.COUNT, metavar="N", help="default: 256 (cpu: 32)")
    add(
        "--rounds",
        type=kind.COUNT,
        metavar="N",
        help="timed stretches of each contender; default: 10 (cpu: 5)",
    )
    add("--steps", type=kind.COUNT, metavar="N", help="steps in a stretch; default: 20 (cpu: 3)")
    add(
        "--warmup",
        type=kind.COUNT,
        metavar="N",
        help="untimed steps of each contender first; default: 10 (cpu: 2)",
    )
    add_json(parser, "train_step")
    return parser


def fill_in(args: argparse.Namespace, device: Device) -> None:
    """Sets the defaults that depend on the device."""
    defaults = {"batch_size": (256, 32), "rounds": (10, 5), "steps": (20, 3), "warmup": (10, 2)}
    for name, (accelerator, cpu) in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, accelerator if device.is_accelerator else cpu)
    args.contenders = list(dict.fromkeys(args.contenders))


def measure_all(args: argparse.Namespace, device: Device) -> measure.Comparison:
    """Builds and measures the contenders.

    Raises:
        DeviceMemoryError: The batch does not fit.
        DivergedError: A loss is not finite.
    """
    try:
        contenders = list_contenders(
            args.contenders,
            args.arch,
            device,
            image_size=args.image_size,
            batch_size=args.batch_size,
        )
        with starter(device, together=args.together) as start:
            return measure.compare(
                contenders,
                device=device,
                rounds=args.rounds,
                steps=args.steps,
                warmup=args.warmup,
                say=say,
                start=start,
            )
    except Exception as error:
        if device.is_out_of_memory(error):
            raise DeviceMemoryError(device.explain_out_of_memory(error, args.batch_size)) from error
        raise


def report(args: argparse.Namespace, found: measure.Comparison) -> str:
    """Formats the table and what belongs below it."""
    lines = [
        f"{args.arch}, {args.image_size} px, batch {args.batch_size}, {args.rounds} rounds of "
        f"{args.steps} steps: medians (min-max)",
        "",
        found.table(BASELINE),
        *(f"{name}: left out: {reason}" for name, reason in found.left_out.items()),
    ]
    for one, other in PAIRS:
        ratio = found.ratio(one, other)
        if ratio is not None:
            lines.append(f"same precision and layout, {one} / {other}: {ratio.text(3)}")
    return "\n".join(lines)


def record(
    args: argparse.Namespace, described: dict[str, Any], found: measure.Comparison
) -> dict[str, Any]:
    """Returns the content of the JSON file."""
    pairs = dict.fromkeys(
        [*PAIRS, *((r.name, BASELINE) for r in found.results if r.name != BASELINE)]
    )
    ratios = {pair: found.ratio(*pair) for pair in pairs}
    return {
        "benchmark": "train_step",
        "schema": measure.SCHEMA,
        "environment": described,
        "settings": {name: value for name, value in vars(args).items() if name != "json"},
        "contenders": [result.record() for result in found.results],
        "ratios": [
            {"of": one, "to": other, **spread._asdict()}
            for (one, other), spread in ratios.items()
            if spread is not None
        ],
        "left_out": found.left_out,
    }


def run(args: argparse.Namespace) -> None:
    """Measures, prints the table, writes the JSON file."""
    device = select_device(args)
    fill_in(args, device)
    device.configure(tf32=None, deterministic=False)
    described = environment.capture(device)
    print(environment.text(described), f"amp: {device.amp_dtype()[1]}", "", sep="\n", flush=True)
    found = measure_all(args, device)
    print(report(args, found))
    measure.save(record(args, described, found), args.json, device)


def main(argv: list[str]) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("train_step.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
