# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The largest batch that fits into memory: `--batch-size auto`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from image_classification import distributed, host_memory
from image_classification.errors import DeviceMemoryError, UsageError
from image_classification.rehearsal import peak_memory, reset_peak, size, zero_images

if TYPE_CHECKING:
    from image_classification.device import Device

#: It goes no further: the recipes are made for it.
LARGEST_BATCH = 256
#: Share of the memory that it fills; fragments and other programs need some, too.
_SHARE_OF_HOST = 0.7
_SHARE_OF_ACCELERATOR = 0.92


def fitting_batch_size(
    model: nn.Module,
    device: Device,
    *,
    images: int,
    group: float,
    image_size: int,
    amp_dtype: torch.dtype | None,
    layout: Any,
    copies: int,
    processes: int,
) -> int:
    """Finds the largest batch whose training step fits into memory.

    Args:
        model: On the device; it is put back as it was.
        device: The device of this process.
        images: Training images of this rank.
        group: Images of this rank in an optimizer step, which whole batches make up; below 0: any.
        image_size: Side of the images.
        amp_dtype: Autocast type, None for FP32.
        layout: Memory format of the images.
        copies: Copies of the weights that a training has beside weights and gradients.
        processes: How many share the memory of this machine, on a CPU.

    Returns:
        The batch size, up to LARGEST_BATCH, the same on every rank.

    Raises:
        DeviceMemoryError: Not even the smallest fits.
        UsageError: There is no batch to choose from.
    """
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    total = _memory_for(device, processes) - copies * weights
    candidates = _candidates(images, group)

    def peak_of(batch: int) -> int | None:
        try:
            return _try_batch(model, device, batch, image_size, amp_dtype, layout)
        except Exception as error:
            if not device.is_out_of_memory(error):
                raise
            return None
        finally:
            device.release_memory()

    chosen = choose_batch(candidates, peak_of, total, confirm=device.is_accelerator)
    chosen = -distributed.max_over_ranks(-chosen)
    if chosen < 1:
        raise DeviceMemoryError(
            f"not even --batch-size {candidates[0]} fits into {size(total)} on {device}; use a "
            "smaller network or --image-size, or --amp"
        )
    return chosen


def _candidates(images: int, group: float) -> list[int]:
    """Batch sizes to choose from, growing: those that make up a group, else powers of two.

    One image is no batch: BatchNorm cannot learn from it where images are small.
    """
    most = min(images, LARGEST_BATCH)
    fitting = [2**power for power in range(1, most.bit_length())]
    if group > 0:
        fitting = [one for one in range(2, most + 1) if group % one == 0]
    if not fitting:
        of = f", and {group:g} per optimizer step," if group > 0 else ""
        raise UsageError(
            f"--batch-size auto: {images} training images per device{of} leave no batch of two or "
            "more; give a number, and an --optimizer-batch-size that all devices can share"
        )
    return fitting


def choose_batch(
    candidates: Sequence[int], peak_of: Callable[[int], int | None], limit: float, *, confirm: bool
) -> int:
    """Chooses a batch size by two small ones: memory grows linearly with it.

    Args:
        candidates: Batch sizes, growing.
        peak_of: Memory that a step with a batch takes, in bytes; None: there is not enough.
        limit: Memory that there is.
        confirm: Try the chosen one, too, and the next smaller one where it does not fit.

    Returns:
        The largest that fits, 0 if none does.
    """
    small, *others = candidates[:2] if len(candidates) < 4 else candidates[2:4]
    first = peak_of(small)
    if first is None or first > limit:
        return max((one for one in candidates if one < small and _fits(one, peak_of, limit)),
                   default=0)  # fmt: skip
    second = peak_of(others[0]) if others else None
    if second is None or second > limit:
        return small
    each = max((second - first) / (others[0] - small), 1.0)
    fitting = [one for one in candidates if first + each * (one - small) <= limit]
    while confirm and fitting[-1] > others[0] and not _fits(fitting[-1], peak_of, limit):
        fitting.pop()
    return fitting[-1]


def _fits(batch: int, peak_of: Callable[[int], int | None], limit: float) -> bool:
    peak = peak_of(batch)
    return peak is not None and peak <= limit


def _try_batch(
    model: nn.Module, device: Device, batch: int, side: int, amp_dtype: Any, layout: Any
) -> int:
    """Forward and backward; returns the peak in bytes."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        reset_peak(device)
        images = zero_images(device, batch, side, amp_dtype, layout)
        model.train()
        with device.autocast(amp_dtype):
            loss = model(images).float().logsumexp(1).sum()
        loss.backward()
        device.synchronize()
        return peak_memory(device)
    finally:
        for name, value in model.named_buffers():
            value.copy_(before[name])
        for parameter in model.parameters():
            parameter.grad = None


def _memory_for(device: Device, processes: int) -> float:
    memory = device.memory()
    if memory is not None and memory.total:
        return memory.total * _SHARE_OF_ACCELERATOR
    available = host_memory.available()
    if device.is_accelerator or available is None:
        raise DeviceMemoryError(
            f"{device} does not say how much memory it has: give --batch-size a number"
        )
    return host_memory.peak() + available * _SHARE_OF_HOST / processes
