# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from image_classification import sharding


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
        self._source = model
        with torch.no_grad():
            self.model = copy.deepcopy(model).eval()
        for parameter in self.model.parameters():  # a TorchScript module has no requires_grad_
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the current weights and statistics; no host wait."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averages, currents, others = self._pairs
        # Some versions of PyTorch give sharded tensors other parts now and then.
        torch._foreach_lerp_(
            [*map(sharding.local, averages)], [*map(sharding.local, currents)], 1.0 - decay
        )
        for copied, current in others:
            copied.copy_(current)

    def state(self) -> dict[str, Any]:
        """Returns the averaged weights as a state dict of whole tensors; all ranks call it."""
        state: dict[str, Any] = sharding.whole(self.model.state_dict())
        return state

    def load(self, state: dict[str, Any], updates: int) -> None:
        """Restores what `state` returned and the number of updates made until then."""
        sharding.load_state_dict(self.model, state)
        self.updates = updates

    @functools.cached_property
    def _pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor], list[Any]]:
        """Averages, their current values; and pairs of what is counted. Sharded or not by now."""
        pairs = list(zip(_tensors(self.model), _tensors(self._source), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        averages, currents = map(list, zip(*floating, strict=True))
        return averages, currents, [pair for pair in pairs if not pair[0].is_floating_point()]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
