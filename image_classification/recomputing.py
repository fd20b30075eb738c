# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Training with less memory: activations within a block are computed again for its gradients.

Chen et al. 2016, arXiv:1604.06174. The result is the same bit for bit: random numbers are drawn
again, and BatchNorm's statistics count every image once.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Sequential):
    """Blocks in a row of which only the inputs are kept for the gradients."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Maps what the first block takes to what the last one returns."""
        if not (self.training and torch.is_grad_enabled()):
            output: torch.Tensor = super().forward(input)
            return output
        for block in self:
            input = checkpoint(
                block, input, use_reentrant=False, preserve_rng_state=_draws(block),
                context_fn=functools.partial(_contexts, block),
            )  # fmt: skip
        return input


def recompute_blocks(model: nn.Module) -> nn.Module:
    """Turns every row of blocks into `Recomputed`; names and weights stay.

    Args:
        model: A network of this package (`stages` returns its parts).

    Returns:
        The network itself.
    """
    for row in block_rows(model):
        row.__class__ = Recomputed
    return model


def block_rows(model: nn.Module) -> list[nn.Sequential]:
    """Returns the parts of a network of this package that are blocks in a row."""
    parts = [module for stage in model.stages()[1:] for module in stage]
    # A row of layers is no row of blocks.
    return [part for part in parts if all(any(block.children()) for block in part)]


def _draws(block: nn.Module) -> bool:
    return any(isinstance(each, _DropoutNd) and each.p > 0 for each in block.modules())


def _contexts(
    block: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """What surrounds the first and the second time that a block is computed."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    # The buffers have to stay: autograd wants to see the same operands both times.
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches
