# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp from the command line: the same on one rank, on two and with accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import run_main, values, write_images

COMMON = ("--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu", "--lr", 0.01,
          "--seed", 7, "--epochs", 2, "--freeze-bn", "--zero-init-last-bn", "--mixup", 1,
          "--cutmix", 1, "--optimizer-batch-size", 8)  # fmt: skip


def test_the_blended_batch_is_the_same_for_any_division(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    divisions = {
        "one rank": (1, ("-b", 8, "-p", 1)),
        "two ranks": (2, ("-b", 4, "-p", 1)),
        "accumulation": (1, ("-b", 4, "-p", 2)),
    }
    losses = {}
    for name, (ranks, flags) in divisions.items():
        run_main(images, *COMMON, *flags, "--workspace", tmp_path / name, ranks=ranks)
        losses[name] = values(tmp_path / name, "train", "train.loss")
    expected = losses.pop("one rank")
    assert len(expected) == 6
    for name, found in losses.items():
        assert found == pytest.approx(expected, rel=1e-5), name
