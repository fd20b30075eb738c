# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The "dali-cpu" and "dali-gpu" backends: NVIDIA DALI decodes and resizes, on the CPU or the GPU.

Files are read and crops are drawn here, as for every backend; DALI gets encoded JPEGs and boxes.
What it may read otherwise than Pillow (anything but JPEG in RGB or grey, or a file that ends early)
goes to Pillow, and so does a whole batch that DALI fails on: after an error its pipeline is void.
"""

from __future__ import annotations

import importlib
import io
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from image_classification.augmentation import EvalPreset, TrainPreset, draw_crops
from image_classification.batch_ring import RingLoader
from image_classification.data_index import ImageIndex
from image_classification.device_feed import FeedBatch
from image_classification.errors import ImageError, UsageError
from image_classification.image_reading import file_content, open_image

if TYPE_CHECKING:
    from image_classification.device import Device

_END_OF_IMAGE = b"\xff\xd9"
_PADDING = 64


class DaliLoader(RingLoader):
    """Yields normalised batches on the device; see `dataloaders.Loader` for the contract.

    Args:
        index: The images.
        preset: How they are prepared.
        threads: Threads that read, and threads of DALI; 0 takes one.
        prefetch: Batches that DALI decodes ahead of the consumer, >= 1.
        device: The device.
        on_gpu: Decode on the device, which is a CUDA GPU then.
        **common: See `RingLoader`.

    Raises:
        UsageError: DALI cannot be imported, or the device is none for it.
    """

    fallback_advice = "DALI gets JPEG files only"

    def __init__(
        self,
        index: ImageIndex,
        preset: TrainPreset | EvalPreset,
        *,
        threads: int,
        prefetch: int,
        device: Device,
        on_gpu: bool,
        **common: Any,
    ) -> None:
        require_dali(on_gpu, device.type)
        super().__init__(index, preset, device=device, on_device=on_gpu, **common)
        self._device = device
        self._prefetch = prefetch
        self._threads = max(threads, 1)
        self.waiting_advice = f"take --data-backend fast, or more threads than {self._threads} (-j)"
        self._on_gpu = on_gpu
        # DALI writes to the device on a stream of its own, so that nothing waits for the network.
        self._stream = device.side_stream() if on_gpu else None
        self._pool = ThreadPoolExecutor(self._threads, "reader")

    def close(self) -> None:
        """End the threads; the loader yields nothing afterwards."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _batches(self) -> Generator[FeedBatch, None, None]:
        requests = iter(self._schedule)
        reading: deque[_Work] = deque()
        decoding: deque[_Work] = deque()
        # As many are being read as DALI decodes: it asks for the next one while it works.
        while len(reading) < self._prefetch + 1 and (work := self._read(requests)):
            reading.append(work)
        pipeline = self._start(reading, decoding, requests)
        while reading or decoding:
            try:
                (found,) = pipeline.run()
            except RuntimeError:
                # The oldest batch is to blame, as a rule. The others are decoded anew.
                work, found = decoding.popleft(), None
                reading.extendleft(reversed(decoding))
                decoding.clear()
                pipeline = self._start(reading, decoding, requests)
            else:
                work = decoding.popleft()
            yield self._finish(work, found)

    def _read(self, requests: Iterator[NDArray[np.int64]]) -> _Work | None:
        """Start to read the files of the next batch, None at the end of the epoch."""
        indices = next(requests, None)
        if indices is None:
            return None
        paths = self._index.paths(indices)
        return _Work(self._schedule.epoch, indices, [self._pool.submit(_load, p) for p in paths])

    def _start(
        self, reading: deque[_Work], decoding: deque[_Work], requests: Iterator[NDArray[np.int64]]
    ) -> Any:
        """A pipeline that takes its batches from `reading` and notes them in `decoding`."""

        def next_batch() -> tuple[Any, ...]:
            if not reading:
                raise StopIteration
            work = reading.popleft()
            decoding.append(work)
            inputs = self._inputs(work)
            if (following := self._read(requests)) is not None:
                reading.append(following)
            return inputs

        dali = importlib.import_module("nvidia.dali")
        pipeline = dali.Pipeline(
            batch_size=self._schedule.batch_size,
            num_threads=self._threads,
            device_id=(self._device.torch_device.index or 0) if self._on_gpu else None,
            prefetch_queue_depth=self._prefetch,
        )
        with pipeline:
            preset = self._preset.at(self._schedule.epoch)
            pipeline.set_outputs(decode_graph(next_batch, preset, self._on_gpu))
        pipeline.build()
        return pipeline

    def _inputs(self, work: _Work) -> tuple[Any, ...]:
        """What the pipeline gets for a batch: files, flips, and the boxes' first and last sides."""
        for place, future in enumerate(work.files):
            try:
                work.encoded.append(future.result())
            except ImageError:
                work.encoded.append(_stand_in())
                work.python.append(place)
                continue
            if not work.encoded[place].readable:
                work.python.append(place)
        work.files.clear()
        widths, heights = np.array([file.size for file in work.encoded]).T
        boxes, flips = draw_crops(
            self._preset, self._schedule.seed, work.epoch, work.indices, widths, heights
        )
        for place in work.python:
            work.encoded[place] = _stand_in()
            boxes[place] = (0, 0, *work.encoded[place].size)
        starts, ends = boxes[:, 1::-1], boxes[:, :1:-1]  # as (y, x)
        kind = np.float32 if isinstance(self._preset, EvalPreset) else np.int32
        return (
            [file.content for file in work.encoded],
            list(flips.astype(np.int32)),
            list(np.ascontiguousarray(starts, dtype=kind)),
            list(np.ascontiguousarray(ends, dtype=kind)),
        )

    def _finish(self, work: _Work, found: Any | None) -> FeedBatch:
        """Bring a batch into its slot; without `found` all of it is read by Pillow."""
        size = len(work.indices)
        slot = self._ring.take(self._preset.at(work.epoch).image_size)
        images = slot.images[:size]
        indices = work.indices.copy()
        places: Any = work.python if found is not None else range(size)
        with self._device.stream_context(self._stream):
            if found is not None:
                images.copy_(torch.from_dlpack(found.as_tensor()), non_blocking=True)
            pixels = np.empty(tuple(images.shape[1:]), dtype=np.uint8)
            for place in places:
                index = int(indices[place])
                try:
                    self._reader.read(work.epoch, index, pixels)
                    self.fallbacks += 1
                except ImageError as error:
                    indices[place] = self.bad.replace(
                        work.epoch, index, pixels, self._reader, error
                    )
                images[place] = torch.from_numpy(pixels)
            if (written := self._device.record_event(self._stream)) is not None:
                written.synchronize()
        target = self._ring.target(slot, self._index.labels[indices])
        self._ring.hand_out(slot)
        return images, target, self._feeder.plan(work.epoch, indices)


