# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One HTML file that shows runs: it needs nothing beside itself, neither files nor network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from image_classification.confusion import ClassResult, Confusion, worst
from image_classification.errors import printable
from image_classification.progress import format_duration, format_memory
from image_classification.report import plots
from image_classification.report.run_log import Answers, RunLog
from image_classification.report.table import COLUMNS, number, result_row

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #f4f6f8; margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 16px 24px 48px; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 36px; } h3 { font-size: 16px; }
.tiles, .plots { display: grid; gap: 12px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.plots { grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
.card { background: #fff; border: 1px solid #dde3ea; border-radius: 8px; padding: 10px 14px; }
.card b { display: block; font-size: 22px; } .card span, figcaption { color: #5b6777; }
.beside { display: flex; flex-wrap: wrap; gap: 0 40px; }
.wide { overflow-x: auto; } figure { margin: 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; background: #fff; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #dde3ea; padding: 3px 9px; text-align: right; white-space: nowrap; }
th { background: #eef2f6; } td:first-child, th, .word, .text td { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; } .changed { background: #fff3cf; }
summary { cursor: pointer; margin: 8px 0; }
img { image-rendering: pixelated; width: 560px; border: 1px solid #9aa7b5; }
""".strip()

_MATRIX_AS_TABLE = 25
_MATRIX_AS_IMAGE = 1000
_WORST, _PAIRS, _WARNINGS = 15, 20, 200
_NAME_LENGTH = 40


def build_page(runs: Sequence[RunLog]) -> str:
    """Write the page of one run, or of several beside each other.

    Args:
        runs: At least one.

    Returns:
        HTML. What the logs hold is escaped: nothing of it is read as HTML.

    Raises:
        UsageError: matplotlib is missing.
    """
    plots.require_matplotlib()
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [_tiles(runs[0])] if len(runs) == 1 else []
    rows = [(run.name, *result_row(run)) for run in runs]
    parts += ["<h2>Results</h2>", _table(("run", *COLUMNS), rows)]
    if any(run.epochs for run in runs):
        parts += ["<h2>Curves</h2>", _curves(runs)]
    for run in runs:
        heading = "" if len(runs) == 1 else f": {_text(run.name)}"
        if run.answers is not None:
            parts += [f"<h2>Classes{heading}</h2>", _classes(run.answers)]
        if run.warnings:
            parts += [f"<h2>Warnings{heading}</h2>", _warnings(run.warnings)]
    parts += ["<h2>Configuration</h2>", _settings(runs, [_configuration(run) for run in runs])]
    parts += ["<h2>Environment</h2>", _settings(runs, [_environment(run) for run in runs])]
    parts += ["<h2>Epochs</h2>", *(_epochs(run) for run in runs if run.epochs)]
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(printable(str(value), 2000))


def _table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Figures stand on the right of their cells, words on the left."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value: object) -> str:
    text = str(value)
    is_figure = not any(letter.isalpha() for letter in text)
    return f"<td>{_text(text)}</td>" if is_figure else f'<td class="word">{_text(text)}</td>'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def _tiles(run: RunLog) -> str:
    waits = [row["train.data_wait"] for row in run.epochs.values() if "train.data_wait" in row]
    best, epoch = run.best or (None, 0)
    tiles = {
        f"best top-1 (epoch {epoch + 1})": "-" if best is None else f"{best:.2f} %",
        "last top-1": "-" if run.top1 is None else f"{run.top1:.2f} %",
        "images/s": number(run.images_per_second, 1),
        "waiting for data": f"{sum(waits) / len(waits):.1f} %" if waits else "-",
        "epochs": str(len(run.epochs)),
        "time": format_duration(run.seconds),
    }
    cards = [
        f'<div class="card"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for name, value in tiles.items()
    ]
    return f'<div class="tiles">{"".join(cards)}</div>'


def _curves(runs: Sequence[RunLog]) -> str:
    drawn = {
        "Loss": plots.loss_curves(runs),
        "Top-1": plots.accuracy_curves(runs),
        "Learning rate": plots.lr_curves(runs),
        "Throughput and waiting for data, between log lines": plots.speed_curves(runs),
    }
    figures = [
        f'<figure class="card"><figcaption>{name}</figcaption>{svg}</figure>'
        for name, svg in drawn.items()
    ]
    return f'<div class="plots">{"".join(figures)}</div>'


def _classes(answers: Answers) -> str:
    """Confusion matrix, worst classes, most frequent mistakes."""
    confusion, classes = answers.confusion, answers.classes
    when = "Evaluation" if answers.epoch is None else f"Best epoch ({answers.epoch + 1})"
    weights = ", averaged weights" if answers.averaged else ""
    right = number(confusion.top1, 2)
    about = f"{when}{weights}: {right} % of {confusion.images} validation images are right"
    names = [printable(name, _NAME_LENGTH) for name in classes]
    results = confusion.per_class(names)
    pairs = confusion.most_confused(names, _PAIRS)
    matrix = _matrix_table if len(classes) <= _MATRIX_AS_TABLE else _matrix_image
    return "\n".join([
        f"<p>{_text(about)}.</p>", "<h3>Confusion matrix</h3>", matrix(confusion, names),
        '<div class="beside"><div><h3>Worst classes</h3>', _worst_classes(worst(results, _WORST)),
        "</div><div><h3>Most frequent mistakes</h3>",
        _table(("class", "taken for", "images"), pairs), "</div></div>",
    ])  # fmt: skip


def _worst_classes(results: Sequence[ClassResult]) -> str:
    header = ("class", "images", "right", "recall %", "precision %", "mostly taken for")
    return _table(header, (
        (result.name, result.images, result.correct, number(result.recall, 1),
         number(result.precision, 1),
         ", ".join(f"{name} ({count})" for name, count in result.confused_with[:3]) or "-")
        for result in results
    ))  # fmt: skip


def _matrix_table(confusion: Confusion, names: Sequence[str]) -> str:
    """Numbers in coloured cells; a row is a class, a column what its images were taken for."""
    matrix = confusion.matrix(len(names))
    rows = []
    for name, counts in zip(names, matrix.tolist(), strict=True):
        total = max(sum(counts), 1)
        cells = "".join(_matrix_cell(count, (count / total) ** 0.5) for count in counts)
        rows.append(f"<tr><th>{_text(name)}</th>{cells}</tr>")
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table><tr><th>class \\ taken for</th>{head}</tr>\n{body}</table></div>'
    )


def _matrix_cell(count: int, depth: float) -> str:
    text = ";color:#fff" if depth > 0.6 else ""
    return f'<td style="background:rgb(0 114 178/{depth:.2f}){text}">{count or ""}</td>'


def _matrix_image(confusion: Confusion, names: Sequence[str]) -> str:
    """An image with a pixel per pair of classes; of many classes, neighbours share a pixel."""
    size = min(len(names), _MATRIX_AS_IMAGE)
    matrix = np.zeros((size, size))
    place = np.arange(len(names)) * size // len(names)
    np.add.at(matrix, (place[confusion.target], place[confusion.predicted]), confusion.count)
    share = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)) ** 0.5
    colours = 255 - share[:, :, None] * (255 - np.array([0, 114, 178]))
    file = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8), "RGB").save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    caption = (
        f"Rows: the {len(names)} classes in their order. Columns: what they were taken for. "
        "Darker: a greater share of the row (square root)."
    )
    return (
        f'<figure><img alt="confusion matrix" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    counted = Counter(warnings)
    items = [
        f"<li>{_text(text)}{f' ({count} times)' if count > 1 else ''}</li>"
        for text, count in list(counted.items())[:_WARNINGS]
    ]
    if len(counted) > _WARNINGS:
        items.append(f"<li>and {len(counted) - _WARNINGS} more, in metrics.jsonl</li>")
    return f"<ul>{''.join(items)}</ul>"


def _configuration(run: RunLog) -> dict[str, Any]:
    return {key: value for key, value in run.parameters.items() if key != "environment"}


def _environment(run: RunLog) -> dict[str, Any]:
    found = dict(run.environment)
    versions = found.pop("versions", None)
    memory = found.get("device_memory")
    if isinstance(memory, int) and 0 <= memory < 2**60:
        found["device_memory"] = format_memory(memory)
    return {**found, **(versions if isinstance(versions, dict) else {})}


def _settings(runs: Sequence[RunLog], values: Sequence[dict[str, Any]]) -> str:
    """A row per setting, a column per run; settings in which the runs differ are marked."""
    names = list(dict.fromkeys(name for settings in values for name in settings))
    rows = []
    for name in names:
        texts = [_shown(settings.get(name)) for settings in values]
        mark = ' class="changed"' if len(set(texts)) > 1 else ""
        cells = "".join(f"<td>{_text(text)}</td>" for text in texts)
        rows.append(f"<tr{mark}><td>{_text(name)}</td>{cells}</tr>")
    columns = ["value"] if len(runs) == 1 else [run.name for run in runs]
    head = "".join(f"<th>{_text(cell)}</th>" for cell in ("setting", *columns))
    table = f'<table class="text"><tr>{head}</tr>\n' + "\n".join(rows) + "</table>"
    return _folded(f"{len(names)} settings", f'<div class="wide">{table}</div>')


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else json.dumps(value)


def _epochs(run: RunLog) -> str:
    names = list(dict.fromkeys(name for row in run.epochs.values() for name in row))
    rows = (
        (epoch + 1, *(f"{row[name]:.6g}" if name in row else "-" for name in names))
        for epoch, row in sorted(run.epochs.items())
    )
    table = _table(("epoch", *names), rows)
    return _folded(f"{run.name}: {len(run.epochs)} epochs", table)
