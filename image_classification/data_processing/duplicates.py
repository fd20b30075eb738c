# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which images are there more than once: bit for bit, or the same picture saved another time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Two looks that differ in at most so many of 64 bits are the same picture. One of four parts of 16
# bits is then the same in both, which makes the search fast.
LOOK_DISTANCE = 3
_PARTS = 4
# A look with fewer bits of one kind says too little: plain surfaces, gradients.
_MIN_BITS = 12
# Pairs that are compared at once.
_CHUNK = 1 << 18
_BIT_COUNTS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


def equal_groups(digests: NDArray[np.uint8], good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give the same number to images whose files are equal.

    Args:
        digests: uint8 [N, B], of each file.
        good: bool [N]; the others are equal to none.

    Returns:
        int64 [N]: position of the first image with the same file, for most the image itself.
    """
    groups = np.arange(len(digests))
    places = np.flatnonzero(good)
    if not len(places):
        return groups
    keys = np.ascontiguousarray(digests[places]).view(f"V{digests.shape[1]}")[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    groups[places] = places[first[inverse.reshape(-1)]]
    return groups


def members_of_groups(groups: NDArray[np.int64]) -> list[list[int]]:
    """The groups of two and more images, each in ascending order."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    counts = np.diff(starts, append=len(order))
    pairs = zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True)
    return sorted(order[start : start + count].tolist() for start, count in pairs)


def similar_pairs(
    first: NDArray[np.uint64], second: NDArray[np.uint64], most: int = 100_000
) -> list[tuple[int, int]]:
    """Pairs of one image of each list that look the same.

    Args:
        first: uint64 [N], looks, see `examination`; those that say too little are left out.
        second: uint64 [M], likewise.
        most: The search ends after so many pairs.

    Returns:
        Positions in `first` and `second`, ascending.
    """
    ours, theirs = np.flatnonzero(_telling(first)), np.flatnonzero(_telling(second))
    pairs: set[tuple[int, int]] = set()
    for part in range(_PARTS):
        for a, b in _candidates(_part(first[ours], part), _part(second[theirs], part)):
            i, j = ours[a], theirs[b]
            same = _bits(first[i] ^ second[j]) <= LOOK_DISTANCE
            pairs.update(zip(i[same].tolist(), j[same].tolist(), strict=True))
            if len(pairs) >= most:
                return sorted(pairs)[:most]
    return sorted(pairs)


def _bits(looks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How many of the 64 bits are set."""
    octets = np.ascontiguousarray(looks).view(np.uint8).reshape(-1, 8)
    return _BIT_COUNTS[octets].sum(axis=1, dtype=np.int64)


def _telling(looks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    counts = _bits(looks)
    return (counts >= _MIN_BITS) & (counts <= 64 - _MIN_BITS)


def _part(looks: NDArray[np.uint64], part: int) -> NDArray[np.uint64]:
    return (looks >> np.uint64(16 * part)) & np.uint64(0xFFFF)


def _candidates(
    first: NDArray[np.uint64], second: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs with equal keys, some at a time."""
    order = np.argsort(first, kind="stable")
    keys = first[order]
    begins, ends = np.searchsorted(keys, second), np.searchsorted(keys, second, side="right")
    counts = ends - begins
    totals = np.cumsum(counts)
    start = 0
    while start < len(second):
        done = totals[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(totals, done + _CHUNK, side="right")))
        chosen = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(chosen)) - np.repeat(
            totals[start:stop] - counts[start:stop] - done, counts[start:stop]
        )
        yield order[begins[chosen] + within], chosen
        start = stop
