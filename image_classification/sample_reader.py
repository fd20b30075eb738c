# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One sample from its file to finished pixels with Pillow, draws included.

What every loader equals, and what it turns to for an image that its own decoder does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from image_classification.augmentation import (
    EvalPreset,
    TrainPreset,
    horizontal_flips,
    policy_seeds,
    random_resized_crop_boxes,
)
from image_classification.data_index import ImageIndex
from image_classification.image_reading import (
    FILTERS,
    decode_image,
    eval_pixels,
    open_image,
    train_pixels,
)


class SampleReader:
    """Reads the samples of one split.

    Args:
        index: The images.
        preset: How they are prepared.
        seed: Seed of the run.
    """

    def __init__(self, index: ImageIndex, preset: TrainPreset | EvalPreset, seed: int) -> None:
        self._index = index
        self._preset = preset
        self._seed = seed
        self._policy = create_policy(preset) if isinstance(preset, TrainPreset) else None

    def path(self, i: int) -> str:
        """Path of sample `i`."""
        return self._index.path(i)

    def read(self, epoch: int, i: int, output: NDArray[np.uint8]) -> None:
        """Read sample `i` as `epoch` shows it.

        Args:
            epoch: Epoch number.
            i: Sample index.
            output: uint8 [image_size, image_size, 3]; untouched after an error.

        Raises:
            DataError: The file cannot be read.
        """
        path, preset = self._index.path(i), self._preset
        with open_image(path) as image:
            rgb = decode_image(image, path)
            if isinstance(preset, EvalPreset):
                output[...] = eval_pixels(rgb, preset)
                return
            box = random_resized_crop_boxes(
                self._seed, epoch, [i], rgb.width, rgb.height, preset.scale, preset.ratio
            )[0]
            flip = bool(horizontal_flips(self._seed, epoch, [i], preset.flip)[0])
            policy = None
            if self._policy is not None:
                policy = seeded(self._policy, int(policy_seeds(self._seed, epoch, [i])[0]))
            output[...] = train_pixels(rgb, tuple(box.tolist()), flip, preset, policy)


def create_policy(preset: TrainPreset) -> Callable[[Any], Any] | None:
    """torchvision's transform for the preset's policy, None where it has none."""
    if preset.policy is None:
        return None
    from torchvision import transforms

    return transforms.AutoAugment(
        transforms.AutoAugmentPolicy.IMAGENET,
        interpolation=transforms.InterpolationMode(FILTERS[preset.interpolation].name.lower()),
        fill=[128, 128, 128],
    )


def seeded(policy: Callable[[Any], Any], seed: int) -> Callable[[Any], Any]:
    """`policy` with torch's CPU generator at `seed`, put back afterwards."""

    def apply(image: Any) -> Any:
        # devices=[]: the state of accelerators is neither read nor written.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return policy(image)

    return apply
