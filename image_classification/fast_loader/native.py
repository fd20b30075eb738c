# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ core in Python: reads and decodes batches of JPEG files with threads of its own."""

from __future__ import annotations

import ctypes
import functools
import os
import time
import weakref
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classification.errors import DataError
from image_classification.fast_loader.build import find_library

# What csrc/c_api.h says of itself.
INTERFACE_VERSION = 4
# Without an image for so long the storage hangs.
STORAGE_TIMEOUT_S = 300
# kMaxSide in csrc/small_images.cpp.
MAX_SMALL_SIDE = 256
_ABANDON_S = 5
_POLL_MS = 500

FILTER_NUMBERS = {"bilinear": 0, "triangular": 0, "bicubic": 1}

# FastLoaderCrop of csrc/c_api.h.
CROP = np.dtype(
    [
        ("box", "<f8", 4),  # left, top, right, bottom: what becomes the output
        ("bounds", "<i4", 4),  # the same: the pixels that the resize may look at
        ("filter", "<i4"),
        ("flip", "<i4"),
    ]
)


class Status(IntEnum):
    """What became of an image; the numbers of csrc/status.h."""

    OK = 0
    UNSUPPORTED = 1
    TRUNCATED = 2
    CORRUPT = 3
    CANNOT_READ = 4
    TOO_LARGE = 5
    OUT_OF_MEMORY = 6
    BAD_CROP = 7


@functools.cache
def load_core() -> Any | None:
    """The library, or None where it has not been built or cannot be loaded."""
    path = find_library()
    return None if path is None else _open_library(path)


