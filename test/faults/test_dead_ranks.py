# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A rank that dies or hangs ends the whole run, soon, with a reason, and nothing is left of it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from runs import checkpoint, write_images
from victims import STATEFUL, Victim, is_running, kill, members, on_request, wait_until, whole

LONG = (*STATEFUL, "--epochs", 500, "--checkpoint-interval", 3, "-p", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=16)


def end_of(victim: Victim, within: float) -> int:
    """The exit code; the run ends in time and leaves no process behind."""
    processes = [victim.process.pid, *members(victim.process.pid)]
    started = time.monotonic()
    code = victim.wait(timeout=120)
    assert time.monotonic() - started < within, victim.output[-3000:]
    assert wait_until(lambda: not any(map(is_running, processes)), 10.0)
    return code


@pytest.mark.parametrize(
    ("rank", "number"),
    [(1, signal.SIGKILL), *whole((0, signal.SIGKILL), (0, signal.SIGSEGV), (1, signal.SIGSEGV))],
)
def test_a_killed_rank(images: Path, tmp_path: Path, rank: int, number: signal.Signals) -> None:
    victim = Victim(images, *LONG, "--workspace", tmp_path, ranks=2)
    victim.read_until("Epoch: 0 Iteration: 8")
    kill(victim.pid_of(rank), number)
    assert end_of(victim, 60) == 128 + number
    assert f"rank {rank} on " in victim.output
    assert f"was killed by {number.name}" in victim.output
    assert checkpoint(tmp_path / "checkpoint.pth.tar")["counters"]["step"] >= 3


@pytest.mark.parametrize(
    ("kind", "code", "text"),
    [
        ("forward", 1, "sabotage in the forward pass"),
        *whole(("exit", 9, "rank 1 on "), ("memory", 6, "out of memory")),
    ],
)
def test_a_rank_that_fails(images: Path, tmp_path: Path, kind: str, code: int, text: str) -> None:
    victim = Victim(images, *LONG, "--workspace", tmp_path, ranks=2, sabotage=f"1 5 {kind}")
    assert end_of(victim, 90) == code
    assert text in victim.output
    assert "rank 1 on " in victim.output and "GPU_1.log" in victim.output


@pytest.mark.parametrize("kind", ["suspended", *whole("deadlock")])
def test_a_rank_that_hangs(images: Path, tmp_path: Path, kind: str) -> None:
    sabotage = "1 5 deadlock" if kind == "deadlock" else ""
    victim = Victim(images, *LONG, "--workspace", tmp_path, ranks=2, sabotage=sabotage,
                    launcher_options=("--hang_timeout", 5))  # fmt: skip
    if kind == "suspended":
        victim.read_until("Epoch: 0 Iteration: 8")
        kill(victim.pid_of(1), signal.SIGSTOP)
    assert end_of(victim, 60) == 7
    # Before a deadlock both have made the same steps: only the stacks tell who lets whom wait.
    word = "is suspended" if kind == "suspended" else "hang, all of them"
    assert f"{word}: no step for" in victim.output
    assert "train_epoch" in victim.output  # rank 0's stack
    if kind == "deadlock":
        assert "in strike" in (tmp_path / "GPU_1.log").read_text()


def test_nothing_outlives_a_killed_launcher(images: Path, tmp_path: Path) -> None:
    victim = Victim(images, *LONG, "-j", 2, "--data-backend", "pytorch", "--workspace", tmp_path,
                    ranks=2)  # fmt: skip
    victim.read_until("Epoch: 0 Iteration: 4")
    processes = members(victim.process.pid)
    assert len(processes) >= 4  # ranks and their loader processes
    kill(victim.process.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_running, processes)), 10.0)
    victim.wait()


@on_request
def test_a_crashed_run_starts_anew_where_it_was(images: Path, tmp_path: Path) -> None:
    flags = (*STATEFUL, "--checkpoint-interval", 2, "--workspace", tmp_path, "--resume", "auto")
    victim = Victim(images, *flags, ranks=2, launcher_options=("--max_restarts", 1))
    victim.read_until("Epoch: 0 Iteration: 9")
    kill(victim.pid_of(1), signal.SIGKILL)
    assert victim.wait() == 0, victim.output[-3000:]
    assert "starting all ranks anew from the last checkpoint (1 of 1)" in victim.output
    assert checkpoint(tmp_path / "checkpoint.pth.tar")["epoch"] == 2
