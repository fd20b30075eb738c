# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp on the device (Zhang et al. 2017, arXiv:1710.09412)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class MixDraw(NamedTuple):
    """One draw for one batch: weight of the image itself, distance to its partner in the batch."""

    weight: float
    shift: int


def draw_mixup(alpha: float, batch_size: int, key: int) -> MixDraw:
    """Draws the mixing weight and the partner of a batch from a key.

    Args:
        alpha: Both parameters of the Beta distribution, > 0.
        batch_size: Images in the batch, >= 1.
        key: Any 64-bit number; the same key gives the same draw (callers hash seed and step).

    Returns:
        Weight in [0, 1] and shift in [1, batch_size - 1] (0 for a single image).
    """
    generator = np.random.Generator(np.random.Philox(key=int(key)))
    weight = float(generator.beta(alpha, alpha))
    shift = int(generator.integers(1, batch_size)) if batch_size > 1 else 0
    return MixDraw(weight, shift)


def mix_images(images: torch.Tensor, draw: MixDraw) -> torch.Tensor:
    """Blends each image with its partner, the image `draw.shift` places further (cyclically).

    The samples of a batch are in random order already, so a rotation pairs them at random and
    needs no index copy to the device.

    Args:
        images: [N, 3, H, W], any floating type and memory format.
        draw: Weight and shift.

    Returns:
        Images of the same shape, type and memory format.
    """
    return torch.lerp(partner(images, draw), images, draw.weight)


def partner(values: torch.Tensor, draw: MixDraw) -> torch.Tensor:
    """Rotates images or targets [N, ...] by `draw.shift`, keeping the memory format."""
    return torch.cat((values[draw.shift :], values[: draw.shift]))
