# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""main.py with a fault in it, or one that stays longer where a signal is to hit it.

SABOTAGE="<rank> <step> <kind>" says where, when and which. PAUSE="<phase> <seconds>" makes every
rank wait when it first comes to a phase; the folder NOTES then holds `<phase>.<rank>`, and always
`steps.<rank>`, the steps that a rank has finished. SABOTAGE_SAVES="<first> <last> <kind> [<error>]"
lets some attempts to save fail, see failing_saves.py.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from failing_saves import spoiled_saves

import main

BLOCK = 1 << 23  # bytes of a checkpoint between two pauses of the phase "saves"


def strike(kind: str) -> None:
    """The fault itself."""
    note("fault")
    if kind == "exit":
        os._exit(9)
    if kind == "forward":
        raise RuntimeError("sabotage in the forward pass")
    if kind == "data":
        raise RuntimeError("sabotage in the data loader")
    if kind == "memory":
        raise MemoryError("sabotage: no memory left")
    if kind == "deadlock":
        threading.Lock().acquire() and threading.Event().wait()
    raise ValueError(kind)


def note(name: str, text: str = "") -> None:
    """Leaves a file for the test; at any moment it is whole."""
    path = Path(os.environ["NOTES"], f"{name}.{os.environ.get('RANK', '0')}")
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
    temporary.write_text(text)
    os.replace(temporary, path)


class Pauses:
    """Waits in one phase.

    Args:
        phase: "import", "data", "first", "step", "validation", "save", "between", or "saves", which
            waits again and again in every save.
        seconds: How long.
    """

    def __init__(self, phase: str, seconds: float) -> None:
        self._phase = phase
        self._seconds = seconds
        self._reached = False

    def at(self, phase: str) -> None:
        """Call it in each phase."""
        if phase != self._phase or (self._reached and phase != "saves"):
            return
        if not self._reached:
            note(phase)
        self._reached = True
        time.sleep(self._seconds)

    def before(self, owner: Any, name: str, *phases: str) -> None:
        """Puts the pause in front of a function."""
        healthy = getattr(owner, name)

        def function(*args: Any, **named: Any) -> Any:
            for phase in phases:
                self.at(phase)
            return healthy(*args, **named)

        setattr(owner, name, function)


class DuringImport(importlib.abc.MetaPathFinder):
    """Waits in the middle of the import of torch."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name == "torch.nn":
            self._pauses.at("import")


def put_pauses(pauses: Pauses) -> None:
    """Into what is only imported once the options are checked."""
    from image_classification import checkpoint_files
    from image_classification.epochs import EpochLoop
    from image_classification.training import Trainer

    healthy = Trainer.train_step

    def train_step(self: Trainer, *batch: Any) -> None:
        pauses.at({0: "first", 4: "step"}.get(self.step, ""))
        healthy(self, *batch)
        note("steps", str(self.step))

    write, written = checkpoint_files._Hashing.write, [0]

    def slow_write(self: Any, data: Any) -> int:
        blocks = written[0] // BLOCK
        written[0] += (count := write(self, data))
        if written[0] // BLOCK > blocks:
            self._file.flush()
            pauses.at("save")
            pauses.at("saves")
        return count

    Trainer.train_step = train_step  # type: ignore[method-assign]
    checkpoint_files._Hashing.write = slow_write  # type: ignore[method-assign]
    pauses.before(checkpoint_files, "_write_sum", "saves")
    pauses.before(checkpoint_files.CheckpointFiles, "_name", "saves")
    pauses.before(checkpoint_files.CheckpointFiles, "_prune", "saves")
    pauses.before(EpochLoop, "_within_validation", "validation")
    pauses.before(Trainer, "finish_epoch", "between")


def put_fault(rank: str, step: int, kind: str) -> None:
    """Into the training step of one rank; "data" into the batches that it loads."""
    from image_classification.training import Trainer

    if os.environ.get("RANK", "0") != rank:
        return
    healthy, build_loaders = Trainer.train_step, main.build_loaders

    def train_step(self: Trainer, *batch: Any) -> None:
        struck = self.step == step
        if struck and kind != "ruin":
            strike(kind)
        healthy(self, *batch)
        if struck:  # statistics that cannot be saved, and a request to stop
            self.model.bn1.running_mean.fill_(float("nan"))
            os.kill(os.getpid(), signal.SIGTERM)

    def build_spoiled_loaders(*args: Any) -> Any:
        loaders = build_loaders(*args)
        healthy_iter = type(loaders["train"]).__iter__

        def batches(self: Any) -> Any:
            yield from itertools.islice(healthy_iter(self), step)
            strike(kind)

        type(loaders["train"]).__iter__ = batches
        return loaders

    if kind == "data":
        main.build_loaders = build_spoiled_loaders
    else:
        Trainer.train_step = train_step  # type: ignore[method-assign]


def arm() -> None:
    """Puts in what the environment asks for."""
    pauses = Pauses("", 0.0)
    if "PAUSE" in os.environ:
        phase, seconds = os.environ["PAUSE"].split()
        pauses = Pauses(phase, float(seconds))
        sys.meta_path.insert(0, DuringImport(pauses))
    pauses.before(main, "load_data", "data")
    load_data, build_epochs = main.load_data, main.build_epochs

    def armed_load_data(state: Any) -> Any:
        if "SABOTAGE" in os.environ:
            rank, step, kind = os.environ["SABOTAGE"].split()
            put_fault(rank, int(step), kind)
        return load_data(state)

    def armed_build_epochs(*args: Any) -> Any:
        if "PAUSE" in os.environ:  # the step and the checkpoint before are none of the training's
            put_pauses(pauses)
        return build_epochs(*args)

    main.load_data, main.build_epochs = armed_load_data, armed_build_epochs


if __name__ == "__main__":
    arm()
    with contextlib.ExitStack() as faults:
        if "SABOTAGE_SAVES" in os.environ:
            first, last, *kind = os.environ["SABOTAGE_SAVES"].split()
            faults.enter_context(spoiled_saves(int(first), int(last), *kind))
        sys.exit(main.main(sys.argv[1:]))
