# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "synthetic" backend: images that are on the device already, to measure all but the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
    slices share memory, so they must not be written to.

    Args:
        index: Number of samples and classes.
        preset: For the image size.
        schedule: Which samples this rank gets.
        feeder: Copies to the device and normalises.
    """

    def __init__(
        self,
        index: SyntheticIndex,
        preset: TrainPreset | ShiftPreset | EvalPreset,
        *,
        schedule: BatchSchedule,
        feeder: DeviceFeeder,
    ) -> None:
        super().__init__(schedule)
        shape = (NUM_IMAGES, preset.image_size, preset.image_size, 3)
        seed = schedule.seed
        words = hash64(seed, _STREAM_PIXELS, np.arange(-(-int(np.prod(shape)) // 8)))
        pixels = words.astype("<u8").view(np.uint8)[: int(np.prod(shape))].reshape(shape)
        labels = hash64(seed, _STREAM_LABELS, np.arange(NUM_IMAGES)) % np.uint64(index.num_classes)
        images = feeder.normalize(torch.from_numpy(pixels))
        target = torch.from_numpy(labels.astype(np.int64)).to(images.device)
        repeats = -(-schedule.batch_size // NUM_IMAGES) + 1
        self._images = torch.cat([images] * repeats)
        self._target = target.repeat(repeats)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; after its last batch the next epoch is the position."""
        for first, size in self._schedule.slices():
            start = first % NUM_IMAGES
            yield self._images[start : start + size], self._target[start : start + size]
        self._schedule.advance()

    def close(self) -> None:
        """Nothing to stop."""
