# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Transfer learning: the real command line on folders of images."""

from __future__ import annotations

from pathlib import Path

import torch
from runs import checkpoint, run_main, write_images


def test_two_ranks_freeze_and_release_and_resume_bit_for_bit(tmp_path: Path) -> None:
    """The wrapper that adds up gradients is made anew; a frozen part keeps its statistics."""
    data = write_images(tmp_path / "data", size=32)
    flags = (data, "--arch", "resnet18", "--image-size", 32, "-b", 4, "--epochs", 3, "--seed", 1,
             "--device", "cpu", "-j", 1, "--lr", 0.05, "--freeze", "backbone", "--unfreeze-after",
             2, "--gather-checkpoints")  # fmt: skip
    run_main(*flags, "--workspace", tmp_path / "whole", ranks=2)
    kept = [checkpoint(tmp_path / "whole" / f"checkpoint_{epoch:04}.pth.tar")["state_dict"]
            for epoch in range(3)]  # fmt: skip
    names = [name for name in kept[0] if not name.startswith("fc.")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in names)
    assert not torch.equal(kept[0]["fc.weight"], kept[1]["fc.weight"])
    changed = [name for name in names if not torch.equal(kept[1][name], kept[2][name])]
    assert {"conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"} <= set(changed)
    run_main(*flags, "--workspace", tmp_path / "parts", "--run-epochs", 1, ranks=2)
    run_main(*flags, "--workspace", tmp_path / "parts", "--resume", "auto", ranks=2)
    parts = checkpoint(tmp_path / "parts" / "checkpoint.pth.tar")["state_dict"]
    assert all(torch.equal(parts[name], kept[2][name]) for name in parts)