def _open_library(path: Path) -> Any | None:
    try:
        core = ctypes.CDLL(os.fspath(path))
    except OSError:  # made for another system
        return None
    pointer, integer, long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "version": (integer, []),
        "kernels": (ctypes.c_char_p, []),
        "open": (pointer, [integer, ctypes.c_char_p]),
        "close": (None, [pointer]),
        "load": (pointer, [pointer, long, ctypes.c_char_p, pointer]),
        "load_bytes": (pointer, [pointer, long, ctypes.c_char_p, pointer]),
        "wait": (integer, [pointer, pointer, integer] + [pointer] * 4),
        "decode": (None, [pointer] * 4 + [integer, integer, pointer]),
        "free": (None, [pointer]),
        "small_crops": (
            integer,
            [pointer, long, integer, pointer, long, integer, integer, ctypes.c_uint32, pointer,
             pointer, integer, integer, pointer],
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(core, f"fast_loader_{name}")
        function.restype, function.argtypes = result, arguments
    return core if core.fast_loader_version() == INTERFACE_VERSION else None


def kernel_names() -> list[str]:
    """The instruction sets that the core can use on this processor, the fastest one first."""
    core = load_core()
    return [] if core is None else core.fast_loader_kernels().decode().split()


def small_crops(
    pixels: NDArray[np.int32],
    plan: NDArray[np.int64],
    output: NDArray[np.float32],
    *,
    cutout: int,
    mean: int,
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    threads: int,
) -> None:
    """Cut a batch out of small images in memory, flip and normalise it, in one pass.

    Args:
        pixels: int32 [N, P, P], images with their border; red is in the lowest byte of a pixel.
        plan: int64 [B, 6]: image, top, left, flipped, and row and column of the cutout's centre.
        output: float32 [B, 3, S, S], contiguous or channels last; overwritten.
        cutout: Side of the square that gets the colour `mean`; 0: none.
        mean: A pixel.
        scale: float32 [3]; a value is byte * scale + shift, rounded after each operation.
        shift: float32 [3].
        threads: At most so many work, >= 1.

    Raises:
        RuntimeError: The core is not built.
        ValueError: Shapes or types do not fit, or the plan reaches outside.
    """
    if (core := load_core()) is None:
        raise RuntimeError("the fast loader is not built")
    last = output.transpose(0, 2, 3, 1).flags.c_contiguous and not output.flags.c_contiguous
    fits = (
        pixels.dtype == np.int32 and pixels.ndim == 3 and pixels.shape[1] == pixels.shape[2]
        and plan.dtype == np.int64 and plan.shape == (len(output), 6)
        and output.dtype == np.float32 and output.shape[1:] == (3, *output.shape[2:3] * 2)
        and (last or output.flags.c_contiguous)
        and all(part.dtype == np.float32 and part.shape == (3,) for part in (scale, shift))
        and all(part.flags.c_contiguous for part in (pixels, plan, scale, shift))
    )  # fmt: skip
    if not fits or not core.fast_loader_small_crops(
        pixels.ctypes.data, len(pixels), pixels.shape[1], plan.ctypes.data, len(plan),
        output.shape[2], cutout, mean, scale.ctypes.data, shift.ctypes.data, last, threads,
        output.ctypes.data,
    ):  # fmt: skip
        raise ValueError(
            f"small_crops: plan {plan.shape}, output {output.shape} and pixels {pixels.shape} do "
            "not fit together"
        )


class NativeDecoder:
    """Threads that read and decode; batches are worked on in the order of their submission.

    Args:
        threads: Number of threads, >= 1.
        kernels: One of `kernel_names()`; by default the fastest.

    Raises:
        RuntimeError: The core is not built, the kernels are unknown, or no thread can be started.
    """

    def __init__(self, threads: int, kernels: str = "") -> None:
        core = load_core()
        handle = None if core is None else core.fast_loader_open(threads, kernels.encode())
        if not handle:
            raise RuntimeError(
                f"the fast loader cannot start {threads} threads (kernels {kernels or 'default'}; "
                f"known: {', '.join(kernel_names()) or 'none, it is not built'})"
            )
        self._core: Any = core
        self._handle: Any = handle
        self._open: set[NativeBatch] = set()
        # At the latest at the interpreter's exit: threads that run on meanwhile can crash it.
        self._end = weakref.finalize(self, _end, core, handle, self._open)

    def load(self, paths: list[bytes]) -> NativeBatch:
        """Start to read files.

        Args:
            paths: Paths in the file system's encoding.
        """
        return self._start(self._core.fast_loader_load, paths)

    def load_bytes(self, contents: list[bytes]) -> NativeBatch:
        """The same for files in memory."""
        return self._start(self._core.fast_loader_load_bytes, contents)

    def _start(self, function: Any, parts: list[bytes]) -> NativeBatch:
        lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        handle = function(self._handle, len(parts), b"".join(parts), offsets.ctypes.data)
        if not handle:
            raise MemoryError(f"the fast loader has no memory for a batch of {len(parts)} files")
        batch = NativeBatch(self._core, self._handle, handle, len(parts), self._open)
        self._open.add(batch)
        return batch

    def close(self) -> None:
        """Free what is under way and end the threads; safe to call twice."""
        self._end()
        self._handle = None


def _end(core: Any, handle: Any, batches: set[NativeBatch]) -> None:
    for batch in list(batches):
        batch.free()
    if not batches:  # otherwise a thread hangs, and so would whoever waits for it
        core.fast_loader_close(handle)


class NativeBatch:
    """Files on their way to pixels: `wait`, `decode`, `wait` again, `free`.

    Attributes:
        widths: int32 [N], after the first `wait`; 0 where the size is unknown.
        heights: int32 [N], likewise.
        statuses: int32 [N], a `Status` each, of the last stage that was waited for.
        errors: int32 [N], errno where a file could not be read.
    """

    def __init__(self, core: Any, decoder: Any, handle: Any, count: int, owner: set) -> None:
        self._core, self._decoder, self._handle, self._owner = core, decoder, handle, owner
        self._output: NDArray[np.uint8] | None = None
        self._waiting = True
        self.widths, self.heights, self.statuses, self.errors = np.zeros((4, count), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.statuses)

    def wait(self) -> None:
        """Wait for the current stage; fills the attributes.

        Raises:
            DataError: The files cannot be read for minutes.
            RuntimeError: The batch has been freed.
        """
        if self._handle is None:
            raise RuntimeError("this batch has been freed: its decoder is closed")
        if not self._wait(STORAGE_TIMEOUT_S):
            raise DataError(
                f"no image could be read for {STORAGE_TIMEOUT_S} s: the storage of the data set "
                "hangs; check it, or copy the data to a local disk"
            )

    def _wait(self, seconds: float) -> bool:
        """Whether the stage has ended in time; signals are handled meanwhile."""
        arrays = (self.widths, self.heights, self.statuses, self.errors)
        pointers = [array.ctypes.data for array in arrays]
        until = time.monotonic() + seconds
        wait = self._core.fast_loader_wait
        while self._waiting and time.monotonic() < until:
            self._waiting = not wait(self._decoder, self._handle, _POLL_MS, *pointers)
        return not self._waiting

    def decode(
        self, crops: NDArray[np.void], skip: NDArray[np.bool_], output: NDArray[np.uint8]
    ) -> None:
        """Start to decode; call `wait` first and afterwards.

        Args:
            crops: CROP [N].
            skip: bool [N], images to leave out.
            output: uint8 [N, height, width, 3], contiguous; nobody else may touch it meanwhile.

        Raises:
            ValueError: Shapes or types do not fit.
        """
        shape = (len(self), *output.shape[1:3], 3)
        contiguous = output.flags.c_contiguous and output.flags.writeable
        if output.shape != shape or output.dtype != np.uint8 or not contiguous:
            raise ValueError(f"output must be uint8 {shape}, contiguous; received {output.shape}")
        if crops.dtype != CROP or crops.shape != (len(self),) or skip.shape != (len(self),):
            raise ValueError(f"{len(self)} crops and skips are needed")
        self.wait()
        skip = np.ascontiguousarray(skip, dtype=np.uint8)
        crops = np.ascontiguousarray(crops)
        self._output, self._waiting = output, True  # the memory must live until the threads end
        height, width = output.shape[1:3]
        self._core.fast_loader_decode(
            self._decoder, self._handle, crops.ctypes.data, skip.ctypes.data, width, height,
            output.ctypes.data,
        )  # fmt: skip

    def free(self) -> None:
        """Wait and free the memory; safe to call twice.

        Where the storage hangs a thread keeps its batch, and the process ends with it.
        """
        if self._handle is not None and self._wait(_ABANDON_S):
            self._core.fast_loader_free(self._handle)
            self._handle = self._output = None
            self._owner.discard(self)
