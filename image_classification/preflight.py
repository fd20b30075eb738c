# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Before the first epoch: whatever would end the run hours later is tried at full size.

One training step, one validation batch and one checkpoint; and the step compiled, where that is
asked for.
"""

from __future__ import annotations

import contextlib
import functools
import resource
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from image_classification import compiling, distributed
from image_classification.errors import CheckpointError, UsageError, first_line
from image_classification.rehearsal import rehearse, size, step_times

if TYPE_CHECKING:
    from image_classification.checkpoint_files import CheckpointFiles
    from image_classification.dataloaders import Loader
    from image_classification.logger import Logger
    from image_classification.training import Trainer

#: Open files with which a run with many workers and ranks gets along.
_FILES = 65536
_FEW_FILES = 1024


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


def spread(
    trainer: Trainer,
    wrap: Callable[..., nn.Module],
    mode: str | None,
    logger: Logger,
    *,
    image_size: int,
    layout: Any,
) -> None:
    """Lets the trainer train on all ranks, compiled or not; all ranks call it.

    Args:
        trainer: After `check_ahead`.
        wrap: Wraps the network for the ranks; static_graph says whether every step does the same,
            which a compiled network under DistributedDataParallel must not be told.
        mode: Of `compiling.compiled`; None for no compilation.
        logger: Hears how long it took to compile and what that brings, or what is in the way.
        image_size: Side of the images in pixels.
        layout: Their memory format.
    """
    if trainer.freezing is not None:  # what is wrapped and timed is what the first epoch trains
        trainer.freezing.enter(trainer.step * trainer.accumulation_steps // trainer.num_batches)
    static = trainer.accumulation_steps == 1 and mode is None
    wrap = functools.partial(wrap, static_graph=static)
    trainer.spread(wrap)
    if mode is None:
        return
    problem = compiling.obstacle(trainer.device)
    if distributed.max_over_ranks(int(problem is not None)):
        logger.warning(f"{problem or 'torch.compile does not work on every rank'}: not compiled")
        return
    eager = min(step_times(trainer, image_size, layout)[1:])
    graphs = trainer.accumulation_steps == 1
    trainer.spread(lambda network: compiling.compiled(wrap(network), mode, graphs=graphs))
    try:
        first, *others = step_times(trainer, image_size, layout)
    except Exception as error:
        if trainer.device.is_out_of_memory(error):
            raise
        reason = first_line(error)
        if trainer.world_size > 1:  # the others may be in the middle of a step
            raise UsageError(f"--compile {mode} fails: leave it out ({reason})") from error
        trainer.spread(wrap)
        logger.warning(f"the network cannot be compiled ({reason}): not compiled")
        return
    step = min(others)
    logger.message(
        f"compiled in {first - step:.1f} s; a training step takes {step:.3g} s, not compiled "
        f"{eager:.3g} s"
    )
    if step >= eager:
        logger.warning("--compile does not pay here: the run goes on with it, leave it out")
