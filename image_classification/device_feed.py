# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From uint8 batches on the host to normalised batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from image_classification.device import Device

Batch = tuple[torch.Tensor, torch.Tensor]


class DeviceFeeder:
    """Copies batches to the device and normalises them there.

    uint8 crosses the bus, a quarter of the bytes of float32. Where the device has streams, copy and
    normalisation run on a side stream, one batch ahead of the consumer.

    Args:
        device: The device.
        dtype: Type of the images on the device.
        memory_format: torch.contiguous_format or torch.channels_last.

    Attributes:
        dtype: As given.
        memory_format: As given.
        scale: float32 [1, 3, 1, 1] on the device; a normalised value is byte * scale + shift.
        shift: Likewise.
    """

    def __init__(
        self, device: Device, *, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        self._device = device
        self.dtype = dtype
        self.memory_format = memory_format
        self._stream = device.side_stream()
        # (x - mean) / std as x * scale + shift. Two roundings in float32 instead of three, the same
        # on every device, since product and sum are separate operations.
        mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(1, 3, 1, 1)
        self.scale = (1.0 / std).float().to(device.torch_device)
        self.shift = (-mean / std).float().to(device.torch_device)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images with the ImageNet mean and standard deviation.

        Args:
            images: uint8 [B, H, W, 3] on any device.

        Returns:
            [B, 3, H, W] on the device, in the feeder's dtype and memory format.
        """
        images = images.to(self._device.torch_device, non_blocking=True)
        # Reordered while a pixel is still one byte; for channels_last this is only a view.
        images = images.permute(0, 3, 1, 2).contiguous(memory_format=self.memory_format)
        normalized = images.to(torch.float32).mul_(self.scale).add_(self.shift)
        return normalized.to(self.dtype)

    def __call__(
        self, batches: Iterable[Batch], copied: Callable[[Any | None], None] | None = None
    ) -> Iterator[Batch]:
        """Yield each (uint8 [B, H, W, 3], int64 [B]) host batch as a batch on the device.

        Args:
            batches: Host batches.
            copied: Called for each of them, in order, with the event after which its memory may be
                used for something else (None: at once).
        """
        if self._stream is None:
            for images, target in batches:
                batch = self._transfer(images, target)
                if copied is not None:
                    copied(self._device.record_event(None))
                yield batch
            return
        waiting: Batch | None = None
        for images, target in batches:
            ready = waiting
            if ready is not None:
                # Before the next copy is queued, so that the consumer does not wait for that one.
                self._hand_over(ready)
            with self._device.stream_context(self._stream):
                waiting = self._transfer(images, target)
            if copied is not None:
                copied(self._device.record_event(self._stream))
            if ready is not None:
                yield ready
        if waiting is not None:
            self._hand_over(waiting)
            yield waiting

    def _transfer(self, images: torch.Tensor, target: torch.Tensor) -> Batch:
        return (
            self.normalize(images),
            target.to(self._device.torch_device, non_blocking=True),
        )

    def _hand_over(self, batch: Batch) -> None:
        """Let the consumer's stream wait for the copy and keep the memory until it is done."""
        self._device.wait_stream(self._stream)
        for tensor in batch:
            self._device.record_stream(tensor)
