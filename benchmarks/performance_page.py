# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The measured part of docs/performance.md: the newest result of run.py for each device."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.comparison import Figure, figures

PAGE = Path("docs", "performance.md")
PLOTS = Path("docs", "performance")
_BEGIN, _END = "<!-- measured: benchmarks/run.py writes from here -->", "<!-- to here -->"
_OURS, _THEIRS = "#0072b2", "#999999"  # of Okabe and Ito's palette
_PLOTTED = ("train_step", "train_step_b0", "runtimes/1", "runtimes/16", "runtimes/256")


def write(root: Path) -> Path:
    """Brings the page and its plots up to date.

    Args:
        root: The package's folder, with benchmarks/results and the page.

    Returns:
        The page's path.
    """
    results = newest_results(root / "benchmarks" / "results")
    texts = []
    for path, result in results:
        texts.append(section(path, result, plots(result, root / PLOTS)))
    page = root / PAGE
    before, rest = page.read_text("utf-8").split(_BEGIN)
    measured = "\n".join([_BEGIN, "", *texts, _END])
    page.write_text(before + measured + rest.split(_END)[1], "utf-8")
    return page


def newest_results(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The newest result of each device, and its file; accelerators first."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in folder.glob("*.json"):
        result = json.loads(path.read_text("utf-8"))
        if result.get("benchmark") != "run":
            continue
        name = environment.machine(result["environment"])
        date = result["environment"]["date"]
        if name not in found or date > found[name][1]["environment"]["date"]:
            found[name] = path, result
    return sorted(found.values(), key=lambda one: (one[1]["environment"]["device"] == "cpu",
                                                   one[0].name))  # fmt: skip


def section(path: Path, result: dict[str, Any], plotted: dict[str, Path]) -> str:
    """The tables of a device, as Markdown.

    Args:
        path: The result file.
        result: Its content.
        plotted: Name of a part -> its plot.
    """
    found = result["environment"]
    where = environment.machine(found)
    if found["device"] != "cpu":
        where += f", driver {found['driver']}, cuda {found['cuda']}"
    lines = [f"## {where}", "", f"`{found['command']}`, {found['date'][:10]}, "
             f"[{path.name}](../benchmarks/results/{path.name})", "", "```text",
             environment.text(found), "```", ""]  # fmt: skip
    for name, part in result["parts"].items():
        lines += [f"### {part['title']}", "", f"`{part['command']}`", ""]
        for key, plot in plotted.items():
            if key.partition("/")[0] == name:
                lines += [f"![{part['title']}, images per second](performance/{plot.name})", ""]
        lines += [_printed(part), ""]
    return "\n".join(lines)


def plots(result: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Draws bars of images per second, a file for each table; returns the files by part."""
    name = environment.machine(result["environment"])
    device = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    tables: dict[str, list[Figure]] = {}
    for figure in figures(result):
        if figure.part in _PLOTTED:
            tables.setdefault(figure.part, []).append(figure)
    folder.mkdir(exist_ok=True)
    drawn = {}
    for part, rows in tables.items():
        drawn[part] = folder / f"{device}-{part.replace('/', '-')}.svg"
        drawn[part].write_text(bars(rows, name), "utf-8")
    return drawn


def bars(rows: list[Figure], title: str) -> str:
    """Bars of images per second with the extremes of the rounds, as SVG text."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    style = {"svg.fonttype": "none", "svg.hashsalt": "bars", "font.size": 9,
             "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip
    text = io.StringIO()
    with matplotlib.rc_context(style):
        drawing = Drawing(figsize=(6.2, 0.8 + 0.3 * len(rows)), layout="constrained")
        axes = drawing.subplots()
        names = [row.name for row in rows]
        middles = [row.speed.median for row in rows]
        below = [row.speed.median - row.speed.low for row in rows]
        above = [row.speed.high - row.speed.median for row in rows]
        axes.barh(names, middles, xerr=[below, above], ecolor="#444444",
                  color=[_OURS if name.startswith("ours") else _THEIRS for name in names])
        for place, (middle, high) in enumerate(zip(middles, above, strict=True)):
            axes.text(middle + high, place, f"  {middle:.1f}", va="center")
        axes.invert_yaxis()
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("images/s (lines: extremes of the rounds); blue: this package")
        axes.margins(x=0.12)
        drawing.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _printed(part: dict[str, Any]) -> str:
    """What a program printed, without the machine, which the page has above."""
    if "failed" in part:
        return f"failed: {part['failed']}"
    lines = part["printed"].splitlines()
    machine = ("device: ", "driver: ", "cpu: ", "python ", "date: ", "the machine was busy")
    kept, missing = [], dict[str, list[str]]()
    for line in lines:
        name, is_missing, reason = line.partition(": left out: ")
        if is_missing:
            missing.setdefault(reason, []).append(name)
        elif not line.startswith(machine):
            kept.append(line)
    kept += [f"Left out: {', '.join(names)} ({reason})" for reason, names in missing.items()]
    # A line that is no row of a table is a paragraph of its own.
    text = "\n".join(kept).strip()
    text = re.sub(r"(?m)^(?!\|)(.+)\n(?!\n)", r"\1\n\n", text)
    return re.sub(r"(?m)^(\|.+)\n(?![|\n])", r"\1\n\n", text)
