# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How others feed CIFAR: torchvision's data set and transforms in a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers import require


class ArrayDataset(torch.utils.data.Dataset):
    """What torchvision.datasets.CIFAR10 does once it has its array: an image, transformed.

    Args:
        images: uint8 [N, 32, 32, 3].
        labels: int64 [N].
        transform: Of a PIL image.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], transform: Any
    ) -> None:
        self._images, self._labels, self._transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self._transform(Image.fromarray(self._images[i])), self._labels[i]


def batches(
    images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, workers: int
) -> Iterator[Any]:
    """Endless (float32 [B, 3, 32, 32], int64 [B]) with the usual augmentation.

    Raises:
        Unavailable: torchvision is not installed.
    """
    return _endless(_loader(images, labels, batch_size, workers))


def _endless(loader: torch.utils.data.DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def _loader(
    images: NDArray[np.uint8], labels: NDArray[np.int64], batch_size: int, workers: int
) -> torch.utils.data.DataLoader:
    transforms = require("torchvision.transforms", "torchvision")
    transform = transforms.Compose([
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ])  # fmt: skip
    return torch.utils.data.DataLoader(
        ArrayDataset(images, labels, transform), batch_size=batch_size, shuffle=True,
        num_workers=workers, drop_last=True, persistent_workers=True,
    )  # fmt: skip
