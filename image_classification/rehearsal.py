# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Training steps at full size that leave no trace, to see what they take.

The images are all zero. Weights, optimizer, averages, counters and random numbers are put back: the
run that follows is bit for bit the one without.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from image_classification import host_memory, sharding
from image_classification.checkpoint import snapshot
from image_classification.errors import DeviceMemoryError

if TYPE_CHECKING:
    from image_classification.device import Device
    from image_classification.training import Trainer


@dataclass(frozen=True)
class Rehearsal:
    """What one step at full size took.

    Attributes:
        seconds: Of the first training step, compilation and autotuning included.
        peak: Memory in bytes: of the device, or of this process on a CPU.
        total: What there is of it; None where that is not known.
        state: The checkpoint's training part as it will be from the first step on, on the CPU.
    """

    seconds: float
    peak: int
    total: int | None
    state: dict[str, Any]

    def __str__(self) -> str:
        total = "" if self.total is None else f" of {size(self.total)}"
        return f"a training step takes {size(self.peak)}{total}, the first one {self.seconds:.1f} s"


def size(number: float) -> str:
    """Writes a number of bytes, for example "1.5 GiB"."""
    unit, divisor = ("GiB", 2**30) if number >= 2**30 else ("MiB", 2**20)
    return f"{number / divisor:.{1 if divisor == 2**30 else 0}f} {unit}"


def rehearse(trainer: Trainer, batch_size: int, image_size: int, layout: Any) -> Rehearsal:
    """Trains and validates one batch at full size, and puts everything back as it was.

    Args:
        trainer: Not yet wrapped for several ranks: no gradients are added up, unless the network
            is sharded. All ranks call it.
        batch_size: Images of a batch.
        image_size: Their side.
        layout: Their memory format.

    Raises:
        DeviceMemoryError: There is not enough memory.
    """
    device = trainer.device
    try:
        with unchanged(trainer):
            return _rehearse(trainer, batch_size, image_size, layout)
    except Exception as error:
        if not device.is_out_of_memory(error):
            raise
        raise DeviceMemoryError(device.explain_out_of_memory(error, batch_size)) from error


def _rehearse(trainer: Trainer, batch_size: int, image_size: int, layout: Any) -> Rehearsal:
    device = trainer.device
    reset_peak(device)
    # Two batches: while one is used the next one is on its way.
    images, _ = (
        zero_images(device, batch_size, image_size, trainer.amp_dtype, layout) for _ in range(2)
    )
    seconds = _timed_step(trainer, images)
    trainer.model.eval()
    with sharding.gathered(trainer.model), torch.inference_mode():
        with device.autocast(trainer.amp_dtype):
            trainer.model(images)
    device.synchronize()
    memory = device.memory()
    total = memory.total if memory else _host_total()
    return Rehearsal(seconds, peak_memory(device), total, snapshot(trainer.state_dict()))


def step_times(trainer: Trainer, image_size: int, layout: Any) -> list[float]:
    """Trains three times on one batch, and puts everything back; returns the seconds of each.

    Args:
        trainer: All ranks of it call this.
        image_size: Side of the images in pixels.
        layout: Their memory format.
    """
    batch = trainer.batch_images // trainer.world_size
    images = zero_images(trainer.device, batch, image_size, trainer.amp_dtype, layout)
    with unchanged(trainer):
        return [_timed_step(trainer, images) for _ in range(3)]


def _timed_step(trainer: Trainer, images: torch.Tensor) -> float:
    """Trains on these images, all of the first class; returns the seconds."""
    device = trainer.device
    target = torch.zeros(len(images), dtype=torch.int64, device=device.torch_device)
    started = time.perf_counter()
    trainer.train_alone(images, target)
    device.synchronize()
    return time.perf_counter() - started


def zero_images(
    device: Device, batch_size: int, side: int, amp_dtype: torch.dtype | None, layout: Any
) -> torch.Tensor:
    """A batch as a loader makes it, all zero."""
    shape = (batch_size, 3, side, side)
    zeros = torch.zeros(shape, dtype=amp_dtype or torch.float32, device=device.torch_device)
    return zeros.contiguous(memory_format=layout)


@contextlib.contextmanager
def unchanged(trainer: Trainer) -> Iterator[None]:
    """Puts everything back that a step changes; not on several ranks of which this one fails."""
    before, random = snapshot(trainer.state_dict()), torch.get_rng_state()
    modes = [(module, module.training) for module in trainer.model.modules()]
    all_here = True
    try:
        yield
    except Exception:
        all_here = trainer.world_size == 1  # else the others may be in the middle of a step
        raise
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        if all_here:
            trainer.restore(before)
        for module, training in modes:
            module.training = training
        torch.set_rng_state(random)


def reset_peak(device: Device) -> None:
    """Lets `peak_memory` start anew."""
    device.reset_peak_memory()
    host_memory.reset_peak()


def peak_memory(device: Device) -> int:
    """The most memory in bytes since `reset_peak`: of the device, of this process on a CPU."""
    memory = device.memory()
    return memory.peak if memory else host_memory.peak()


def _host_total() -> int | None:
    available = host_memory.available()
    return None if available is None else host_memory.peak() + available
