# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Counting, rates, latencies, sums, and the table of metrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from image_classification.metric_names import (
    AGGREGATIONS,
    DEFAULT,
    METRICS,
    VERBOSE,
    aggregate,
    format_metric,
    metric_spec,
    summarize,
)
from image_classification.metrics import (
    LatencyMeter,
    Throughput,
    mean_and_spread,
    ranked_classes,
)
from image_classification.metrics import topk_correct as count_ranked


def topk_correct(logits: torch.Tensor, target: torch.Tensor, ks: tuple[int, ...]) -> torch.Tensor:
    return count_ranked(ranked_classes(logits, max(ks)), target, ks)


def test_topk_counts_like_sorting_every_row() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 10, generator=generator)
    target = torch.randint(10, (64,), generator=generator)
    correct = topk_correct(logits, target, (1, 3, 5))
    ranked = np.argsort(-logits.numpy(), axis=1)
    expected = [int((ranked[:, :k] == target.numpy()[:, None]).sum()) for k in (1, 3, 5)]
    assert correct.tolist() == expected
    assert correct.dtype == torch.int64
    assert 0 < expected[0] < expected[1] < expected[2] < 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_topk_in_half_precision(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]], dtype=dtype)
    assert topk_correct(logits, torch.tensor([2, 0]), (1, 2)).tolist() == [1, 2]


def test_topk_beyond_the_classes_counts_every_image() -> None:
    logits = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert topk_correct(logits, torch.tensor([0, 1, 0]), (1, 5)).tolist() == [1, 3]


def test_topk_of_an_empty_batch() -> None:
    empty = topk_correct(torch.empty(0, 7), torch.empty(0, dtype=torch.int64), (1, 5))
    assert empty.tolist() == [0, 0]


def test_topk_takes_no_credit_for_nan() -> None:
    logits = torch.full((4, 3), math.nan)
    logits[3] = torch.tensor([0.0, 1.0, math.inf])
    assert topk_correct(logits, torch.tensor([0, 1, 2, 2]), (1, 3)).tolist() == [1, 1]


def test_topk_never_reads_a_value() -> None:
    # Tensors on the meta device have no values: whatever reads one raises.
    logits = torch.empty(8, 10, device="meta")
    target = torch.empty(8, dtype=torch.int64, device="meta")
    correct = topk_correct(logits, target, (1, 5))
    assert correct.shape == (2,)
    assert correct.device.type == "meta"


