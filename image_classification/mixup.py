# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp and CutMix on the device, the same on any number of ranks.

MixUp (Zhang et al. 2018, arXiv:1710.09412) blends each image with another; CutMix (Yun et al. 2019,
arXiv:1905.04899) puts a rectangle of the other into it. Both choose the others in the same way.

The papers' code and NVIDIA's draw one weight and one permutation for each batch of each process.
Here weight and rectangle are those of the optimizer step, and the partner of an image is the next
one in its group of four, places 4i .. 4i + 3 of the batch, the last one's the first. The epoch's
order is a random shuffle already, so the partner is as random as a permutation's and each mixed
image has the same distribution. Taken together they differ: no image is its own partner, the
partners are from the same four, and all batches of a step share one weight. Groups of two would
have both blends of the same pair in each batch, twice the same image at weight 0.5; that costs
accuracy.

Ranks and accumulation divide the global batch into contiguous parts. Where their sizes are
multiples of four no group is torn apart: the blended global batch is the same for any division.
Otherwise the last one to three images of each part are a group of their own, and the groups depend
on the division: such runs on different numbers of devices agree in distribution, not in their
losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

_GROUP = 4


class Mix(NamedTuple):
    """How the images of an optimizer step are mixed.

    Attributes:
        weight: Share of the image itself in [0, 1]; its partner has the rest.
        box: CutMix: top, left, bottom, right of the partner's part in pixels, bottom and right
            exclusive; it may be empty. None: MixUp, everywhere.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None


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


def draw_cut(alpha: float, key: int, height: int, width: int) -> Mix:
    """Draws the rectangle of an optimizer step from a key, as the paper does.

    Its area is a Beta-distributed share of the image and its centre anywhere; what reaches over the
    edge is cut off, and the weight is that of the pixels that are left.

    Args:
        alpha: Both parameters of the Beta distribution, > 0.
        key: Any 64-bit number; the same key gives the same rectangle.
        height: Of the images in pixels.
        width: Likewise.
    """
    generator = np.random.Generator(np.random.Philox(key=int(key)))
    side = math.sqrt(1.0 - generator.beta(alpha, alpha))
    starts, ends = [], []
    for size in (height, width):
        centre, half = int(generator.random() * size), int(size * side) // 2
        starts.append(max(centre - half, 0))
        ends.append(min(centre + half, size))
    area = (ends[0] - starts[0]) * (ends[1] - starts[1])
    return Mix(1.0 - area / (height * width), (*starts, *ends))  # type: ignore[arg-type]


def mix(images: torch.Tensor, how: Mix) -> torch.Tensor:
    """Mixes each image with its partner.

    Args:
        images: [N, 3, H, W], any floating type and memory format.
        how: In which way.

    Returns:
        New images of the same shape, type and memory format.
    """
    return mix_images(images, how.weight) if how.box is None else cut_images(images, how.box)


def mix_images(images: torch.Tensor, weight: float) -> torch.Tensor:
    """Blends each image with its partner.

    Args:
        images: [N, 3, H, W], any floating type and memory format.
        weight: Weight of the image itself, in [0, 1].

    Returns:
        New images of the same shape, type and memory format.
    """
    mixed = torch.empty_like(images)
    for own, other in _partners(len(images)):
        torch.lerp(images[other], images[own], weight, out=mixed[own])
    return mixed


def cut_images(images: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """Puts the rectangle `box` (see `Mix`) of its partner into each image; see `mix`."""
    top, left, bottom, right = box
    part = (..., slice(top, bottom), slice(left, right))
    cut = images.clone()
    for own, other in _partners(len(images)):
        cut[own][part] = images[other][part]
    return cut


def partner(values: torch.Tensor) -> torch.Tensor:
    """Returns for each of the targets [N, ...] of a batch that of its partner."""
    found = torch.empty_like(values)
    for own, other in _partners(len(values)):
        found[own] = values[other]
    return found


def _partners(size: int) -> Iterator[tuple[slice, slice]]:
    """Places of a batch and the places of their partners, together all of them once."""
    whole = size // _GROUP * _GROUP
    for place in range(_GROUP):
        yield slice(place, whole, _GROUP), slice((place + 1) % _GROUP, whole, _GROUP)
    if whole < size:
        yield slice(whole, size - 1), slice(whole + 1, size)
        yield slice(size - 1, size), slice(whole, whole + 1)