class _File(NamedTuple):
    """An image file in memory.

    Attributes:
        content: uint8 [bytes].
        size: Width and height in pixels.
        readable: DALI gives the same pixels as Pillow, but for rounding.
    """

    content: NDArray[np.uint8]
    size: tuple[int, int]
    readable: bool


@dataclass
class _Work:
    """A batch under way. `python`: the places of images that Pillow reads."""

    epoch: int
    indices: NDArray[np.int64]
    files: list[Future[_File]]
    encoded: list[_File] = field(default_factory=list)
    python: list[int] = field(default_factory=list)


def _load(path: bytes) -> _File:
    content = file_content(path)
    with open_image(io.BytesIO(content)) as image:
        whole = _END_OF_IMAGE in content[-_PADDING:]
        readable = image.format == "JPEG" and image.mode in ("RGB", "L") and whole
        return _File(np.frombuffer(content, dtype=np.uint8), image.size, readable)


@cache
def _stand_in() -> _File:
    """A small image in the place of one that DALI does not get."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    return _File(np.frombuffer(stream.getvalue(), dtype=np.uint8), (16, 16), True)


def decode_graph(next_batch: Any, preset: TrainPreset | EvalPreset, on_gpu: bool) -> Any:
    """DALI's operators from encoded files to pixels; call it within a pipeline.

    Args:
        next_batch: Gives for a batch the files, uint8 [bytes] each, the flips, int32 each, and the
            first and the last side of the boxes as (y, x), int32 [2] (training) or float32 [2].
        preset: How images are prepared.
        on_gpu: Decode on the GPU.

    Returns:
        The node whose output is uint8 [B, H, W, 3].
    """
    fn, types = (importlib.import_module(f"nvidia.dali.{name}") for name in ("fn", "types"))
    files, flips, starts, ends = fn.external_source(source=next_batch, num_outputs=4, batch=True)
    decode = {
        "device": "mixed" if on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
        "use_fast_idct": False,
        "jpeg_fancy_upsampling": True,
    }
    linear = preset.interpolation in ("bilinear", "triangular")
    resize = {
        "size": [preset.image_size] * 2,
        "interp_type": types.INTERP_LINEAR if linear else types.INTERP_CUBIC,
        "antialias": True,
        "dtype": types.UINT8,
    }
    if isinstance(preset, EvalPreset):
        images = fn.resize(
            fn.decoders.image(files, **decode), roi_start=starts, roi_end=ends, **resize
        )
    else:
        region = fn.decoders.image_slice(files, start=starts, end=ends, axis_names="HW", **decode)
        images = fn.resize(region, **resize)
    return fn.flip(images, horizontal=flips)


def require_dali(on_gpu: bool, device_type: str) -> None:
    """Check that DALI can be imported, and for `on_gpu` that the device is a CUDA GPU.

    Raises:
        UsageError: It is not so; the message names the cure.
    """
    if on_gpu and device_type != "cuda":
        raise UsageError(
            f"--data-backend dali-gpu needs a CUDA GPU, the device is {device_type}: use dali-cpu "
            "or fast"
        )
    try:
        importlib.import_module("nvidia.dali.fn")
    except (ImportError, OSError, RuntimeError) as error:
        name = "dali-gpu" if on_gpu else "dali-cpu"
        raise UsageError(
            f"--data-backend {name} needs NVIDIA DALI, which cannot be imported ({error}): pip "
            "install nvidia-dali-cuda130 (nvidia-dali-cuda120 for CUDA 12), or use fast"
        ) from error
