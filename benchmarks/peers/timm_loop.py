# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""timm's networks in timm's own loop: its optimizer and its loss, --amp and --channels-last or not.

The settings are the defaults of timm's train.py: SGD with Nesterov momentum 0.9, weight decay 2e-5
on all but biases and normalisation, label smoothing 0.1. Where the device has fast bfloat16, timm
gets it (its --amp-dtype bfloat16): a step without a gradient scaler is the cheaper one. The loop
never reads the loss. cudnn.benchmark is on, as in train.py: it is a switch of the process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import Unavailable
from benchmarks.peers import require


def build(
    arch: str,
    images: torch.Tensor,
    target: torch.Tensor,
    *,
    amp_dtype: torch.dtype | None,
    memory_format: torch.memory_format,
    compiles: bool = False,
) -> Callable[[int], torch.Tensor]:
    """Builds the loop.

    Args:
        arch: Name of the network, as this package writes it.
        images: One batch [N, 3, H, W] in `amp_dtype` and `memory_format`, on the device.
        target: Class indices [N], int64, on the device.
        amp_dtype: bfloat16, float16 (with a gradient scaler), or None for FP32.
        memory_format: Of the weights.
        compiles: As with its --torchcompile.

    Returns:
        `run(steps)`, which trains that many steps and returns the last loss, not yet read.

    Raises:
        Unavailable: No timm, or no such network in it.
    """
    device = images.device
    torch.manual_seed(0)
    model = create_model(arch).to(device, memory_format=memory_format).train()
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    criterion = LabelSmoothingCrossEntropy(0.1)
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=0.1 * len(images) / 256, momentum=0.9, weight_decay=2e-5
    )
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)

    network = torch.compile(model) if compiles else model

    def run(steps: int) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, amp_dtype, enabled=amp_dtype is not None):
                loss = criterion(network(images), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return run


def create_model(arch: str) -> nn.Module:
    """Makes timm's network of that name, as this package writes it, with random weights.

    Raises:
        Unavailable: No timm, or no such network in it.
    """
    timm = require("timm", "timm")
    name = arch.replace("se-", "se").replace("-", "_")
    if not timm.is_model(name):
        raise Unavailable(f"timm has no {name}")
    model: nn.Module = timm.create_model(name)
    return model
