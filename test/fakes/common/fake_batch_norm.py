# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The operators of torch.nn.SyncBatchNorm, which a CPU lacks, from operators that it has.

Names, arguments and results are those of torch/nn/modules/_functions.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_Pair = tuple[Tensor, Tensor]


def register() -> torch.library.Library:
    """Gives them to the device that stands in for PrivateUse1, until the result is forgotten."""
    library = torch.library.Library("aten", "IMPL")
    for function in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        library.impl(function.__name__, function, "PrivateUse1")
    return library


def batch_norm_stats(images: Tensor, eps: float) -> _Pair:
    flat = _flat(images)
    return flat.mean(1), (flat.var(1, unbiased=False) + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    images: Tensor, mean: Tensor, invstd: Tensor, running_mean: Tensor | None,
    running_var: Tensor | None, momentum: float, eps: float, counts: Tensor,
) -> _Pair:  # fmt: skip
    counts = counts.float().unsqueeze(1)  # [ranks, 1], the others are [ranks, channels]
    number = counts.sum()
    center = (mean * counts).sum(0) / number
    variance = ((invstd.pow(-2) - eps + (mean - center).square()) * counts).sum(0) / number
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(center, momentum)
        running_var.lerp_(variance * number / (number - 1), momentum)
    return center, (variance + eps).rsqrt()


def batch_norm_elemt(
    images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    scaled = (images.float() - _wide(mean)) * _wide(invstd * weight) + _wide(bias)
    return scaled.to(images.dtype)


def batch_norm_backward_reduce(
    gradient: Tensor, images: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *wanted: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    flat = _flat(gradient)
    total, along = flat.sum(1), (flat * (_flat(images) - mean.unsqueeze(1))).sum(1)
    return total, along, along * invstd, total


def batch_norm_backward_elemt(
    gradient: Tensor, images: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor,
    total: Tensor, along: Tensor, counts: Tensor,
) -> Tensor:  # fmt: skip
    number = counts.sum()
    centered = (images.float() - _wide(mean)) * _wide(invstd.square() * along / number)
    found = (gradient.float() - _wide(total / number) - centered) * _wide(invstd * weight)
    return found.to(images.dtype)


def _flat(images: Tensor) -> Tensor:
    """Float32 [channels, all else]."""
    return images.float().transpose(0, 1).flatten(1)


def _wide(values: Tensor) -> Tensor:
    """[channels] as it goes with [N, channels, H, W]."""
    return values.view(1, -1, 1, 1)
