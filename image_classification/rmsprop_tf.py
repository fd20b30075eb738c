# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""RMSprop as TensorFlow computes it, for recipes that come from there.

It differs from torch's in three places: epsilon is added under the root, the mean of squares starts
at one instead of zero, and the learning rate is part of the momentum. With torch's, the first steps
of such a recipe are far too long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class RMSpropTF(torch.optim.Optimizer):
    """RMSprop with momentum (Tieleman and Hinton 2012), in TensorFlow's form.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        alpha: Weight of the past in the mean of squares, 0..1.
        eps: Added to that mean under the root, > 0.
        momentum: Share of the last step that is made again, 0..1.
        weight_decay: L2 coefficient; its gradient is added to the loss's.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        alpha: float = 0.9,
        eps: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum,
            "weight_decay": weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Makes one step with the gradients that are there."""
        for group in self.param_groups:
            params = [one for one in group["params"] if one.grad is not None]
            if not params:
                continue
            for one in params:
                state = self.state[one]
                if not state:
                    state["square_avg"] = torch.ones_like(one)
                    state["momentum_buffer"] = torch.zeros_like(one)
            gradients = [one.grad for one in params]
            squares = [self.state[one]["square_avg"] for one in params]
            buffers = [self.state[one]["momentum_buffer"] for one in params]
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, params, alpha=group["weight_decay"])
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, gradients, roots, group["lr"])
            torch._foreach_sub_(params, buffers)
