# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations on ranks with and without images, and the sweep over batch sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from runs import run_main, values, write_images
from torch import nn

from image_classification import evaluation
from image_classification.device import Device
from image_classification.runtimes import FixedBatch, Runtime


def test_a_rank_without_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "data", train=2, val=1, classes=2)
    small = ("--arch", "resnet18", "--image-size", 32, "-b", 2, "-j", 0, "--device", "cpu",
             "--workspace")  # fmt: skip
    run_main(images, *small, tmp_path / "w", "--epochs", 1, "--prof", 1)
    file = tmp_path / "w" / "checkpoint.pth.tar"
    evaluate = ("--evaluate", "--resume", file, "--benchmark", 2)
    run_main(images, *small, tmp_path / "one", *evaluate)
    run_main(images, *small, tmp_path / "three", *evaluate, ranks=3)
    found = [values(tmp_path / name, "summary", "val.correct") for name in ("one", "three")]
    assert found[0] == found[1] != []
    assert (tmp_path / "three" / "benchmark.json").exists()


class Full(nn.Module):
    """A network for which a batch of four is too much."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 3:
            raise MemoryError("no memory for four")
        return images.mean((2, 3))


def test_the_sweep_ends_where_the_memory_does() -> None:
    lines: list[str] = []
    way = Runtime("eager", Full(), Device.select("cpu"), None, lines.append)
    images = torch.randn(2, 3, 4, 4)
    found: dict[str, Any] = evaluation.measure([1, 3, 4, 2], way, way.model, images)
    assert [row["batch_size"] for row in found["batches"]] == [1, 3]
    assert lines[-1] == "4 | out of memory" and lines[1].startswith("1 | ")


def test_other_errors_are_not_taken_for_it() -> None:
    way = mock.Mock(device=Device.select("cpu"), amp_dtype=None)
    broken = mock.Mock(side_effect=ValueError("shape"))
    with pytest.raises(ValueError, match="shape"):
        evaluation.measure([1], way, broken, torch.randn(2, 3, 4, 4))


def test_only_what_has_one_batch_size_is_made_ready_again() -> None:
    way = mock.Mock(device=Device.select("cpu"), amp_dtype=None)
    way.prepare.side_effect = lambda batch: FixedBatch(Full(), len(batch))
    images = torch.randn(2, 3, 4, 4)
    for network, times in ((Full(), 0), (FixedBatch(Full(), 2), 2)):
        evaluation.measure([1, 3], way, network, images)
        assert way.prepare.call_count == times
