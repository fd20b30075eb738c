# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Before the first epoch: whatever would end the run hours later is tried at full size.

One training step, one validation batch and one checkpoint, with images that are all zero. Weights,
optimizer, averages, counters and random numbers are put back: the run that follows is bit for bit
the one without.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from image_classification import distributed, host_memory
from image_classification.checkpoint import snapshot
from image_classification.errors import CheckpointError, DeviceMemoryError, UsageError

if TYPE_CHECKING:
    from image_classification.checkpoint_files import CheckpointFiles
    from image_classification.dataloaders import Loader
    from image_classification.device import Device
    from image_classification.logger import Logger
    from image_classification.training import Trainer

#: `--batch-size auto` goes no further: the recipes are made for it.
LARGEST_BATCH = 256
#: Share of the memory that it fills; fragments and other programs need some, too.
_SHARE_OF_HOST = 0.7
_SHARE_OF_ACCELERATOR = 0.92
#: Open files with which a run with many workers and ranks gets along.
_FILES = 65536
_FEW_FILES = 1024


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


def check_ahead(
    trainer: Trainer,
    loaders: dict[str, Loader],
    files: CheckpointFiles | None,
    logger: Logger,
    *,
    epochs: int,
    image_size: int,
    layout: Any,
    held: Callable[[], contextlib.AbstractContextManager[None]],
    rehearses: bool,
    explains: bool,
) -> None:
    """Does all of it and tells what was found; all ranks call it.

    Args:
        trainer: See `rehearse`.
        loaders: Of "train" and "val", as far as there are any.
        files: Where the checkpoints go; None: the run writes none.
        logger: Is told.
        epochs: Of the training.
        image_size: Side of the images in pixels.
        layout: Their memory format.
        held: See `check_disk`.
        rehearses: Whether a step is tried; TorchScript looks at its first runs, and would see
            others.
        explains: Also say what the training will do with images and learning rate.

    Raises:
        CheckpointError: A checkpoint cannot be written, or there is not enough room.
        DeviceMemoryError: There is not enough memory.
    """
    if (note := raise_file_limit()) is not None:
        logger.warning(note)
    if not rehearses:
        return
    batch_size = trainer.batch_images // trainer.world_size
    rehearsal = rehearse(trainer, batch_size, image_size, layout)
    disk = "no checkpoints"
    if files is not None:
        disk = check_disk(files, rehearsal.state, epochs, held, writes=trainer.rank == 0)
    logger.message(f"checked: {rehearsal}; {disk}")
    if explains:
        logger.message(*describe(trainer, loaders, epochs))


def rehearse(trainer: Trainer, batch_size: int, image_size: int, layout: Any) -> Rehearsal:
    """Trains and validates one batch at full size, and puts everything back as it was.

    Args:
        trainer: Not yet wrapped for several ranks: no gradients are shared. All ranks call it.
        batch_size: Images of a batch.
        image_size: Their side.
        layout: Their memory format.

    Raises:
        DeviceMemoryError: There is not enough memory.
    """
    device = trainer.device
    try:
        with _unchanged(trainer):
            return _rehearse(trainer, batch_size, image_size, layout)
    except Exception as error:
        if not device.is_out_of_memory(error):
            raise
        raise DeviceMemoryError(device.explain_out_of_memory(error, batch_size)) from error


def _rehearse(trainer: Trainer, batch_size: int, image_size: int, layout: Any) -> Rehearsal:
    device = trainer.device
    _reset_peak(device)
    # Two batches: while one is used the next one is on its way.
    images, _ = (
        _images(device, batch_size, image_size, trainer.amp_dtype, layout) for _ in range(2)
    )
    target = torch.zeros(batch_size, dtype=torch.int64, device=device.torch_device)
    started = time.perf_counter()
    trainer.train_alone(images, target)
    device.synchronize()
    seconds = time.perf_counter() - started
    trainer.model.eval()
    with torch.inference_mode(), device.autocast(trainer.amp_dtype):
        trainer.model(images)
    device.synchronize()
    memory = device.memory()
    total = memory.total if memory else _host_total()
    return Rehearsal(seconds, _peak(device), total, snapshot(trainer.state_dict()))


def _images(
    device: Device, batch_size: int, side: int, amp_dtype: torch.dtype | None, layout: Any
) -> torch.Tensor:
    """A batch as a loader makes it, all zero."""
    shape = (batch_size, 3, side, side)
    zeros = torch.zeros(shape, dtype=amp_dtype or torch.float32, device=device.torch_device)
    return zeros.contiguous(memory_format=layout)


