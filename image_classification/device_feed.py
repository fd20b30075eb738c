# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From uint8 batches on the host to normalised batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import ArrayLike

from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD
from image_classification.batch_augmentation import BatchAugmentation, Plan, apply_policy, erase

if TYPE_CHECKING:
    from image_classification.device import Device

Batch = tuple[torch.Tensor, torch.Tensor]
# uint8 [B, H, W, 3] and int64 [B] on the host, and what is to be done to the images, if anything.
FeedBatch = tuple[torch.Tensor, torch.Tensor] | tuple[torch.Tensor, torch.Tensor, Plan | None]


class DeviceFeeder:
    """Copies batches to the device, augments and normalises them there.

    uint8 crosses the bus, a quarter of the bytes of float32. Where the device has streams, copy and
    normalisation run on a side stream, one batch ahead of the consumer.

    Args:
        device: The device.
        augmentation: What is done to training images on the device; None: nothing.
        dtype: Type of the images on the device.
        memory_format: torch.contiguous_format or torch.channels_last.

    Attributes:
        augmentation: As given.
        dtype: As given.
        memory_format: As given.
        scale: float32 [1, 3, 1, 1] on the device; a normalised value is byte * scale + shift.
        shift: Likewise.
    """

    def __init__(
        self,
        device: Device,
        augmentation: BatchAugmentation | None = None,
        *,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        self._device = device
        self.dtype = dtype
        self.memory_format = memory_format
        self.augmentation = augmentation
        self._stream = device.side_stream()
        # (x - mean) / std as x * scale + shift. Two roundings in float32 instead of three, the same
        # on every device, since product and sum are separate operations.
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
        self.scale = (1.0 / std).float().to(device.torch_device)
        self.shift = (-mean / std).float().to(device.torch_device)

    def plan(self, epoch: int, indices: ArrayLike) -> Plan | None:
        """What the augmentation does to a batch of these samples."""
        return None if self.augmentation is None else self.augmentation.plan(epoch, indices)

    def normalize(self, images: torch.Tensor, plan: Plan | None = None) -> torch.Tensor:
        """Normalise images with the ImageNet mean and standard deviation.

        Args:
            images: uint8 [B, H, W, 3] on any device.
            plan: What is done to them before (policy) and after it (erasing).

        Returns:
            [B, 3, H, W] on the device, in the feeder's dtype and memory format.
        """
        images = images.to(self._device.torch_device, non_blocking=True).permute(0, 3, 1, 2)
        if plan is not None:
            images = apply_policy(images, plan)
        # Reordered while a pixel is still one byte; for channels_last this is only a view.
        images = images.contiguous(memory_format=self.memory_format)
        normalized = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        if plan is not None:
            normalized = erase(normalized, plan)
        return normalized.to(self.dtype)

    def __call__(
        self, batches: Iterable[FeedBatch], copied: Callable[[Any | None], None] | None = None
    ) -> Iterator[Batch]:
        """Yield each host batch as a batch on the device.

        Args:
            batches: See `FeedBatch`.
            copied: Called for each of them, in order, with the event after which its memory may be
                used for something else (None: at once).
        """
        if self._stream is None:
            for host_batch in batches:
                batch = self._transfer(*host_batch)
                if copied is not None:
                    copied(self._device.record_event(None))
                yield batch
            return
        waiting: Batch | None = None
        for host_batch in batches:
            ready = waiting
            if ready is not None:
                # Before the next copy is queued, so that the consumer does not wait for that one.
                self._hand_over(ready)
            with self._device.stream_context(self._stream):
                waiting = self._transfer(*host_batch)
            if copied is not None:
                copied(self._device.record_event(self._stream))
            if ready is not None:
                yield ready
        if waiting is not None:
            self._hand_over(waiting)
            yield waiting

    def _transfer(
        self, images: torch.Tensor, target: torch.Tensor, plan: Plan | None = None
    ) -> Batch:
        return (
            self.normalize(images, plan),
            target.to(self._device.torch_device, non_blocking=True),
        )

    def _hand_over(self, batch: Batch) -> None:
        """Let the consumer's stream wait for the copy and keep the memory until it is done."""
        self._device.wait_stream(self._stream)
        for tensor in batch:
            self._device.record_stream(tensor)
