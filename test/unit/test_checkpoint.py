# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: atomic, safe, last / best / numbered."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification import checkpoint
from image_classification.errors import CheckpointError


def content(epoch: int = 1) -> dict[str, Any]:
    return {
        "epoch": epoch, "arch": "resnet18", "num_classes": 2, "counters": {"step": 3},
        "state_dict": {"w": torch.full((4,), float(epoch))}, "optimizer": {},
        "config": {"optimizer": "sgd", "lr": 0.1, "epochs": 90},
    }  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_last_best_and_numbered_files(tmp_path: Path) -> None:
    for epoch in range(1, 6):
        checkpoint.save(content(epoch), tmp_path, best=epoch == 3, keep=2)
    assert names(tmp_path) == {
        "checkpoint.pth.tar", "model_best.pth.tar",
        "checkpoint_0003.pth.tar", "checkpoint_0004.pth.tar",
    }  # fmt: skip
    assert checkpoint.load(tmp_path / "checkpoint.pth.tar")["epoch"] == 5
    assert checkpoint.load(tmp_path / "model_best.pth.tar")["epoch"] == 3
    assert checkpoint.load(tmp_path / "checkpoint_0003.pth.tar")["epoch"] == 4


@pytest.mark.parametrize(("keep", "numbered"), [(0, 0), (-1, 4)])
def test_keep_none_or_all(tmp_path: Path, keep: int, numbered: int) -> None:
    for epoch in range(1, 5):
        checkpoint.save(content(epoch), tmp_path, keep=keep)
    assert len([name for name in names(tmp_path) if "_" in name]) == numbered


def test_the_files_have_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        checkpoint.save(content(), tmp_path)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "checkpoint.pth.tar").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_previous_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(content(1), tmp_path)

    def half(state: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match="could not write a checkpoint"):
        checkpoint.save(content(2), tmp_path, best=True)
    assert names(tmp_path) == {"checkpoint.pth.tar"}
    assert checkpoint.load(tmp_path / "checkpoint.pth.tar")["epoch"] == 1


def test_without_hard_links_the_files_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_link)
    checkpoint.save(content(7), tmp_path, best=True)
    assert names(tmp_path) == {"checkpoint.pth.tar", "model_best.pth.tar"}
    assert checkpoint.load(tmp_path / "model_best.pth.tar")["epoch"] == 7


def test_the_file_loads_with_weights_only(tmp_path: Path) -> None:
    checkpoint.save(content(), tmp_path)
    loaded = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(4))


def test_resume_auto_and_missing_files(tmp_path: Path) -> None:
    last = tmp_path / "checkpoint.pth.tar"
    assert checkpoint.load_resume(None, last, arch=None) is None
    assert checkpoint.load_resume("auto", last, arch="resnet18") is None
    with pytest.raises(CheckpointError, match="nowhere"):
        checkpoint.load_resume(str(tmp_path / "nowhere.pth.tar"), last, arch=None)
    checkpoint.save(content(4), tmp_path)
    resumed = checkpoint.load_resume("auto", last, arch="resnet18")
    assert resumed is not None and resumed["epoch"] == 4
    with pytest.raises(CheckpointError, match="holds a resnet18, --arch asks for resnet50"):
        checkpoint.load_resume("auto", last, arch="resnet50")


def test_bare_weights_are_no_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"not a training checkpoint.*--pretrained-weights"):
        checkpoint.load(tmp_path / "weights.pth")


def test_changed_settings_are_named() -> None:
    saved = {"config": dict.fromkeys(checkpoint._COURSE, 1) | {"optimizer": "sgd"}}
    assert checkpoint.changed_settings(saved, dict(saved["config"])) == []
    changed = dict(saved["config"]) | {"lr": 0.2}
    assert checkpoint.changed_settings(saved, changed) == ["resuming with lr 0.2, it was 1"]
    with pytest.raises(CheckpointError, match="trained with sgd, --optimizer is adamw"):
        checkpoint.changed_settings(saved, changed | {"optimizer": "adamw"})


def test_to_cpu_makes_contiguous_copies() -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copied = checkpoint.to_cpu({"a": {"b": weight}, "c": 3})
    assert copied["c"] == 3 and copied["a"]["b"].is_contiguous()
    assert torch.equal(copied["a"]["b"], weight)
