# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Contenders of a benchmark take turns, in one process or each in its own, and may fail."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from typing import Any

import pytest

from benchmarks import apart, measure
from image_classification.device import Device


class FakeRunner:
    """Ten images per step; notes the order of calls."""

    def __init__(self, name: str, calls: list[tuple[str, int]]) -> None:
        self.name, self.calls = name, calls

    def run(self, steps: int) -> int:
        self.calls.append((self.name, steps))
        return 10 * steps

    def facts(self) -> dict[str, float]:
        return {}


def test_contenders_take_turns_and_another_one_starts_each_round() -> None:
    calls: list[tuple[str, int]] = []

    def missing() -> measure.Runner:
        raise measure.Unavailable("not here")

    contenders = [
        measure.Contender("a", "", lambda: FakeRunner("a", calls)),
        measure.Contender("gone", "", missing),
        measure.Contender("b", "", lambda: FakeRunner("b", calls)),
    ]
    found = measure.compare(
        contenders, device=Device.select("cpu"), rounds=2, steps=3, warmup=5,
        say=lambda line: None)  # fmt: skip
    turns = [("a", 2), ("a", 3), ("b", 2), ("b", 3), ("b", 2), ("b", 3), ("a", 2), ("a", 3)]
    assert calls == [("a", 5), ("b", 5), *turns]
    assert found.left_out == {"gone": "not here"} and found.ratio("a", "gone") is None
    assert [entry["images"] for entry in found.results[0].rounds] == [30, 30]


class TwoWords(Exception):
    """Pickled, it cannot be made anew."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__((one, two))


def fail_with_two_words() -> None:
    raise TwoWords("one", "two")


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (os.abort, (measure.Unavailable, "exit code -6")),
        (partial(int, "x"), (ValueError, "'x'")),
        (partial(sys.exit, 3), (RuntimeError, "SystemExit: 3")),
        (fail_with_two_words, (RuntimeError, "TwoWords: ('one', 'two')")),
    ],
)
def test_a_process_that_cannot_start_says_why(
    build: Any, problem: tuple[type[Exception], str]
) -> None:
    with pytest.raises(problem[0], match=re.escape(problem[1])):
        apart.Apart(measure.Contender("name", "settings", build))


def test_a_process_that_dies_leaves_the_others() -> None:
    """Killed while it waits, as by a system that is short of memory."""
    started: list[apart.Apart] = []

    def start(contender: measure.Contender) -> measure.Runner:
        started.append(apart.Apart(contender))
        return started[-1]

    def say(line: str) -> None:
        if line.startswith("round 1"):
            started[0]._process.kill()
            started[0]._process.join()

    names = ["a", "b"]
    found = measure.compare(
        [measure.Contender(name, "", partial(FakeRunner, name, [])) for name in names],
        device=Device.select("cpu"), rounds=3, steps=1, warmup=1, say=say, start=start,
    )  # fmt: skip
    assert found.left_out == {"a": "its process ended with exit code -9"}
    assert [(one.name, len(one.rounds)) for one in found.results] == [("b", 3)]
    started[1].close()
    assert started[1]._process.exitcode == 0  # it was not killed


def test_without_a_contender_there_is_no_round() -> None:
    def missing() -> measure.Runner:
        raise measure.Unavailable("not here")

    said: list[str] = []
    found = measure.compare(
        [measure.Contender("gone", "", missing)], device=Device.select("cpu"), rounds=2, steps=1,
        warmup=1, say=said.append)  # fmt: skip
    assert not found.results and said == ["gone: left out: not here"]
