# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class ModelEma:
    """Keeps a second model whose weights are the running average of the trained one.

    The decay warms up as min(decay, (1 + updates) / (10 + updates)), so that short runs are not
    dominated by the random initial weights.

    Attributes:
        model: The averaged network, in evaluation mode, on the device of the trained one.
        updates: Number of updates so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Copies the model.

        Args:
            model: The trained network, without a DistributedDataParallel wrapper.
            decay: Weight of the past at each optimizer step, in [0, 1).
        """
        self.decay = decay
        self.updates = 0
        with torch.no_grad():
            self.model = copy.deepcopy(model).eval()
        for parameter in self.model.parameters():  # a TorchScript module has no requires_grad_
            parameter.requires_grad_(False)
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the current weights and statistics; no host wait."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, currents = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(list(averages), list(currents), 1.0 - decay)
        for copied, current in self._copied:
            copied.copy_(current)

    def state(self) -> dict[str, Any]:
        """Returns the averaged weights as a state dict."""
        return self.model.state_dict()

    def load(self, state: dict[str, Any], updates: int) -> None:
        """Restores what `state` returned and the number of updates made until then."""
        self.model.load_state_dict(state)
        self.updates = updates


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