@pytest.mark.parametrize(
    ("shape", "ks"), [((4, 3), ()), ((4, 3), (0,)), ((4,), (1,)), ((5, 3), (1,))]
)
def test_topk_refuses_nonsense(shape: tuple[int, ...], ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        count_ranked(
            torch.zeros(shape, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), ks
        )


@pytest.mark.parametrize(("shape", "k"), [((4, 3), 0), ((4,), 1)])
def test_ranking_refuses_nonsense(shape: tuple[int, ...], k: int) -> None:
    with pytest.raises(ValueError, match="must"):
        ranked_classes(torch.zeros(shape), k)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_throughput_is_images_over_time_and_no_mean_of_rates() -> None:
    throughput = Throughput()
    for seconds in [0.1] * 9 + [1.0]:
        throughput.add(256, data_time=0.0, compute_time=seconds)
    rates = throughput.rates()
    assert rates.total_ips == pytest.approx(2560 / 1.9)
    assert round(rates.total_ips or 0) == 1347
    assert rates.images == 2560
    assert rates.steps == 10


def test_throughput_leaves_the_warm_up_out() -> None:
    throughput = Throughput(warmup=2)
    for seconds in (30.0, 10.0, 0.5, 0.5):
        throughput.add(100, data_time=0.5 * seconds, compute_time=0.5 * seconds)
    rates = throughput.rates()
    assert rates.total_ips == pytest.approx(200.0)
    assert rates.compute_ips == pytest.approx(400.0)
    assert rates.data_wait_percent == pytest.approx(50.0)
    assert rates.data_time == pytest.approx(0.25)
    assert (rates.steps, rates.images) == (2, 200)


def test_throughput_reports_the_warm_up_when_there_is_nothing_else() -> None:
    throughput = Throughput(warmup=5)
    throughput.add(10, data_time=0.0, compute_time=2.0)
    assert throughput.rates().total_ips == pytest.approx(5.0)


def test_throughput_without_steps_knows_nothing() -> None:
    rates = Throughput().rates()
    assert rates.total_ips is None
    assert rates.data_wait_percent is None


def test_throughput_windows_do_not_overlap() -> None:
    throughput = Throughput(warmup=1)
    for seconds in (9.0, 1.0, 1.0):
        throughput.add(10, data_time=0.0, compute_time=seconds)
    assert throughput.window_rates().total_ips == pytest.approx(10.0)
    throughput.add(10, data_time=1.0, compute_time=1.0)
    window = throughput.window_rates()
    assert (window.steps, window.total_ips) == (1, pytest.approx(5.0))
    assert throughput.rates().total_ips == pytest.approx(30 / 4)


def test_timed_tells_waiting_from_computing() -> None:
    clock = Clock()

    def batches() -> object:
        for number in range(3):
            clock.now += 0.3
            yield number

    throughput = Throughput(clock=clock)
    seen = []
    for batch in throughput.timed(batches()):
        seen.append(batch)
        clock.now += 0.5
        throughput.step_done(8)
        clock.now += 0.2  # a log line: no wait for data
    rates = throughput.rates()
    assert seen == [0, 1, 2]
    assert rates.data_time == pytest.approx(0.3)
    assert rates.compute_time == pytest.approx((3 * 0.5 + 2 * 0.2) / 3)
    assert rates.seconds == pytest.approx(3 * 0.8 + 2 * 0.2)


def test_timed_fetches_no_batch_beyond_its_limit() -> None:
    source = iter(range(10))
    throughput = Throughput()
    for _ in throughput.timed(source, limit=4):
        throughput.step_done(1)
    assert next(source) == 4
    assert throughput.rates().images == 4


def test_a_pause_does_not_count() -> None:
    clock = Clock()
    throughput = Throughput(clock=clock)
    for _ in throughput.timed(range(2)):
        clock.now += 1.0
        throughput.step_done(10)
        clock.now += 50.0  # saving a checkpoint
        throughput.start()
    assert throughput.rates().total_ips == pytest.approx(10.0)


def test_rates_carry_the_names_of_the_report() -> None:
    throughput = Throughput()
    throughput.add(10, data_time=0.5, compute_time=0.5)
    train = throughput.rates().metrics("train")
    assert train == {
        "train.total_ips": 10.0,
        "train.compute_ips": 20.0,
        "train.data_time": 0.5,
        "train.data_wait": 50.0,
        "train.compute_time": 0.5,
    }
    assert set(train) | set(throughput.rates().metrics("val_ema")) <= set(METRICS)


def test_latency_quantiles_are_measured_values() -> None:
    meter = LatencyMeter(warmup=3)
    for _ in range(3):
        meter.add(99.0)
    for number in range(1, 31):
        meter.add(number / 1000)
    summary = meter.summary()
    assert summary is not None
    assert summary.average == pytest.approx(0.0155)
    # Place 0.95 x 29 = 27.55 of the sorted values is nearest to place 28, counted from 0.
    assert summary[1:] == (0.029, 0.030, 0.030)
    assert set(summary.metrics("val")) <= set(METRICS)


def test_latency_of_few_steps() -> None:
    meter = LatencyMeter(warmup=3)
    assert meter.summary() is None
    meter.add(0.25)
    assert meter.summary() == (0.25, 0.25, 0.25, 0.25)


def test_mean_and_spread() -> None:
    assert mean_and_spread([1.0, 2.0, 3.0, 4.0]) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    assert mean_and_spread([7.5]) == (7.5, None)
    with pytest.raises(ValueError, match="at least one"):
        mean_and_spread([])


NVIDIA_METRICS = {
    "train.loss": (None, ":.5f", DEFAULT),
    "train.compute_ips": ("images/s", ":.2f", DEFAULT),
    "train.total_ips": ("images/s", ":.2f", DEFAULT),
    "train.data_time": ("s", ":.5f", VERBOSE),
    "train.compute_time": ("s", ":.5f", VERBOSE),
    "train.grad_scale": (None, ":.5f", DEFAULT),
    "loss": (None, ":.5f", DEFAULT),
    "top1": ("%", ":.2f", DEFAULT),
    "top5": ("%", ":.2f", DEFAULT),
    "top3": ("%", ":.2f", DEFAULT),
    "compute_ips": ("images/s", ":.2f", DEFAULT),
    "total_ips": ("images/s", ":.2f", DEFAULT),
    "data_time": ("s", ":.5f", VERBOSE),
    "compute_latency": ("s", ":.5f", DEFAULT),
    "compute_latency_at95": ("s", ":.5f", VERBOSE),
    "compute_latency_at99": ("s", ":.5f", VERBOSE),
    "compute_latency_at100": ("s", ":.5f", VERBOSE),
}


@pytest.mark.parametrize("name", NVIDIA_METRICS)
def test_names_units_and_formats_are_nvidias(name: str) -> None:
    unit, form, verbosity = NVIDIA_METRICS[name]
    for full in [name] if "." in name else [f"val.{name}", f"val_ema.{name}"]:
        spec = metric_spec(full)
        assert spec.metadata == {"unit": unit, "format": form}
        assert spec.verbosity == verbosity


def test_the_learning_rate_has_no_metadata() -> None:
    assert metric_spec("train.lr").metadata == {}
    assert format_metric("train.lr", 0.256) == "train.lr : 0.256 "


def test_every_declared_metric_can_be_formatted_and_aggregated() -> None:
    for name, spec in METRICS.items():
        value = 3 if spec.format == ":d" else 3.25
        assert format_metric(name, value).startswith(f"{name} : 3")
        assert format_metric(name, None).startswith(f"{name} : None")
        assert (spec.human + spec.bar).format(value, value).strip() or not spec.human + spec.bar
        assert spec.aggregation in AGGREGATIONS
        assert aggregate(name, [value]) is not None


def test_a_value_that_does_not_fit_is_printed_as_it_is() -> None:
    assert format_metric("val.seen", 1.5) == "val.seen : 1.5 images"
    assert format_metric("val.loss", "n/a") == "val.loss : n/a None"


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("train.loss", [3.0, 1.0, 2.0], 1.0),
        ("train.loss", [3.0, math.nan, 2.0], 2.0),
        ("val.top1", [50.0, 75.0, 70.0], 75.0),
        ("val.top1", [None, 75.0, None], 75.0),
        ("val.top1", [None], None),
        ("train.lr", [0.3, 0.2, 0.1], 0.1),
        ("train.data_time", [1.0, 2.0, 6.0], 3.0),
        ("train.skipped_steps", [1, 0, 2], 3),
        # Two epochs of 1000 images in 1 s and 3 s are 2000 images in 4 s.
        ("train.total_ips", [1000.0, 1000.0 / 3], 500.0),
    ],
)
def test_the_run_sums_up_its_epochs(
    name: str, values: list[float | None], expected: float | None
) -> None:
    assert aggregate(name, values) == (None if expected is None else pytest.approx(expected))


def test_a_run_of_nan_reports_nan() -> None:
    assert math.isnan(aggregate("train.loss", [math.nan, math.nan]) or 0.0)


def test_summarize_covers_every_epoch_and_metric() -> None:
    rows: list[dict[str, object]] = [
        {"train.loss": 2.0, "val.top1": 90.0},
        {"train.loss": 3.0, "val.top1": 80.0, "val_ema.top1": 85.0, "note": "text"},
    ]
    assert summarize(rows) == {"train.loss": 2.0, "val.top1": 90.0, "val_ema.top1": 85.0}