@contextlib.contextmanager
def _unchanged(trainer: Trainer) -> Iterator[None]:
    """Puts everything back that a step changes."""
    before, random = snapshot(trainer.state_dict()), torch.get_rng_state()
    modes = [(module, module.training) for module in trainer.model.modules()]
    try:
        yield
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.model.load_state_dict(before["state_dict"])
        trainer.load_state_dict(before)
        for module, training in modes:
            module.training = training
        torch.set_rng_state(random)


def check_disk(
    files: CheckpointFiles,
    state: dict[str, Any],
    epochs: int,
    held: Callable[[], contextlib.AbstractContextManager[None]],
    writes: bool,
) -> str:
    """Writes a checkpoint at full size, removes it, and compares the disk with what is planned.

    Args:
        files: Those of the run.
        state: The checkpoint.
        epochs: Of the training.
        held: A context in which no signal raises: within torch.save the exception would get lost.
        writes: Whether this rank does it; all ranks call it.

    Returns:
        What was found, in a few words.

    Raises:
        CheckpointError: It cannot be written, or there is not enough room; on all ranks.
    """
    text = problem = ""
    if writes:
        try:
            with held():
                text = _try_disk(files, state, epochs)
        except CheckpointError as error:
            problem = str(error)
    text, problem = distributed.share_from_primary([text, problem])
    if problem:
        raise CheckpointError(problem)
    return text


def _try_disk(files: CheckpointFiles, state: dict[str, Any], epochs: int) -> str:
    started = time.perf_counter()
    each = files.try_writing(state)
    seconds = time.perf_counter() - started
    planned, held = files.planned(epochs) * each, files.held()
    free = shutil.disk_usage(files.folder).free
    if free < planned - held:
        raise CheckpointError(
            f"the checkpoints of this run need {size(planned)} ({planned // each} of "
            f"{size(each)}), {files.folder} has {size(free)} left; free disk space, choose another "
            "--workspace or lower --gather-checkpoints"
        )
    return (
        f"a checkpoint takes {size(each)} and {seconds:.1f} s, up to {planned // each} of them "
        f"{size(planned)}, the disk has {size(free)} free"
    )


def raise_file_limit() -> str | None:
    """Lets this process open as many files as it may; says so where these are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        return f"only {soft} files may be open at a time: raise the limit, ulimit -n {_FILES}"
    return None


def describe(trainer: Trainer, loaders: dict[str, Loader], epochs: int) -> list[str]:
    """Loads a batch of each loader and says what a training will do with them.

    Returns:
        Lines: the images of each split, the learning rate over the epochs, and that all is well.
    """
    lines = []
    for split, loader in loaders.items():
        images, target = next(iter(loader), (None, None))
        if images is None or target is None:
            continue  # other ranks have them all
        lines.append(
            f"{split}: {loader.num_samples} images per epoch, batches of {list(images.shape)}, "
            f"classes {int(target.min())} to {int(target.max())} in the first one"
        )
    steps = trainer.num_batches // trainer.accumulation_steps
    shown = sorted({round(part * (epochs - 1) / 9) for part in range(10)})
    cells = [f"epoch {epoch + 1}: {trainer.rate(epoch * steps):.3g}" for epoch in shown]
    last = f"last step: {trainer.rate(epochs * steps - 1):.3g}"
    lines.append(f"learning rate: {', '.join([*cells, last])}")
    return [*lines, "check passed: nothing was trained, nothing was left behind"]


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
        _reset_peak(device)
        images = _images(device, batch, side, amp_dtype, layout)
        model.train()
        with device.autocast(amp_dtype):
            loss = model(images).float().logsumexp(1).sum()
        loss.backward()
        device.synchronize()
        return _peak(device)
    finally:
        for name, value in model.named_buffers():
            value.copy_(before[name])
        for parameter in model.parameters():
            parameter.grad = None


def _reset_peak(device: Device) -> None:
    device.reset_peak_memory()
    host_memory.reset_peak()


def _peak(device: Device) -> int:
    """The most memory in bytes since `_reset_peak`: of the device, of this process on a CPU."""
    memory = device.memory()
    return memory.peak if memory else host_memory.peak()


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


def _host_total() -> int | None:
    available = host_memory.available()
    return None if available is None else host_memory.peak() + available
