# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Asked to stop in any phase, by a signal to any process, a run saves its last finished step."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record import record
from runs import checkpoint, values
from torch.distributed import fsdp
from victims import ALL, STATEFUL, Victim, differences, on_request, whole

PHASES = ("import", "data", "first", "step", "validation", "save", "between")
NOTHING_YET = ("import", "data")
# Loader processes: the group's signal reaches them, too.
WORKERS = ("--data-backend", "pytorch", "-j", 2)
FLAGS = (*STATEFUL, "--checkpoint-interval", 2, "--resume", "auto")


def start(images: Path, tmp_path: Path, phase: str, ranks: int, *flags: Any) -> Victim:
    """A run that waits in a phase, and has come there."""
    seconds = 3.0 if phase == "save" else 1.0
    victim = Victim(images, *FLAGS, *flags, "--workspace", tmp_path / "w", ranks=ranks,
                    pause=f"{phase} {seconds}", notes=tmp_path / "notes",
                    forked=phase != "import")  # fmt: skip
    victim.reach()
    return victim


def stopped(victim: Victim, name: str, target: Any, steps: int, workspace: Path) -> None:
    """It has left in time, with one message, and its last finished step is saved."""
    end = victim.end(within=90)
    lost = None
    if victim.phase not in NOTHING_YET and (workspace / "checkpoint.pth.tar").exists():
        saved = checkpoint(workspace / "checkpoint.pth.tar")["counters"]["step"]
        lost = victim.steps() - saved
    where = {"launcher": "the launcher", "group": "the group"}.get(str(target), f"rank {target}")
    where = "the process" if (target, victim.ranks) == ("launcher", 1) else where
    record(f"{name} to {where}", victim.phase, lost_steps=lost, **end._asdict())
    assert end.exit_code == 143, victim.output[-3000:]
    assert end.leftover == 0
    terminal = [line for line in victim.output.splitlines() if "stopped by a signal" in line]
    if victim.phase in NOTHING_YET:  # rank 0 may have lost its peer before it knew why
        log = workspace / "GPU_1.log"
        told = log.read_text() if target == 1 else victim.output
        assert told.count("stopped by a signal; nothing was trained that could be lost") == 1
        assert len(terminal) <= 1
        assert not (workspace / "generations").exists()
        return
    assert len(terminal) == 1, victim.output[-3000:]
    assert "--resume auto goes on" in terminal[0]
    assert lost == 0
    if victim.phase == "validation":  # only that is repeated
        saved = checkpoint(workspace / "checkpoint.pth.tar")
        assert (saved["epoch"], saved["phase"], saved["samples_done"]) == (0, "validate", 48)
    assert victim.steps() == victim.steps(victim.ranks - 1) <= steps + 2


