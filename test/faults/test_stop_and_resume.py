# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Stopped or killed anywhere, a run goes on with the same command as if nothing had been."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
from runs import checkpoint, environment, run_main, values, write_images
from victims import STATEFUL, Victim, differences, kill, on_request, whole

STEPS = 12  # optimizer steps of the whole run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=16)


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a break; it saves within epochs too, at other steps than its rivals."""
    workspace = tmp_path_factory.mktemp("runs") / "straight"
    run_main(images, *STATEFUL, "-b", 4, "--checkpoint-interval", 5, "--workspace", workspace)
    return workspace


def finish(images: Path, workspace: Path, ranks: int = 1) -> None:
    victim = Victim(images, *STATEFUL, "--workspace", workspace, "--resume", "auto", ranks=ranks)
    assert victim.wait() == 0, victim.output[-3000:]


WITHIN, AT_THE_END, AFTER = "Epoch: 0 Iteration: 6", "Epoch: 1 Iteration: 12", "Epoch: 0  "


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGTERM, WITHIN),
        *whole(
            (signal.SIGUSR1, AT_THE_END),
            (signal.SIGTERM, AT_THE_END), (signal.SIGTERM, AFTER), (signal.SIGINT, WITHIN),
            (signal.SIGINT, AT_THE_END), (signal.SIGINT, AFTER), (signal.SIGUSR1, WITHIN),
            (signal.SIGUSR1, AFTER),
        ),
    ],
)  # fmt: skip
def test_a_signal_saves_the_last_step(
    images: Path, straight: Path, tmp_path: Path, number: signal.Signals, line: str
) -> None:
    """Within an epoch, at its end, after its validation."""
    victim = Victim(images, *STATEFUL, "--workspace", tmp_path)
    victim.read_until(line)
    victim.process.send_signal(number)
    assert victim.wait() == 143
    last = victim.output.splitlines()[-1]
    assert last.startswith("main.py: stopped by a signal; saved in epoch "), last
    saved = checkpoint(tmp_path / "checkpoint.pth.tar")
    assert 0 < saved["counters"]["step"] <= STEPS
    finish(images, tmp_path)
    assert differences(tmp_path, straight) == []
    for kind, metric in (("epoch", "train.loss"), ("epoch", "val.loss"), ("epoch", "val_ema.top1")):
        assert values(tmp_path, kind, metric) == values(straight, kind, metric)


def test_a_run_stopped_in_its_validation_repeats_only_that(
    images: Path, straight: Path, tmp_path: Path
) -> None:
    victim = Victim(images, *STATEFUL, "-p", 1, "--workspace", tmp_path)
    victim.read_until("Epoch: 0 Iteration: 12 Validation Iteration: 1")
    victim.process.send_signal(signal.SIGTERM)
    assert victim.wait() == 143
    saved = checkpoint(tmp_path / "checkpoint.pth.tar")
    assert (saved["epoch"], saved["phase"], saved["samples_done"]) == (0, "validate", 48)
    finish(images, tmp_path)
    assert differences(tmp_path, straight) == []
    # Log lines elsewhere add up the losses in another order.
    losses = [values(folder, "epoch", "train.loss") for folder in (tmp_path, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 3), *whole(*((seed, 12) for seed in range(1, 20)))]
)
def test_killed_again_and_again(
    images: Path, straight: Path, tmp_path: Path, seed: int, kills: int
) -> None:
    """SIGKILL at random moments, also within saves: there is one after every step."""
    draw = random.Random(seed)
    steps = [0]
    for _ in range(kills):
        victim = Victim(images, *STATEFUL, "--checkpoint-interval", 1, "--workspace", tmp_path,
                        "--resume", "auto", "-p", 1)  # fmt: skip
        for _ in range(draw.randrange(1, 7)):
            victim.read_until("Iteration: ")
        time.sleep(draw.uniform(0.0, 0.3))
        kill(victim.process.pid, signal.SIGKILL)
        victim.wait()
        if (tmp_path / "checkpoint.pth.tar").exists():
            steps.append(checkpoint(tmp_path / "checkpoint.pth.tar")["counters"]["step"])
        if steps[-1] > STEPS - 4:
            break
    assert steps == sorted(steps) and steps[-1] > 0
    finish(images, tmp_path)
    assert differences(tmp_path, straight) == []


@on_request
def test_another_number_of_ranks_goes_on_with_the_same_samples(
    images: Path, tmp_path: Path
) -> None:
    """From two ranks to one within an epoch; frozen BatchNorm makes the losses comparable."""
    flags = (*STATEFUL, "--freeze-bn", "--zero-init-last-bn", "-p", 2)
    flags = (*flags, "--dropout", 0, "--mixup", 0)  # of a rank, and within the batch of a rank
    run_main(images, *flags, "-b", 4, "--workspace", tmp_path / "straight")
    victim = Victim(images, *flags, "--workspace", tmp_path / "changed", ranks=2)
    victim.read_until("Epoch: 0 Iteration: 6")
    victim.process.send_signal(signal.SIGTERM)
    assert victim.wait() == 143, victim.output
    assert 0 < checkpoint(tmp_path / "changed/checkpoint.pth.tar")["samples_done"] < 48
    run_main(images, *flags, "-b", 4, "--workspace", tmp_path / "changed", "--resume", "auto")
    losses = [values(tmp_path / name, "train", "train.loss") for name in ("straight", "changed")]
    assert len(losses[0]) == len(losses[1]) == 12
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("target", [1, *whole(0, "launcher")])
def test_two_ranks_leave_together(images: Path, tmp_path: Path, target: int | str) -> None:
    """A signal to any one process; what is left goes on bit for bit."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    if target == "launcher":
        run_main(images, *STATEFUL, "-b", 2, "--workspace", straight, ranks=2)
    victim = Victim(images, *STATEFUL, "--workspace", stopped, ranks=2)
    victim.read_until("Epoch: 0 Iteration: 6")
    started = time.monotonic()
    kill(victim.pid_of(target), signal.SIGTERM)
    assert victim.wait() == 143, victim.output[-3000:]
    assert time.monotonic() - started < 20
    assert "saved in epoch 1" in victim.output
    saved = checkpoint(stopped / "checkpoint.pth.tar")
    assert 3 <= saved["counters"]["step"] <= STEPS
    if target == "launcher":
        finish(images, stopped, ranks=2)
        assert differences(stopped, straight) == []


@pytest.mark.parametrize("arguments", [("--checkpoint-interval", 3), ("--no-checkpoints",)])
def test_stopping_before_the_first_step(
    images: Path, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    victim = Victim(images, *STATEFUL, *arguments, "--workspace", tmp_path / "w")
    time.sleep(1.0)
    victim.process.send_signal(signal.SIGTERM)
    assert victim.wait() == 143
    assert len([line for line in victim.output.splitlines() if "stopped by a signal" in line]) == 1
    assert environment()  # the run is gone, nothing of it is left that would be taken for one
    assert not (tmp_path / "w/generations").exists()
