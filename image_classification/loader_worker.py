# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What runs inside a loader worker: requests in, uint8 batches out.

A request carries the paths of its batch, so that a worker holds no index and no per-sample object:
its memory does not grow with the data set or with time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from image_classification.augmentation import (
    EvalPreset,
    TrainPreset,
    horizontal_flips,
    random_resized_crop_boxes,
)
from image_classification.errors import ImageError
from image_classification.image_reading import (
    decode_image,
    eval_pixels,
    open_image,
    read_image,
    train_pixels,
)
from image_classification.launcher import PR_SET_PDEATHSIG, prctl

_OPEN_FILES = 16
_WATCH_INTERVAL_S = 1.0


class BatchRequest(NamedTuple):
    """One micro-batch of one rank.

    Attributes:
        epoch: Epoch number.
        indices: int64 [B], sample indices: the keys of the draws.
        labels: int64 [B].
        paths: B full paths, joined by zero bytes.
    """

    epoch: int
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    paths: bytes


class HostBatch(NamedTuple):
    """One micro-batch in host memory.

    Attributes:
        images: uint8 [B, H, W, 3]; those of failures mean nothing.
        target: int64 [B].
        failures: Place in the batch and reason of the images that cannot be read. Texts, since
            exceptions would return with a worker's traceback.
    """

    images: torch.Tensor
    target: torch.Tensor
    failures: list[tuple[int, str]]


@dataclass(frozen=True)
class BatchReader:
    """Reads requested batches; the `Dataset` of the DataLoader, with requests as its keys.

    Attributes:
        preset: How the images are prepared.
        seed: Seed of the run.
    """

    preset: TrainPreset | EvalPreset
    seed: int

    def __getitem__(self, request: BatchRequest) -> HostBatch:
        """Read one micro-batch."""
        preset = self.preset.at(request.epoch)
        size = preset.image_size
        images = torch.empty((len(request.indices), size, size, 3), dtype=torch.uint8)
        failures: list[tuple[int, str]] = []
        if isinstance(preset, TrainPreset):
            self._read_train(preset, request, images.numpy(), failures)
        else:
            for place, path in enumerate(request.paths.split(b"\0")):
                with _noting(failures, place):
                    images.numpy()[place] = eval_pixels(read_image(path), preset)
        return HostBatch(images, torch.from_numpy(request.labels), failures)

    def _read_train(
        self,
        preset: TrainPreset,
        request: BatchRequest,
        images: NDArray[np.uint8],
        failures: list[tuple[int, str]],
    ) -> None:
        epoch, indices = request.epoch, request.indices
        flips = horizontal_flips(self.seed, epoch, indices, preset.flip)
        paths = request.paths.split(b"\0")
        # A few files at a time: boxes are much cheaper together, but need the sizes.
        for start in range(0, len(paths), _OPEN_FILES):
            with contextlib.ExitStack() as stack:
                opened = {}
                for place in range(start, min(start + _OPEN_FILES, len(paths))):
                    with _noting(failures, place):
                        opened[place] = stack.enter_context(open_image(paths[place]))
                widths = [image.width for image in opened.values()]
                heights = [image.height for image in opened.values()]
                boxes = random_resized_crop_boxes(
                    self.seed, epoch, indices[list(opened)], widths, heights,
                    preset.scale, preset.ratio,
                )  # fmt: skip
                for (place, image), box in zip(opened.items(), boxes.tolist(), strict=True):
                    with _noting(failures, place):
                        rgb = decode_image(image, paths[place])
                        images[place] = train_pixels(rgb, tuple(box), bool(flips[place]), preset)
                    image.close()  # frees the pixels


@contextlib.contextmanager
def _noting(failures: list[tuple[int, str]], place: int) -> Iterator[None]:
    """Turn an unreadable image into an entry of `failures`."""
    try:
        yield
    except ImageError as error:
        failures.append((place, error.reason))


@dataclass(frozen=True)
class WorkerSetup:
    """Prepares a worker process; the DataLoader's `worker_init_fn`.

    Attributes:
        trainer_pid: The process that owns the loader.
    """

    trainer_pid: int

    def __call__(self, worker_id: int) -> None:
        """Tie the worker's life to its trainer and leave the signals of the run to that one."""
        die_with_parent()
        # Ctrl-C in a terminal reaches every process of the group: the trainer decides.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        obey_only(self.trainer_pid)
        warnings.simplefilter("error", Image.DecompressionBombWarning)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent ends; exit if it has ended already (Linux).

    A worker that is blocked on a full pipe never gets to look after its parent by itself. The
    signal comes when the *thread* that started the worker ends: start loaders in a thread that
    lives as long as they do.
    """
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(1)


def obey_only(trainer_pid: int) -> None:
    """Exit when the trainer is gone or sends SIGTERM; ignore SIGTERM from anyone else.

    Schedulers send SIGTERM to every process of a job. The trainer uses it to finish its step and
    save; if its workers died at once, that step would fail instead.

    Looking after the trainer is for fork servers: their workers' parent is the server, which lives
    as long as any worker does, so neither the kernel's signal nor torch's own check ever comes.
    """
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigtimedwait"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def watch() -> None:
        while True:
            received = signal.sigtimedwait({signal.SIGTERM}, _WATCH_INTERVAL_S)
            stopped = received is not None and received.si_pid == trainer_pid
            if stopped or not parent.is_alive():
                os._exit(0)

    threading.Thread(target=watch, name="trainer-watch", daemon=True).start()
