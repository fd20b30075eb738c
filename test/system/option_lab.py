# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs main.py's entry point in this process and keeps what a run did and left behind."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from runs import checkpoint, values

import main
from image_classification import preflight
from image_classification.training import Trainer
from models.resnet import VARIANTS

# One training step and one validation batch; options given later win. The default schedule would
# divide the rate of an only step.
BASE = {
    "--arch": "resnet18", "--image-size": "32", "--epochs": "1", "--prof": "1", "-j": "0",
    "-b": "4", "--device": "cpu", "--seed": "0", "--lr": "0.1", "--lr-schedule": "linear",
}  # fmt: skip
# Nothing changes the weights: the checkpoint holds the initial ones.
STILL = ("--lr", "0", "--weight-decay", "0")
SYNTHETIC = ("--data-backend", "synthetic", "--num-classes", "3")


@dataclass
class Outcome:
    """One run.

    Attributes:
        workspace: The folder it was given.
        out: Standard output.
        err: Standard error.
        models: What `build_model` returned, one per seed.
        batches: The images [N, 3, H, W] of every training step.
    """

    workspace: Path
    out: str = ""
    err: str = ""
    models: list[torch.nn.Module] = field(default_factory=list)
    batches: list[torch.Tensor] = field(default_factory=list)

    @functools.cached_property
    def last(self) -> dict[str, Any]:
        """The last checkpoint."""
        return checkpoint(self.workspace / "checkpoint.pth.tar")

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights in the last checkpoint."""
        return self.last["state_dict"]

    def momentum(self, parameter: str) -> torch.Tensor:
        """The momentum buffer of a parameter; after one step the gradient with its decay."""
        return self.last["optimizer"][parameter]["momentum_buffer"]

    @property
    def files(self) -> set[str]:
        """The names in the workspace."""
        return {path.name for path in self.workspace.iterdir()}

    def values(self, metric: str, kind: str = "epoch") -> list[float]:
        """A metric in metrics.jsonl over the records of a type."""
        return values(self.workspace, kind, metric)

    def value(self, metric: str, kind: str = "epoch") -> float:
        """The last of `values`."""
        return self.values(metric, kind)[-1]


class Lab:
    """Runs in folders below its own, which `close` removes.

    Args:
        folder: For workspaces and whatever an entry needs.
        images: A data folder with three classes.
        store: Runs that several entries compare with, by their flags.
    """

    def __init__(self, folder: Path, images: Path, store: dict[tuple[str, ...], Outcome]) -> None:
        self.folder = folder
        self.images = images
        self._store = store
        self._number = 0

    def run(
        self,
        *flags: object,
        directory: object | None = "",
        drop: tuple[str, ...] = (),
        workspace: Path | None = None,
        code: int = 0,
    ) -> Outcome:
        """Runs `main.main` with the flags of BASE and these.

        Args:
            flags: Further flags.
            directory: DIR, None for none; "" is the lab's own.
            drop: Flags of BASE to leave out; "--workspace" is one of them.
            workspace: The folder of the run, by default a new one.
            code: The exit code that it must have.
        """
        self._number += 1
        workspace = workspace or self.folder / f"run{self._number}"
        base = {**BASE, "--workspace": str(workspace)}
        argv = [word for name in base if name not in drop for word in (name, base[name])]
        data = [] if directory is None else [str(directory or self.images)]
        outcome = Outcome(workspace)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as stack:
            for context in (redirect_stdout(out), redirect_stderr(err), _spies(outcome)):
                stack.enter_context(context)
            if "--check" not in flags:  # its step is none of the run's
                stack.enter_context(mock.patch.object(preflight, "check_ahead", mock.Mock()))
            returned = main.main([*data, *argv, *map(str, flags)])
        outcome.out, outcome.err = out.getvalue(), err.getvalue()
        assert returned == code, f"exit code {returned}\n{outcome.out}\n{outcome.err}"
        return outcome

    def error(self, *flags: object, code: int = 2, **options: Any) -> str:
        """Runs into a user error and returns its text, which is one line."""
        lines = self.run(*flags, code=code, **options).err.splitlines()
        lines = [line for line in lines if line.startswith("main.py: error: ")]
        assert len(lines) == 1, lines
        return lines[0].removeprefix("main.py: error: ")

    def shared(self, *flags: str) -> Outcome:
        """The run with these flags, which is made once for all entries."""
        if flags not in self._store:
            folder = self.folder.parent / "shared" / str(len(self._store))
            self._store[flags] = self.run(*flags, workspace=folder)
        return self._store[flags]

    @property
    def base(self) -> Outcome:
        """The run with nothing but BASE."""
        return self.shared()

    @property
    def still(self) -> Outcome:
        """The run whose checkpoint holds the initial weights."""
        return self.shared(*STILL)

    @property
    def initial(self) -> Path:
        """A file with the initial weights."""
        return self.still.workspace / "checkpoint.pth.tar"

    def close(self) -> None:
        """Removes the runs: a checkpoint is large."""
        shutil.rmtree(self.folder, ignore_errors=True)


def narrow_networks() -> Any:
    """ResNet-18 with a tenth of its weights, so that its checkpoints are small."""
    widths = (64, 64, 64, 128)
    narrow = VARIANTS["resnet18"]._replace(widths=widths, out_channels=widths)
    return mock.patch.dict(VARIANTS, {"resnet18": narrow})


@contextlib.contextmanager
def _spies(outcome: Outcome) -> Any:
    build_model, train_step = main.build_model, Trainer.train_step

    def build(*arguments: Any) -> torch.nn.Module:
        outcome.models.append(build_model(*arguments))
        return outcome.models[-1]

    def step(self: Trainer, images: torch.Tensor, target: torch.Tensor) -> None:
        outcome.batches.append(images)
        train_step(self, images, target)

    with contextlib.ExitStack() as stack:
        for place, name, spy in ((main, "build_model", build), (Trainer, "train_step", step)):
            stack.enter_context(mock.patch.object(place, name, spy))
        # Files that are thrown away at once need not reach the disk.
        stack.enter_context(mock.patch("os.fsync", lambda descriptor: None))
        yield


Check = Callable[[Lab], None]


@dataclass(frozen=True)
class Entry:
    """What an option changes, and the proof."""

    observable: str
    check: Check


TABLE: dict[str, Entry] = {}


def shows(option: str, observable: str) -> Callable[[Check], Check]:
    """Enters an option into the table: one of its spellings, or DIR."""

    def enter(check: Check) -> Check:
        assert option not in TABLE, option
        TABLE[option] = Entry(observable, check)
        return check

    return enter


def differ(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors of one shape differ in any bit."""
    assert first.shape == second.shape
    return not torch.equal(first, second)


def close(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors agree but for rounding."""
    return bool(torch.allclose(first, second, rtol=1e-3, atol=1e-5))


def approx(value: Any) -> Any:
    """`pytest.approx` for what a run prints in float32."""
    return pytest.approx(value, rel=1e-5, abs=1e-9)
