# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A split whose images are in memory: small images of one size, as one array."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PixelIndex:
    """Images and labels of one split; what an ImageIndex is for files.

    Attributes:
        root: Where the images come from.
        labels: int64 [N], each in 0 .. len(classes) - 1.
        classes: Class names; the position is the label.
        images: uint8 [N, S, S, 3], RGB.
        split: "train" or "val".
        source: "cifar" or "folder".
    """

    root: Path
    labels: NDArray[np.int64]
    classes: list[str]
    images: NDArray[np.uint8]
    split: str
    source: str

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: NDArray[np.int64]) -> PixelIndex:
        """The index of some of the images, in the order of `rows`; copies their pixels."""
        return replace(self, labels=self.labels[rows], images=self.images[rows])

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]
