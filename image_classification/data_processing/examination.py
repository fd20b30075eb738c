# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Reads and decodes every image of a split from its first to its last byte, on all cores.

What has been found out is kept in pieces of some thousand images, so that an interrupted
examination goes on where it was, and a second one only looks at what has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from image_classification.atomic_file import atomic_file
from image_classification.data_index import ImageIndex
from image_classification.data_processing.workers import ordered_map
from image_classification.errors import ImageError, UsageError
from image_classification.fast_loader.native import CROP, NativeDecoder, Status, load_core
from image_classification.image_reading import (
    decode_image,
    file_content,
    open_image,
    pixel_limit,
)

DIGEST_BYTES = 16
# One job of a process, and what is kept together.
_BATCH = 64
_PIECE = 64 * _BATCH
# Side in pixels of the picture in which two images are compared by eye, so to speak.
_SIDE = 9
_FORMAT = 1
_ARRAYS = ("states", "sizes", "digests", "looks", "formats")


class State(IntEnum):
    """What became of an image."""

    FAST = 0
    PILLOW = 1  # readable, but the fast loader leaves it to Pillow
    BAD = 2


@dataclass
class Findings:
    """What is known of N images.

    Attributes:
        states: uint8 [N], a `State` each.
        sizes: int32 [N, 2], width and height in pixels; 0 where an image is bad.
        digests: uint8 [N, 16], BLAKE2b of the file; 0 where it cannot be read.
        looks: uint64 [N], see `_look`; 0 where an image is bad.
        formats: S8 [N], Pillow's name of each format, as b"JPEG"; empty where an image is bad.
        reasons: Position -> why it cannot be read.
    """

    states: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    digests: NDArray[np.uint8]
    looks: NDArray[np.uint64]
    formats: NDArray[np.bytes_]
    reasons: dict[int, str]

    @classmethod
    def empty(cls, count: int) -> Findings:
        """Room for the findings on `count` images."""
        return cls(
            states=np.full(count, State.BAD, np.uint8),
            sizes=np.zeros((count, 2), np.int32),
            digests=np.zeros((count, DIGEST_BYTES), np.uint8),
            looks=np.zeros(count, np.uint64),
            formats=np.zeros(count, "S8"),
            reasons={},
        )

    @classmethod
    def joined(cls, parts: list[Findings]) -> Findings:
        """Several findings, one behind the other."""
        starts = np.cumsum([0, *(len(part.states) for part in parts)]).tolist()
        reasons = {
            start + place: reason
            for start, part in zip(starts, parts, strict=False)
            for place, reason in part.reasons.items()
        }
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
        }
        return cls(**arrays, reasons=reasons)

    def select(self, places: NDArray[np.int64]) -> Findings:
        """The findings on some of the images."""
        arrays: dict[str, Any] = {name: getattr(self, name)[places] for name in _ARRAYS}
        old = enumerate(places.tolist())
        return Findings(
            **arrays, reasons={new: self.reasons[i] for new, i in old if i in self.reasons}
        )

    @property
    def good(self) -> NDArray[np.bool_]:
        """bool [N], whether an image can be read."""
        return self.states != State.BAD


