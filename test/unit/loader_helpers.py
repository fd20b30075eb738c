# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the loader tests share: stand-ins for devices, small image folders, readable batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalPreset, TrainPreset
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import create_loader
from image_classification.datasets import load_splits

NUM_IMAGES = 26
TRAIN = TrainPreset(image_size=16)
EVAL = EvalPreset(image_size=16, resize_size=18)


class HostDevice:
    """What a loader asks of a device, answered for the host; `accelerator` changes one answer."""

    type = "cpu"
    torch_device = torch.device("cpu")
    can_pin_memory = False
    count = 1

    def __init__(self, accelerator: bool = False) -> None:
        self.is_accelerator = accelerator

    def memory(self) -> None:
        return None

    def side_stream(self) -> None:
        return None

    def stream_context(self, stream: None) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record_event(self, stream: object) -> None:
        return None


class StreamDevice(HostDevice):
    """A device with streams that writes down what it is told, in order."""

    def __init__(self) -> None:
        super().__init__(accelerator=True)
        self.calls: list[str] = []

    def side_stream(self) -> str:
        return "side"

    @contextlib.contextmanager
    def stream_context(self, stream: str) -> Iterator[None]:
        self.calls.append(f"enter {stream}")
        yield
        self.calls.append("leave")

    def wait_stream(self, stream: str) -> None:
        self.calls.append(f"wait {stream}")

    def record_stream(self, tensor: torch.Tensor) -> None:
        self.calls.append("record")

    def record_event(self, stream: str) -> StreamEvent:
        return StreamEvent(self.calls)


class StreamEvent:
    """Marks a place among the calls of a StreamDevice."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def synchronize(self) -> None:
        self._calls.append("wait for copy")


def write_colours(root: Path) -> ImageIndex:
    """26 images in two classes; all pixels of sample i are (i, 2 i, 255 - i), whatever the crop."""
    for i in range(NUM_IMAGES):
        path = root / "train" / f"c{i // 13}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 45 - i), (i, 2 * i, 255 - i)).save(path)
    return load_splits(root, train=True, val=False).train


def write_photos(root: Path) -> ImageIndex:
    """Twelve JPEG images in which every crop and flip looks different."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / "train" / "0" / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        noise.resize((60 + i, 50), Image.BICUBIC).save(path)
    return load_splits(root, train=True, val=False).train


def make(index, preset=TRAIN, backend="pytorch", **options):
    defaults = {"device": HostDevice(), "batch_size": 4, "global_batch": 8, "seed": 3}
    return create_loader(backend, index, preset, **(defaults | options))


def colours(images: torch.Tensor) -> list[int]:
    """The sample index of each image, read from its pixels."""
    red = images[:, 0, 5, 5] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    return red.round().int().tolist()


def numbers(loader) -> list[list[int]]:
    """The sample indices of each batch; their labels must belong to them."""
    batches = []
    for images, target in loader:
        found = colours(images)
        assert target.dtype == torch.int64
        assert target.tolist() == [number // 13 for number in found]
        batches.append(found)
    loader.close()
    return batches
