# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that are hit by something: started with the real command line, watched, signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, checkpoint, environment, same

import main

# Everything that carries state from step to step; 6 optimizer steps per epoch of write_images's 16
# training images per class, two validations per epoch.
STATEFUL = ("--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu", "-p", 3,
            "--lr", 0.01, "--seed", 7, "--use-ema", 0.9, "--mixup", 0.2, "--dropout", 0.2,
            "--optimizer-batch-size", 8, "--lr-schedule", "cosine", "--warmup", 1,
            "--label-smoothing", 0.1, "--epochs", 2)  # fmt: skip


# The least that is a run: two epochs of three steps, a checkpoint of 90 MB after each.
SMALL = ("--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu", "-p", 1,
         "--lr", 0.01, "--seed", 7, "--epochs", 2, "--mixup", 0.2)  # fmt: skip
BATCH = ("-b", 8)


#: What runs with FAULTS=all only: the others show the same in a few minutes.
on_request = pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="FAULTS=all runs it")


def whole(*cases: Any) -> list[Any]:
    """Cases that run with FAULTS=all only."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=on_request)
        for case in cases
    ]


class Victim:
    """A run of main.py, under multiproc.py for several ranks.

    Args:
        arguments: Of main.py; `-b` is added for `batch` images over all ranks.
        ranks: Number of processes.
        launcher_options: Of multiproc.py.
        sabotage: A fault that one rank causes itself, see saboteur.py.
        saves: Saves that fail, see saboteur.py.
        env: Environment, where it is not the usual one.
        batch: Images per step.
    """

    def __init__(
        self, *arguments: Any, ranks: int = 1, launcher_options: tuple[Any, ...] = (),
        sabotage: str = "", saves: str = "", env: dict[str, str] | None = None, batch: int = 4,
    ) -> None:  # fmt: skip
        launcher = [ROOT / "multiproc.py", "--nproc_per_node", ranks, *launcher_options]
        faults = {"SABOTAGE": sabotage, "SABOTAGE_SAVES": saves}
        extra = {name: value for name, value in faults.items() if value}
        script = Path(__file__).with_name("saboteur.py") if extra else ROOT / "main.py"
        command = [*(launcher if ranks > 1 or launcher_options else []), script]
        self.process = subprocess.Popen(
            [sys.executable, *map(str, [*command, *arguments, "-b", batch // ranks])],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**(env or environment()), **extra},
            start_new_session=True,
            # A shell that runs the tests in the background makes them ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.output = ""

    def read_until(self, text: str) -> None:
        """Waits for a line of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came\n{self.output[-3000:]}")

    def wait(self, timeout: float = 120.0) -> int:
        """Reads the rest of the output and returns the exit code."""
        self.output += self.process.communicate(timeout=timeout)[0]
        return self.process.returncode

    def pid_of(self, rank: int | str) -> int:
        """The process of a rank; of the launcher (or of the only process) for "launcher"."""
        if rank == "launcher":
            return self.process.pid
        for pid in members(self.process.pid):
            if value_of(pid, "RANK") == str(rank):
                return pid
        return self.process.pid


def run_here(*arguments: Any) -> int:
    """main.py in this process, on one thread as elsewhere; returns its exit code."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return main.main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)


def members(session: int) -> list[int]:
    """The processes below a process, whatever session they are in (Linux)."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, queue = [], [session]
    while queue:
        queue += (children := parents.get(queue.pop(), []))
        found += children
    return found


def value_of(pid: int, name: str) -> str | None:
    """A variable of a process's environment."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [entry for entry in entries if entry.startswith(name.encode() + b"=")]
    return found[0].partition(b"=")[2].decode() if found else None


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether a condition comes true in time (s)."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def differences(first: Path, second: Path) -> list[str]:
    """What differs in two last checkpoints, bit for bit, but for the options of the last start."""
    one, two = (checkpoint(folder / "checkpoint.pth.tar") for folder in (first, second))
    one.pop("config")
    two.pop("config")
    return same(one, two)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pid: int, number: int) -> None:
    """Sends a signal to a process that may be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
