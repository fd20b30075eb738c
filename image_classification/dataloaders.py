# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Loaders: what each of them promises, and the one place that makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from image_classification.augmentation import EvalPreset, ShiftPreset, TrainPreset
from image_classification.bad_images import BadImages
from image_classification.batch_augmentation import create_augmentation
from image_classification.batch_schedule import BatchSchedule
from image_classification.data_index import ImageIndex
from image_classification.datasets import Splits
from image_classification.device_feed import Batch, DeviceFeeder
from image_classification.errors import UsageError
from image_classification.pixel_index import PixelIndex
from image_classification.policies import require_torchvision
from image_classification.pytorch_loader import PytorchLoader
from image_classification.resident_loader import ResidentLoader
from image_classification.synthetic_loader import SyntheticIndex, SyntheticLoader

if TYPE_CHECKING:
    from image_classification.device import Device

__all__ = ["BACKENDS", "Loader", "SyntheticIndex", "create_loader", "synthetic_splits"]

BACKENDS = ("fast", "pytorch", "dali-cpu", "dali-gpu", "resident", "synthetic")


class Loader(Protocol):
    """An iterable of (images, target) on the device.

    images: float or half [B, 3, H, W], normalised, in the chosen memory format; target: int64 [B].
    The order is a function of (seed, epoch): the same for any number of ranks and workers, on any
    backend and after any resume. Images must not be modified in place.

    Attributes:
        notes: One-line texts about what was adapted, for the log.
    """

    notes: list[str]

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks, as used: training drops the last global batch if
        it is incomplete."""

    def set_position(self, epoch: int, samples: int) -> None:
        """Go on within `epoch` after `samples` samples, counted over all ranks.

        Raises:
            ValueError: Not a multiple of the global batch (training), or beyond the epoch.
        """

    def sample_ids(self, epoch: int, samples: int, count: int) -> list[int]:
        """The `count` images, over all ranks, that follow the first `samples` of an epoch."""

    def __len__(self) -> int:
        """Batches that this rank yields from the current position to the end of the epoch."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch. After its last batch the start of the next epoch is the
        position; an abandoned loop leaves the position where it was."""

    def explain_waiting(self, row: Mapping[str, float | None]) -> str | None:
        """What to change where training waits for its data; see `ScheduledLoader`."""

    def news(self) -> str | None:
        """What there is to say after an epoch and was not said before."""

    def close(self) -> None:
        """Free worker processes; call it when the loader is no longer needed."""


def choose_backend(
    wanted: str,
    policy: str | None,
    device_type: str = "cpu",
    *,
    in_memory: bool = False,
    cutout: int = 0,
    grows: bool = False,
) -> tuple[str, str | None]:
    """Settle which backend shows the images.

    Args:
        wanted: "auto" or one of BACKENDS.
        policy: The augmentation policy: it needs torchvision, whatever the backend.
        device_type: The kind of device.
        in_memory: The images are in memory already.
        cutout: Side of the cutout, which only the resident backend applies.
        grows: The images grow over the epochs, which the resident backend cannot do.

    Returns:
        The backend, and a line for the user where "auto" could not take the fast one.

    Raises:
        UsageError: The backend is not built or installed, or cannot do what is asked for.
    """
    if policy is not None:
        require_torchvision(policy)
    if in_memory and wanted != "synthetic":
        if grows:
            raise UsageError("--progressive-resize: images in memory have one size; leave it out")
        return _check_resident(wanted), None
    if wanted == "resident" or cutout:
        raise UsageError(
            f"{'--cutout' if cutout else '--data-backend resident'} needs images in memory: CIFAR, "
            "or a folder whose images all have the side --image-size"
        )
    if wanted in ("pytorch", "synthetic"):
        return wanted, None
    if wanted.startswith("dali"):
        from image_classification.dali_loader import require_dali

        require_dali(wanted == "dali-gpu", device_type)
        return wanted, None
    from image_classification.fast_loader.native import load_core

    if load_core() is not None:
        return "fast", None
    problem = (
        "the fast data loader is not built: python -m image_classification.fast_loader.build "
        "(needs a C++ compiler)"
    )
    if wanted != "auto":
        raise UsageError(problem)
    return "pytorch", f"{problem}; pytorch reads the images"


def _check_resident(wanted: str) -> str:
    """ "resident", if nothing is asked for that it cannot do."""
    if wanted not in ("auto", "resident"):
        raise UsageError(
            f"--data-backend {wanted} reads image files, and these are in memory: leave it out"
        )
    return "resident"


def synthetic_splits(sizes: tuple[int, int], num_classes: int) -> Splits:
    """Returns splits without files: numbers of training and validation images, and of classes."""
    # To a loader an index without files is an index like any other.
    train, val = (cast(ImageIndex, SyntheticIndex(size, num_classes)) for size in sizes)
    return Splits(train, val, train.classes, num_classes, [])


def create_loader(
    backend: str,
    index: ImageIndex | PixelIndex | SyntheticIndex,
    preset: TrainPreset | ShiftPreset | EvalPreset,
    *,
    device: Device,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    global_batch: int = 0,
    seed: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    memory_format: torch.memory_format = torch.contiguous_format,
    dtype: torch.dtype = torch.float32,
    bad: BadImages | None = None,
) -> Loader:
    """Make the loader of one split; an EvalPreset neither shuffles nor augments, the others do.

    Args:
        backend: One of BACKENDS; see `choose_backend`.
        index: The images; for "resident" a PixelIndex, for "synthetic" only how many.
        preset: How the images are prepared.
        device: Where the batches go.
        batch_size: Images per device and batch, >= 1.
        rank: This process, 0 .. world_size - 1, the processes of the run on all machines.
        world_size: Their number.
        global_batch: Training: images per optimizer step over all ranks and accumulation steps.
        seed: Seed of the order and of all draws.
        workers: Threads, or worker processes ("pytorch", where 0 reads in this process).
        prefetch: Batches ahead of the consumer, or in flight for each worker process, >= 1.
        memory_format, dtype: Layout and type of the images.
        bad: What happens to unreadable images; by default, validation alone stops at the first.

    Raises:
        UsageError: Unknown backend, or a package that the preset needs is missing.
        DataError: Too few images, or too little shared memory.
        ValueError: Numbers that do not fit together.
    """
    training = not isinstance(preset, EvalPreset)
    schedule = BatchSchedule(
        len(index), batch_size=batch_size, rank=rank, world_size=world_size,
        global_batch=global_batch, seed=seed, training=training,
    )  # fmt: skip
    augmentation = create_augmentation(preset, seed, device)
    feeder = DeviceFeeder(device, augmentation, dtype=dtype, memory_format=memory_format)
    common: Any = {"schedule": schedule, "feeder": feeder, "device": device}
    if backend == "synthetic":
        return SyntheticLoader(SyntheticIndex(len(index), len(index.classes)), preset, **common)
    if backend == "resident":
        if not isinstance(index, PixelIndex) or isinstance(preset, TrainPreset):
            raise ValueError("the backend 'resident' needs a PixelIndex and a preset for it")
        return ResidentLoader(index, preset, **common)
    if not isinstance(index, ImageIndex) or isinstance(preset, ShiftPreset):
        raise ValueError(f"the backend {backend!r} reads files: it needs an ImageIndex")
    bad = bad or BadImages(len(index), tolerated=training, seed=seed)
    common |= {"bad": bad, "prefetch": prefetch}
    if backend == "pytorch":
        return PytorchLoader(index, preset, workers=workers, world_size=world_size, **common)
    return _threaded_loader(backend)(index, preset, threads=workers, **common)


def _threaded_loader(backend: str) -> Callable[..., Loader]:
    """The loader of a backend with a decoder of its own, imported only where it is wanted."""
    if backend not in BACKENDS:
        raise UsageError(f"unknown data backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "fast":
        from image_classification.fast_loader.loader import FastLoader

        return FastLoader
    from image_classification.dali_loader import DaliLoader

    return partial(DaliLoader, on_gpu=backend == "dali-gpu")
