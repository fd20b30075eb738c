# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's ConvNets do by default with AMP, as a plain loop around torchvision's network.

DeepLearningExamples, ResNet-50 v1.5 (the same network as torchvision's): float16 autocast, channels
last, a static loss scale of 128, SGD with momentum 0.875 and weight decay 1/32768 on all but
BatchNorm, label smoothing 0.1, cudnn.benchmark on (a switch of the process). Their loop reads the
loss every so many steps; this one never does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import Unavailable
from benchmarks.peers.torchvision_loop import create_model


def build(
    arch: str, images: torch.Tensor, target: torch.Tensor
) -> Callable[[int], torch.Tensor]:  # fmt: skip
    """Builds the loop.

    Args:
        arch: Name of the network, as this package writes it.
        images: One batch [N, 3, H, W] on the device.
        target: Class indices [N], int64, on the device.

    Returns:
        `run(steps)`, which trains that many steps and returns the last loss, not yet read.

    Raises:
        Unavailable: The device is a CPU, or torchvision has no such network.
    """
    device = images.device
    if device.type == "cpu":
        raise Unavailable("float16 is for accelerators")
    images = images.to(torch.float16, memory_format=torch.channels_last)
    model = create_model(arch).to(device, memory_format=torch.channels_last).train()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d)
             for p in m.parameters()}  # fmt: skip
    plain = [p for p in model.parameters() if id(p) in norms]
    decayed = [p for p in model.parameters() if id(p) not in norms]
    optimizer = torch.optim.SGD(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 1 / 32768}],
        lr=0.256 * len(images) / 256, momentum=0.875,
    )  # fmt: skip
    scaler = torch.amp.GradScaler(
        device.type, init_scale=128.0, growth_factor=2.0, growth_interval=10**9
    )

    def run(steps: int) -> torch.Tensor:
        for _ in range(steps):
            with torch.autocast(device.type, torch.float16):
                loss = criterion(model(images), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return run
