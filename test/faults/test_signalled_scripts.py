# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Signals to the run scripts: to the process that bash was started as, and to its group."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from record import record
from runs import ROOT, checkpoint
from victims import STATEFUL, Victim, differences, whole

SCRIPTS = ROOT / "run_scripts"
NGC = "NGC_ResNet50v15_FP32_90E_4MLUS_Train.sh"
# What the recipe has and a small run has not; the last one of each flag wins.
SMALL = ("-c", "classic", "--mom", 0.9, "--wd", 1e-4, *STATEFUL, "-p", 1, "--resume", "auto")


@pytest.mark.parametrize(
    ("target", "number"),
    whole(("launcher", signal.SIGTERM), ("group", signal.SIGTERM), ("launcher", signal.SIGUSR1)),
)
def test_a_recipe_of_two_processes(
    images: Path, straight: Callable[..., Path], tmp_path: Path, target: str, number: signal.Signals
) -> None:
    env = {"DEVICE": "cpu", "NPROC": "2", "PYTHON": sys.executable,
           "IMAGENET_TRAIN_DATASET": str(images)}  # fmt: skip
    command = (tmp_path / "w", *SMALL)
    victim = Victim(*command, ranks=2, launcher=("bash", SCRIPTS / NGC), env=env)
    victim.read_until("Epoch: 0 Iteration: 5 ")
    victim.strike(target, number)
    end = victim.end(within=90)
    record(f"{number.name} to the {'group of the ' if target == 'group' else ''}run script", "step",
           **end._asdict())  # fmt: skip
    assert (end.exit_code, end.leftover) == (143, 0), victim.output[-3000:]
    assert victim.output.count("stopped by a signal; saved in epoch 1") == 1
    assert 2 < checkpoint(tmp_path / "w/checkpoint.pth.tar")["counters"]["step"] <= 6
    victim = Victim(*command, ranks=2, launcher=("bash", SCRIPTS / NGC), env=env)
    assert victim.wait() == 0, victim.output[-3000:]
    assert differences(tmp_path / "w", straight(2, *STATEFUL)) == []


@pytest.mark.parametrize("target", whole("launcher", "group"))
def test_the_quick_start(tmp_path: Path, target: str) -> None:
    command = ("--device", "cpu", "--arch", "resnet18", "--epochs", 1, "-p", 1, "--prof", 8,
               "--seed", 1, "--workspace", tmp_path / "w", "--resume", "auto")  # fmt: skip
    launcher = ("bash", SCRIPTS / "quickstart.sh")
    victim = Victim(*command, launcher=launcher, env={"PYTHON": sys.executable})
    victim.read_until("Epoch: 0 Iteration: 3 ")
    victim.strike(target, signal.SIGTERM)
    end = victim.end(within=90)
    record("SIGTERM to the quick start", "step", **end._asdict())
    assert (end.exit_code, end.leftover) == (143, 0), victim.output[-3000:]
    assert victim.output.count("stopped by a signal; saved in epoch 1") == 1
    stopped_at = checkpoint(tmp_path / "w/checkpoint.pth.tar")["counters"]["step"]
    assert 3 <= stopped_at < 8
    victim = Victim(*command, launcher=launcher, env={"PYTHON": sys.executable})
    assert victim.wait() == 0, victim.output[-3000:]
    assert checkpoint(tmp_path / "w/checkpoint.pth.tar")["counters"]["step"] == 8
