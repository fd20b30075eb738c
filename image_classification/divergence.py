# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps that must not count: left out without a wait of the host, and counted.

A step whose gradients hold NaN or infinity would ruin the weights for good. The device decides by
itself to leave it out: in the loss scaler (float16), in the optimizer's fused kernel, or, on a CPU,
where looking costs nothing, in front of the optimizer. An accelerator without a fused kernel makes
the step in FP32 and bfloat16; then all later steps are bad, too.

The host looks at the flag of a step some steps later, when the device has long answered, and always
as many: a run that stops or rolls back does so at the same step in each repetition.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from image_classification import sharding

if TYPE_CHECKING:
    from image_classification.device import Device

#: The host looks at a step's flag so many steps later.
LAG = 4
#: Bad steps in a row with which a training has diverged.
LIMIT = 5
#: With a loss scale, which halves in each of them: from 2^16 it would be at 2^-9.
LIMIT_WITH_SCALE = 25
#: What a return to a checkpoint makes of the learning rate, and how often a training may do so.
ROLLBACK_FACTOR = 0.5
MOST_ROLLBACKS = 3


class Place(NamedTuple):
    """A step: its number in the training, its epoch, images of the epoch used before it."""

    step: int
    epoch: int
    samples: int


class StepGuard:
    """Makes the steps of an optimizer, but for bad ones.

    Args:
        optimizer: Makes the steps.
        parameters: Of the network; their gradients are those of all ranks together.
        scaler: Gradient scaler (a disabled one outside float16).
        device: The device of this process.

    Attributes:
        bad_steps: The steps of the last unbroken row of bad ones, the oldest first; empty after a
            good one. A row that is long enough for a divergence stays as it is.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        scaler: Any,
        device: Device,
    ) -> None:
        self.bad_steps: list[Place] = []
        self._optimizer = optimizer
        self._parameters = parameters
        self._scaler = scaler
        self._device = device
        self._fused = all(group.get("fused") for group in optimizer.param_groups)
        self._limit = LIMIT_WITH_SCALE if scaler.is_enabled() else LIMIT
        self._pending: deque[tuple[Place, int, Any]] = deque()
        self._slots = torch.zeros(LAG + 1, dtype=torch.bool)
        if device.can_pin_memory:  # else the copy to the host would wait
            self._slots = device.pin_memory(self._slots)
        self._flags = self._slots.numpy()  # the same memory, read without an operator of torch

    @property
    def diverged(self) -> bool:
        """Whether too many steps in a row were bad."""
        return len(self.bad_steps) >= self._limit

    def step(
        self, place: Place, loss_is_finite: torch.Tensor, clip_norm: float | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Updates the weights, unless a gradient is not finite.

        Args:
            place: Which step it is.
            loss_is_finite: bool [] on the device: of this rank, for all batches of the step. The
                step counts as bad without it.
            clip_norm: Largest L2 norm of all gradients together, None for no clipping.

        Returns:
            Whether the step was bad, bool [], the same on every rank, and the gradients' norm
            before clipping, float [], None without clipping; both on the device.
        """
        norm = None
        if clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            norm = sharding.total(nn.utils.clip_grad_norm_(self._parameters, clip_norm))
        if self._scaler.is_enabled():
            # Without a fused optimizer the scaler waits here once to learn of an overflow.
            self._scaler.step(self._optimizer)
            bad = self._overflow(loss_is_finite)
            self._scaler.update()
        else:
            bad = ~(self._norm() if norm is None else norm).isfinite()
            self._step_unless(bad)
        self._note(place, bad | ~loss_is_finite)
        return bad, norm

    def read_all(self) -> None:
        """Looks at all flags; the host waits."""
        while self._pending:
            self._read()

    def forget(self) -> None:
        """Starts anew."""
        self._pending.clear()
        self.bad_steps = []

    def _norm(self) -> torch.Tensor:
        """The norm of all gradients, float []: finite if all of them are and do not overflow."""
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        return sharding.total(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))

    def _step_unless(self, bad: torch.Tensor) -> None:
        if self._fused:
            # The kernels look at this attribute, as the gradient scaler sets it.
            self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            self._optimizer.step()
            del self._optimizer.found_inf  # type: ignore[attr-defined]
        elif self._device.is_accelerator or not bad:
            self._optimizer.step()

    def _overflow(self, like: torch.Tensor) -> torch.Tensor:
        """The scaler's flags of this step, which torch keeps on the device."""
        bad = torch.zeros_like(like)
        if not hasattr(self._scaler, "_found_inf_per_device"):
            return bad  # a vendor's own
        for found in self._scaler._found_inf_per_device(self._optimizer).values():
            bad = bad | (found.reshape(()) > 0).to(bad.device)
        return bad

    def _note(self, place: Place, bad: torch.Tensor) -> None:
        """Lets the flag travel to the host, and looks at that of an earlier step."""
        slot = place.step % len(self._slots)
        self._slots[slot].copy_(bad, non_blocking=True)
        self._pending.append((place, slot, self._device.record_event(None)))
        if len(self._pending) > LAG:
            self._read()

    def _read(self) -> None:
        place, slot, copied = self._pending.popleft()
        if copied is not None:
            copied.synchronize()
        if not self.diverged:  # else the row stays, until somebody forgets it
            self.bad_steps = [*self.bad_steps, place] if self._flags[slot] else []
