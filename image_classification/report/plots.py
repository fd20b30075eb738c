# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The curves of the page, as SVG text drawn by matplotlib."""

from __future__ import annotations

import io
import math
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from image_classification.errors import UsageError
from image_classification.report.run_log import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: (x, y) in drawing order.
Curve = list[tuple[float, float]]

# Okabe and Ito's palette, which people with any colour vision can tell apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.5,
}
_MOST_POINTS = 600
_FEW_POINTS = 30
# An epoch in which the loss exploded must not hide the others: a logarithmic axis shows both.
_OUTLIER = 20


def require_matplotlib() -> None:
    """Raise UsageError with the cure where matplotlib cannot be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{__package__} draws its page with matplotlib, which cannot be imported ({error}); "
            "install it: pip install matplotlib; or leave the page out: --no-html"
        ) from error


def loss_curves(runs: Sequence[RunLog]) -> str:
    """Mean loss of each epoch: training and validation."""
    return _figure("loss", lambda axes: _by_epoch(axes, runs, {
        "train.loss": "training", "val.loss": "validation", "val_ema.loss": "validation, average",
    }, "loss"))  # fmt: skip


def accuracy_curves(runs: Sequence[RunLog]) -> str:
    """Top-1 of each epoch: training and validation."""
    return _figure("accuracy", lambda axes: _by_epoch(axes, runs, {
        "train.top1": "training", "val.top1": "validation", "val_ema.top1": "validation, average",
    }, "top-1 (%)"))  # fmt: skip


def lr_curves(runs: Sequence[RunLog]) -> str:
    """Learning rate at the log lines and at the end of each epoch."""

    def draw(axes: Axes) -> None:
        for run, colour in zip(runs, _cycle(len(runs)), strict=True):
            _line(axes, _lr_curve(run), color=colour, label=run.name)
        _finish(axes, "epoch", "learning rate", legend=len(runs) > 1)

    return _figure("lr", draw)


def speed_curves(runs: Sequence[RunLog]) -> str:
    """Images per second and the share of time spent waiting for data, over the run's time."""

    def draw(upper: Axes, lower: Axes) -> None:
        longest = max(run.seconds for run in runs)
        scale, unit = (3600.0, "hours") if longest > 7200 else (60.0, "minutes")
        for axes, name, average in (
            (upper, "train.total_ips", statistics.harmonic_mean),
            (lower, "train.data_wait", statistics.fmean),
        ):
            for run, colour in zip(runs, _cycle(len(runs)), strict=True):
                points = [(row.seconds, row.metrics.get(name)) for row in run.train]
                if not points:  # epochs shorter than --print-freq
                    times = run.epoch_seconds
                    points = [(times[epoch], row.get(name)) for epoch, row in run.epochs.items()]
                measured = [(x / scale, y) for x, y in points if y is not None and y >= 0]
                _line(axes, thinned(measured, average), color=colour, label=run.name)
            axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-3))
        _finish(upper, "", "images/s", legend=len(runs) > 1)
        _finish(lower, f"time ({unit})", "waiting for data (%)", legend=False)

    return _figure("speed", draw, rows=2)


def thinned(curve: Curve, average: Callable[[list[float]], float]) -> Curve:
    """Averages neighbours, so that at most 600 points remain; finite points only.

    Args:
        curve: The points.
        average: How values become one: rates of equal numbers of images need the harmonic mean.
    """
    points = [(x, y) for x, y in curve if math.isfinite(y)]
    group = math.ceil(len(points) / _MOST_POINTS)
    parts = [points[at : at + group] for at in range(0, len(points), max(group, 1))]
    return [(part[-1][0], average([y for _, y in part])) for part in parts]


def _by_epoch(axes: Axes, runs: Sequence[RunLog], names: dict[str, str], label: str) -> None:
    """One line per metric and run; several runs share the dashes, one run has a colour each."""
    dashes = dict(zip(names, (":", "-", "--"), strict=True))
    drawn: Curve = []
    for run, colour in zip(runs, _cycle(len(runs)), strict=True):
        for order, (name, title) in enumerate(names.items()):
            rows = sorted(run.epochs.items())
            curve = [(epoch + 1.0, row[name]) for epoch, row in rows if name in row]
            drawn += curve
            if len(runs) == 1:
                _line(axes, curve, color=_COLOURS[order], label=title)
            else:
                title = run.name if name.startswith("val.") else ""
                _line(axes, curve, color=colour, linestyle=dashes[name], label=title)
    for name, title in names.items() if len(runs) > 1 else ():
        if any(name in row for run in runs for row in run.epochs.values()):
            axes.plot([], [], color="grey", linestyle=dashes[name], label=title)
    values = [y for _, y in drawn if math.isfinite(y)]
    if values and min(values) > 0 and max(values) > _OUTLIER * statistics.median(values):
        axes.set_yscale("log")
    _finish(axes, "epoch", label, legend=True)


def _lr_curve(run: RunLog) -> Curve:
    # The log does not tell how many iterations an epoch has; its last line is close to the end.
    last = max((row.iteration for row in run.train), default=1) or 1
    points = [(row.epoch + row.iteration / last, row.metrics.get("train.lr")) for row in run.train]
    points += [(epoch + 1.0, row.get("train.lr")) for epoch, row in run.epochs.items()]
    return sorted((x, y) for x, y in points if y is not None)


def _line(axes: Axes, curve: Curve, *, label: str, **style: Any) -> None:
    if curve:
        marker = "." if len(curve) <= _FEW_POINTS else ""
        axes.plot(*zip(*curve, strict=True), marker=marker, label=label or "_nolegend_", **style)


def _finish(axes: Axes, x_label: str, y_label: str, *, legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axes.lines:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color="grey")
    elif legend:
        # Below the axes, where it hides nothing.
        below = axes.figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=3,
                                   loc="outside lower center")  # fmt: skip
        for text in below.get_texts():
            text.set_parse_math(False)  # names of folders may hold dollar signs


def _cycle(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _figure(name: str, draw: Callable[..., None], rows: int = 1) -> str:
    """Draws into so many pairs of axes; the same input gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    # The salt keeps the identifiers of the figures on one page apart.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib's font lacks: the browser has one
        figure = Figure(figsize=(6.2, 3.6), layout="constrained")
        draw(*figure.subplots(rows, sharex=True, squeeze=False)[:, 0])
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    # matplotlib numbers the groups of each figure from 1; on one page the names must differ.
    svg = re.sub(r'\bid="([A-Za-z][A-Za-z0-9.]*_\d+)"', rf'id="{name}-\1"', svg)
    return svg[svg.index("<svg") :]
