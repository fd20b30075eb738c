# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""torchvision's networks in plain loops, without any part of this package.

`build_reference` has the defaults of torchvision's classification reference: SGD, momentum 0.9,
weight decay 1e-4, cross entropy, FP32, NCHW, rate 0.1 at 256 images. The reference reads loss and
accuracy in every step; this loop never does. `build_by_hand` is what a user writes for the settings
of `main.py`. cudnn.benchmark is on in both, as in the reference: it is a switch of the process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import Unavailable
from benchmarks.peers import require


def build_reference(
    arch: str, images: torch.Tensor, target: torch.Tensor
) -> Callable[[int], torch.Tensor]:
    """Builds the loop of the reference's defaults.

    Args:
        arch: Name of the network, as this package writes it.
        images: One batch, float32 [N, 3, H, W], contiguous, on the device.
        target: Class indices [N], int64, on the device.

    Returns:
        `run(steps)`, which trains that many steps and returns the last loss, not yet read.

    Raises:
        Unavailable: No torchvision, or no such network in it.
    """
    model = create_model(arch).to(images.device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1 * len(images) / 256, momentum=0.9, weight_decay=1e-4
    )

    def run(steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(model(images), target)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def build_by_hand(
    arch: str,
    images: torch.Tensor,
    target: torch.Tensor,
    *,
    amp_dtype: torch.dtype | None,
    memory_format: torch.memory_format,
    fused: bool,
) -> Callable[[int], torch.Tensor]:
    """Builds the loop of `main.py`, with or without --amp, by hand: its step and nothing more.

    Args:
        arch: Name of the network, as this package writes it.
        images: One batch [N, 3, H, W] in `amp_dtype` and `memory_format`, on the device.
        target: Class indices [N], int64, on the device.
        amp_dtype: bfloat16, float16 (with a gradient scaler), or None for FP32.
        memory_format: Of the weights.
        fused: Update all parameters in one kernel.

    Returns:
        `run(steps)`, which trains that many steps and returns the last loss, not yet read.

    Raises:
        Unavailable: No torchvision, or no such network in it.
    """
    device = images.device
    model = create_model(arch).to(device, memory_format=memory_format).train()
    criterion = nn.CrossEntropyLoss()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    undecayed = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-4}, {"params": undecayed, "weight_decay": 0.0}],
        lr=0.256 * len(images) / 256,
        momentum=0.9,
        fused=fused,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    def run(steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                loss = criterion(model(images), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return run


def create_model(arch: str) -> nn.Module:
    """Makes torchvision's network of that name, as this package writes it, with random weights.

    Raises:
        Unavailable: No torchvision, or no such network in it.
    """
    models = require("torchvision.models", "torchvision")
    name = arch.replace("-", "_")
    if name not in models.list_models(module=models):
        raise Unavailable(f"torchvision has no {name}")
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None)
    return model
