# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The contenders of loader.py: this package's loaders, their peers, and the network they feed."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from benchmarks.peers import loaders as peers
from benchmarks.train_contenders import Setup, build_trainer, finite
from image_classification import dataloaders
from image_classification.augmentation import (
    TrainPreset,
    horizontal_flips,
    random_resized_crop_boxes,
)
from image_classification.dali_loader import decode_graph
from image_classification.data_index import ImageIndex, IndexBuilder
from image_classification.device import Device
from image_classification.errors import DataError, UsageError
from image_classification.fast_loader.native import CROP, NativeDecoder, Status, kernel_names
from image_classification.image_reading import file_content

SEED = 0
SETTLE_S = 1.5


def index_of(folder: Path, at_least: int = 1) -> ImageIndex:
    """All JPEG files below a folder as one class.

    Args:
        folder: The folder.
        at_least: The files are listed again and again up to so many: at the end of a short epoch
            every loader runs dry.

    Raises:
        DataError: There is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise DataError(f"{folder} holds no JPEG file")
    builder = IndexBuilder()
    for path in paths * -(-at_least // len(paths)):
        builder.add(os.fsencode(path.relative_to(folder)), 0)
    return builder.build(folder, ["all"], "train", "folder")


class Crops:
    """The files and crops of batch after batch, the same for every contender.

    Args:
        index: The files.
        batch_size: Images of a batch.
    """

    def __init__(self, index: ImageIndex, batch_size: int) -> None:
        decoder = NativeDecoder(1)
        batch = decoder.load(index.paths(range(len(index))))
        batch.wait()
        self.contents = [file_content(path) for path in index.paths(range(len(index)))]
        self.sizes = np.stack([batch.widths, batch.heights], axis=1)
        batch.free()
        decoder.close()
        self.batch_size = batch_size

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.bool_]]:
        """Sample indices, boxes and flips of a batch."""
        first = number * self.batch_size
        indices = np.arange(first, first + self.batch_size) % len(self.contents)
        epoch = first // len(self.contents)
        width, height = self.sizes[indices].T
        boxes = random_resized_crop_boxes(SEED, epoch, indices, width, height)
        return indices, boxes, horizontal_flips(SEED, epoch, indices, 0.5)


class PeerRunner:
    """One thread that decodes image by image.

    Args:
        name: One of `peers.NAMES`.
        crops: What to decode.
        side: Side of the output.
    """

    def __init__(self, name: str, crops: Crops, side: int) -> None:
        self._decode = peers.create(name)
        self._crops, self._side, self._number = crops, side, 0

    def run(self, steps: int) -> int:
        """Decode batches; returns their images."""
        for _ in range(steps):
            indices, boxes, flips = self._crops.batch(self._number)
            self._number += 1
            batch = np.empty((len(indices), self._side, self._side, 3), dtype=np.uint8)
            for i, (index, box, flip) in enumerate(
                zip(indices, boxes.tolist(), flips, strict=True)
            ):
                batch[i] = self._decode(self._crops.contents[index], tuple(box), flip, self._side)
        return steps * self._crops.batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add."""
        return {}


class NativeRunner:
    """The C++ core with one thread.

    Args:
        kernels: Instruction set.
        crops: What to decode.
        side: Side of the output.
    """

    def __init__(self, kernels: str, crops: Crops, side: int) -> None:
        if kernels not in kernel_names():
            raise measure.Unavailable(f"this processor or build has {kernel_names() or 'none'}")
        self._decoder = NativeDecoder(1, kernels)
        self._crops, self._number = crops, 0
        self._output = np.empty((crops.batch_size, side, side, 3), dtype=np.uint8)

    def run(self, steps: int) -> int:
        """Decode batches; returns their images."""
        for _ in range(steps):
            indices, boxes, flips = self._crops.batch(self._number)
            self._number += 1
            batch = self._decoder.load_bytes([self._crops.contents[i] for i in indices])
            crops = np.zeros(len(indices), dtype=CROP)
            crops["box"] = crops["bounds"] = boxes
            crops["flip"] = flips
            batch.decode(crops, np.zeros(len(indices), dtype=bool), self._output)
            batch.wait()
            if (batch.statuses != Status.OK).any():
                raise DataError("the core cannot decode some of these files; give baseline JPEGs")
            batch.free()
        return steps * self._crops.batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add."""
        return {}


class DaliRunner:
    """DALI's CPU pipeline with one thread, decoding the region only.

    Args:
        crops: What to decode.
        side: Side of the output.
    """

    def __init__(self, crops: Crops, side: int) -> None:
        try:
            dali = importlib.import_module("nvidia.dali")
        except (ImportError, OSError) as error:
            raise measure.Unavailable(f"{error}: pip install nvidia-dali-cuda130") from error
        self._crops, self._number = crops, 0
        self._pipeline = dali.Pipeline(crops.batch_size, num_threads=1, device_id=None)
        with self._pipeline:
            self._pipeline.set_outputs(
                decode_graph(self._next_batch, TrainPreset(image_size=side), on_gpu=False)
            )
        self._pipeline.build()

    def _next_batch(self) -> tuple[Any, ...]:
        indices, boxes, flips = self._crops.batch(self._number)
        self._number += 1
        files = [np.frombuffer(self._crops.contents[i], dtype=np.uint8) for i in indices]
        starts, ends = (np.ascontiguousarray(part) for part in (boxes[:, 1::-1], boxes[:, :1:-1]))
        return files, list(flips.astype(np.int32)), list(starts), list(ends)

    def run(self, steps: int) -> int:
        """Decode batches; returns their images."""
        for _ in range(steps):
            (images,) = self._pipeline.run()
            np.array(images.as_tensor())
        return steps * self._crops.batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add; it reads ahead, see `BatchRunner`."""
        time.sleep(SETTLE_S)
        return {}


