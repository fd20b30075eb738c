# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Sums of loss and hits over training steps, on the device until a log line reads them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from image_classification.distributed import concat_over_ranks, sum_over_ranks


class Sums(NamedTuple):
    """Sums over the images of an interval, over all ranks.

    Attributes:
        loss: Sum of the loss over the images.
        hits: Images whose most probable class is their target.
        images: Number of images; batches whose loss is not finite do not count.
        grad_norm: L2 norm of the last gradient before clipping, 0 without clipping.
    """

    loss: float = 0.0
    hits: int = 0
    images: int = 0
    grad_norm: float = 0.0

    def plus(self, later: Sums) -> Sums:
        """Adds a later interval."""
        return Sums(
            self.loss + later.loss,
            self.hits + later.hits,
            self.images + later.images,
            later.grad_norm,
        )

    def metrics(self) -> dict[str, float | None]:
        """Returns mean loss and top-1 (%); NaN where no image counts."""
        if not self.images:
            return {"train.loss": math.nan, "train.top1": math.nan}
        return {
            "train.loss": self.loss / self.images,
            "train.top1": 100.0 * self.hits / self.images,
        }


class RunningSums:
    """What this rank has added up since the last log line, and all ranks in the epoch before it.

    Args:
        device: Where losses and logits are.

    Attributes:
        epoch: Of the current epoch up to the last log line.
        skipped_steps: Steps left out so far in the whole training, up to the last log line.
    """

    def __init__(self, device: torch.device) -> None:
        self.epoch = Sums()
        self.skipped_steps = 0
        # Loss sum, hits, steps left out, gradient norm, images.
        self._sums = torch.zeros(5, device=device)

    @torch.no_grad()
    def add_batch(
        self, loss: torch.Tensor, logits: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """Adds a batch, without a wait of the host.

        Args:
            loss: Mean over the batch [].
            logits: [N, C].
            target: Class indices [N].

        Returns:
            Whether the loss is finite, bool [].
        """
        counted = loss.detach().isfinite()
        size = len(target)
        hits = (logits.argmax(dim=1) == target).sum()
        self._sums[0] += torch.where(counted, loss.detach() * size, 0.0)
        self._sums[1] += hits * counted
        self._sums[4] += counted * size
        return counted

    def add_step(self, left_out: torch.Tensor, grad_norm: torch.Tensor | None) -> None:
        """Adds an optimizer step: whether it was left out (bool []), its gradient norm []."""
        self._sums[2] += left_out
        if grad_norm is not None:
            self._sums[3] = grad_norm.detach()

    def read(self) -> Sums:
        """Reads and clears the sums since the last call, added over all ranks: the host waits."""
        loss, hits, skipped, grad_norm, images = self._sums.tolist()
        self._sums.zero_()
        self.skipped_steps += int(skipped)  # the same on every rank: gradients are shared
        loss, hits, images = sum_over_ranks([loss, hits, images])
        interval = Sums(loss, int(hits), int(images), grad_norm)
        self.epoch = self.epoch.plus(interval)
        return interval

    def start_epoch(self) -> None:
        """Starts anew at the beginning of an epoch; what was left unread is dropped."""
        self.epoch = Sums()
        self._sums.zero_()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint needs; all ranks call it together."""
        mine = torch.tensor([self._sums.tolist()], dtype=torch.float64)
        return {"epoch": list(self.epoch), "ranks": concat_over_ranks(mine.T).T.tolist()}

    def load(self, saved: dict[str, Any], *, rank: int, world_size: int) -> None:
        """Restores what `state` returned, on any number of ranks."""
        loss, hits, images, grad_norm = saved["epoch"]
        self.epoch = Sums(loss, int(hits), int(images), grad_norm)
        ranks = saved["ranks"]
        if len(ranks) != world_size:  # only the sum over the ranks matters to the log
            loss, hits, images = (sum(one[place] for one in ranks) for place in (0, 1, 4))
            ranks = [[loss, hits, *ranks[0][2:4], images]]
        self._sums.zero_()
        if rank < len(ranks):
            self._sums.copy_(torch.tensor(ranks[rank]))
