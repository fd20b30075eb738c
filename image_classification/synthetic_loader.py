# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "synthetic" backend: images that are on the device already, to measure all but the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from image_classification.augmentation import (
    EvalPreset,
    ShiftPreset,
    TrainPreset,
    hash64,
)
from image_classification.batch_schedule import BatchSchedule, ScheduledLoader
from image_classification.device_feed import Batch, DeviceFeeder

if TYPE_CHECKING:
    from image_classification.device import Device

# Different images; sample i shows image i modulo this number.
NUM_IMAGES = 32

_STREAM_PIXELS = 101
_STREAM_LABELS = 102


@dataclass(frozen=True)
class SyntheticIndex:
    """A data set of so many samples and classes, without files.

    Attributes:
        num_samples: Samples of one epoch.
        num_classes: Labels are 0 .. num_classes - 1.
    """

    num_samples: int
    num_classes: int

    def __len__(self) -> int:
        return self.num_samples

    @property
    def classes(self) -> list[str]:
        """The label numbers as names."""
        return [str(label) for label in range(self.num_classes)]


class SyntheticLoader(ScheduledLoader):
    """Yields slices of one block of random images; see `dataloaders.Loader` for the contract.

    Pixels and labels are hashes, so they are the same on every device. The block repeats the 32
    images beyond one batch: any batch is a slice of it, and the host does no work per batch. The
    slices share memory, so they must not be written to. Where images are augmented on the device,
    that is done for each batch.

    Args:
        index: Number of samples and classes.
        preset: For the image size.
        schedule: Which samples this rank gets.
        feeder: Copies to the device, augments and normalises.
        device: The device.
    """

    def __init__(
        self,
        index: SyntheticIndex,
        preset: TrainPreset | ShiftPreset | EvalPreset,
        *,
        schedule: BatchSchedule,
        feeder: DeviceFeeder,
        device: Device,
    ) -> None:
        super().__init__(schedule)
        self._preset = preset
        self._feeder = feeder
        self._device = device.torch_device
        self._repeats = -(-schedule.batch_size // NUM_IMAGES) + 1
        seed = schedule.seed
        labels = hash64(seed, _STREAM_LABELS, np.arange(NUM_IMAGES)) % np.uint64(index.num_classes)
        target = torch.from_numpy(labels.astype(np.int64)).to(self._device)
        self._target = target.repeat(self._repeats)
        self._side = 0
        self._images = torch.empty(0)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; after its last batch the next epoch is the position."""
        schedule, feeder = self._schedule, self._feeder
        images = self._block(self._preset.at(schedule.epoch).image_size)
        samples = iter(schedule) if feeder.augmentation is not None else None
        for first, size in schedule.slices():
            start = first % NUM_IMAGES
            batch = images[start : start + size]
            if samples is not None:
                batch = feeder.normalize(batch, feeder.plan(schedule.epoch, next(samples)))
            yield batch, self._target[start : start + size]
        schedule.advance()

    def _block(self, side: int) -> torch.Tensor:
        """The images of this side, several times over: normalised, or uint8 [..., H, W, 3]."""
        if side == self._side:
            return self._images
        shape = (NUM_IMAGES, side, side, 3)
        size = math.prod(shape)
        words = hash64(self._schedule.seed, _STREAM_PIXELS, np.arange(-(-size // 8)))
        pixels = torch.from_numpy(words.astype("<u8").view(np.uint8)[:size].reshape(shape))
        plain = self._feeder.augmentation is None
        images = self._feeder.normalize(pixels) if plain else pixels.to(self._device)
        self._side, self._images = side, torch.cat([images] * self._repeats)
        return self._images

    def close(self) -> None:
        """Nothing to stop."""
