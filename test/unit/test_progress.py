# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a person sees: the bar on a terminal, short lines, clean text."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from image_classification.progress import (
    ProgressBar,
    fit_line,
    format_duration,
    format_memory,
    sanitize,
)

ROOT = Path(__file__).resolve().parents[2]
OWN_SETTINGS = ("COLUMNS", "LINES", "PYTHONUNBUFFERED")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in OWN_SETTINGS},
    "PYTHONPATH": str(ROOT),
}


def report_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="ascii").splitlines()
    assert all(line.startswith("DLLL {") for line in lines)
    return [json.loads(line.removeprefix("DLLL ")) for line in lines]


def run_on_terminal(script: str, columns: int) -> tuple[str, int]:
    """Run a script on a pseudo terminal; return what it wrote and its exit status."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=ENVIRONMENT,
    )
    os.close(slave)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # Linux: the last writer is gone
        pass
    os.close(master)
    return written.decode(), process.wait()


def screen_of(text: str, columns: int) -> list[str]:
    """What a terminal shows after the text: lines without trailing spaces."""
    rows: list[list[str]] = [[]]
    column = 0
    for char in text:
        if char == "\r":
            column = 0
        elif char == "\n" or column == columns:
            rows.append([])
            column = 0
        if char not in "\r\n":
            rows[-1].extend(" " * (column + 1 - len(rows[-1])))
            rows[-1][column] = char
            column += 1
    return ["".join(row).rstrip() for row in rows]


TERMINAL_SCRIPT = """
import pathlib, time
from image_classification.logger import create_logger
with create_logger(workspace=pathlib.Path({folder!r}), report_file="raport.json",
                   primary=True, append=True, run_id="r") as logger:
    logger.parameters({{"arch": "resnet50"}})
    logger.message("classes: cat\\x1b[2J dog")
    for epoch in range(2):
        for step in range(1, 9):
            time.sleep(0.03)
            fields = {{"loss": f"{{2 / step:.3f}}", "top-1": "34.1%", "img/s": "812",
                      "wait": "3%", "mem": "10.2G"}}
            logger.progress("train", epoch, 2, step, 8, fields if step % 2 else None)
            logger.log((epoch, step), {{"train.loss": 2 / step}})
            {inside}
        logger.progress("val", epoch, 2, 1, 1, {{"val.top1": 50.25}})
        logger.log((epoch,), {{"train.loss": 0.25, "train.total_ips": 812.345, "val.top1": 50.25}})
    logger.summary({{"run.duration": 12.5}})
    logger.progress("train", 1, 2, 1, 3)
