# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The search for images that are there more than once, against a plain one."""

from __future__ import annotations

import numpy as np
import pytest

from image_classification.data_processing import duplicates
from image_classification.data_processing.duplicates import (
    equal_groups,
    members_of_groups,
    similar_pairs,
)


def test_equal_files_have_one_group() -> None:
    rng = np.random.default_rng(0)
    digests = rng.integers(0, 3, (60, 2), dtype=np.uint8)
    good = rng.random(60) < 0.8
    groups = equal_groups(digests, good)
    for i in range(60):
        same = [j for j in range(60) if good[i] and good[j] and (digests[i] == digests[j]).all()]
        assert groups[i] == (same[0] if same else i)
    found = members_of_groups(groups)
    assert found == sorted(found) and all(len(group) > 1 for group in found)
    assert sum(map(len, found)) == sum((groups == groups[i]).sum() > 1 for i in range(60))
    assert members_of_groups(equal_groups(digests, np.zeros(60, bool))) == []


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_similar_pairs_are_those_of_a_plain_search(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "_CHUNK", chunk)
    rng = np.random.default_rng(1)
    looks = rng.integers(0, 1 << 63, 40, dtype=np.uint64)
    looks[5:12] = looks[5] & np.uint64(0xFFFF)  # too plain, or all in one bucket
    first = rng.choice(looks, 60)
    second = rng.choice(looks, 30)
    for array in (first, second):
        for i in range(len(array)):
            for bit in rng.integers(0, 64, rng.integers(0, 4)).tolist():
                array[i] ^= np.uint64(1 << bit)
    expected = [
        (i, j)
        for i, a in enumerate(first.tolist())
        for j, b in enumerate(second.tolist())
        if bin(a ^ b).count("1") <= duplicates.LOOK_DISTANCE
        and 12 <= bin(a).count("1") <= 52 and 12 <= bin(b).count("1") <= 52
    ]  # fmt: skip
    assert similar_pairs(first, second) == expected and len(expected) > 20
    assert len(similar_pairs(first, second, most=5)) == 5
    assert similar_pairs(first[:0], second) == []
