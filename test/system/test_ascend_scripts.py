# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The acceptance scripts of the Ascend document: results, weights, exit codes, signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cifar_archives import write_cifar100
from runs import ROOT, environment, nursery, values, write_narrow_weights

SCRIPTS = sorted(path.name for path in (ROOT / "test").glob("train_*.sh"))
SMALL = ("--arch", "resnet18_cifar", "--epochs", "1", "-p", "1", "--seed", "3")


@dataclass
class Device:
    """A folder of results of its own below test/output, and a small data set."""

    name: str
    data: Path
    weights: tuple[str, str]  # for `run`: those of a small network
    python: str

    @property
    def output(self) -> Path:
        return ROOT / "test" / "output" / self.name

    def command(self, script: str, *flags: str) -> list[str]:
        return ["bash", f"./test/{script}", f"--data_path={self.data}", *SMALL, *flags]

    def environment(self, **extra: str) -> dict[str, str]:
        return environment(ASCEND_DEVICE_ID=self.name, DEVICE="cpu", PYTHON=self.python, **extra)

    def run(self, script: str, *flags: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(script, *self.weights, *flags), cwd=ROOT, env=self.environment(**extra),
            capture_output=True, text=True, timeout=250,
        )  # fmt: skip


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    write_cifar100(tmp_path, train=40, val=12)
    flag, weights = write_narrow_weights(tmp_path / "narrow.pth", "resnet18_cifar", classes=6)
    made = Device(f"test-{os.getpid()}", tmp_path, (flag, str(weights)), nursery().python)
    before = set(ROOT.glob("*.pth.tar"))
    yield made
    shutil.rmtree(made.output, ignore_errors=True)
    for path in set(ROOT.glob("*.pth.tar")) - before:
        path.unlink()


def test_results_are_where_the_document_says(device: Device) -> None:
    done = device.run("train_performance_1p.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    block = re.search(
        r"^-{18} Final result -{18}\nFinal Performance images/sec : [0-9.]+\n"
        r"Final Train Accuracy : [0-9.]+\nE2E Training Duration sec : [0-9]+$",
        done.stdout, re.MULTILINE,
    )  # fmt: skip
    case = "Resnet50_cifar_for_PyTorch_bs16_1p_perf"
    assert block is not None
    assert block.group() in (device.output / f"train_{device.name}.log").read_text()
    keys = [line.split(" = ")[0] for line in (device.output / f"{case}.log").open()]
    assert keys == ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS",
                    "TrainingTime", "TrainAccuracy", "ActualLoss", "E2ETrainingTime"]  # fmt: skip
    weights = ROOT / f"{case}.pth.tar"
    assert weights.read_bytes() == (device.output / case / "checkpoint.pth.tar").read_bytes()
    # A start that fails says so and leaves the results where they are.
    there = sorted(path.name for path in device.output.iterdir())
    failed = device.run("train_performance_1p.sh", "--epochs", "0")
    assert failed.returncode == 2 and "--epochs: must be at least 1, received 0" in failed.stdout
    assert "the training failed with exit code 2" in failed.stderr
    assert "Final" not in failed.stdout
    assert sorted({*(path.name for path in device.output.iterdir())} - {"earlier"}) == there
    assert list((device.output / "earlier").iterdir()) == []
    log = (device.output / f"train_{device.name}.log").read_text()
    assert block.group() in log and "--epochs: must be" in log
    # A run that goes on adds to them; one anew keeps them aside.
    resumed = device.run("train_performance_1p.sh", "--epochs", "2", "--resume", "auto")
    assert resumed.returncode == 0 and "Epoch: 0 " not in resumed.stdout
    assert len(values(device.output / case, "epoch", "val.top1")) == 2
    assert device.run("train_performance_1p.sh", "--no-checkpoints", "--prof", "1").returncode == 0
    (earlier,) = (device.output / "earlier").iterdir()
    assert sorted(path.name for path in earlier.iterdir()) == [
        case, f"{case}.log", f"train_{device.name}.log"
    ]  # fmt: skip


def stand_in(tmp_path: Path) -> str:
    """A Python that prints what it is started with and trains nothing."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\necho "$@"\nexit 9\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-b", "512"], "-b 512 --epochs 200 --lr 0.4"),
        (["--batch-size=64"], "-b 64 --epochs 200 --lr 0.05"),
        (["-b8", "--lr", "1"], "--lr 1"),
        (["--addr", "10.0.0.7"], "--master_addr 10.0.0.7"),
        (["--addr=10.0.0.7"], "--master_addr 10.0.0.7"),
    ],
)
def test_common_parameters_reach_launcher_recipe_and_names(
    device: Device, tmp_path: Path, flags: list[str], expected: str
) -> None:
    done = subprocess.run(
        ["bash", "./test/train_full_1p.sh", *flags], cwd=ROOT, capture_output=True, text=True,
        env={**device.environment(), "PYTHON": stand_in(tmp_path), "DEVICE": "npu"},
    )  # fmt: skip
    assert done.returncode == 9 and expected in done.stdout
    assert f"--gpu-id {device.name}" in done.stdout
    batch = {"-b": "512", "--batch-size=64": "64", "-b8": "8"}.get(flags[0], "16")
    assert f"{device.name}/Resnet50_cifar_for_PyTorch_bs{batch}_1p_acc" in done.stdout


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--data_path"], "--data_path needs a value"),
        (["--data_path="], "--data_path is empty"),
        (["-b", "many"], "-b many: must be a whole number"),
        (["--workspace", "x"], "--workspace is not for this script"),
        (["--seeds=0,1"], "--seeds is not for this script"),
    ],
)
def test_what_the_scripts_refuse(device: Device, flags: list[str], text: str) -> None:
    done = subprocess.run(
        ["bash", "./test/train_full_1p.sh", *flags], cwd=ROOT, env=device.environment(),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and text in done.stderr and len(done.stderr.splitlines()) == 1
    assert not device.output.exists()


def test_several_processes(device: Device) -> None:
    done = device.run("train_full_8p.sh", NPROC="2")
    assert done.returncode == 0, done.stdout + done.stderr
    case = "Resnet50_cifar_for_PyTorch_bs32_2p_acc"
    assert "RankSize = 2" in (device.output / f"{case}.log").read_text()
    report = (device.output / f"train_{case}_perf_report.log").read_text()
    assert "training average images/sec : " in report


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_signals_reach_the_training(device: Device, number: signal.Signals, group: bool) -> None:
    """To the script, and as a terminal sends Ctrl-C: to all processes of the group."""
    device.python = sys.executable
    process = subprocess.Popen(
        device.command("train_full_1p.sh", "--epochs", "500"), cwd=ROOT,
        env=device.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    while "Epoch: 0 Iteration: 1" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    (os.killpg if group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the training failed with exit code 143" in errors
    log = (device.output / f"train_{device.name}.log").read_text()
    assert "main.py: stopped by a signal; saved in epoch 1" in log
    left = subprocess.run(["pgrep", "-f", str(device.output)], capture_output=True, text=True)
    assert left.stdout == ""


def test_there_are_twelve_and_all_say_how_they_are_used() -> None:
    assert len(SCRIPTS) == 12
    for script in SCRIPTS:
        done = subprocess.run(
            ["bash", f"./test/{script}", "-h"], cwd=ROOT, capture_output=True, text=True
        )
        assert (
            done.returncode == 0 and f"usage: bash test/{script} [--data_path=DIR]" in done.stdout
        )
