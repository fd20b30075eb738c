# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A rank that dies or hangs ends the whole run, soon, with a reason, and nothing is left of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record import record
from runs import checkpoint
from victims import STATEFUL, Victim, differences, on_request, whole

LONG = (*STATEFUL, "--epochs", 500, "--checkpoint-interval", 1)


def start(images: Path, tmp_path: Path, *flags: Any, **options: Any) -> Victim:
    """A run of two ranks that wait before their fifth step."""
    victim = Victim(images, *LONG, *flags, "--workspace", tmp_path / "w", ranks=2, pause="step 1",
                    notes=tmp_path / "notes", **options)  # fmt: skip
    victim.reach()
    return victim


def end_of(victim: Victim, fault: str, workspace: Path, within: float) -> int:
    """The exit code; the run ends in time, leaves no process behind, at most two steps are lost."""
    end = victim.end(within)
    saved = checkpoint(workspace / "checkpoint.pth.tar")["counters"]["step"]
    lost = victim.steps() - saved
    record(fault, "step", lost_steps=lost, **end._asdict())
    assert end.leftover == 0
    assert 0 <= lost <= 2  # the save of one step goes on while the next one is trained
    return end.exit_code


@pytest.mark.parametrize(
    ("rank", "number"),
    [(1, signal.SIGKILL), *whole((0, signal.SIGKILL), (0, signal.SIGSEGV), (1, signal.SIGSEGV))],
)
def test_a_killed_rank(images: Path, tmp_path: Path, rank: int, number: signal.Signals) -> None:
    victim = start(images, tmp_path)
    victim.strike(rank, number)
    code = end_of(victim, f"{number.name} of rank {rank}", tmp_path / "w", 60)
    assert code == 128 + number
    assert f"rank {rank} on " in victim.output
    assert f"was killed by {number.name}" in victim.output


@pytest.mark.parametrize(
    ("kind", "step", "code", "text"),
    [
        ("forward", 5, 1, "sabotage in the forward pass"),
        *whole(("exit", 5, 9, "rank 1 on "), ("memory", 5, 6, "out of memory"),
               ("data", 10, 1, "sabotage in the data loader")),
    ],
)  # fmt: skip
def test_a_rank_that_fails(
    images: Path, tmp_path: Path, kind: str, step: int, code: int, text: str
) -> None:
    victim = start(images, tmp_path, sabotage=f"1 {step} {kind}")
    victim.watch()
    names = {"exit": "exit", "memory": "out of memory", "data": "exception in the data loader",
             "forward": "exception in the forward pass"}  # fmt: skip
    assert end_of(victim, f"{names[kind]} of rank 1", tmp_path / "w", 90) == code
    assert text in victim.output
    assert "rank 1 on " in victim.output and "GPU_1.log" in victim.output


@pytest.mark.parametrize("kind", ["suspended", *whole("deadlock")])
def test_a_rank_that_hangs(images: Path, tmp_path: Path, kind: str) -> None:
    sabotage = "1 5 deadlock" if kind == "deadlock" else ""
    victim = start(images, tmp_path, sabotage=sabotage, launcher_options=("--hang_timeout", 10))
    victim.watch()
    if kind == "suspended":
        victim.strike(1, signal.SIGSTOP)
    fault = "SIGSTOP of rank 1" if kind == "suspended" else "deadlock of rank 1"
    assert end_of(victim, fault, tmp_path / "w", 60) == 7
    # Before a deadlock both may have made the same steps: then only the stacks tell who waits.
    who = "(0, 1 on .* hang, all of them|1 on .* hangs)"
    if kind == "suspended":
        who = "1 on .* is suspended"
    assert re.search(f"multiproc: rank {who}: no step for", victim.output), victim.output[-3000:]
    assert "train_epoch" in victim.output  # rank 0's stack
    if kind == "deadlock":
        assert "in strike" in (tmp_path / "w/GPU_1.log").read_text()


def test_nothing_outlives_a_killed_launcher(images: Path, tmp_path: Path) -> None:
    victim = start(images, tmp_path, "-j", 2, "--data-backend", "pytorch")
    victim.strike("launcher", signal.SIGKILL)
    assert len(victim.processes) >= 6  # launcher, guardian, ranks and their loader processes
    assert end_of(victim, "SIGKILL of the launcher", tmp_path / "w", 30) == 137


@on_request
def test_a_crashed_run_starts_anew_where_it_was(
    images: Path, straight: Callable[..., Path], tmp_path: Path
) -> None:
    victim = start(images, tmp_path, "--epochs", 2, "--resume", "auto",
                   launcher_options=("--max_restarts", 1))  # fmt: skip
    victim.strike(1, signal.SIGKILL)
    assert victim.wait() == 0, victim.output[-3000:]
    assert "starting all ranks anew from the last checkpoint (1 of 1)" in victim.output
    assert differences(tmp_path / "w", straight(2, *STATEFUL)) == []
