# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""LARS: SGD whose step has, in each weight tensor, a length that fits the length of the weights.

You, Gitman and Ginsburg 2017, arXiv:1708.03888. With w the weights, g their gradient, lr the rate,
m the momentum, wd the weight decay and v the momentum buffer:

    ratio = eta ||w|| / (||g|| + wd ||w||)
    v     = m v + lr ratio (g + wd w)
    w     = w - v

BatchNorm's tensors and biases have a ratio of 1, as in MLPerf's reference (mlcommons/training,
image_classification/tensorflow2/lars_optimizer.py), so do weights or gradients that are all zero.
There, too, the rate is part of the buffer, and nothing is added to the denominator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from image_classification import sharding


class LARS(torch.optim.Optimizer):
    """SGD with momentum and a rate for each weight tensor.

    The host never waits for the device. Of parameters that are spread over several ranks each rank
    updates its part; the squares of all norms are added up in one collective per step.

    Args:
        params: Parameters or groups of them. Those with one dimension (BatchNorm's, biases) have
            the rate `lr`, all others `lr` times their ratio.
        lr: Learning rate.
        momentum: Share of the last step that is made again, 0..1.
        weight_decay: L2 coefficient, >= 0.
        eta: Length of a step at rate 1 as a share of the length of the weights, > 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 1e-3,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes one step with the gradients that are there; all ranks call it."""
        ratios = self._ratios()
        for group in self.param_groups:
            params = [one for one in group["params"] if one.grad is not None]
            if not params:
                continue
            for one in params:
                if not self.state[one]:
                    self.state[one]["momentum_buffer"] = torch.zeros_like(one)
            weights = [sharding.local(one) for one in params]
            gradients = [sharding.local(one.grad) for one in params]
            buffers = [sharding.local(self.state[one]["momentum_buffer"]) for one in params]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
            torch._foreach_mul_(buffers, group["momentum"])
            rows = list(zip(buffers, gradients, map(ratios.get, params), strict=True))
            if scaled := [row for row in rows if row[2] is not None]:
                torch._foreach_addcmul_(*zip(*scaled, strict=True), group["lr"])
            if plain := [row[:2] for row in rows if row[2] is None]:
                torch._foreach_add_(*zip(*plain, strict=True), alpha=group["lr"])
            torch._foreach_sub_(weights, buffers)

    def _ratios(self) -> dict[torch.Tensor, torch.Tensor]:
        """The ratio of each parameter that has one, float [] on its device."""
        groups = [
            [one for one in group["params"] if one.grad is not None and one.dim() > 1]
            for group in self.param_groups
        ]
        scaled = [one for group in groups for one in group]
        if not scaled:
            return {}
        norms = sharding.norms([*scaled, *(one.grad for one in scaled)])
        sizes = [len(group) for group in groups]
        ratios: list[torch.Tensor] = []
        for group, of_weights, of_gradients in zip(
            self.param_groups, *(half.split(sizes) for half in norms.chunk(2)), strict=True
        ):
            ratio = group["eta"] * of_weights
            ratio /= of_gradients + group["weight_decay"] * of_weights
            ratios += torch.where((of_weights > 0) & (of_gradients > 0), ratio, 1.0).unbind()
        return dict(zip(scaled, ratios, strict=True))
