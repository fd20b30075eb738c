# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Every metric the package logs, declared once: name, unit, format, verbosity, aggregation.

Names, units and formats of the train, val and val_ema groups are those of NVIDIA's
DeepLearningExamples ConvNets, so that tools which read its reports read ours.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

#: Rows of this verbosity go to the report and to standard output.
DEFAULT = 0
#: Rows of this verbosity go to the report only.
VERBOSE = 1


@dataclass(frozen=True)
class MetricSpec:
    """How a metric is written, printed and summed up.

    Attributes:
        unit: unit of the value; None is written as JSON null and printed as `None`.
        format: format specification with its colon, as in ":.2f"; "" for a metric that is
            reported without unit and format.
        verbosity: DEFAULT or VERBOSE; decides where a row of one iteration goes. Rows of an
            epoch or of the run go everywhere.
        aggregation: key of AGGREGATIONS; how the values of the epochs become that of the run.
        human: template for the lines of epochs and of the run on a terminal; "" leaves the
            metric out.
        bar: the same, shorter, for the progress bar.
    """

    unit: str | None
    format: str
    verbosity: int = DEFAULT
    aggregation: str = "mean"
    human: str = ""
    bar: str = ""

    @property
    def metadata(self) -> dict[str, str | None]:
        """What the METADATA row of the report says of the metric."""
        return {"unit": self.unit, "format": self.format} if self.format else {}


def _accuracy(title: str) -> MetricSpec:
    short = title.split()[-1]
    return MetricSpec("%", ":.2f", DEFAULT, "max", f"{title} {{:.2f}} %", f"{short} {{:.1f}}%")


def _validation_metrics(group: str, title: str) -> dict[str, MetricSpec]:
    seconds = ("s", ":.5f")
    rate = ("images/s", ":.2f")
    specs = {
        "loss": MetricSpec(
            None, ":.5f", aggregation="min", human=f"{title} loss {{:.4f}}", bar="loss {:.3f}"
        ),
        "top1": _accuracy(f"{title} top-1"),
        "top5": _accuracy(f"{title} top-5"),
        "compute_ips": MetricSpec(*rate, aggregation="rate"),
        "total_ips": MetricSpec(
            *rate, aggregation="rate", human=f"{title} {{:.0f}} img/s", bar="{:.0f} img/s"
        ),
        "data_time": MetricSpec(*seconds, verbosity=VERBOSE),
        "compute_latency": MetricSpec(*seconds),
        "compute_latency_at100": MetricSpec(*seconds, verbosity=VERBOSE, aggregation="max"),
        "compute_latency_at99": MetricSpec(*seconds, verbosity=VERBOSE),
        "compute_latency_at95": MetricSpec(*seconds, verbosity=VERBOSE),
        "data_wait": MetricSpec("%", ":.2f", VERBOSE, bar="wait {:.0f}%"),
        "correct": MetricSpec("images", ":d", aggregation="max"),
        "seen": MetricSpec("images", ":d", aggregation="last"),
    }
    return {f"{group}.{name}": spec for name, spec in specs.items()}


METRICS: dict[str, MetricSpec] = {
    "train.loss": MetricSpec(None, ":.5f", DEFAULT, "min", "loss {:.4f}", "loss {:.3f}"),
    "train.top1": MetricSpec("%", ":.2f", VERBOSE, "max", "top-1 {:.2f} %", "top-1 {:.1f}%"),
    "train.compute_ips": MetricSpec("images/s", ":.2f", aggregation="rate"),
    "train.total_ips": MetricSpec(
        "images/s", ":.2f", DEFAULT, "rate", "{:.0f} img/s", "{:.0f} img/s"
    ),
    "train.data_time": MetricSpec("s", ":.5f", VERBOSE),
    "train.compute_time": MetricSpec("s", ":.5f", VERBOSE),
    "train.lr": MetricSpec(None, "", aggregation="last"),
    "train.grad_scale": MetricSpec(None, ":.5f"),
    "train.data_wait": MetricSpec("%", ":.2f", human="data wait {:.0f} %", bar="wait {:.0f}%"),
    "train.grad_norm": MetricSpec(None, ":.5f", VERBOSE),
    "train.skipped_steps": MetricSpec("steps", ":d", VERBOSE, aggregation="sum"),
    "train.epoch_time": MetricSpec("s", ":.2f", human="{:.1f} s"),
    **_validation_metrics("val", "val"),
    **_validation_metrics("val_ema", "EMA"),
    "device.memory_peak": MetricSpec(
        "MiB", ":.0f", VERBOSE, "max", "memory {:.0f} MiB", "mem {:.0f}M"
    ),
    "device.power": MetricSpec("W", ":.1f", VERBOSE),
    "device.utilization": MetricSpec("%", ":.1f", VERBOSE),
    "device.clock": MetricSpec("MHz", ":.0f", VERBOSE),
    "run.top1_best": MetricSpec("%", ":.2f", aggregation="last", human="best top-1 {:.2f} %"),
    "run.duration": MetricSpec("s", ":.2f", aggregation="last", human="total {:.1f} s"),
}

