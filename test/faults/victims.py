# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that are hit by something: started with the real command line, watched, signalled."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked import Run
from runs import ROOT, checkpoint, environment, nursery, same

import main
from image_classification.launcher import exit_code

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

#: Whether all is run, not only what shows the same in a few minutes.
ALL = os.environ.get("FAULTS") == "all"
on_request = pytest.mark.skipif(not ALL, reason="FAULTS=all runs it")


def whole(*cases: Any) -> list[Any]:
    """Cases that run with FAULTS=all only."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=on_request)
        for case in cases
    ]


class End(NamedTuple):
    """How a run ended that was struck."""

    exit_code: int  # as a shell has it: 128 + n for signal n
    seconds: float  # from the fault on
    leftover: int  # processes of the run that are there 10 s after its end


class Victim:
    """A run of main.py, under a launcher for several ranks.

    Args:
        arguments: Of main.py; `-b` is added for `batch` images over all ranks.
        ranks: Number of processes.
        launcher: What the arguments follow, instead of the interpreter with multiproc.py.
        launcher_options: Of multiproc.py.
        sabotage: A fault that one rank causes itself, see saboteur.py.
        saves: Saves that fail, see failing_saves.py.
        pause: Phase in which the ranks wait, and for how long (s), see saboteur.py.
        notes: Folder of what the ranks tell about themselves; needed with `pause`.
        env: Further variables of the environment.
        batch: Images per step, over all ranks.
        forked: Whether it does without its start-up, see forked.py; with a launcher never.
    """

    def __init__(
        self, *arguments: Any, ranks: int = 1, launcher: tuple[Any, ...] = (),
        launcher_options: tuple[Any, ...] = (), sabotage: str = "", pause: str = "",
        notes: Path | None = None, env: dict[str, str] | None = None, saves: str = "",
        batch: int = 4, forked: bool = True,
    ) -> None:  # fmt: skip
        command: list[Any] = [*launcher]
        if not launcher and (ranks > 1 or launcher_options):
            command = [ROOT / "multiproc.py", "--nproc_per_node", ranks, *launcher_options]
        own_script = launcher and str(launcher[-1]).endswith(".sh")
        if not own_script:
            spoiled = sabotage or pause or saves
            command.append(Path(__file__).with_name("saboteur.py") if spoiled else ROOT / "main.py")
        extra = dict(env or {})
        if notes is not None:
            notes.mkdir(exist_ok=True)
            extra["NOTES"] = str(notes)
        extra |= {"SABOTAGE": sabotage} if sabotage else {}
        extra |= {"PAUSE": pause} if pause else {}
        extra |= {"SABOTAGE_SAVES": saves} if saves else {}
        self.ranks, self.phase, self.notes = ranks, pause.partition(" ")[0], notes
        command += [*arguments, "-b", batch // ranks]
        self.process: subprocess.Popen[str] | Run
        if launcher or not forked:
            start = [] if launcher else [sys.executable]
            self.process = subprocess.Popen(
                [*map(str, [*start, *command])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, env=environment(**extra), start_new_session=True,
            )  # fmt: skip
        else:
            self.process = nursery().start(*command, env=environment(**extra))
        self.output = ""
        self.processes: list[int] = []
        self._struck_at = 0.0

    def reach(self, timeout: float = 90.0) -> None:
        """Waits until all ranks are in the phase of the pause; only rank 0 saves."""
        ranks = [0] if self.phase.startswith("save") else range(self.ranks)
        assert self.notes is not None
        paths = [self.notes / f"{self.phase}.{rank}" for rank in ranks]
        there = wait_until(lambda: all(path.exists() for path in paths), timeout)
        assert there, f"{self.phase} never came\n{self.kill_and_read()[-3000:]}"

    def steps(self, rank: int = 0) -> int:
        """Steps that a rank has finished, as it has told."""
        assert self.notes is not None
        path = self.notes / f"steps.{rank}"
        return int(path.read_text()) if path.exists() else 0

    def strike(self, target: int | str, number: int) -> None:
        """Sends a signal to a rank, to "launcher" or to the "group" of the process started."""
        self.watch()
        if target == "group":
            os.killpg(self.process.pid, number)
        else:
            kill(self.pid_of(target), number)

    def watch(self) -> None:
        """Notes which processes there are, and the time."""
        self.processes = [self.process.pid, *members(self.process.pid)]
        self._struck_at = time.monotonic()

    def end(self, within: float) -> End:
        """Waits for the end of a run that was struck, `within` seconds (s)."""
        try:
            code = self.wait(timeout=within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it has not ended within {within:.0f} s\n{self.kill_and_read()[-3000:]}")
        seconds = time.monotonic() - self._struck_at
        for fault in self.notes.glob("fault.*") if self.notes else ():  # struck itself, later
            seconds = time.time() - fault.stat().st_mtime
        wait_until(lambda: not any(map(is_running, self.processes)), 10.0)
        return End(exit_code(code), seconds, sum(map(is_running, self.processes)))

    def kill_and_read(self) -> str:
        """Ends what hangs; returns the output."""
        for pid in [self.process.pid, *members(self.process.pid)]:
            kill(pid, signal.SIGKILL)
        self.wait()
        return self.output

    def read_until(self, text: str) -> None:
        """Waits for a line of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came\n{self.output[-3000:]}")

    def wait(self, timeout: float = 200.0) -> int:
        """Reads the rest of the output and returns the exit code."""
        self.output += self.process.communicate(timeout=timeout)[0]
        return self.process.returncode

    def pid_of(self, rank: int | str) -> int:
        """The process of a rank; of the launcher (or of the only process) for "launcher"."""
        if rank == "launcher":
            return self.process.pid
        for pid in members(self.process.pid):
            if rank_of(pid) == str(rank):
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
        pid = queue.pop()
        children = parents.get(pid, [])
        if run := name_of(pid, "run"):  # what forked_client.py stands for
            children = [*children, int(run)]
        queue += children
        found += children
    return found


def name_of(pid: int, kind: str) -> str | None:
    """What a process that was forked, or its client, has in its name, such as "rank 1"."""
    with contextlib.suppress(OSError):
        word, _, name = Path(f"/proc/{pid}/comm").read_text().strip().partition(" ")
        return name if word == kind else None
    return None


def value_of(pid: int, name: str) -> str | None:
    """A variable of a process's environment."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [entry for entry in entries if entry.startswith(name.encode() + b"=")]
    return found[0].partition(b"=")[2].decode() if found else None


def rank_of(pid: int) -> str | None:
    """The rank that a process is, or works for; one that was forked has it in its name."""
    if name_of(pid, "run"):
        return None
    return name_of(pid, "rank") or value_of(pid, "RANK")


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
