# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One sample from its file to finished pixels with Pillow, draws included.

What every loader equals, and what it turns to for an image that its own decoder does not read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from image_classification.augmentation import (
    EvalPreset,
    TrainPreset,
    horizontal_flips,
    random_resized_crop_boxes,
)
from image_classification.data_index import ImageIndex
from image_classification.image_reading import (
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

    def path(self, i: int) -> str:
        """Path of sample `i`."""
        return self._index.path(i)

    def read(self, epoch: int, i: int, output: NDArray[np.uint8]) -> None:
        """Read sample `i` as `epoch` shows it.

        Args:
            epoch: Epoch number.
            i: Sample index.
            output: uint8 [S, S, 3] with the preset's side in that epoch; untouched after an error.

        Raises:
            DataError: The file cannot be read.
        """
        path, preset = self._index.path(i), self._preset.at(epoch)
        with open_image(path) as image:
            rgb = decode_image(image, path)
            if isinstance(preset, EvalPreset):
                output[...] = eval_pixels(rgb, preset)
                return
            box = random_resized_crop_boxes(
                self._seed, epoch, [i], rgb.width, rgb.height, preset.scale, preset.ratio
            )[0]
            flip = bool(horizontal_flips(self._seed, epoch, [i], preset.flip)[0])
            output[...] = train_pixels(rgb, tuple(box.tolist()), flip, preset)
