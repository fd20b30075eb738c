#!/usr/bin/env python
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the documents, as SVG text that is the same each time.

python docs/figures/draw.py                      # the data flow
python docs/figures/draw.py models/quickstart    # loss and top-1 of a run, too (matplotlib)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

_HOST, _DEVICE, _DRAWS = "#d7e8f5", "#fbe3d3", "#e3f1ea"
_WIDTH, _HEIGHT = 960, 404
_BOX = 200, 78  # width and height of a box, pixels


class Box(NamedTuple):
    """A step of the data flow.

    Attributes:
        left: Left edge in pixels.
        top: Upper edge in pixels.
        colour: Its filling.
        title: What it is.
        lines: What it does, at most two lines.
    """

    left: int
    top: int
    colour: str
    title: str
    lines: tuple[str, ...]


BOXES = (
    Box(20, 70, _HOST, "Files", ("JPEG, PNG, ... or packed", "read ahead of their turn")),
    Box(260, 70, _HOST, "Decoder threads", ("C++, only what the crop", "shows; else Pillow")),
    Box(500, 70, _HOST, "Pinned batch", ("uint8 [N, H, W, 3], buffers", "that are used again")),
    Box(740, 70, _DRAWS, "Draws", ("order, crops, flips, policies", "= f(seed, epoch, image)")),
    Box(20, 290, _DEVICE, "Batch on the device", ("side stream, one batch", "ahead of its use")),
    Box(260, 290, _DEVICE, "Augmentation", ("policy, normalization,", "erasing, MixUp, CutMix")),
    Box(500, 290, _DEVICE, "Network", ("forward (autocast), loss,", "backward, all-reduce")),
    Box(740, 290, _DEVICE, "Step", ("every k batches: optimizer,", "learning rate, EMA")),
)
# Corners of the arrows between them; the last one is the copy across the bus.
ARROWS = (
    ((220, 109), (260, 109)),
    ((460, 109), (500, 109)),
    ((840, 70), (840, 48), (360, 48), (360, 70)),
    ((840, 148), (840, 262), (360, 262), (360, 290)),
    ((220, 329), (260, 329)),
    ((460, 329), (500, 329)),
    ((700, 329), (740, 329)),
    ((600, 148), (600, 214), (120, 214), (120, 290)),
)


def data_flow() -> str:
    """The way of an image from its file to the step, as SVG text."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' width="{_WIDTH}" height="{_HEIGHT}" font-family="DejaVu Sans, Arial, sans-serif">',
        '<marker id="head" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0L10 5L0 10z" fill="#333"/></marker>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(20, 44, "Host", 17, bold=True),
        _text(20, 392, "Device", 17, bold=True),
        _text(132, 206, "bytes cross the bus (a quarter of FP32)", 13),
    ]
    for corners in ARROWS:
        points = " ".join(f"{x},{y}" for x, y in corners)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="#333" stroke-width="1.5"'
            ' marker-end="url(#head)"/>'
        )
    for box in BOXES:
        width, height = _BOX
        parts.append(
            f'<rect x="{box.left}" y="{box.top}" width="{width}" height="{height}" rx="7"'
            f' fill="{box.colour}" stroke="#333"/>'
        )
        parts.append(_text(box.left + 12, box.top + 24, box.title, 15, bold=True))
        for number, line in enumerate(box.lines):
            parts.append(_text(box.left + 12, box.top + 46 + 18 * number, line, 13))
    return "\n".join([*parts, "</svg>\n"])


def run_curves(folder: Path) -> dict[str, str]:
    """Loss and top-1 of each epoch of a run.

    Args:
        folder: Holds its metrics.jsonl.

    Returns:
        Name of each figure and its SVG text.

    Raises:
        DataError: There is no run in the folder.
        UsageError: matplotlib is not installed; the message names the command that installs it.
    """
    from image_classification.report import plots
    from image_classification.report.run_log import read_run

    plots.require_matplotlib()
    run = read_run(folder)
    return {"run_loss": plots.loss_curves([run]), "run_top1": plots.accuracy_curves([run])}


def _text(x: int, y: int, text: str, size: int, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}"{weight}>{escape(text)}</text>'


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draws the figures of the documents.")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a run whose curves to draw")
    parser.add_argument("--out", type=Path, default=HERE, help="where the files go")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Draws, and prints what was written."""
    args = build_parser().parse_args(argv)
    figures = {"data_flow": data_flow()}
    if args.run is not None:
        figures |= run_curves(args.run)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in figures.items():
        path = args.out / f"{name}.svg"
        path.write_text(text, "utf-8")
        print(path)


if __name__ == "__main__":
    from image_classification.errors import UserError

    try:
        main()
    except UserError as error:
        sys.exit(f"draw.py: error: {error}")
