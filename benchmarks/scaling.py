#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training: what a second device brings here, and what a formula says of 1024.

    python benchmarks/scaling.py                                   # both parts, ResNet-50
    python benchmarks/scaling.py --parts measured --processes 8    # this machine, all eight devices
    python benchmarks/scaling.py --parts model --step-ms 95 --batch-size 256      # your own step
    python benchmarks/scaling.py --parts model --train-step benchmarks/results/...-train_step.json

The formula is in scaling_model.py, what it is compared with in scaling_published.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure, scaling_runs
from benchmarks.measure import Spread, markdown_table
from benchmarks.program import add_device, add_json, add_network, create_parser, say
from benchmarks.scaling_model import ATTAINED, BACKWARD_SHARE, BYTES_PER_PARAMETER, MIB, predict
from benchmarks.scaling_published import INTERCONNECTS, PUBLISHED, STEPS, Step
from image_classification import option_types as kind
from image_classification.device import Device
from image_classification.errors import UsageError, printable, run_program
from models import create_model

PARTS = ("measured", "model")
DEVICES = (1, 8, 64, 1024)
SMALL_BATCH = 32
OWN = "your step"


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: both")
    add_device(parser)
    add_network(parser)
    add("--batch-size", type=kind.COUNT, metavar="N",
        help="images per process, or of the step that is given; default: 256 (cpu: 16)")
    add("--amp", action="store_true", help="measured: mixed precision")
    add("--processes", type=kind.COUNT, default=2, metavar="N", help="measured; default: 2")
    add("--rounds", type=kind.COUNT, metavar="N",
        help="measured: runs of each setting; default: 5 (cpu: 3)")
    add("--steps", type=kind.COUNT, metavar="N",
        help="measured: steps of an epoch, of which there are three; default: 100 (cpu: 5)")
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--step-ms", type=kind.POSITIVE, metavar="MS",
                      help="model: time of one device's step; default: what was measured on one")
    step.add_argument("--train-step", type=Path, metavar="FILE",
                      help="model: take it from a result of train_step.py")
    add("--parameters", type=kind.COUNT, metavar="N", help="model: default: those of --arch")
    add("--bucket-mib", type=kind.POSITIVE, default=25.0, metavar="MIB",
        help="model: size of a gradient bucket; default: 25, DistributedDataParallel's")
    add_json(parser, "scaling")
    return parser


def fill_in(args: argparse.Namespace, device: Device) -> None:
    """Sets the defaults that depend on the device.

    Raises:
        UsageError: Fewer than two processes.
    """
    if args.processes < 2:
        raise UsageError(f"--processes {args.processes}: at least 2, one alone is measured anyway")
    defaults = {"batch_size": (256, 16), "rounds": (5, 3), "steps": (100, 5)}
    for name, (accelerator, cpu) in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, accelerator if device.is_accelerator else cpu)
    args.parts = list(dict.fromkeys(args.parts))


def parameters_of(arch: str) -> int:
    """Counts the parameters of a network with 1000 classes."""
    return sum(parameter.numel() for parameter in create_model(arch, 1000).parameters())


