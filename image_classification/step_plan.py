# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How the images of an epoch make up batches and optimizer steps."""

from __future__ import annotations

from image_classification.errors import UsageError


def accumulation_steps(batch_size: int, world_size: int, optimizer_batch: int) -> int:
    """Returns how many batches per device make one optimizer step.

    Args:
        batch_size: Images per device and batch.
        world_size: Number of devices.
        optimizer_batch: Images per optimizer step over all devices, -1 for one batch per device.

    Raises:
        UsageError: `optimizer_batch` is not a multiple of the images of one batch per device.
    """
    group = batch_size * world_size
    if optimizer_batch > 0 and optimizer_batch % group:
        raise UsageError(
            f"--optimizer-batch-size {optimizer_batch} is not a multiple of {group} (--batch-size "
            f"{batch_size} x {world_size} devices); nearest: "
            f"{max(1, round(optimizer_batch / group)) * group}"
        )
    return optimizer_batch // group if optimizer_batch > 0 else 1


def steps_per_epoch(num_samples: int, optimizer_batch: int, limits: list[int]) -> int:
    """Returns the optimizer steps of an epoch: whole batches only, within the limits, at least 1.

    Args:
        num_samples: Images of an epoch over all ranks.
        optimizer_batch: Images per optimizer step over all ranks.
        limits: Largest numbers of steps the user asked for.
    """
    return max(1, min([num_samples // optimizer_batch, *limits]))


def describe_steps(
    steps: int, images: int, batch_size: int, devices: int, batches: int, peak_lr: float
) -> str:
    """Says what an epoch consists of, and how many images of the data set it leaves out.

    Args:
        steps: Optimizer steps of an epoch.
        images: All that there are to train with.
        batch_size: Images per batch on each device.
        devices: Their number.
        batches: Batches of each device per optimizer step.
        peak_lr: Highest learning rate.
    """
    group = batch_size * devices * batches
    line = (
        f"{steps} optimizer steps per epoch of {group} images "
        f"({batch_size} x {devices} devices x {batches}), peak lr {peak_lr:g}"
    )
    left = images - steps * group
    if 0 < left < group:  # more are left by a limit of steps only
        line += f"; {left} of {images} images fill no step, others in each epoch"
    return line
