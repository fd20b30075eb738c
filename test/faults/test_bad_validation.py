# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A validation that fails does not cost the training before it."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import checkpoint, values, write_images

import main
from image_classification import epochs


def test_a_bad_validation_image_keeps_the_trained_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(epochs, "_WORTH_SAVING_S", 0.0)  # as if the epoch had taken long
    images, workspace = write_images(tmp_path / "images"), tmp_path / "w"
    bad = images / "val/class_1/2.jpg"
    content = bad.read_bytes()
    bad.write_bytes(b"no image")
    command = [str(images), "--arch", "resnet18", "--image-size", "32", "-b", "4", "-j", "0",
               "--device", "cpu", "--epochs", "1", "--prof", "9", "--lr", "0.01", "--seed", "1",
               "--workspace", str(workspace), "--resume", "auto"]  # fmt: skip
    assert main.main(command) == 3
    assert "class_1/2.jpg" in capsys.readouterr().err
    saved = checkpoint(workspace / "checkpoint.pth.tar")
    assert (saved["epoch"], saved["phase"], saved["samples_done"]) == (0, "validate", 24)
    bad.write_bytes(content)
    assert main.main(command) == 0
    assert values(workspace, "epoch", "val.seen") == [12]
    assert checkpoint(workspace / "checkpoint.pth.tar")["counters"]["step"] == 6
