# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp on the device (Zhang et al. 2018, arXiv:1710.09412), the same on any number of ranks.

The paper's code and NVIDIA's draw one weight and one permutation for each batch of each process.
Here the weight is that of the optimizer step, and the images at places 2i and 2i + 1 of the batch
are each other's partner. The epoch's order is a random shuffle already, so the partner is as random
as a permutation's and each blended image has the same distribution. Taken together they differ: no
image is its own partner, both blends of a pair are in the batch (the same image twice at weight
0.5), and all batches of a step share one weight.

Ranks and accumulation divide the global batch into contiguous parts. Where all of them are even no
pair is torn apart: the blended global batch is the same for any division. Where the batch per
device is odd its last image stays as it is, and the pairs depend on the division: such runs on
different numbers of devices agree in distribution, not in their losses.
"""

from __future__ import annotations

import numpy as np
import torch


def draw_weight(alpha: float, key: int) -> float:
    """Draws the mixing weight of an optimizer step from a key.

    Args:
        alpha: Both parameters of the Beta distribution, > 0.
        key: Any 64-bit number; the same key gives the same weight (callers hash seed and step).

    Returns:
        Weight of the image itself in [0, 1]; its partner has the rest.
    """
    generator = np.random.Generator(np.random.Philox(key=int(key)))
    return float(generator.beta(alpha, alpha))


def mix_images(images: torch.Tensor, weight: float) -> torch.Tensor:
    """Blends each image with its partner.

    Args:
        images: [N, 3, H, W], any floating type and memory format.
        weight: Weight of the image itself, in [0, 1].

    Returns:
        New images of the same shape, type and memory format.
    """
    mixed = torch.empty_like(images)
    even = len(images) // 2 * 2
    first, second = images[0:even:2], images[1:even:2]
    torch.lerp(second, first, weight, out=mixed[0:even:2])
    torch.lerp(first, second, weight, out=mixed[1:even:2])
    mixed[even:] = images[even:]
    return mixed


def partner(values: torch.Tensor) -> torch.Tensor:
    """Returns for each of the targets [N, ...] of a batch that of its partner."""
    even = len(values) // 2 * 2
    swapped = torch.stack((values[1:even:2], values[0:even:2]), dim=1).flatten(0, 1)
    return torch.cat((swapped, values[even:]))