_TOP_K = re.compile(r"(val|val_ema)\.top(\d+)")
_UNDECLARED = MetricSpec(None, "", aggregation="last")


def metric_spec(name: str) -> MetricSpec:
    """Look up a metric.

    Args:
        name: name of a metric; `val.top<k>` and `val_ema.top<k>` exist for every k.

    Returns:
        Its declaration; for a name that is not declared, one without unit and format.
    """
    if name in METRICS:
        return METRICS[name]
    if match := _TOP_K.fullmatch(name):
        title = "EMA" if match[1] == "val_ema" else "val"
        return _accuracy(f"{title} top-{match[2]}")
    return _UNDECLARED


def format_metric(name: str, value: object) -> str:
    """Write a metric as `<name> : <value> <unit>`, the form of NVIDIA's lines."""
    spec = metric_spec(name)
    unit = spec.metadata.get("unit", "")
    return f"{name} : {format_value(spec, value)} {unit}"


def format_value(spec: MetricSpec, value: object) -> str:
    """Format a value as its metric says; one that does not fit the format is printed as it is."""
    if value is None or not spec.format:
        return str(value)
    try:
        return format(value, spec.format[1:])
    except (TypeError, ValueError):
        return str(value)


def _harmonic_mean(values: list[float]) -> float:
    # Epochs hold equal numbers of images: this is all images over all seconds.
    return statistics.harmonic_mean(values) if min(values) >= 0 else math.nan


AGGREGATIONS: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "rate": _harmonic_mean,
    "min": min,
    "max": max,
    "last": lambda values: values[-1],
    "sum": sum,
}


def aggregate(name: str, values: Iterable[float | None]) -> float | None:
    """Sum up the values that a metric had in the epochs of a run.

    Args:
        name: name of the metric; it decides how: the lowest loss, the highest accuracy, the
            last learning rate, all images over all seconds, else the mean.
        values: one per epoch, in order; None where nothing was measured.

    Returns:
        The value for the run, in the unit of the metric; None if nothing was measured. The
        lowest and the highest leave NaN out, unless there is nothing else.
    """
    measured = [value for value in values if value is not None]
    how = metric_spec(name).aggregation
    if how in ("min", "max"):
        measured = [value for value in measured if not math.isnan(value)] or measured
    return AGGREGATIONS[how](measured) if measured else None


def headline(row: Mapping[str, float | None], best: float | None) -> str:
    """Write what a person asks first: final and best top-1, and the speed.

    Args:
        row: metrics of the last epoch, or of an evaluation.
        best: best top-1 of the run in percent, None without validation.

    Returns:
        Parts that each end with ", "; nothing for what was not measured.
    """
    averaged = row.get("val_ema.top1")
    top1 = row.get("val.top1") if averaged is None else averaged
    trained = row.get("train.total_ips")
    ips = row.get("val.total_ips") if trained is None else trained
    text = "" if top1 is None else f"top-1 {top1:.2f} % (best {best:.2f} %), "
    return text + ("" if ips is None else f"{ips:,.1f} images/s, ")


def summarize(rows: Iterable[Mapping[str, object]]) -> dict[str, float | None]:
    """Turn the rows of the epochs into the row of the run.

    Args:
        rows: the metrics of one epoch each, in order; values that are no numbers are left out.

    Returns:
        One value per metric, in the order in which the metrics first appear.
    """
    columns: dict[str, list[float | None]] = {}
    for row in rows:
        for name, value in row.items():
            if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                columns.setdefault(name, []).append(value)
    return {name: aggregate(name, values) for name, values in columns.items()}
