# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""CIFAR from the command line: trained, resumed, evaluated, classified, on one rank and on two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_archives import colourful, pack, write_cifar100
from PIL import Image
from runs import (
    ROOT,
    checkpoint,
    environment,
    nursery,
    run_main,
    values,
    write_narrow_weights,
)

SMALL = ("--arch", "resnet18_cifar", "--device", "cpu", "--seed", 7, "--lr", 0.02, "-p", 1,
         "--weight-decay", 5e-4)  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cifar")
    write_cifar100(root, train=40, val=12)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    return *SMALL, *write_narrow_weights(path, "resnet18_cifar", classes=6)


def test_training_resume_and_evaluation(
    archive: Path, small: tuple[Any, ...], tmp_path: Path
) -> None:
    flags = (*small, "-b", 8, "--epochs", 2, "--workspace", tmp_path / "w")
    run_main(archive, *flags, "--run-epochs", 1)
    done = run_main(archive, *flags, "--resume", "auto")
    assert "images come from the resident loader" in done.stdout
    straight = tmp_path / "straight"
    run_main(archive, *small, "-b", 8, "--epochs", 2, "--workspace", straight)
    assert values(tmp_path / "w", "train", "train.loss") == values(straight, "train", "train.loss")
    saved = checkpoint(straight / "checkpoint.pth.tar")
    assert saved["classes"] == [f"fine_{i}" for i in range(6)]
    assert saved["preprocessing"]["train"] == {
        "image_size": 32, "padding": 4, "flip": 0.5, "cutout": 0, "erasing": 0.0, "policy": None,
        "policy_magnitude": 9, "policy_operations": 2,
    }  # fmt: skip
    assert saved["preprocessing"]["val"]["resize_size"] == 32
    evaluated = run_main(
        archive, "--evaluate", "--resume", straight / "checkpoint.pth.tar", "--device", "cpu",
        "--workspace", tmp_path / "e")  # fmt: skip
    top1 = values(straight, "epoch", "val.top1")[-1]
    assert f"top-1 {top1:.2f} %" in evaluated.stdout
    images, _ = colourful(2, 6, 1)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    classified = nursery().run(
        ROOT / "classify.py", "--resume", straight / "checkpoint.pth.tar", *paths, timeout=200
    )
    assert classified.returncode == 0 and classified.stdout.count("fine_") >= 2


def test_two_ranks_compute_what_one_does(
    archive: Path, small: tuple[Any, ...], tmp_path: Path
) -> None:
    flags = (*small, "--freeze-bn", "--epochs", 1)
    run_main(archive, *flags, "-b", 8, "--workspace", tmp_path / "1")
    run_main(archive, *flags, "-b", 4, "--workspace", tmp_path / "2", ranks=2)
    one, two = (values(tmp_path / name, "train", "train.loss") for name in "12")
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-5)


def test_the_archive_is_read_as_it_is(archive: Path, tmp_path: Path) -> None:
    packed = pack(archive / "cifar-100-python", tmp_path / "cifar-100-python.tar.gz")
    losses = []
    for number, data in enumerate((archive / "cifar-100-python", packed)):
        workspace = tmp_path / str(number)
        run_main(data, *SMALL, "-b", 8, "--epochs", 1, "--prof", 2, "--workspace", workspace)
        losses.append(values(workspace, "train", "train.loss"))
    assert losses[0] == losses[1] and np.isfinite(losses[0]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", packed.name]


def test_without_network_one_line_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    command = [sys.executable, "main.py", str(tmp_path / "data"), "--dataset", "cifar100",
               "--device", "cpu", "--workspace", str(tmp_path / "w")]  # fmt: skip
    nowhere = environment(https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    done = subprocess.run(command, cwd=ROOT, env=nowhere, capture_output=True, text=True)
    assert done.returncode == 3
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("main.py: error:")]
    assert "cifar-100-python.tar.gz cannot be downloaded" in line
    assert f"on a machine with network and put it there as {tmp_path / 'data'}" in line
    assert not list((tmp_path / "data").iterdir()) and not (tmp_path / "w").exists()
