#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Measures what it costs that a run cannot be lost: the same steps with and without, in turns.

    python benchmarks/reliability_overhead.py                          # ResNet-50
    python benchmarks/reliability_overhead.py --arch resnet18 --image-size 32 --batch-size 128

Three contenders train on one batch that lies on the device: bare (optimizer.step, and nothing
between two steps), guarded (a look at the gradients, flags that travel to the host), and all of it
(also heartbeat, votes on stopping, the clock of the saves). A save blocks the training for the copy
to the host only; it is timed apart, since it comes every ten minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment, measure
from benchmarks.program import add_device, add_json, add_network, create_parser, say
from benchmarks.train_contenders import OurRunner, Setup, set_up
from image_classification import option_types as kind
from image_classification.checkpoint_files import CheckpointFiles
from image_classification.device import Device
from image_classification.divergence import StepGuard
from image_classification.epochs import EpochLoop, Progress
from image_classification.errors import run_program
from image_classification.heartbeat import Heartbeat
from image_classification.interruption import Interruption
from image_classification.logger import Logger
from image_classification.save_interval import SaveInterval
from image_classification.saver import Saver

BARE, GUARDED, ALL = "bare", "guarded", "all of it"
INTERVAL_S = 600.0  # the default of --checkpoint-interval


class NoGuard(StepGuard):
    """Steps as they would be without any care."""

    def step(self, place: Any, loss_is_finite: torch.Tensor, clip_norm: float | None) -> Any:
        """Updates the weights, whatever the gradients are."""
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return torch.zeros_like(loss_is_finite), None


class BareRunner(OurRunner):
    """The training step alone."""

    def __init__(self, arch: str, device: Device, setup: Setup) -> None:
        super().__init__(arch, device, setup)
        trainer = self.trainer
        trainer.guard = NoGuard(
            trainer.optimizer, list(trainer.model.parameters()), trainer.scaler, device
        )


class WholeRunner(OurRunner):
    """The training step, and what happens between two of them."""

    def __init__(self, arch: str, device: Device, setup: Setup, folder: Path) -> None:
        super().__init__(arch, device, setup)
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        self.saver = Saver(CheckpointFiles(folder), lambda line: print(line, file=sys.stderr))
        self._loop = EpochLoop(
            self.trainer, None, {}, Progress(), saver=self.saver, saves=True,  # type: ignore
            about={"arch": arch}, interval=SaveInterval(seconds=INTERVAL_S), epochs=1,
            print_freq=10, interruption=Interruption(), beat=Heartbeat(writer).beat,
            logger=Logger(),
        )  # fmt: skip

    def run(self, steps: int) -> int:
        """Trains; returns the number of images."""
        for _ in range(steps):
            self.trainer.train_step(self.setup.images, self.setup.target)
            self._loop._between_steps()
        os.read(self._reader, 65536)  # the launcher's part
        return steps * len(self.setup.target)

    def save_times(self, count: int) -> tuple[list[float], list[float]]:
        """Seconds for which saves block the training, and until their files are there."""
        blocked, written = [], []
        for _ in range(count):
            started = time.perf_counter()
            self._loop._save()
            blocked.append(time.perf_counter() - started)
            self.saver.finish()
            written.append(time.perf_counter() - started)
        return blocked, written


def build_parser() -> argparse.ArgumentParser:
    """Declares the options."""
    parser = create_parser(__doc__)
    add = parser.add_argument
    add_device(parser)
    add_network(parser)
    add("--batch-size", type=kind.COUNT, metavar="N", help="default: 256 (cpu: 16)")
    add("--rounds", type=kind.COUNT, default=9, metavar="N", help="default: 9")
    add("--steps", type=kind.COUNT, metavar="N", help="steps in a round; default: 20 (cpu: 2)")
    add("--saves", type=kind.COUNT, default=5, metavar="N", help="saves that are timed; default: 5")
    add_json(parser, "reliability_overhead")
    return parser


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark; prints a table and writes one JSON file."""
    device = Device.select(args.device)
    batch = args.batch_size or (256 if device.is_accelerator else 16)
    steps = args.steps or (20 if device.is_accelerator else 2)
    described = environment.capture(device)
    print(environment.text(described), file=sys.stderr)
    setup = set_up(device, args.image_size, batch, amp=True)
    whole: list[WholeRunner] = []
    with tempfile.TemporaryDirectory() as folder:

        def build_whole() -> WholeRunner:
            whole.append(WholeRunner(args.arch, device, setup, Path(folder)))
            return whole[0]

        found = measure.compare(
            [
                measure.Contender(BARE, "", lambda: BareRunner(args.arch, device, setup)),
                measure.Contender(GUARDED, "", lambda: OurRunner(args.arch, device, setup)),
                measure.Contender(ALL, "", build_whole),
            ],
            device=device, rounds=args.rounds, steps=steps, warmup=2,
            say=say,
        )  # fmt: skip
        blocked, written = map(measure.Spread.of, whole[0].save_times(args.saves))
    share = 100.0 * blocked.median / INTERVAL_S
    print(f"\n{args.arch}, {args.image_size} px, batch {batch}, {device}\n\n{found.table(BARE)}")
    print(f"a save blocks for {blocked.text(3)} s ({share:.3f} % every ten minutes), its file is "
          f"there after {written.text(2)} s")  # fmt: skip
    record = {
        "benchmark": "reliability_overhead", "schema": measure.SCHEMA, "environment": described,
        "settings": {"arch": args.arch, "image_size": args.image_size, "batch_size": batch,
                     "rounds": args.rounds, "steps": steps},
        "contenders": [result.record() for result in found.results],
        "ratios": {name: found.ratio(name, BARE)._asdict() for name in (GUARDED, ALL)},
        "save": {"blocked_s": blocked._asdict(), "written_s": written._asdict(),
                 "share_percent": share},
    }  # fmt: skip
    measure.save(record, args.json, device)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; user errors become one line and an exit code."""
    return run_program("reliability_overhead.py", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
