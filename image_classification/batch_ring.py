# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Batch buffers, and what the loaders that decode into them in this process share."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from image_classification.augmentation import EvalPreset, TrainPreset
from image_classification.bad_images import BadImages
from image_classification.batch_schedule import BatchSchedule, ScheduledLoader
from image_classification.data_index import ImageIndex
from image_classification.device_feed import Batch, DeviceFeeder, FeedBatch
from image_classification.sample_reader import SampleReader

if TYPE_CHECKING:
    from image_classification.device import Device


@dataclass
class Slot:
    """Memory of one batch.

    Attributes:
        memory: uint8, contiguous, room for the largest images.
        images: uint8 [B, H, W, 3], a part of `memory`.
        targets: int64 [B] in pinned memory; None where the device cannot pin.
        copied: The event after which the device does not read it any more; None: it does not.
    """

    memory: torch.Tensor
    images: torch.Tensor
    targets: torch.Tensor | None
    copied: Any | None = None


class BatchRing:
    """Batch buffers that are used again and again, pinned where the device can pin memory.

    A slot that was handed out returns when the feeder has queued its copy, together with the event
    that marks the end of that copy; whoever takes it next waits for the event.

    Args:
        batch_size: Images of a batch, at most.
        image_size: Largest side of the images in pixels.
        device: Where the batches go.
        on_device: The images lie on the device itself.
    """

    def __init__(
        self, batch_size: int, image_size: int, device: Device, on_device: bool = False
    ) -> None:
        self._shape = (batch_size, image_size, image_size, 3)
        self._device = device
        self._on_device = on_device
        self._free: deque[Slot] = deque()
        self._handed_out: deque[Slot] = deque()

    def take(self, side: int) -> Slot:
        """A slot that nobody reads or writes, for images of this side in pixels."""
        slot = self._free.popleft() if self._free else self._make()
        if slot.copied is not None:
            slot.copied.synchronize()
            slot.copied = None
        shape = (self._shape[0], side, side, 3)
        slot.images = slot.memory.view(-1)[: math.prod(shape)].view(shape)
        return slot

    def _make(self) -> Slot:
        place = self._device.torch_device if self._on_device else "cpu"
        memory = torch.empty(self._shape, dtype=torch.uint8, device=place)
        if not self._device.can_pin_memory:
            return Slot(memory, memory, None)
        targets = torch.empty(self._shape[0], dtype=torch.int64)
        if not self._on_device:
            memory = self._device.pin_memory(memory)
        return Slot(memory, memory, self._device.pin_memory(targets))

    def target(self, slot: Slot, labels: NDArray[np.int64]) -> torch.Tensor:
        """The labels as int64 [N], in the slot where that is pinned."""
        target = torch.from_numpy(labels)
        if slot.targets is None:
            return target
        return slot.targets[: len(labels)].copy_(target)

    def hand_out(self, slot: Slot) -> None:
        """The slot goes to the feeder."""
        self._handed_out.append(slot)

    def copied(self, event: Any | None) -> None:
        """The oldest slot that was handed out is free after `event` (None: now)."""
        slot = self._handed_out.popleft()
        slot.copied = event
        self._free.append(slot)

    def give_back(self, slot: Slot) -> None:
        """A slot that was not handed out is free now."""
        self._free.append(slot)


class RingLoader(ScheduledLoader, ABC):
    """A loader of files that decodes into a ring of buffers; see `dataloaders.Loader`.

    Args:
        index: The images.
        preset: How they are prepared.
        schedule: Which of them this rank gets, and in which order.
        feeder: Copies to the device and normalises.
        device: The device.
        bad: What happens to images that cannot be read.
        on_device: The buffers lie on the device itself.

    Attributes:
        notes: One-line texts about what was adapted.
        bad: As given.
    """

    def __init__(
        self,
        index: ImageIndex,
        preset: TrainPreset | EvalPreset,
        *,
        schedule: BatchSchedule,
        feeder: DeviceFeeder,
        device: Device,
        bad: BadImages,
        on_device: bool = False,
    ) -> None:
        super().__init__(schedule)
        self.bad = bad
        self._index = index
        self._preset = preset
        self._feeder = feeder
        self._reader = SampleReader(index, preset, schedule.seed)
        self._ring = BatchRing(schedule.batch_size, preset.image_size, device, on_device)
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; after its last batch the next epoch is the position."""
        yield from self._feeder(self._until_closed(), self._ring.copied)
        self._schedule.advance()

    def _until_closed(self) -> Iterator[FeedBatch]:
        with contextlib.closing(self._batches()) as batches:
            while True:
                if self._closed:
                    raise RuntimeError("this loader is closed")
                if (batch := next(batches, None)) is None:
                    return
                yield batch

    @abstractmethod
    def _batches(self) -> Generator[FeedBatch, None, None]:
        """Yield the rest of the epoch in buffers of the ring."""
