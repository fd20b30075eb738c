# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""--batch-size auto: the largest batch that fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import checkpoint, same, write_images
from test_trainer import make_net

import main
from image_classification import batch_size, host_memory
from image_classification.device import Device
from image_classification.errors import DeviceMemoryError, UsageError

CPU = Device.select("cpu")
NCHW = torch.contiguous_format


def linear(base: int, each: int) -> Callable[[int], int]:
    return lambda batch: base + each * batch


@pytest.mark.parametrize(
    ("limit", "confirm", "expected"),
    [
        (10**9, False, 256),
        (100 + 10 * 64, False, 64),
        (100 + 10 * 64 - 1, False, 32),
        (100 + 10 * 64 - 1, True, 32),
        (100 + 10 * 4, True, 4),
        (100 + 10 * 2, True, 2),
        (100 + 10 * 1 - 1, True, 0),
    ],
)
def test_the_batch_follows_the_memory(limit: int, confirm: bool, expected: int) -> None:
    candidates = [2**power for power in range(9)]
    chosen = batch_size.choose_batch(candidates, linear(100, 10), limit, confirm=confirm)
    assert chosen == expected


def test_what_does_not_fit_in_truth_is_not_taken() -> None:
    """Memory need not be linear; an accelerator says so by running out of it."""
    tried = []

    def peak_of(batch: int) -> int | None:
        tried.append(batch)
        return None if batch > 60 else 10 * batch

    candidates = [2**power for power in range(9)]
    assert batch_size.choose_batch(candidates, peak_of, 10**9, confirm=True) == 32
    assert tried == [4, 8, 256, 128, 64, 32]


def test_candidates_make_up_the_group_and_fit_the_data() -> None:
    assert batch_size._candidates(1000, -1) == [2, 4, 8, 16, 32, 64, 128, 256]
    assert batch_size._candidates(100, -1) == [2, 4, 8, 16, 32, 64]
    assert batch_size._candidates(1000, 24) == [2, 3, 4, 6, 8, 12, 24]


@pytest.mark.parametrize(("images", "group"), [(1, -1), (0, -1), (1000, 2.5), (1000, 1)])
def test_no_batch_to_choose_from(images: int, group: float) -> None:
    with pytest.raises(UsageError, match="leave no batch of two"):
        batch_size._candidates(images, group)


def test_a_trial_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options: dict[str, Any] = {"image_size": 8, "amp_dtype": None, "layout": NCHW, "copies": 1,
                               "processes": 1, "images": 64, "group": -1}  # fmt: skip
    assert batch_size.fitting_batch_size(net, CPU, **options) == 64
    assert same(dict(net.state_dict()), before) == []
    assert all(parameter.grad is None for parameter in net.parameters())
    monkeypatch.setattr(host_memory, "available", lambda: 0)
    monkeypatch.setattr(host_memory, "peak", lambda: 2**30)
    with pytest.raises(DeviceMemoryError, match="not even --batch-size 2 fits"):
        batch_size.fitting_batch_size(net, CPU, **options)


def test_auto_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    images = write_images(tmp_path / "data", train=8)
    command = [str(images), "--arch", "resnet18", "--image-size", "32", "-j", "0", "-b", "auto",
               "--device", "cpu", "--optimizer-batch-size", "8", "--use-ema", "0.9",
               "--epochs", "1", "--workspace", str(tmp_path / "w")]  # fmt: skip
    assert main.main(command) == 0
    assert "(8 x 1 devices x 1)" in capsys.readouterr().out  # the whole of --optimizer-batch-size
    assert checkpoint(tmp_path / "w" / "checkpoint.pth.tar")["config"]["batch_size"] == 8
