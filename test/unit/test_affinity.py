# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which cores a process gets in each affinity mode."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from image_classification.affinity import MODES, _parse_cpulist, bind, choose_cores

NODES = [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("socket", [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]),
        ("socket_single", [[0], [0], [4], [4]]),
        ("socket_single_unique", [[0], [1], [4], [5]]),
        ("socket_unique_interleaved", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("socket_unique_contiguous", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_four_processes_on_two_nodes(mode: str, expected: list[list[int]]) -> None:
    assert [choose_cores(mode, rank, 4, NODES) for rank in range(4)] == expected


@pytest.mark.parametrize("mode", MODES[1:])
def test_more_processes_than_cores_still_get_a_core(mode: str) -> None:
    for rank in range(5):
        assert choose_cores(mode, rank, 5, [[0, 1]])


def test_the_kernels_list_format() -> None:
    assert _parse_cpulist("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert _parse_cpulist("\n") == set()


def test_none_changes_nothing() -> None:
    before = os.sched_getaffinity(0)
    assert bind("none", 0, 1) == sorted(before)
    assert os.sched_getaffinity(0) == before


def test_a_process_is_bound() -> None:
    code = "from image_classification.affinity import bind; print(bind('socket_single', 0, 1))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.stdout.strip() == str(sorted(os.sched_getaffinity(0))[:1]), output.stderr
