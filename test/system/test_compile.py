# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Training through torch.compile, with the real compiler and without one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from runs import checkpoint, environment, run_main, same, values, write_images

from image_classification import compiling
from image_classification.device import Device

SMALL = ("--arch", "resnet18", "--image-size", 32, "-b", 4, "-j", 0, "-p", 1, "--lr", 1e-4,
         "--seed", 7, "--device", "cpu", "--epochs", 2, "--prof", 3)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=4)


@pytest.fixture(scope="module")
def eager(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("eager")
    run_main(images, *SMALL, "--workspace", workspace)
    return workspace


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiler_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert compiling.obstacle(Device.select("cpu")) is None
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
    )
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        plain, compiled = (network(images) for network in
                           (layers.train(), compiling.compiled(layers, "default")))  # fmt: skip
        assert torch.allclose(plain, compiled, atol=1e-5)
        layers.eval()
        folded = compiling.compiled_for_inference(layers)(images)
        assert torch.allclose(layers(images), folded, atol=1e-5)
    assert any(tmp_path.rglob("*.cpp"))


@pytest.mark.skipif(os.environ.get("FAULTS") != "all", reason="a minute; FAULTS=all runs it")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_training_is_the_training(images: Path, eager: Path, tmp_path: Path) -> None:
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)  # of another test
    done = run_main(images, *SMALL, "--compile", "--workspace", tmp_path / "w", env=env)
    assert "compiled in " in done.stdout and "a training step takes" in done.stdout
    assert any((tmp_path / "cache" / "image_classification" / "compiled").iterdir())
    mine, plain = (values(place, "train", "train.loss") for place in (tmp_path / "w", eager))
    # BatchNorm over the last stage's four values amplifies rounding: later steps drift apart.
    assert mine[:2] == pytest.approx(plain[:2], rel=1e-3) and len(mine) == len(plain)
    weights = [checkpoint(place / "checkpoint.pth.tar")["state_dict"]
               for place in (tmp_path / "w", eager)]  # fmt: skip
    assert list(weights[0]) == list(weights[1])
    # Nothing of the compilation is in the checkpoint: it is resumed without.
    run_main(images, *SMALL, "--epochs", 3, "--resume", tmp_path / "w" / "checkpoint.pth.tar",
             "--workspace", tmp_path / "w", env=env)  # fmt: skip


def test_without_a_compiler_the_training_goes_on(images: Path, eager: Path, tmp_path: Path) -> None:
    env = environment(XDG_CACHE_HOME=str(tmp_path / "cache"), PATH=str(tmp_path), CXX="no-c++")
    done = run_main(images, *SMALL, "--compile", "--workspace", tmp_path / "w", env=env)
    lines = [line for line in done.stdout.splitlines() if "torch.compile does not work" in line]
    assert len(lines) == 1 and lines[0].endswith(": not compiled")
    ours, theirs = (checkpoint(place / "checkpoint.pth.tar") for place in (tmp_path / "w", eager))
    assert same(ours["state_dict"], theirs["state_dict"]) == []
