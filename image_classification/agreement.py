# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What all ranks decide together while they train, without waiting for each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch

from image_classification import distributed

# Longer than any save: who hangs is found by the launcher's heartbeat, not here.
_TIMEOUT = timedelta(hours=2)
_POLL_S = 0.05


class Agreement:
    """Small questions to all ranks that are answered one step later.

    Every rank calls `ask` equally often, once per step. The answer is that of the call before, so
    that the sum travels while the next step computes and no step waits for the network. A single
    process has its own answer at once.

    Args:
        questions: Number of questions per call.
    """

    def __init__(self, questions: int) -> None:
        self._asked: tuple[Any, torch.Tensor] | None = None
        self._none = (False,) * questions
        self._group: Any = None
        if distributed.is_active():
            import torch.distributed as dist

            # A group of its own: gloo numbers the messages of each group.
            self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def ask(self, answers: Sequence[bool]) -> tuple[bool, ...]:
        """Give this rank's answers and get those of any rank, of the call before.

        Args:
            answers: One per question.

        Returns:
            For each question whether any rank said yes; the same on every rank.
        """
        if self._group is None:
            return tuple(answers)
        import torch.distributed as dist

        found = self._collect()
        votes = torch.tensor([int(answer) for answer in answers], dtype=torch.int32)
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = work, votes
        return found

    def meet(self, alive: Callable[[], None] = lambda: None) -> None:
        """Wait until every rank has come here; the answers of the last `ask` are dropped.

        Args:
            alive: Called now and then while waiting.
        """
        if self._group is not None:
            import torch.distributed as dist

            self._collect()
            nothing = torch.zeros(1, dtype=torch.int32)
            work = dist.all_reduce(nothing, group=self._group, async_op=True)
            while not work.is_completed():
                time.sleep(_POLL_S)
                alive()
            work.wait()

    def _collect(self) -> tuple[bool, ...]:
        if self._asked is None:
            return self._none
        work, votes = self._asked
        self._asked = None
        work.wait()
        return tuple(bool(vote) for vote in votes.tolist())
