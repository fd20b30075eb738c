# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "fast" backend: the C++ core's threads fill reusable batch buffers in this process.

A batch goes through three stages: its files are read, which tells the image sizes; the crops are
drawn here, by the same functions as for every other backend; then the images are decoded. Several
batches are under way at any time, so that the threads never wait for this side. What the core does
not decode (anything but baseline JPEG) is read by Pillow in a few Python threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from image_classification.affinity import usable_cores
from image_classification.augmentation import (
    EvalPreset,
    TrainPreset,
    draw_crops,
)
from image_classification.batch_ring import RingLoader, Slot
from image_classification.data_index import ImageIndex
from image_classification.device_feed import FeedBatch
from image_classification.errors import ImageError
from image_classification.fast_loader.native import (
    CROP,
    FILTER_NUMBERS,
    NativeBatch,
    NativeDecoder,
    Status,
)
from image_classification.image_reading import pixel_limit

if TYPE_CHECKING:
    pass


class FastLoader(RingLoader):
    """Yields normalised batches on the device; see `dataloaders.Loader` for the contract.

    Args:
        index: The images.
        preset: How they are prepared.
        threads: Threads that read and decode; 0 takes one.
        prefetch: Batches that are decoded ahead of the consumer, >= 1.
        kernels: Instruction set of the core; by default the fastest.
        **common: See `RingLoader`.

    Raises:
        RuntimeError: The core is not built.
    """

    fallback_advice = (
        "the fast loader reads baseline JPEG (python -m image_classification.dataset_tools pack "
        "makes them so)"
    )

    def __init__(
        self,
        index: ImageIndex,
        preset: TrainPreset | EvalPreset,
        *,
        threads: int,
        prefetch: int,
        kernels: str = "",
        **common: Any,
    ) -> None:
        super().__init__(index, preset, **common)
        self._prefetch = prefetch
        threads = max(threads, 1)
        cores = usable_cores()
        self.waiting_advice = (
            f"give it more threads than {threads}, up to {cores} (-j)"
            if threads < cores
            else "pack the images (python -m image_classification.dataset_tools pack), or give it "
            "more cores or a faster disk"
        )
        self._decoder = NativeDecoder(threads, kernels)
        self._python_threads = ThreadPoolExecutor(threads, "pillow")

    def close(self) -> None:
        """End the threads; the loader yields nothing afterwards."""
        self._closed = True
        self._decoder.close()
        self._python_threads.shutdown(cancel_futures=True)

    def _batches(self) -> Generator[FeedBatch, None, None]:
        requests = iter(self._schedule)
        loading: deque[_Work] = deque()
        decoding: deque[_Work] = deque()
        finishing: deque[_Work] = deque()
        try:
            while True:
                # Two more are read than decoded: their sizes are known when their turn comes.
                while len(loading) < 2 and (indices := next(requests, None)) is not None:
                    loading.append(self._load(indices))
                if loading and len(decoding) <= self._prefetch:
                    decoding.append(self._decode(loading.popleft()))
                    continue
                if not decoding:
                    return
                finishing.append(decoding.popleft())
                batch = self._finish(finishing[0])
                finishing.clear()
                yield batch
        finally:
            for work in (*loading, *decoding, *finishing):  # an abandoned epoch, or an error
                self._abandon(work)

    def _load(self, indices: NDArray[np.int64]) -> _Work:
        paths = self._index.paths(indices)
        return _Work(self._schedule.epoch, indices, self._decoder.load(paths))

    def _decode(self, work: _Work) -> _Work:
        """Draw the crops and start to decode; the sizes must be there soon."""
        batch = work.native
        batch.wait()
        work.slot = self._ring.take(self._preset.at(work.epoch).image_size)
        output = work.slot.images.numpy()[: len(batch)]
        known = batch.statuses == Status.OK
        known &= batch.widths.astype(np.int64) * batch.heights <= pixel_limit()
        crops = self._draw(work, known)
        for i in np.flatnonzero(~known):
            work.python[i] = self._python_threads.submit(
                self._reader.read, work.epoch, int(work.indices[i]), output[i]
            )
        batch.decode(crops, ~known, output)
        return work

    def _draw(self, work: _Work, known: NDArray[np.bool_]) -> NDArray[np.void]:
        """The crops of a batch as CROP [N]; where the size is not known they mean nothing."""
        widths = np.where(known, work.native.widths, 1)
        heights = np.where(known, work.native.heights, 1)
        crops = np.zeros(len(work.indices), dtype=CROP)
        crops["box"], crops["flip"] = draw_crops(
            self._preset, self._schedule.seed, work.epoch, work.indices, widths, heights
        )
        if isinstance(self._preset, TrainPreset):
            crops["bounds"] = crops["box"]  # the resize sees the crop alone: it is cut out first
        else:
            crops["bounds"][:, 2], crops["bounds"][:, 3] = widths, heights
        crops["filter"] = FILTER_NUMBERS[self._preset.interpolation]
        return crops

    def _finish(self, work: _Work) -> FeedBatch:
        """Wait for a batch, repair what has failed and hand it out."""
        assert work.slot is not None
        work.native.wait()
        output = work.slot.images.numpy()
        indices = work.indices.copy()
        for i in np.flatnonzero(work.native.statuses != Status.OK):
            if i not in work.python:
                # Damaged, or beyond the core's scope in a way that only decoding shows.
                work.python[i] = self._python_threads.submit(
                    self._reader.read, work.epoch, int(indices[i]), output[i]
                )
        for i, future in sorted(work.python.items()):
            try:
                future.result()
                self.fallbacks += 1
            except ImageError as error:
                indices[i] = self.bad.replace(
                    work.epoch, int(indices[i]), output[i], self._reader, error
                )
        work.native.free()
        size = len(indices)
        target = self._ring.target(work.slot, self._index.labels[indices])
        self._ring.hand_out(work.slot)
        return work.slot.images[:size], target, self._feeder.plan(work.epoch, indices)

    def _abandon(self, work: _Work) -> None:
        for future in work.python.values():
            future.cancel()
        for future in work.python.values():
            if not future.cancelled():
                future.exception()  # waits: it writes into the slot
        work.native.free()
        if work.slot is not None:
            self._ring.give_back(work.slot)


@dataclass
class _Work:
    """A batch under way. `python`: the images that Pillow reads, by their place in the batch."""

    epoch: int
    indices: NDArray[np.int64]
    native: NativeBatch
    slot: Slot | None = None
    python: dict[Any, Future[None]] = field(default_factory=dict)
