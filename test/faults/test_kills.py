# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Killed again and again, a run never loses a valid checkpoint and ends as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from record import record
from runs import ROOT, environment, nursery, run_main
from victims import STATEFUL, differences, is_running, members, wait_until, whole

from image_classification.checkpoint_files import CheckpointFiles, load_verified

STEPS = 6  # of an epoch


def check(workspace: Path) -> int:
    """Nothing that counts is damaged, and nothing is said of any file; the newest step, or 0."""
    for path in workspace.rglob("*.sha256"):
        load_verified(path.with_name(path.name.removesuffix(".sha256")), pytest.fail)
    remarks: list[str] = []
    newest = CheckpointFiles(workspace).newest(remarks.append)
    assert remarks == []
    return int(newest["counters"]["step"]) if newest is not None else 0


def is_half_saved(workspace: Path) -> bool:
    """Whether a save was cut off: a file is not whole yet, or has no check sum."""
    files = [path for path in workspace.rglob("*.pth.tar*") if path.suffix != ".sha256"]
    return any(not path.with_name(f"{path.name}.sha256").exists() for path in files)


def killed(pid: int, steps: Path, draw: random.Random) -> int:
    """Kills a run at a random moment after its first step; returns the steps it had finished."""
    assert wait_until(steps.exists, 90)
    aim = int(steps.read_text()) + draw.randrange(4)
    assert wait_until(lambda: int(steps.read_text()) >= aim, 60)
    time.sleep(draw.uniform(0.0, 0.6))
    processes = [pid, *members(pid)]
    assert all(map(is_running, processes))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not any(map(is_running, processes)), 10.0)
    return int(steps.read_text())


@pytest.mark.parametrize(
    ("seed", "kills", "epochs"), [(0, 3, 2), *whole(*((seed, 20, 8) for seed in range(1, 12)))]
)
@pytest.mark.timeout(900)
def test_killed_again_and_again(
    images: Path, straight: Callable[..., Path], tmp_path: Path, seed: int, kills: int, epochs: int
) -> None:
    """SIGKILL at random moments; there is a slow save after every step, so that most hit one."""
    draw, workspace, steps = random.Random(seed), tmp_path / "w", tmp_path / "steps.0"
    flags = (*STATEFUL, "--epochs", epochs)
    command = (images, *flags, "-b", 4, "--workspace", workspace, "--resume", "auto")
    saboteur, saved = ROOT / "test" / "faults" / "saboteur.py", 0
    env = environment(PAUSE="saves 0.03", NOTES=str(tmp_path))
    for _ in range(kills):
        steps.unlink(missing_ok=True)
        run = nursery().start(
            saboteur, *command, "--checkpoint-interval", 1, env=env, log=tmp_path / "log"
        )
        done = killed(run.pid, steps, draw)
        before, saved = saved, check(workspace)
        assert before <= saved <= done <= saved + 2
        record("SIGKILL of the process", "save" if is_half_saved(workspace) else "step",
               lost_steps=done - saved, leftover=0, exit_code=137)  # fmt: skip
    assert 0 < saved < STEPS * epochs
    run_main(*command)
    assert differences(workspace, straight(1, *flags)) == []