def goes_on(images: Path, workspace: Path, straight: Path, ranks: int, *flags: Any) -> None:
    """The same command ends with the weights of a run without a break, bit for bit."""
    victim = Victim(images, *FLAGS, *flags, "--workspace", workspace, ranks=ranks)
    assert victim.wait() == 0, victim.output[-3000:]
    assert differences(workspace, straight) == []
    for metric in ("val.loss", "val_ema.top1"):
        assert values(workspace, "epoch", metric) == values(straight, "epoch", metric)
    # Log lines elsewhere add up the losses in another order.
    losses = [values(folder, "epoch", "train.loss") for folder in (workspace, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


QUICK = [("validation", "launcher", 1), ("step", 1, 2), ("import", 1, 2)]
TARGETS = {1: ("launcher", "group"), 2: ("launcher", 0, 1)}
CASES = [(phase, where, ranks) for phase in PHASES for ranks in TARGETS for where in TARGETS[ranks]]


@pytest.mark.parametrize(
    ("phase", "target", "ranks"), [*QUICK, *whole(*(case for case in CASES if case not in QUICK))]
)
def test_sigterm(
    images: Path, straight: Callable[..., Path], tmp_path: Path, phase: str, target: int | str,
    ranks: int,
) -> None:  # fmt: skip
    flags = WORKERS if target == "group" else ()
    victim = start(images, tmp_path, phase, ranks, *flags)
    victim.strike(target, signal.SIGTERM)
    steps = victim.steps()
    stopped(victim, "SIGTERM", target, steps, tmp_path / "w")
    if phase not in NOTHING_YET and (ALL or ranks == 1):
        goes_on(images, tmp_path / "w", straight(ranks, *STATEFUL, *flags), ranks, *flags)


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="needs PyTorch 2.6")
@pytest.mark.parametrize("phase", ["step", *whole("validation", "save", "between")])
def test_a_sharded_training_is_asked_to_stop(
    images: Path, straight: Callable[..., Path], tmp_path: Path, phase: str
) -> None:
    sharded = ("--parallel", "fsdp")
    victim = start(images, tmp_path, phase, 2, *sharded)
    victim.strike(1, signal.SIGTERM)
    stopped(victim, "SIGTERM", 1, victim.steps(), tmp_path / "w")
    if ALL:
        goes_on(images, tmp_path / "w", straight(2, *STATEFUL, *sharded), 2, *sharded)


@pytest.mark.parametrize(
    ("number", "phase", "target", "ranks"),
    whole((signal.SIGINT, "step", "launcher", 1), (signal.SIGINT, "save", "launcher", 2),
          (signal.SIGINT, "validation", 1, 2), (signal.SIGUSR1, "between", "launcher", 1),
          (signal.SIGUSR1, "first", 0, 2), (signal.SIGUSR1, "data", "launcher", 2)),
)  # fmt: skip
def test_other_signals_mean_the_same(
    images: Path, straight: Callable[..., Path], tmp_path: Path, number: signal.Signals, phase: str,
    target: int | str, ranks: int,
) -> None:  # fmt: skip
    victim = start(images, tmp_path, phase, ranks)
    victim.strike(target, number)
    stopped(victim, number.name, target, victim.steps(), tmp_path / "w")
    if phase not in NOTHING_YET:
        goes_on(images, tmp_path / "w", straight(ranks, *STATEFUL), ranks)


@pytest.mark.parametrize("ranks", [1, *whole(2)])
def test_while_it_saves_a_second_signal_changes_nothing(
    images: Path, tmp_path: Path, ranks: int
) -> None:
    """Signals of one second are one, whatever they are."""
    victim = start(images, tmp_path, "save", ranks)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        victim.strike("launcher", number)
    steps = victim.steps()
    time.sleep(1.2)
    victim.strike("launcher", signal.SIGTERM)
    stopped(victim, "SIGTERM twice", "launcher", steps, tmp_path / "w")
    assert victim.output.count("again: still stopping") == 1


@pytest.mark.parametrize("ranks", whole(1, 2))
def test_a_third_signal_ends_a_slow_save_at_once(images: Path, tmp_path: Path, ranks: int) -> None:
    victim = Victim(images, *FLAGS, "--workspace", tmp_path / "w", ranks=ranks, pause="saves 2",
                    notes=tmp_path / "notes")  # fmt: skip
    victim.reach()  # it takes half a minute
    for _ in range(3):
        victim.strike("launcher", signal.SIGTERM)
        time.sleep(1.2)
    end = victim.end(within=15)
    record("SIGTERM three times", "save", **end._asdict())
    assert (end.exit_code, end.leftover) == (143, 0)
    assert "for the third time: ending without saving" in victim.output
    assert "stopped by a signal" not in victim.output
    assert list((tmp_path / "w/generations").glob("*.sha256")) == []


@on_request
def test_without_checkpoints_nothing_is_saved(images: Path, tmp_path: Path) -> None:
    victim = Victim(images, *STATEFUL, "--no-checkpoints", "--workspace", tmp_path / "w",
                    pause="step 1", notes=tmp_path / "notes")  # fmt: skip
    victim.reach()
    victim.strike("launcher", signal.SIGTERM)
    end = victim.end(within=60)
    assert (end.exit_code, end.leftover) == (143, 0)
    assert "stopped by a signal; not saved (--no-checkpoints)" in victim.output
    assert not (tmp_path / "w/generations").exists()


@on_request
def test_a_request_to_stop_when_nothing_can_be_saved(images: Path, tmp_path: Path) -> None:
    """A step has ruined the statistics of BatchNorm, and rank 0 is asked to stop."""
    victim = Victim(images, *FLAGS, "--on-divergence", "rollback", "--workspace", tmp_path / "w",
                    ranks=2, sabotage="0 4 ruin")  # fmt: skip
    assert victim.wait() == 143, victim.output[-3000:]
    assert "not saved, the weights are not finite" in victim.output