class HostFeeder:
    """Stands in for the copy to a device: batches stay as bytes in host memory."""

    def plan(self, epoch: int, indices: Any) -> None:
        """No augmentation."""

    def __call__(self, batches: Iterable[Any], copied: Any = None) -> Iterator[Any]:
        """Pass the batches on."""
        for batch in batches:
            yield batch
            if copied is not None:
                copied(None)


def endless(loader: Any) -> Iterator[Any]:
    """The batches of epoch after epoch."""
    while True:
        yield from loader


def epochs(
    backend: str,
    index: ImageIndex,
    side: int,
    batch_size: int,
    workers: int,
    device: Device | None = None,
    **options: Any,
) -> Iterator[Any]:
    """Endless batches of a loader of this package, from files.

    Args:
        backend: Its name.
        index: The files.
        side: Side of the crops.
        batch_size: Images of a batch.
        workers: Threads or processes.
        device: Where batches go; None: they stay bytes in host memory.
        **options: Further arguments of `create_loader`.

    Raises:
        Unavailable: The backend is not installed.
    """
    try:
        dataloaders.choose_backend(backend, None)
    except UsageError as error:
        raise measure.Unavailable(str(error)) from error
    loader: Any = dataloaders.create_loader(
        backend, index, TrainPreset(image_size=side), device=device or Device.select("cpu"),
        batch_size=batch_size, global_batch=batch_size, seed=SEED, workers=workers, **options,
    )  # fmt: skip
    if device is None:
        loader._feeder = HostFeeder()
    return endless(loader)


class BatchRunner:
    """Takes batches.

    Args:
        batches: Endless.
        batch_size: Images of a batch.
    """

    def __init__(self, batches: Iterator[Any], batch_size: int) -> None:
        self._batches, self._batch_size = batches, batch_size

    def run(self, steps: int) -> int:
        """Take batches; returns their images."""
        for _ in range(steps):
            next(self._batches)
        return steps * self._batch_size

    def facts(self) -> dict[str, float]:
        """Nothing to add; whoever reads ahead gets time to finish before another one's turn."""
        time.sleep(SETTLE_S)
        return {}


class TrainingRunner:
    """The training step of `main.py --amp`.

    Args:
        arch: Name of the network.
        device: The device.
        setup: Precision and layout.
        batches: Endless (images, target) on the device; None: always the batch of the setup.
    """

    def __init__(
        self, arch: str, device: Device, setup: Setup, batches: Iterator[Any] | None = None
    ) -> None:
        self._trainer = build_trainer(arch, device, setup)
        self._batch_size = len(setup.target)
        self._batches = batches or endless([(setup.images, setup.target)])

    def run(self, steps: int) -> int:
        """Train; returns the images."""
        for _ in range(steps):
            self._trainer.train_step(*next(self._batches))
        return steps * self._batch_size

    def facts(self) -> dict[str, float]:
        """The mean loss since the last call; see also `BatchRunner.facts`."""
        sums = self._trainer.sums.read()
        time.sleep(SETTLE_S)
        return {"loss": finite(sums.loss / max(sums.images, 1))}


def loader_options(setup: Setup) -> dict[str, Any]:
    """What a loader gives in the setup's precision and layout."""
    return {"memory_format": setup.memory_format, "dtype": setup.amp_dtype or torch.float32}