def examine(
    index: ImageIndex, processes: int, notes: Path | None, tell: Callable[[int, int], None]
) -> Findings:
    """Read and decode all images of a split.

    Args:
        index: The images, at least one.
        processes: Number of processes, >= 1; small splits are left to fewer.
        notes: Folder for what is found out, for the next time; made if it is missing. None: nothing
            is kept.
        tell: Called with the number of images done, and of the bad ones among them.

    Returns:
        What was found.

    Raises:
        UsageError: The notes cannot be written.
        DataError: A process died.
    """
    pieces = [range(start, min(start + _PIECE, len(index)))
              for start in range(0, len(index), _PIECE)]  # fmt: skip
    states = [_state_of(index, piece) for piece in pieces] if notes is not None else []
    kept = [_load(notes, index.split, i, state) if notes is not None else None
            for i, state in enumerate(states)] or [None] * len(pieces)  # fmt: skip
    todo = [piece for piece, found in zip(pieces, kept, strict=True) if found is None]
    jobs = (index.paths(batch) for piece in todo for batch in _batches(piece))
    most = -(-sum(map(len, todo)) // _BATCH)
    results = ordered_map(examine_files, jobs, max(1, min(processes, most)))
    parts: list[Findings] = []
    done = bad = 0
    for number, (piece, found) in enumerate(zip(pieces, kept, strict=True)):
        if found is None:
            batches = []
            for batch in _batches(piece):
                batches.append(next(results))
                done, bad = done + len(batch), bad + len(batches[-1].reasons)
                tell(done, bad)
            found = Findings.joined(batches)
            if notes is not None:
                _save(notes, index.split, number, states[number], found)
        else:
            done, bad = done + len(piece), bad + len(found.reasons)
        parts.append(found)
    return Findings.joined(parts)


def _batches(piece: range) -> Iterator[range]:
    return (piece[start : start + _BATCH] for start in range(0, len(piece), _BATCH))


def examine_files(paths: list[bytes]) -> Findings:
    """Read and decode some images.

    Args:
        paths: Full paths in the file system's encoding.

    Returns:
        What was found, in the order of the paths.
    """
    found = Findings.empty(len(paths))
    fast = _decode_fast(paths, found) if load_core() is not None else np.zeros(len(paths), bool)
    for place, path in enumerate(paths):
        try:
            content = file_content(path)
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
            found.digests[place] = np.frombuffer(digest, np.uint8)
            if fast[place]:
                found.states[place], found.formats[place] = State.FAST, b"JPEG"
            else:
                _decode_with_pillow(path, found, place)
        except ImageError as error:
            found.states[place], found.reasons[place] = State.BAD, error.reason
            found.sizes[place], found.looks[place], found.formats[place] = 0, 0, b""
    return found


def _decode_fast(paths: list[bytes], found: Findings) -> NDArray[np.bool_]:
    """Which images the fast loader decodes from the first to the last block; bool [N]."""
    with contextlib.closing(NativeDecoder(1)) as decoder:
        batch = decoder.load(paths)
        batch.wait()
        known = batch.statuses == Status.OK
        known &= batch.widths.astype(np.int64) * batch.heights <= pixel_limit()
        crops = np.zeros(len(paths), dtype=CROP)
        for corner, size in ((2, batch.widths), (3, batch.heights)):
            crops["box"][:, corner] = crops["bounds"][:, corner] = size
        pixels = np.zeros((len(paths), _SIDE, _SIDE, 3), dtype=np.uint8)
        batch.decode(crops, ~known, pixels)
        batch.wait()
        known &= batch.statuses == Status.OK
        found.sizes[known] = np.stack([batch.widths, batch.heights], axis=1)[known]
        found.looks[known] = _look(pixels[known])
        batch.free()
    return known


def _decode_with_pillow(path: bytes, found: Findings, place: int) -> None:
    with open_image(path) as image:
        # Pillow calls the JPEGs of some cameras, which hold a preview as well, MPO.
        name = "JPEG" if image.format == "MPO" else image.format
        rgb = decode_image(image, path)
        small = rgb.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        found.sizes[place] = rgb.size
    found.looks[place] = _look(np.asarray(small)[None])[0]
    found.states[place], found.formats[place] = State.PILLOW, name.encode()


def _look(pixels: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """64 bits that stay when an image is resized or compressed anew.

    Each says whether one of 8 x 8 places is darker than its right neighbour ("difference hash",
    Krawetz 2013).

    Args:
        pixels: uint8 [N, 9, 9, 3].

    Returns:
        uint64 [N].
    """
    grey = pixels.astype(np.int32) @ np.array([299, 587, 114], np.int32)
    bits = grey[:, : _SIDE - 1, :-1] < grey[:, : _SIDE - 1, 1:]
    packed = np.packbits(bits.reshape(len(pixels), 64), axis=1)
    return np.ascontiguousarray(packed).view(np.uint64)[:, 0]


# ---- what is kept


def _state_of(index: ImageIndex, piece: range) -> str:
    """Changes when one of the files does."""
    state = hashlib.sha256(b"%d %d" % (_FORMAT, load_core() is not None))
    for path in index.paths(piece):
        state.update(path + b"\0")
        with contextlib.suppress(OSError):
            status = os.stat(path)
            state.update(b"%d %d " % (status.st_size, status.st_mtime_ns))
    return state.hexdigest()


def _note_path(notes: Path, split: str, number: int) -> Path:
    return notes / f"{split}-{number:05d}.npz"


def _load(notes: Path, split: str, number: int, state: str) -> Findings | None:
    """The findings on a piece, None where there are none that are still true."""
    try:
        with np.load(_note_path(notes, split, number), allow_pickle=False) as saved:
            texts: dict[str, Any] = json.loads(saved["texts"].tobytes())
            if texts["state"] != state:
                return None
            arrays: dict[str, Any] = {name: saved[name] for name in _ARRAYS}
        reasons = {int(place): reason for place, reason in texts["reasons"].items()}
        return Findings(**arrays, reasons=reasons)
    except Exception:  # not there, or damaged: numpy raises nearly anything
        return None


def _save(notes: Path, split: str, number: int, state: str, found: Findings) -> None:
    texts = {"state": state, "reasons": found.reasons}
    arrays: dict[str, Any] = {name: getattr(found, name) for name in _ARRAYS}
    path = _note_path(notes, split, number)
    try:
        notes.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            np.savez(file, texts=np.frombuffer(json.dumps(texts).encode(), np.uint8), **arrays)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error
