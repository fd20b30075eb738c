# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring: correct answers, throughput, latency, running sums, spread over seeds.

Nothing here waits for the device. `ranked_classes` and `topk_correct` leave their results there;
everything else works on Python numbers that the caller has read already.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch

Batch = TypeVar("Batch")


def ranked_classes(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Rank the classes of each image by their logits, without a host wait.

    Args:
        logits: [N, C] floating point, on any device; N may be 0.
        k: how many classes to rank, >= 1; more than C count as C.

    Returns:
        [N, min(k, C)] int64 class numbers, the most probable first, on the device of `logits`. A
        row that holds a NaN has no ranking: it is -1 throughout.

    Raises:
        ValueError: k is below 1, or `logits` is no matrix.
    """
    if k < 1:
        raise ValueError(f"k must be >= 1; received {k}")
    if logits.dim() != 2:
        raise ValueError(f"logits must be [N, C]; received {list(logits.shape)}")
    ranked = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return ranked.masked_fill(logits.isnan().any(dim=1, keepdim=True), -1)


def topk_correct(ranked: torch.Tensor, target: torch.Tensor, ks: Sequence[int]) -> torch.Tensor:
    """Count the images whose class is among the k most probable ones, without a host wait.

    Args:
        ranked: [N, K] int64, from `ranked_classes`.
        target: [N] int64 class numbers from 0, on the same device.
        ks: the k values, each >= 1; a k above K counts as K.

    Returns:
        [len(ks)] int64 on the device of `ranked`: correct images per k, in the order of `ks`.

    Raises:
        ValueError: no k, a k below 1, or shapes that do not belong together.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must hold numbers >= 1; received {list(ks)}")
    if ranked.dim() != 2 or target.shape != ranked.shape[:1]:
        raise ValueError(
            "ranked must be [N, K] and target [N]; "
            f"received {list(ranked.shape)} and {list(target.shape)}"
        )
    hits = ranked == target[:, None]
    return torch.stack([hits[:, :k].sum() for k in ks])


class Rates(NamedTuple):
    """What `Throughput` measured; None where no step was recorded or no time passed."""

    total_ips: float | None  # images/s over the whole time
    compute_ips: float | None  # images/s without the waits for data
    data_wait_percent: float | None  # share of the time spent waiting for data, 0..100
    data_time: float | None  # s per step, mean
    compute_time: float | None  # s per step, mean
    images: int  # images behind the figures above
    steps: int  # steps behind the figures above
    seconds: float  # time behind the figures above

    def metrics(self, group: str) -> dict[str, float | None]:
        """Name the figures for the log.

        Args:
            group: "train", "val" or "val_ema".

        Returns:
            Values by metric name, as in "train.total_ips".
        """
        named = {
            "total_ips": self.total_ips,
            "compute_ips": self.compute_ips,
            "data_time": self.data_time,
            "data_wait": self.data_wait_percent,
        }
        if group == "train":  # validation reports its computing time as a latency
            named["compute_time"] = self.compute_time
        return {f"{group}.{name}": value for name, value in named.items()}


class _Span:
    """Sums over a number of steps."""

    def __init__(self) -> None:
        self.images = 0
        self.steps = 0
        self.data_time = 0.0
        self.compute_time = 0.0

    def add(self, images: int, data_time: float, compute_time: float) -> None:
        self.images += images
        self.steps += 1
        self.data_time += data_time
        self.compute_time += compute_time

    def rates(self) -> Rates:
        seconds = self.data_time + self.compute_time
        return Rates(
            total_ips=_ratio(self.images, seconds),
            compute_ips=_ratio(self.images, self.compute_time),
            data_wait_percent=_ratio(100.0 * self.data_time, seconds),
            data_time=_ratio(self.data_time, self.steps),
            compute_time=_ratio(self.compute_time, self.steps),
            images=self.images,
            steps=self.steps,
            seconds=seconds,
        )


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


class Throughput:
    """Images over wall time of one phase (an epoch of training, one validation).

    The rate is the sum of images over the sum of seconds, never a mean of per-step rates, which
    overstates: 9 steps of 0.1 s and one of 1 s with 256 images each are 2560 / 1.9 = 1347
    images/s, while the mean of the ten rates is 2330.

    The first `warmup` steps are left out. A phase (or a window) that has no other steps reports
    them after all: a low figure is better than none.

    Usage::

        for images, target in throughput.timed(loader):
            ...                      # the step, and every read of a device value
            throughput.step_done(images_of_all_ranks)

    Waits for the device must come before `step_done`, so that they count as computing. Devices
    run behind the host: a window is exact when its last step ended with such a wait, as the one
    that reads the loss for a log line does.

    Args:
        warmup: steps at the start that do not count, >= 0.
        clock: returns seconds.
    """

    def __init__(self, warmup: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.warmup = warmup
        self._clock = clock
        self._steps = 0
        self._mark: float | None = None
        self._data_time = 0.0
        self._overhead = 0.0
        # Index 0: the steps that count; index 1: the warm-up steps.
        self._phase = (_Span(), _Span())
        self._window = (_Span(), _Span())

    def start(self) -> None:
        """Start the clock; again after a pause (a save, a validation) that must not count."""
        self._mark = self._clock()

    def timed(self, batches: Iterable[Batch], limit: int | None = None) -> Iterator[Batch]:
        """Iterate over batches and time the waits for them.

        Args:
            batches: what to iterate over.
            limit: number of batches after which to stop, None for all; not one more is fetched.

        Yields:
            The batches. The loop's body calls `step_done` for each.
        """
        self.start()
        iterator = iter(batches)
        for _ in range(limit) if limit is not None else itertools.count():
            # What came after the last step, as writing a log line, is no wait for data.
            self._overhead = self._lap()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._data_time = self._lap()
            yield batch

    def step_done(self, images: int) -> float:
        """Note the end of the step that belongs to the last batch of `timed`.

        Args:
            images: images of this step, of all ranks together where the rate of the whole run
                is wanted.

        Returns:
            Seconds of computing.
        """
        compute_time = self._lap()
        self.add(images, data_time=self._data_time, compute_time=self._overhead + compute_time)
        self._data_time = self._overhead = 0.0
        return compute_time

    def add(self, images: int, *, data_time: float, compute_time: float) -> None:
        """Record a step whose times were taken elsewhere.

        Args:
            images: images of the step.
            data_time: seconds waited for the batch.
            compute_time: seconds from there to the end of the step.
        """
        self._steps += 1
        is_warmup = int(self._steps <= self.warmup)
        for spans in (self._phase, self._window):
            spans[is_warmup].add(images, data_time, compute_time)

    def rates(self) -> Rates:
        """Figures of the phase so far."""
        return _counting(self._phase).rates()

    def window_rates(self) -> Rates:
        """Figures since the previous call of this method: for the line printed every n steps."""
        window = self._window
        self._window = (_Span(), _Span())
        return _counting(window).rates()

    def _lap(self) -> float:
        if self._mark is None:
            raise RuntimeError("step_done() belongs into a loop over Throughput.timed()")
        now = self._clock()
        elapsed, self._mark = now - self._mark, now
        return elapsed


def _counting(spans: tuple[_Span, _Span]) -> _Span:
    counted, warmup = spans
    return counted if counted.steps else warmup


class Latency(NamedTuple):
    """Seconds per batch: the average and the value that 95, 99 and 100 % do not exceed."""

    average: float
    at95: float
    at99: float
    at100: float

    def metrics(self, group: str) -> dict[str, float]:
        """Name the figures for the log: group "val" gives "val.compute_latency" and so on."""
        name = f"{group}.compute_latency"
        return {
            name: self.average,
            f"{name}_at95": self.at95,
            f"{name}_at99": self.at99,
            f"{name}_at100": self.at100,
        }


class LatencyMeter:
    """Collects the seconds of single steps, without the first ones.

    Args:
        warmup: steps at the start that do not count, >= 0; a meter that saw no other steps
            reports them after all.
    """

    def __init__(self, warmup: int = 0) -> None:
        self.warmup = warmup
        self._seconds: list[float] = []

    def add(self, seconds: float) -> None:
        """Record the time of one step, in seconds; the device must have finished the step."""
        self._seconds.append(seconds)

    def summary(self) -> Latency | None:
        """Return average and quantiles in seconds, None before the first step.

        The quantiles are measured values, not interpolated ones.
        """
        seconds = self._seconds[self.warmup :] or self._seconds
        if not seconds:
            return None
        at95, at99, at100 = np.quantile(seconds, (0.95, 0.99, 1.0), method="nearest")
        return Latency(statistics.fmean(seconds), float(at95), float(at99), float(at100))


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1); `std` is None for a single value."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" +/- {self.std:.2f}")


def mean_and_spread(values: Iterable[float]) -> Spread:
    """Describe the results of several seeds.

    Args:
        values: one figure per run, any unit.

    Returns:
        Mean and sample standard deviation, in the unit of the values.

    Raises:
        ValueError: no values.
    """
    figures = list(values)
    if not figures:
        raise ValueError("mean_and_spread needs at least one value")
    std = statistics.stdev(figures) if len(figures) > 1 else None
    return Spread(statistics.fmean(figures), std)