def read_train_step(path: Path) -> tuple[str, int, float]:
    """Reads a result of train_step.py.

    Args:
        path: Its JSON file.

    Returns:
        Network, batch size, and the median time of a step (s) of this package, with mixed
        precision where that was measured.

    Raises:
        UsageError: It is no such file, or this package was not among the contenders.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        settings = record["settings"]
        rates = {row["name"]: row["images_per_second"] for row in record["contenders"]}
        rate = float((rates.get("ours --amp") or rates["ours"])["median"])
        return settings["arch"], settings["batch_size"], settings["batch_size"] / rate
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(
            f"--train-step {printable(path)}: expected a result of train_step.py with the "
            f"contender ours ({type(error).__name__}: {printable(str(error))})"
        ) from None


def own_step(args: argparse.Namespace, found: measure.Comparison | None) -> tuple[str, Step] | None:
    """The step that the user gave, or that was measured on an accelerator.

    Returns:
        Network and step, whose link is only a placeholder; None if there is no such step.
    """
    arch, batch_size, seconds = args.arch, args.batch_size, None
    if args.train_step:
        arch, batch_size, seconds = read_train_step(args.train_step)
    elif args.step_ms:
        seconds = args.step_ms / 1e3
    elif found:
        seconds = batch_size / Spread.of(found.results[0].rates).median
    if seconds is None:
        return None
    parameters = args.parameters or parameters_of(arch)
    return arch, Step(OWN, INTERCONNECTS[0], parameters, batch_size, seconds)


def efficiencies(found: measure.Comparison, processes: int) -> dict[str, Spread]:
    """What was lost to what, each taken within a round; 1 is nothing."""
    alone, beside, together = found.results

    def share(one: measure.Result, other: measure.Result, count: int) -> Spread:
        ratio = one.ratio_to(other)
        return Spread(*(value / count for value in ratio))

    return {
        "efficiency": share(together, alone, processes),
        "sharing the machine": share(beside, alone, processes),
        "communication": share(together, beside, 1),
    }


def report_measured(args: argparse.Namespace, found: measure.Comparison) -> str:
    """Formats the measured part."""
    shares = efficiencies(found, args.processes)
    meanings = {
        "efficiency": f"{scaling_runs.TOGETHER} / ({args.processes} x {scaling_runs.ALONE})",
        "sharing the machine": f"{scaling_runs.BESIDE} / ({args.processes} x "
                               f"{scaling_runs.ALONE}): memory, caches, clocks",
        "communication": f"{scaling_runs.TOGETHER} / {scaling_runs.BESIDE}",
    }  # fmt: skip
    lines = [
        f"{args.arch}, {args.image_size} px, batch {args.batch_size} per process, "
        f"{args.processes} processes, {args.rounds} rounds of {args.steps} steps: median (min-max)",
        "",
        found.table(scaling_runs.ALONE),
        "",
        markdown_table([
            ["share that is left", "median (min-max)", "what it is"],
            *([name, spread.text(3), meanings[name]] for name, spread in shares.items()),
        ]),
    ]  # fmt: skip
    if not all(entry["facts"]["always_beside"] for entry in found.results[1].rounds):
        lines.append("the independent processes were not all training while others were measured: "
                     "take more --steps")  # fmt: skip
    return "\n".join(lines)


def predictions(own: Step | None, bucket: float) -> list[dict[str, Any]]:
    """Predicts all steps on all numbers of devices, with their own batch and with a small one.

    Args:
        own: The user's step, on all interconnects; None without one.
        bucket: Largest bucket in bytes.

    Returns:
        JSON types, seconds.
    """
    steps = [*STEPS, *(own._replace(link=link) for link in INTERCONNECTS if own)]
    batches = [(step, size) for step in steps for size in (step.batch_size, SMALL_BATCH)
               if size == step.batch_size or size < step.batch_size]  # fmt: skip
    return [
        {
            "name": step.name, "interconnect": step.link.name, "batch_size": size,
            "parameters": step.parameters, "step": scaled.seconds,
            "devices": [
                {**found._asdict(), "efficiency": found.efficiency,
                 "images_per_second": size * found.devices / found.step}
                for found in (
                    predict(scaled.seconds, BYTES_PER_PARAMETER * step.parameters, devices,
                            step.link, bucket=bucket)
                    for devices in DEVICES
                )
            ],
        }
        for step, size in batches
        for scaled in [step.with_batch(size)]
    ]  # fmt: skip


def comparisons(bucket: float) -> list[dict[str, Any]]:
    """What the formula says of the published figures; JSON types, efficiencies as shares."""
    return [
        {
            "name": entry.name, "interconnect": entry.link.name, "devices": devices,
            "batch_size": entry.batch_size, "source": entry.source, "data": entry.data,
            "published": rate / devices / entry.single, "predicted": found.efficiency,
            "communication": found.communication,
            "lost": entry.batch_size * (devices / rate - 1 / entry.single),
        }
        for entry in PUBLISHED
        for devices, rate in entry.several.items()
        for found in [
            predict(entry.batch_size / entry.single, BYTES_PER_PARAMETER * entry.parameters,
                    devices, entry.link, bucket=bucket)
        ]
    ]  # fmt: skip


def report_model(
    predicted: list[dict[str, Any]], compared: list[dict[str, Any]], bucket: float
) -> str:
    """Formats the part that is a formula."""
    table = [["step", "interconnect", "batch", *(f"{n} devices: img/s (%)" for n in DEVICES[1:])]]
    for row in predicted:
        cells = [f"{found['images_per_second']:,.0f} ({100 * found['efficiency']:.1f})"
                 for found in row["devices"][1:]]  # fmt: skip
        name = f"{row['name']}, {1e3 * row['step']:.1f} ms"
        table.append([name, row["interconnect"], str(row["batch_size"]), *cells])
    check = [["published", "interconnect", "devices", "predicted %", "published %", "residual",
              "all-reduce ms", "lost ms", "data"]]  # fmt: skip
    for row in compared:
        remark = row["data"]
        if row["published"] > 1:
            remark = "impossible with equal work per device"
        check.append([
            row["name"], row["interconnect"].partition(" (")[0], str(row["devices"]),
            f"{100 * row['predicted']:.1f}", f"{100 * row['published']:.1f}",
            f"{100 * (row['published'] - row['predicted']):+.1f}",
            f"{1e3 * row['communication']:.1f}", f"{1e3 * row['lost']:.1f}", remark,
        ])  # fmt: skip
    return "\n".join([
        f"Predicted, not measured: {ATTAINED:.0%} of the published bandwidths, backward pass "
        f"{BACKWARD_SHARE:.0%} of the step, buckets of {bucket / MIB:g} MiB; batch {SMALL_BATCH} "
        "takes the same img/s of one device for granted",
        "", markdown_table(table), "",
        "The formula against published figures: all-reduce is its time in a step, overlapped or "
        "not, lost is what a published step takes longer than one device's",
        "", markdown_table(check),
    ])  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measures and predicts, prints the tables, writes the JSON file."""
    device = Device.select(args.device if "measured" in args.parts else "cpu")
    fill_in(args, device)
    described = environment.capture(device)
    say(environment.text(described))
    record: dict[str, Any] = {
        "benchmark": "scaling", "schema": measure.SCHEMA, "environment": described,
        "settings": {name: value if name != "train_step" or value is None else value.name
                     for name, value in vars(args).items() if name != "json"},
    }  # fmt: skip
    found = None
    if "measured" in args.parts:
        plan = scaling_runs.Plan(device.type, args.arch, args.image_size, args.batch_size,
                                 args.steps, args.processes, args.amp)  # fmt: skip
        try:
            found = scaling_runs.measure(plan, device, args.rounds, say)
            print(report_measured(args, found), flush=True)
            record["measured"] = [result.record() for result in found.results]
            record["shares"] = {name: spread._asdict() for name, spread
                                in efficiencies(found, args.processes).items()}  # fmt: skip
        except measure.Unavailable as reason:
            record["left_out"] = str(reason)
            print(f"measured: left out: {reason}", flush=True)
    if "model" in args.parts:
        # A CPU's step says nothing of machines with these networks.
        own = own_step(args, found if device.is_accelerator else None)
        bucket = args.bucket_mib * MIB
        record["own_step"] = own and {"arch": own[0], "parameters": own[1].parameters,
                                      "batch_size": own[1].batch_size, "seconds": own[1].seconds}
        record["predicted"] = predictions(own[1] if own else None, bucket)
        record["compared"] = comparisons(bucket)
        print("\n" + report_model(record["predicted"], record["compared"], bucket))
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("scaling.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
