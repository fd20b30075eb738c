# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "pytorch" backend: Pillow in the worker processes of torch's DataLoader."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from image_classification.affinity import usable_cores
from image_classification.augmentation import EvalPreset, TrainPreset
from image_classification.bad_images import BadImages
from image_classification.batch_schedule import BatchSchedule, ScheduledLoader
from image_classification.data_index import ImageIndex
from image_classification.device_feed import Batch, DeviceFeeder, FeedBatch
from image_classification.errors import DataError, printable
from image_classification.image_reading import unreadable
from image_classification.loader_worker import BatchReader, BatchRequest, HostBatch, WorkerSetup
from image_classification.sample_reader import SampleReader

if TYPE_CHECKING:
    from image_classification.device import Device

# Without a batch for so long the storage hangs; torch's own default is to wait for ever.
WORKER_TIMEOUT_S = 300
WORKER_POLL_S = 5
SHARED_MEMORY = "/dev/shm"


class PytorchLoader(ScheduledLoader):
    """Yields normalised batches on the device; see `dataloaders.Loader` for the contract.

    Args:
        index: The images.
        preset: How they are prepared.
        schedule: Which of them this rank gets, and in which order.
        feeder: Copies to the device and normalises.
        device: The device.
        workers: Worker processes; 0 decodes in this process.
        prefetch: Batches in flight for each worker; lowered where shared memory is short.
        world_size: Processes of this run; those on one machine share its shared memory.
        bad: What happens to images that cannot be read.

    Attributes:
        notes: One-line texts about what was adapted.
        bad: As given.

    Raises:
        DataError: Shared memory is too small for one batch per worker.
    """

    def __init__(
        self,
        index: ImageIndex,
        preset: TrainPreset | EvalPreset,
        *,
        schedule: BatchSchedule,
        feeder: DeviceFeeder,
        device: Device,
        workers: int,
        prefetch: int,
        world_size: int,
        bad: BadImages,
    ) -> None:
        self.bad = bad
        super().__init__(schedule)
        self._feeder = feeder
        more = f"more worker processes than {workers}, up to {usable_cores()} (-j)"
        self.waiting_advice = f"take --data-backend fast, or {more}"
        self._index = index
        self._reader = SampleReader(index, preset, schedule.seed)
        self._requests = _Requests(index, schedule)
        options: dict[str, Any] = {}
        if workers > 0:
            # An upper estimate where a run spans machines: it can only make the loader modest.
            local_ranks = min(world_size, device.count) if device.is_accelerator else world_size
            batch_bytes = schedule.batch_size * (3 * preset.image_size**2 + 8)
            fitting = fitting_prefetch(workers, prefetch, batch_bytes, local_ranks)
            if fitting < prefetch:
                self.notes.append(
                    f"prefetch reduced from {prefetch} to {fitting} batches per worker: "
                    f"{SHARED_MEMORY} is small (docker: --shm-size=8g or --ipc=host)"
                )
            options = _worker_options(device, fitting)
        if device.can_pin_memory and device.type != "cuda" and not hasattr(torch, "accelerator"):
            # Before torch.accelerator (2.6) pinning means CUDA unless the device is named.
            options["pin_memory_device"] = device.type
        with _without_worker_advice():
            self._loader: DataLoader | None = DataLoader(
                BatchReader(preset, schedule.seed),  # type: ignore[arg-type]
                sampler=self._requests,  # type: ignore[arg-type]
                batch_size=None,
                collate_fn=_unchanged,
                num_workers=workers,
                pin_memory=device.can_pin_memory,
                # Its own generator: otherwise each epoch would draw from the run's random state.
                generator=torch.Generator(),
                **options,
            )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; after its last batch the next epoch is the position."""
        yield from self._feeder(self._host_batches())
        self._schedule.advance()

    def close(self) -> None:
        """Stop the worker processes; the loader yields nothing afterwards."""
        loader, self._loader = self._loader, None
        iterator = getattr(loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def _host_batches(self) -> Iterator[FeedBatch]:
        if self._loader is None:
            raise RuntimeError("this loader is closed")
        batches = _PatientIterator(self._loader, self._requests)
        while (item := next(batches, None)) is not None:
            request, batch = item
            shown = self._replace(request, batch) if batch.failures else request.indices
            yield batch.images, batch.target, self._feeder.plan(request.epoch, shown)

    def _replace(self, request: BatchRequest, batch: HostBatch) -> NDArray[np.int64]:
        """Put other images in the place of those that cannot be read; returns what is shown."""
        images, shown = batch.images.numpy(), request.indices.copy()
        for place, reason in batch.failures:
            index = int(request.indices[place])
            error = unreadable(self._index.path(index), None, reason)
            other = self.bad.replace(request.epoch, index, images[place], self._reader, error)
            batch.target[place] = int(self._index.labels[other])
            shown[place] = other
        return shown


class _PatientIterator:
    """The DataLoader's iterator, with dead workers noticed in seconds and errors a user can read.

    With its time limit set, torch looks at its workers only when the whole limit has passed; a fork
    server's workers are nobody's children here, so no signal tells of their death either. So the
    limit is cut into short waits; torch checks the workers after each of them.
    """

    def __init__(self, loader: DataLoader, requests: _Requests) -> None:
        self._requests = requests
        persistent = getattr(loader, "_iterator", None)
        if persistent is not None:
            # Starting an epoch collects what an abandoned one left: there a wait cannot be resumed.
            persistent._timeout = loader.timeout
        with _without_worker_advice():
            self._batches = iter(loader)
        if loader.num_workers > 0:
            self._batches._timeout = min(WORKER_POLL_S, WORKER_TIMEOUT_S)

    def __iter__(self) -> _PatientIterator:
        return self

    def __next__(self) -> tuple[BatchRequest, HostBatch]:
        started = time.perf_counter()
        while True:
            try:
                batch = next(self._batches)
                return self._requests.in_flight.popleft(), HostBatch(*batch)
            except RuntimeError as error:
                timed_out = "timed out after" in str(error)
                if timed_out and time.perf_counter() - started < WORKER_TIMEOUT_S:
                    continue
                if text := worker_failure(str(error)):
                    raise DataError(f"{text}; {self._requests.awaited()}") from error
                raise
            except (EOFError, ConnectionError, FileNotFoundError) as error:
                # Its batch was on the way: the worker still had to hand over the shared memory.
                text = worker_failure("DataLoader worker (pid unknown) has closed its connection")
                raise DataError(f"{text}; {self._requests.awaited()}") from error


class _Requests:
    """The DataLoader's sampler: one request per micro-batch, from the schedule's position on."""

    def __init__(self, index: ImageIndex, schedule: BatchSchedule) -> None:
        self._index = index
        self._schedule = schedule
        self.in_flight: deque[BatchRequest] = deque()

    def __len__(self) -> int:
        return len(self._schedule)

    def __iter__(self) -> Iterator[BatchRequest]:
        index, epoch = self._index, self._schedule.epoch
        self.in_flight.clear()
        for indices in self._schedule:
            paths = b"\0".join(index.paths(indices))
            request = BatchRequest(epoch, indices, index.labels[indices], paths)
            self.in_flight.append(request)
            yield request

    def awaited(self) -> str:
        """Which batch comes next, for an error text."""
        paths = self.in_flight[0].paths.split(b"\0") if self.in_flight else [b"none"]
        return f"waiting for a batch of {len(paths)} images from {printable(paths[0])} on"


@contextlib.contextmanager
def _without_worker_advice() -> Iterator[None]:
    """The number of workers is the user's choice; one warning per loader and rank is noise."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        yield


