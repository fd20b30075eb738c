# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What is done to whole batches on the device: a policy, random erasing.

The host draws for each sample, from seed, epoch and sample as for crops and flips, and sends
numbers along with the batch; so every loader shows the same images, whoever decoded them. Nothing
is read back: the host knows from its draws how many images an operation gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from image_classification.augmentation import draw_erasing, draw_policy, draw_shifts
from image_classification.image_operations import KINDS, Operations
from image_classification.policies import Policy, read_policy
from image_classification.presets import EvalPreset, ShiftPreset, TrainPreset

if TYPE_CHECKING:
    from image_classification.device import Device

# Pixels that an operation gets at once. What lies between its steps takes less than 200 MiB of an
# accelerator's memory; on a CPU it stays in the caches, which is three times as fast.
_PIXELS_AT_ONCE = 32 * 224**2
_PIXELS_IN_CACHES = 2 * 224**2


@dataclass(frozen=True)
class Plan:
    """What is done to a batch.

    Attributes:
        operations: Those of the policy, for images of this size; None without a policy.
        steps: For each step of the policy, kind of operation, first and last place of the images
            that are treated together; the images are sorted for it.
        numbers: int64 [2 * steps + 1, N]: for each step how the images are sorted, as places in
            their order so far, and what each then gets; last, their places in the batch.
        holes: int64 [N, K, 4], rectangles to be erased: top, left, bottom, right in pixels.
    """

    operations: Operations | None
    steps: list[list[tuple[int, int, int]]]
    numbers: torch.Tensor
    holes: torch.Tensor


def apply_policy(images: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Applies the drawn operations, step by step.

    Args:
        images: uint8 [N, 3, H, W] on the device, in any memory format.
        plan: What is done to them.

    Returns:
        New images, contiguous; without a policy `images` itself.
    """
    if plan.operations is None:
        return images
    images = images.contiguous()
    *pairs, back = plan.numbers.to(images.device, non_blocking=True)
    for step, order, which in zip(plan.steps, pairs[::2], pairs[1::2], strict=True):
        images = images.index_select(0, order)
        images = torch.cat([
            plan.operations.apply(kind, images[start:end], which[start:end])
            for kind, start, end in step
        ])  # fmt: skip
    return images.index_select(0, back)


def erase(images: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Sets the drawn rectangles to 0, the mean.

    Args:
        images: Normalised, [N, 3, H, W] on the device; they are overwritten.
        plan: What is done to them.

    Returns:
        `images`.
    """
    if not plan.holes.shape[1]:
        return images
    top, left, bottom, right = plan.holes.to(images.device, non_blocking=True).unbind(2)
    rows, columns = (
        (places >= first[..., None]) & (places < last[..., None])
        for places, first, last in (
            (torch.arange(images.shape[2], device=images.device), top, bottom),
            (torch.arange(images.shape[3], device=images.device), left, right),
        )
    )
    hole = (rows[..., :, None] & columns[..., None, :]).any(1)
    return images.masked_fill_(hole[:, None], 0.0)


class BatchAugmentation:
    """Draws what is done to batches on the device.

    Args:
        preset: How the images are prepared.
        seed: Seed of the run.
        device: Where the batches are.

    Attributes:
        cuts_out: Whether the preset's cutout is done here: it comes after a policy.

    Raises:
        UsageError: The policy needs torchvision, and that cannot be imported or read.
    """

    def __init__(self, preset: TrainPreset | ShiftPreset, seed: int, device: Device) -> None:
        self._preset = preset
        self._seed = seed
        self._device = device
        self._policies: dict[int, tuple[Policy, Operations]] = {}
        self.cuts_out = preset.policy is not None
        self._policy(preset.image_size)

    def plan(self, epoch: int, indices: ArrayLike) -> Plan:
        """Draws for a batch; the numbers lie in pinned memory where the device can pin.

        Args:
            epoch: Epoch number, from 0.
            indices: int64 [N], the samples that the batch shows.
        """
        preset, indices = self._preset.at(epoch), np.atleast_1d(indices)
        operations: Operations | None = None
        steps: list[list[tuple[int, int, int]]] = []
        numbers = np.arange(len(indices), dtype=np.int64)[None]
        if (found := self._policy(preset.image_size)) is not None:
            policy, operations = found
            drawn = draw_policy(policy.choices, self._seed, epoch, indices)
            at_once = _PIXELS_AT_ONCE if self._device.is_accelerator else _PIXELS_IN_CACHES
            most = max(1, at_once // preset.image_size**2)
            steps, numbers = _sorted(drawn, operations.kinds, most)
        holes = self._holes(preset, epoch, indices)
        return Plan(operations, steps, self._pinned(numbers), self._pinned(holes))

    def _policy(self, side: int) -> tuple[Policy, Operations] | None:
        """The policy for images of this side, and its operations on the device."""
        preset = self._preset
        if preset.policy is None:
            return None
        if side not in self._policies:
            policy = read_policy(
                preset.policy, side, preset.policy_operations, preset.policy_magnitude
            )
            operations = Operations(policy.operations, side, self._device.torch_device)
            self._policies[side] = policy, operations
        return self._policies[side]

    def _holes(
        self, preset: TrainPreset | ShiftPreset, epoch: int, indices: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Rectangles to be erased, int64 [N, K, 4]."""
        kinds = []
        if preset.erasing:
            kinds.append(
                draw_erasing(preset.erasing, preset.image_size, self._seed, epoch, indices)
            )
        if isinstance(preset, ShiftPreset) and preset.cutout and self.cuts_out:
            centres = draw_shifts(preset, self._seed, epoch, indices)[:, 3:].astype(np.int64)
            first, last = centres - preset.cutout // 2, centres + (preset.cutout + 1) // 2
            kinds.append(np.concatenate([first, last], axis=1))
        return np.stack(kinds, axis=1) if kinds else np.zeros((len(indices), 0, 4), dtype=np.int64)

    def _pinned(self, array: NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return self._device.pin_memory(tensor) if self._device.can_pin_memory else tensor


def create_augmentation(
    preset: TrainPreset | ShiftPreset | EvalPreset, seed: int, device: Device
) -> BatchAugmentation | None:
    """The augmentation that a preset asks for, None for none; see `BatchAugmentation`."""
    if isinstance(preset, EvalPreset) or (preset.policy is None and not preset.erasing):
        return None
    return BatchAugmentation(preset, seed, device)


def _sorted(
    drawn: NDArray[np.int64], kinds: NDArray[np.int64], most: int
) -> tuple[list[list[tuple[int, int, int]]], NDArray[np.int64]]:
    """Brings the images of each step together by kinds, at most so many; see `Plan`."""
    steps, numbers = [], []
    order = np.arange(len(drawn))
    for step in drawn.T:
        before, order = order, np.argsort(kinds[step], kind="stable")
        numbers += [np.argsort(before)[order], step[order]]
        ends = np.cumsum(np.bincount(kinds[step], minlength=len(KINDS))).tolist()
        runs = zip(range(len(KINDS)), [0, *ends[:-1]], ends, strict=True)
        steps.append([
            (kind, first, min(first + most, end))
            for kind, start, end in runs
            for first in range(start, end, most)
        ])  # fmt: skip
    return steps, np.stack([*numbers, np.argsort(order)])