"""


@pytest.mark.parametrize("columns", [80, 132])
def test_a_terminal_shows_a_moving_bar_and_short_lines(tmp_path: Path, columns: int) -> None:
    inside = 'if (epoch, step) == (1, 4): logger.warning("1 image is damaged")'
    script = TERMINAL_SCRIPT.format(folder=str(tmp_path), inside=inside)
    written, status = run_on_terminal(script, columns)
    assert status == 0
    assert screen_of(written, columns) == [
        "classes: cat dog",
        "Epoch 1/2  loss 0.2500  812 img/s  val top-1 50.25 %",
        "Warning: 1 image is damaged",
        "Epoch 2/2  loss 0.2500  812 img/s  val top-1 50.25 %",
        "Best values  loss 0.2500  812 img/s  val top-1 50.25 %  total 12.5 s",
        "",  # where the prompt goes
    ]
    frames = [frame.rstrip() for frame in re.split(r"[\r\n]+", written)]
    percents = [
        int(match[1]) for frame in frames if (match := re.search(r"1/2 train.*? (\d+)%", frame))
    ]
    assert len({frame for frame in frames if re.match(r"(Epoch )?1/2 train", frame)}) >= 3
    assert percents[0] == 12
    assert 100 in percents
    assert all(len(frame) < columns for frame in frames)
    for part in ("loss 2.000", "top-1 34.1%", "img/s 812", "wait 3%", "mem 10.2G", "ETA"):
        assert any(part in frame for frame in frames), part
    assert any("val" in frame and "top-1 50.2%" in frame for frame in frames)
    # Fields stay until new ones come, and end with their phase.
    *trained, last = [frame for frame in frames if "train" in frame]
    assert all("loss" in frame for frame in trained)
    assert last.endswith("ETA --:--")
    assert "\x1b" not in written
    assert "DLL" not in written
    rows = report_rows(tmp_path / "raport.json")
    assert sum(row["type"] == "LOG" and len(row["step"]) == 2 for row in rows) == 16


def test_an_exception_leaves_a_clean_terminal(tmp_path: Path) -> None:
    script = TERMINAL_SCRIPT.format(folder=str(tmp_path), inside='raise KeyError("broken")')
    written, status = run_on_terminal(script, 80)
    assert status == 1
    screen = screen_of(written, 80)
    assert screen[:2] == ["classes: cat dog", "Traceback (most recent call last):"]
    assert screen[-2:] == ["KeyError: 'broken'", ""]


def test_a_bar_starts_anew_with_each_phase() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = ProgressBar(stream, min_interval=1.0, clock=lambda: now[0])
    for title, seconds in (("Epoch 1/2 train", 1.0), ("Epoch 1/2 val", 2.0)):
        for step in range(1, 5):
            now[0] += seconds
            bar.update(title, title, step, 4, [])
    frames = [" ".join(frame.split()) for frame in stream.getvalue().split("\r")]
    etas = [frame.partition("ETA ")[2] for frame in frames[:-1]]
    assert etas == ["--:--", "0:02", "0:01", "0:00", "--:--", "0:04", "0:02", "0:00"]
    now[0] += 1000.0
    for step in (1, 2):  # the same phase once more
        bar.update(title, title, step, 4, [])
        now[0] += 3.0
    assert stream.getvalue().rstrip().endswith("ETA 0:06")


def test_a_bar_is_not_drawn_more_often_than_it_can_be_seen() -> None:
    stream, now = io.StringIO(), [0.0]
    bar = ProgressBar(stream, min_interval=0.1, clock=lambda: now[0])
    for step in range(1, 1001):
        now[0] += 0.001
        bar.update("train", "train", step, 1000, [])
    assert 10 <= stream.getvalue().count("\r") <= 12


def test_the_bar_fits_every_width() -> None:
    parts = ["ETA 1:23", "loss 2.345", "top-1 34.1%", "812 img/s", "wait 3%", "mem 10.2G"]
    for room in range(0, 200):
        line = fit_line(("Epoch 3/90 train", "3/90 train"), 120, 500, list(parts), room)
        assert len(line) <= room
        shown = [part for part in parts if part in line]
        assert shown == parts[: len(shown)]
        if room >= 79:
            assert shown == parts
    assert line == (
        "Epoch 3/90 train [===>                ]  24% 120/500  "
        "ETA 1:23  loss 2.345  top-1 34.1%  812 img/s  wait 3%  mem 10.2G"
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("plain caf\xe9", "plain caf\xe9"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;owned\x07x\x1b]8;;http://a\x1b\\y", "xy"),
        ("\x9b2Jx\x1bcy\x1b(0z", "xyz"),
        ("a\rb\x08c\x00d\x7f", "abcd"),
        ("one\ntwo\tthree", "one two three"),
        ("\u202egpj.exe", "gpj.exe"),
        ("\x1b[31", "31"),
        ("bytes \udcff", "bytes \\udcff"),
    ],
)
def test_sanitize(text: str, clean: str) -> None:
    assert sanitize(text) == clean


def test_sanitize_keeps_lines_where_wanted() -> None:
    assert sanitize("a\r\nb\x1b]0;open\nc", multiline=True) == "a\nb\nc"


def test_durations_and_memory() -> None:
    texts = [format_duration(seconds) for seconds in (0, 59.6, 754, 11554)]
    assert texts == ["0:00", "1:00", "12:34", "3:12:34"]
    assert [format_memory(size) for size in (5 * 2**20, 1.5 * 2**30)] == ["5 MiB", "1.5 GiB"]
