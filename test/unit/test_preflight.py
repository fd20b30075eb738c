# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What is tried before a training: it finds what would end the run, and leaves no trace."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from runs import ROOT, checkpoint, rows, same, write_images
from test_trainer import make_batches, make_net, make_trainer, run_epoch

import main
from image_classification import host_memory, preflight
from image_classification.checkpoint import snapshot
from image_classification.checkpoint_files import CheckpointFiles
from image_classification.control_group import ControlGroup
from image_classification.ema import ModelEma
from image_classification.errors import CheckpointError, DeviceMemoryError
from image_classification.rehearsal import rehearse

NCHW = torch.contiguous_format


# ---- the rehearsal


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_rehearsal_leaves_the_trainer_as_it_was(steps_before: int) -> None:
    net = make_net(dropout=0.1)
    scaler = torch.amp.GradScaler("cpu", growth_interval=1)
    trainer = make_trainer(net, scaler=scaler, ema=ModelEma(net, 0.9), accumulation_steps=2,
                           mixup_alpha=0.2, clip_grad_norm=1.0)  # fmt: skip
    run_epoch(trainer, make_batches(2 * steps_before, 4))
    before, random = snapshot(trainer.state_dict()), torch.get_rng_state()
    rehearsal = rehearse(trainer, 4, 8, NCHW)
    assert same(snapshot(trainer.state_dict()), before) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert trainer.accumulation_steps == 2 and trainer.guard.bad_steps == []
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not trainer.guard._pending
    # What it hands out is a state after a step: with all buffers of the optimizer.
    assert rehearsal.state["counters"]["step"] == steps_before + 1
    assert all("momentum_buffer" in entry for entry in rehearsal.state["optimizer"].values())
    assert rehearsal.peak > 0 and "GiB" in str(rehearsal)


def test_not_enough_memory_is_one_line_with_peak_and_batch() -> None:
    trainer = make_trainer(make_net())


    def full(*parts: object) -> None:
        raise MemoryError("no 7 GB left")

    trainer.model.register_forward_hook(full)
    before = snapshot(trainer.state_dict())
    line = r"--batch-size 4, peak \d+\.\d GiB; try --batch-size 2 \(auto finds"
    with pytest.raises(DeviceMemoryError, match=line):
        rehearse(trainer, 4, 8, NCHW)
    assert same(snapshot(trainer.state_dict()), before) == []


COMMON = ("--arch", "resnet18", "--image-size", "32", "-b", "4", "-j", "0", "--device", "cpu",
          "--optimizer-batch-size", "8", "--use-ema", "0.9", "--mixup", "0.2", "--dropout", "0.2",
          "--epochs", "2", "--lr", "0.01", "--seed", "3", "-p", "1")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=8)


def test_a_run_is_the_same_with_and_without(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [str(images), *COMMON, "--workspace"]
    assert main.main([*command, str(tmp_path / "with"), "--run-epochs", "1"]) == 0
    assert main.main([*command, str(tmp_path / "with"), "--resume", "auto"]) == 0
    monkeypatch.setattr(preflight, "check_ahead", mock.Mock())
    assert main.main([*command, str(tmp_path / "without")]) == 0
    first, second = (tmp_path / name for name in ("with", "without"))
    one, two = (checkpoint(folder / "checkpoint.pth.tar") for folder in (first, second))
    assert same({**one, "config": None}, {**two, "config": None}) == []
    losses = [[row["data"]["train.loss"] for row in rows(folder, "train")]
              for folder in (first, second)]  # fmt: skip
    assert losses[0] == losses[1]


def test_check_says_what_a_run_would_do_and_leaves_nothing(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    workspace = tmp_path / "w"
    command = [str(images), *COMMON, "--workspace", str(workspace), "--check"]
    assert main.main(command) == 0
    out = capsys.readouterr().out
    assert "3 optimizer steps per epoch of 8 images (4 x 1 devices x 2)" in out
    assert "a training step takes" in out and "a checkpoint takes" in out and "free" in out
    assert "train: 24 images per epoch, batches of [4, 3, 32, 32], classes 0 to 2" in out
    assert "val: 12 images per epoch" in out
    assert "learning rate: epoch 1: 0.01, epoch 2: 0.001, last step: 1e-05" in out
    assert out.endswith("check passed: nothing was trained, nothing was left behind\n")
    assert list(tmp_path.iterdir()) == []
    # Beside a run that is there, and without any data.
    assert main.main([*command[:-1]]) == 0
    files = sorted(tmp_path.rglob("*"))
    assert main.main(command) == 0
    assert main.main(["--check", *COMMON, "--workspace", str(workspace)]) == 0
    assert sorted(tmp_path.rglob("*")) == files


# ---- the disk


def state_of(size: int) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.zeros(size // 4)}, "epoch": 1}


@pytest.mark.parametrize(("keep", "planned"), [(0, 4), (2, 7), (-1, 94)])
def test_room_for_all_planned_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, planned: int
) -> None:
    files = CheckpointFiles(tmp_path, keep=keep)
    free = 0

    def usage(folder: Path) -> SimpleNamespace:
        assert folder == tmp_path
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    each = files.try_writing(state_of(2**20))
    assert 2**20 < each < 2**20 + 2**13 and list(tmp_path.iterdir()) == []
    free = planned * each - 1
    with pytest.raises(CheckpointError, match=rf"\({planned} of 1 MiB\).*choose another"):
        preflight.check_disk(files, state_of(2**20), 90, nullcontext, True)
    free += 1
    assert f"up to {planned} of them" in preflight.check_disk(
        files, state_of(2**20), 90, nullcontext, True
    )
    # Those that are there will be replaced.
    (tmp_path / "checkpoint.pth.tar").write_bytes(b"x" * each)
    free -= each
    preflight.check_disk(files, state_of(2**20), 90, nullcontext, True)
    assert preflight.check_disk(files, {}, 90, nullcontext, False) == ""


def test_a_disk_that_cannot_be_written_ends_the_run_before_it_starts(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))  # as if the disk were full
        code = main.main([str(images), *COMMON, "--workspace", str(tmp_path / "w")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert code == 4 and "could not write a checkpoint in" in error and "File too large" in error
    assert not list(tmp_path.rglob("*.tmp"))


# ---- the host


def test_memory_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_memory.peak() > 2**20
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(host_memory, "_MEMINFO", meminfo)
    group = ControlGroup(memory=1000, used=600)
    monkeypatch.setattr(host_memory, "read_control_group", lambda: group)
    assert host_memory.available() == 400
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
    assert host_memory.available() == 400
    group = ControlGroup()
    assert host_memory.available() == 7 * 1024
    meminfo.unlink()
    assert host_memory.available() is None


@pytest.mark.skipif(not host_memory._STATUS.exists(), reason="needs Linux")
def test_the_peak_can_start_anew() -> None:
    code = (
        "from image_classification import host_memory as memory\n"
        "held = bytearray(2**28); high = memory.peak(); del held\n"
        "memory.reset_peak(); print(high - memory.peak())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) > 2**27, done.stderr


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        note = preflight.raise_file_limit()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised == (65536 if hard < 0 else min(hard, 65536))
    assert (note is None) == (raised >= 1024)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 256))
    assert "only 256 files" in (preflight.raise_file_limit() or "")
