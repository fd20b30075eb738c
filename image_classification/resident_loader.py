# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "resident" backend: a data set of small images lies in memory, on the device if it fits.

Shifts, flips and cutouts are drawn on the host once per epoch, by the same functions of seed, epoch
and sample as for every backend, and applied to whole batches where the images are. There is no
worker, no thread and no work per image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from image_classification.augmentation import (
    IMAGENET_MEAN,
    EvalPreset,
    ShiftPreset,
    draw_shifts,
)
from image_classification.batch_augmentation import Plan
from image_classification.batch_schedule import BatchSchedule, ScheduledLoader
from image_classification.device_feed import Batch, DeviceFeeder
from image_classification.fast_loader.native import MAX_SMALL_SIDE, load_core, small_crops
from image_classification.pixel_index import PixelIndex

if TYPE_CHECKING:
    from image_classification.device import Device

# Share of the device's memory that the images may take.
_MEMORY_SHARE = 0.25


class ResidentLoader(ScheduledLoader):
    """Yields normalised batches on the device; see `dataloaders.Loader` for the contract.

    Args:
        index: The images.
        preset: ShiftPreset for training; an EvalPreset shows the images as they are.
        schedule: Which of them this rank gets, and in which order.
        feeder: Copies to the device, augments and normalises.
        device: The device.

    Attributes:
        notes: One-line texts about what was adapted.

    Raises:
        ValueError: The preset is for images of another size.
    """

    def __init__(
        self,
        index: PixelIndex,
        preset: ShiftPreset | EvalPreset,
        *,
        schedule: BatchSchedule,
        feeder: DeviceFeeder,
        device: Device,
    ) -> None:
        super().__init__(schedule)
        side = index.image_size
        if preset.image_size != side:
            raise ValueError(f"images of {side} pixels, a preset for {preset.image_size}")
        # An image as it is is one with nothing around it and no draws.
        if isinstance(preset, EvalPreset):
            preset = ShiftPreset(side, padding=0, flip=0.0)
        self._preset = preset
        self._feeder = feeder
        augmentation = feeder.augmentation
        self._cutout = 0 if augmentation and augmentation.cuts_out else preset.cutout
        self._padded_side = side + 2 * preset.padding
        pixels = _pad(index.images, preset.padding)
        memory = device.memory()
        total = 0 if memory is None else memory.total  # 0: not known
        fits = total <= 0 or pixels.numel() * 4 <= _MEMORY_SHARE * total
        if not fits:
            self.notes.append(f"{pixels.numel() * 4 / 2**30:.1f} GiB of images stay on the host")
        self._device = device.torch_device
        self._place = self._device if fits else torch.device("cpu")
        self._pixels = pixels.to(self._place)
        self._mean = torch.tensor(np.rint(IMAGENET_MEAN), dtype=torch.uint8, device=self._place)
        self._labels = torch.from_numpy(index.labels).to(self._place)
        rows, columns = torch.arange(side), torch.arange(side)
        # On a CPU the compiled core does in one pass what takes several of torch's.
        small = self._padded_side <= MAX_SMALL_SIDE
        on_host = small and self._device.type == "cpu" and load_core() is not None
        on_host &= augmentation is None and feeder.dtype == torch.float32
        self._small_crops = small_crops if on_host else None
        self._mean_pixel = int.from_bytes(bytes(self._mean.tolist()), "little")  # as in `_pad`
        self._grids = torch.stack([
            rows[:, None] * self._padded_side + columns,
            rows[:, None] * self._padded_side + columns.flip(0),
        ]).to(self._place)  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; after its last batch the next epoch is the position."""
        if self._place == self._device:
            for draws, plan in self._plans():
                yield self._images(draws, plan), self._labels[draws[:, 0]]
        else:
            yield from self._feeder(
                (self._crops(draws), self._labels[draws[:, 0]], plan)
                for draws, plan in self._plans()
            )
        self._schedule.advance()

    def close(self) -> None:
        """Nothing to stop."""

    def _plans(self) -> Iterator[tuple[torch.Tensor, Plan | None]]:
        """What each batch shows, int64 [B, 6] where the images lie, and what is done to it besides.

        Shifts, flips and cutouts are drawn for the epoch at once.
        """
        parts = list(self._schedule)
        if not parts:
            return
        indices = np.concatenate(parts)
        draws = draw_shifts(self._preset, self._schedule.seed, self._schedule.epoch, indices)
        plan = np.concatenate([indices[:, None], draws.astype(np.int64)], axis=1)
        rows = torch.from_numpy(plan).to(self._place)
        start = 0
        for part in parts:
            augmented = self._feeder.plan(self._schedule.epoch, part)
            yield rows[start : start + len(part)], augmented
            start += len(part)

    def _images(self, draws: torch.Tensor, plan: Plan | None) -> torch.Tensor:
        """Normalised images of a batch, on the device; see `_plans`."""
        feeder, side = self._feeder, self._preset.image_size
        if self._small_crops is None:
            return feeder.normalize(self._crops(draws), plan)
        images = torch.empty(
            (len(draws), 3, side, side), dtype=torch.float32, memory_format=feeder.memory_format
        )
        self._small_crops(
            self._pixels.view(-1, self._padded_side, self._padded_side).numpy(), draws.numpy(),
            images.numpy(), cutout=self._cutout, mean=self._mean_pixel,
            scale=feeder.scale.flatten().numpy(), shift=feeder.shift.flatten().numpy(),
            threads=torch.get_num_threads(),
        )  # fmt: skip
        return images

    def _crops(self, draws: torch.Tensor) -> torch.Tensor:
        """The images of a batch, int64 [B, 6], as uint8 [B, S, S, 3]."""
        image, top, left, flip, row, column = draws.unbind(1)
        first = (image * self._padded_side + top) * self._padded_side + left
        where = first[:, None, None] + self._grids[flip]
        crops = self._pixels[where].view(torch.uint8).unflatten(-1, (-1, 4))[..., :3]
        return crops if self._cutout == 0 else self._cut_out(crops, row, column)

    def _cut_out(
        self, crops: torch.Tensor, row: torch.Tensor, column: torch.Tensor
    ) -> torch.Tensor:
        """The crops with a square of the mean colour; it may reach over the edge."""
        side, size = self._preset.image_size, self._cutout
        places = torch.arange(side, device=crops.device)
        down, right = (
            (places >= centre[:, None] - size // 2) & (places < centre[:, None] + (size + 1) // 2)
            for centre in (row, column)
        )
        hole = (down[:, :, None] & right[:, None, :]).unsqueeze(-1)
        return torch.where(hole, self._mean, crops)


def _pad(images: np.ndarray, padding: int) -> torch.Tensor:
    """uint8 [N, S, S, 3] as int32 [N * P * P], a pixel each, with black around every image."""
    count, side = images.shape[:2]
    padded = np.zeros((count, side + 2 * padding, side + 2 * padding, 4), dtype=np.uint8)
    padded[:, padding : padding + side, padding : padding + side, :3] = images
    return torch.from_numpy(padded.view("<i4").astype(np.int32, copy=False).reshape(-1))