def _unchanged(batch: Any) -> Any:
    return batch


def _worker_options(device: Device, prefetch: int) -> dict[str, Any]:
    method = "fork"
    if device.is_accelerator:
        # A fork would inherit the accelerator's file handles and locks: it can hang, and it keeps
        # the device busy should it survive. A server started from scratch has neither; it imports
        # torch once and forks the workers. The CPU has no such state, and fork starts at once.
        method = "forkserver"
        multiprocessing.set_forkserver_preload(["torch", "image_classification.loader_worker"])
    return {
        "multiprocessing_context": method,
        "prefetch_factor": prefetch,
        "persistent_workers": True,
        "timeout": WORKER_TIMEOUT_S,
        "worker_init_fn": WorkerSetup(os.getpid()),
    }


def worker_failure(message: str) -> str | None:
    """What a RuntimeError of torch's DataLoader means for the user.

    Loaders translate it themselves, with one exception: torch tells of the death of a forked worker
    from a signal handler, that is, from any line of the main thread.

    Args:
        message: Text of the RuntimeError.

    Returns:
        The text for the user, None if the error is about something else.
    """
    if "timed out after" in message:
        return (
            f"no batch from the loader's worker processes for {WORKER_TIMEOUT_S} s: the storage of "
            "the data set hangs or is far too slow; check it, or copy the data to a local disk"
        )
    if "DataLoader worker (pid" in message:
        return (
            f"a loader worker process died ({message.splitlines()[0]}): out of memory or of "
            f"{SHARED_MEMORY}, as a rule; use fewer workers (-j), a smaller --prefetch, or in "
            "docker --ipc=host or --shm-size=8g"
        )
    if "Too many open files" in message:
        return "too many open files; raise the limit: ulimit -n 65536"
    return None


def fitting_prefetch(workers: int, prefetch: int, batch_bytes: int, local_ranks: int) -> int:
    """The largest prefetch whose batches fit into shared memory.

    Batches in flight lie in /dev/shm, which docker limits to 64 MB by default; a process that
    writes beyond its end is killed by SIGBUS without a word of explanation.

    Args:
        workers: Worker processes per rank.
        prefetch: Wanted batches in flight per worker.
        batch_bytes: Size of one batch.
        local_ranks: Processes of this run on this machine.

    Returns:
        1 .. prefetch.

    Raises:
        DataError: Not even one batch per worker fits.
    """
    free = shared_memory_free()
    if free is None:
        return prefetch
    # Two more than are in flight: one with the consumer, one on its way to it.
    batches = free // (batch_bytes * local_ranks)
    fitting = min(prefetch, (batches - 2) // workers)
    if fitting < 1:
        needed = (workers + 2) * batch_bytes * local_ranks
        raise DataError(
            f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but {workers} workers on "
            f"{local_ranks} ranks need {needed / 2**20:.0f} MiB; in docker give --ipc=host or "
            f"--shm-size={-(-2 * needed // 2**30)}g, or use fewer workers (-j) or a smaller batch"
        )
    return fitting


def shared_memory_free() -> int | None:
    """Free bytes of /dev/shm, None where there is no such folder."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize
