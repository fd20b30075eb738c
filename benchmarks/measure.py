# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark measures: in turns, medians of rounds, one JSON file.

A round gives each contender one timed stretch of steps, starting with another contender in each
round, so that a machine that heats up, throttles or gets busy meets all of them. Ratios are taken
within a round and then their median. The rate of a stretch is its images / its time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

from benchmarks.environment import clock_mhz
from image_classification.atomic_file import atomic_file
from image_classification.device import Device

SCHEMA = 1
RESULTS = Path(__file__).resolve().parent / "results"


class Unavailable(Exception):
    """A contender cannot run, or no longer; the text says why and, where there is one, the cure."""


class Runner(Protocol):
    """A contender that is ready to run."""

    def run(self, steps: int) -> int:
        """Does the steps, without waiting for the device at the end; returns their images."""

    def facts(self) -> dict[str, float]:
        """Reads what the last run gave (its loss, for example) after the clock has stopped."""


class Contender(NamedTuple):
    """What is compared.

    Attributes:
        name: As in the table.
        settings: One line for the JSON file: precision, memory format, optimizer.
        build: Makes it ready; raises Unavailable where it cannot run.
        peer: Whether it is somebody else's program.
    """

    name: str
    settings: str
    build: Callable[[], Runner]
    peer: bool = False


class Spread(NamedTuple):
    """Median and extremes over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarises at least one value."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """As "1.02 (0.99-1.05)"."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


@dataclass
class Result:
    """What one contender did.

    Attributes:
        name: As in the table.
        settings: As given by the contender.
        resident: Bytes on the device that it holds between steps, None where not known.
        rounds: One dictionary per round, see `_timed_round`.
    """

    name: str
    settings: str
    resident: int | None = None
    rounds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Images per second of each round."""
        return [entry["images_per_second"] for entry in self.rounds]

    @property
    def peak_memory(self) -> int | None:
        """Most bytes of device memory in any round."""
        return max((e["peak_memory"] for e in self.rounds if e["peak_memory"]), default=None)

    def ratio_to(self, other: Result) -> Spread:
        """Speed relative to another contender: same-round ratios, their median and extremes."""
        return Spread.of([own / its for own, its in zip(self.rates, other.rates, strict=True)])

    def record(self) -> dict[str, Any]:
        """As JSON types."""
        images = sum(entry["images"] for entry in self.rounds)
        seconds = sum(entry["seconds"] for entry in self.rounds)
        rate = {**Spread.of(self.rates)._asdict(), "total_images_per_total_time": images / seconds}
        return {
            "name": self.name,
            "settings": self.settings,
            "images_per_second": rate,
            "resident_memory": self.resident,
            "peak_memory": self.peak_memory,
            "rounds": self.rounds,
        }


class Comparison(NamedTuple):
    """What all contenders did.

    Attributes:
        results: In the order of the contenders.
        left_out: Name of each contender that could not run, and why.
    """

    results: list[Result]
    left_out: dict[str, str]

    def ratio(self, one: str, other: str) -> Spread | None:
        """Speed of one relative to another by name, None where either was left out."""
        found = {result.name: result for result in self.results}
        return found[one].ratio_to(found[other]) if {one, other} <= found.keys() else None

    def table(self, baseline: str) -> str:
        """Formats the results.

        Args:
            baseline: Name of the contender that the ratios refer to.

        Returns:
            Lines of a Markdown table, without a newline at the end.
        """
        lines = [["contender", "img/s", "min-max", f"ratio to {baseline}", "peak memory"]]
        for result in self.results:
            rate, ratio = Spread.of(result.rates), self.ratio(result.name, baseline)
            peak = f"{result.peak_memory / 2**30:.2f} GiB" if result.peak_memory else "-"
            median_rate, extremes = f"{rate.median:.1f}", f"{rate.low:.1f}-{rate.high:.1f}"
            relative = ratio.text(2) if ratio else "-"
            lines.append([result.name, median_rate, extremes, relative, peak])
        return markdown_table(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of cells, the first one as the head, without a newline at the end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    cells = ([text.ljust(width) for text, width in zip(x, widths, strict=True)] for x in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def start_here(contender: Contender) -> Runner:
    """Makes a contender ready in this process."""
    return contender.build()


def compare(
    contenders: Sequence[Contender],
    *,
    device: Device,
    rounds: int,
    steps: int,
    warmup: int,
    say: Callable[[str], None],
    lead: int = 2,
    start: Callable[[Contender], Runner] = start_here,
) -> Comparison:
    """Builds, warms up and measures the contenders in turns.

    Args:
        contenders: What is compared.
        device: For synchronisation, memory and clocks.
        rounds: Timed stretches of each contender, >= 1.
        steps: Steps in a stretch, >= 1.
        warmup: Untimed steps of each contender after it was built, >= 1.
        say: Receives lines about the progress.
        lead: Untimed steps before each stretch, >= 1: the caches and the allocator's memory are
            still the previous contender's, freed memory was given back (`apart`), and a loader
            has batches ready from before.
        start: Makes a contender ready; `apart.starter` has what does so in other processes.

    Returns:
        The measurements.
    """
    ready: list[tuple[Result, Runner]] = []
    left_out: dict[str, str] = {}
    for contender in contenders:
        with _leaving_out(contender.name, left_out, say):
            before = device.memory()
            runner = start(contender)
            say(f"{contender.name}: {warmup} warm-up steps")
            runner.run(warmup)
            device.synchronize()
            after = device.memory()
            resident = after.allocated - before.allocated if before and after else None
            ready.append((Result(contender.name, contender.settings, resident), runner))
    for number in range(rounds):
        if not ready:
            break
        first = number % len(ready)
        for result, runner in ready[first:] + ready[:first]:
            with _leaving_out(result.name, left_out, say):
                runner.run(lead)
                device.synchronize()
                result.rounds.append(_timed_round(runner, result.resident, device, steps))
        ready = [one for one in ready if one[0].name not in left_out]
        rates = ", ".join(f"{result.name} {result.rates[-1]:.1f}" for result, _ in ready)
        say(f"round {number + 1}/{rounds}, img/s: {rates}")
    return Comparison([result for result, _ in ready], left_out)


@contextlib.contextmanager
def _leaving_out(name: str, left_out: dict[str, str], say: Callable[[str], None]) -> Iterator[None]:
    """Notes a contender that is unavailable, with the reason, and goes on."""
    try:
        yield
    except Unavailable as reason:
        left_out[name] = str(reason)
        say(f"{name}: left out: {reason}")


def _timed_round(
    runner: Runner, resident: int | None, device: Device, steps: int
) -> dict[str, Any]:
    """Returns JSON types: images, seconds, their ratio, peak bytes and MHz (or None), facts."""
    device.reset_peak_memory()
    before = device.memory()
    started = time.perf_counter()
    images = runner.run(steps)
    device.synchronize()
    seconds = time.perf_counter() - started
    clock = clock_mhz(device)  # first of all: an idle device lowers it
    after = device.memory()
    # The other contenders are in memory too: count this one's share and what its steps added.
    peak = None
    if before is not None and after is not None and resident is not None:
        peak = resident + after.peak - before.allocated
    return {
        "images": images,
        "seconds": seconds,
        "images_per_second": images / seconds,
        "peak_memory": peak,
        "clock_mhz": clock,
        "facts": runner.facts(),
    }


def save(record: dict[str, Any], wanted: Path | None, device: Device) -> None:
    """Writes a benchmark's record where it is wanted, else to `result_path`; says where."""
    date = record["environment"]["date"][:10]
    path = wanted or result_path(record["benchmark"], date, device)
    write_json(path, record)
    print(f"written to {path}", file=sys.stderr)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a result file, complete or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(record, indent=1, allow_nan=False) + "\n").encode("utf-8"))


def result_path(benchmark: str, date: str, device: Device) -> Path:
    """Returns results/<date>-<device>-<benchmark>.json, with -2, -3, ... where it is taken."""
    words = "".join(letter if letter.isalnum() else " " for letter in device.name.lower())
    stem = "-".join([date, device.type, *words.split(), benchmark])
    path, number = RESULTS / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = RESULTS / f"{stem}-{number}.json"
    return path
