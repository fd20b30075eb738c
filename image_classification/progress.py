# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a person sees on a terminal: clean text, short durations, a bar that moves."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import TextIO

_DEFAULT_COLUMNS = 80
_LONG_BAR, _SHORT_BAR = 20, 4
# CSI and OSC sequences as a whole, then other escapes of two characters.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\n\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
# Control characters, and the marks that turn the direction of writing around.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def sanitize(text: str, *, multiline: bool = False) -> str:
    """Make text from outside (class names, paths) safe to print.

    Terminal escape sequences, other control characters and marks of writing direction are
    removed; undecodable bytes of file names become visible as \\udcXX.

    Args:
        text: any text.
        multiline: keep line ends; otherwise each becomes a space, as tabs do.

    Returns:
        Printable text that can be encoded as UTF-8.
    """
    text = text.replace("\r\n", "\n")
    if not multiline:
        text = text.replace("\n", " ")
    text = _CONTROLS.sub("", _ESCAPES.sub("", text.replace("\t", " ")))
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encoding_of(stream: TextIO) -> str:
    """Return the encoding of a text stream, "utf-8" for one that does not know."""
    return getattr(stream, "encoding", None) or "utf-8"


def encodable(text: str, encoding: str) -> str:
    """Replace what an encoding lacks by visible escapes, so that printing cannot fail."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def format_duration(seconds: float) -> str:
    """Write a duration as 0:07, 12:34 or 3:12:34.

    Args:
        seconds: >= 0; fractions are rounded.
    """
    minutes, second = divmod(round(max(seconds, 0.0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def format_memory(num_bytes: float) -> str:
    """Write an amount of memory in bytes as GiB, below one GiB as MiB."""
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f} MiB"


class ProgressBar:
    """One line at the bottom of a terminal that is drawn over and over.

    Plain text and carriage returns do: nothing of it has to be supported by the terminal. After
    each drawing the cursor stands at the start of the line, so that what others print (warnings,
    tracebacks, the prompt after a kill) begins there as well.

    Args:
        stream: the terminal.
        min_interval: seconds between two drawings, so that short steps do not pay for them.
        clock: returns seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        min_interval: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._min_interval = min_interval
        self._clock = clock
        self._drawn = ""
        self._drawn_at = float("-inf")
        self._title = ""
        self._started = (0.0, 0)
        self._last_step = 0

    def update(
        self, title: str, short_title: str, step: int, num_steps: int, parts: Sequence[str]
    ) -> None:
        """Move the bar.

        Args:
            title: what is under way; a new title (or a smaller step) starts a new bar.
            short_title: the same for narrow terminals.
            step: steps done, 1..num_steps.
            num_steps: steps of this bar.
            parts: what to show behind the bar, the most important first. What does not fit into
                the line is left out.
        """
        now = self._clock()
        is_new = title != self._title or step < self._last_step
        if is_new:
            self._title, self._started = title, (now, step)
        self._last_step = step
        if is_new or step >= num_steps or now - self._drawn_at >= self._min_interval:
            self._drawn_at = now
            eta = self._eta(now, step, num_steps)
            self._draw(fit_line((title, short_title), step, num_steps, [eta, *parts], self._room()))

    def write_lines(self, text: str) -> None:
        """Print lines above the bar; the bar is gone until its next update."""
        self._write(f"{self._erasure()}{text}\n")
        self._drawn = ""

    def write_parts(self, title: str, parts: Sequence[str]) -> None:
        """Print a title and parts above the bar, on as many lines as they need."""
        lines = [title]
        for part in parts:
            if len(lines[-1]) + 2 + len(part) > self._room() and lines[-1].strip() != title:
                lines.append(" " * len(title))
            lines[-1] += f"  {part}"
        self.write_lines("\n".join(lines))

    def clear(self) -> None:
        """Remove the bar."""
        if self._drawn:
            self._write(self._erasure())
            self._drawn = ""

    def _draw(self, line: str) -> None:
        self._write(f"{line:<{len(self._drawn)}}\r")
        self._drawn = line

    def _write(self, text: str) -> None:
        self._stream.write(encodable(text, encoding_of(self._stream)))
        self._stream.flush()

    def _erasure(self) -> str:
        return " " * len(self._drawn) + "\r" if self._drawn else ""

    def _eta(self, now: float, step: int, num_steps: int) -> str:
        started, first_step = self._started
        if step >= num_steps:
            return "ETA 0:00"
        if step <= first_step:
            return "ETA --:--"
        return f"ETA {format_duration((now - started) / (step - first_step) * (num_steps - step))}"

    def _room(self) -> int:
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 0
        # The last column stays free: writing there makes some terminals go to the next line.
        return (columns or _DEFAULT_COLUMNS) - 1


class CountLine:
    """How far a long command has come: a line that changes, in a file a line now and then.

    Args:
        stream: a terminal, a file or a pipe.
        title: what is under way.
        total: how many there are.
        unit: what is counted.
    """

    _TERMINAL_S, _FILE_S = 0.1, 10.0

    def __init__(self, stream: TextIO, title: str, total: int, unit: str = "images") -> None:
        self._stream, self._title, self._total, self._unit = stream, title, total, unit
        self._told = time.monotonic()

    def show(self, done: int, extra: str = "") -> None:
        """Tell how many are done, unless that was told a moment ago."""
        terminal = self._stream.isatty()
        if time.monotonic() - self._told < (self._TERMINAL_S if terminal else self._FILE_S):
            return
        self._told = time.monotonic()
        text = f"{self._title}: {done}/{self._total} {self._unit}{extra}"
        self._stream.write(f"\r{text} " if terminal else f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line that changes."""
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


def fit_line(
    titles: tuple[str, str], step: int, num_steps: int, parts: list[str], room: int
) -> str:
    """Lay out the line of a progress bar.

    Args:
        titles: what is under way, long and short.
        step: steps done.
        num_steps: steps in all.
        parts: what follows the bar, the most important first.
        room: columns there are.

    Returns:
        A line of at most `room` characters: in little room first the bar gets short, then the
        step count goes, the title gets short, the bar goes, and parts go from the end.
    """
    done = min(max(step / num_steps, 0.0), 1.0) if num_steps > 0 else 1.0
    percent = f"{int(100 * done):3d}%"
    count = f"{step:>{len(str(num_steps))}}/{num_steps}"
    layouts = [
        ([titles[0], _graphic(done, length), percent, count], "  ")
        for length in range(_LONG_BAR, _SHORT_BAR - 1, -1)
    ]
    layouts += [
        ([titles[0], _graphic(done, _SHORT_BAR), percent], "  "),
        ([titles[0], _graphic(done, _SHORT_BAR), percent], " "),
        ([titles[1], _graphic(done, _SHORT_BAR), percent], " "),
        ([titles[1], percent], " "),
    ]
    for head, gap in layouts:
        line = gap.join([" ".join(head), *parts])
        if len(line) <= room:
            return line
    while parts and len(line) > room:
        parts = parts[:-1]
        line = " ".join([titles[1], percent, *parts])
    return line[: max(room, 0)]


def _graphic(done: float, length: int) -> str:
    filled = int(done * length)
    head = ">" if 0 < filled < length else ""
    return f"[{('=' * (filled - len(head)) + head):<{length}}]"
