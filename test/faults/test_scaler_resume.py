# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Float16 with a loss scale that overflows, on the fake npu: stopped or killed, and gone on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fakes.support import fake_environment, skip_reason
from record import record
from runs import checkpoint, values, write_images
from victims import SMALL, Victim, differences, kill, on_request

REASON = skip_reason()
pytestmark = [
    pytest.mark.fake_accelerator,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(900),  # the fake device is slow
    on_request,
]

# Later options replace those of SMALL. The scale overflows in the first two of six steps: a
# gradient norm that is infinite is part of the first checkpoint.
FLOAT16 = (*SMALL, "--device", "npu", "--amp", "--amp-dtype", "float16",
           "--static-loss-scale", 2.0**14, "--dynamic-loss-scale", "--clip-grad-norm", 1,
           "--epochs", 1, "--training-only")  # fmt: skip
LAST = "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=16)


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without a break."""
    workspace = tmp_path_factory.mktemp("runs") / "straight"
    finish(images, workspace)
    saved = checkpoint(workspace / LAST)
    skipped = saved["counters"]["skipped_steps"]
    assert 0 < skipped < saved["counters"]["step"] == 6
    assert saved["amp"]["scale"] == 2.0 ** (14 - skipped)
    return workspace


def start(images: Path, workspace: Path, *more: object) -> Victim:
    env = {**fake_environment("npu"), "OMP_NUM_THREADS": "1"}
    return Victim(images, *FLOAT16, *more, "--workspace", workspace, env=env, batch=8)


def finish(images: Path, workspace: Path) -> None:
    victim = start(images, workspace, "--resume", "auto")
    assert victim.wait(timeout=800) == 0, victim.output[-3000:]


@pytest.mark.parametrize(
    ("number", "iteration"), [(signal.SIGTERM, 1), (signal.SIGTERM, 4), (signal.SIGKILL, 4)]
)
def test_the_loss_scale_goes_on(
    images: Path, straight: Path, tmp_path: Path, number: signal.Signals, iteration: int
) -> None:
    every_step = ("--checkpoint-interval", 1) if number == signal.SIGKILL else ()
    victim = start(images, tmp_path, *every_step)
    victim.read_until(f"Epoch: 0 Iteration: {iteration} ")
    kill(victim.process.pid, number)
    assert victim.wait() == (143 if number == signal.SIGTERM else -number)
    stopped = checkpoint(tmp_path / LAST)
    assert 0 < stopped["samples_done"] < 48 and stopped["amp"]["scale"] < 2.0**14
    finish(images, tmp_path)
    assert differences(tmp_path, straight) == []
    scales = [values(folder, "train", "train.grad_scale") for folder in (tmp_path, straight)]
    assert scales[0][-1:] == scales[1][-1:]
    lost = iteration - stopped["counters"]["step"] if number == signal.SIGKILL else 0
    record(number.name, "float16 with overflows", lost_steps=max(0, lost),
           exit_code=victim.process.returncode)  # fmt: skip
