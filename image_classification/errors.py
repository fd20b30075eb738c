# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can cause or cure; each carries the exit code of its kind.

The message is one line: what is wrong, what was received, what is allowed, how to cure it.
The entry scripts print it once, without a traceback, and exit with `exit_code`.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Base of all errors that end the program with one line instead of a traceback."""

    exit_code = 2


def printable(text: str | bytes | os.PathLike, limit: int = 300) -> str:
    """`text` on one line for a message: control characters and undecodable bytes become "?".

    File names come from outside and must not be able to steer the reader's terminal.
    """
    text = os.fsdecode(text)
    clean = "".join(letter if letter.isprintable() else "?" for letter in text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def first_line(error: BaseException, limit: int = 200) -> str:
    """What an exception of a library says, its first line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, limit)


def tell(program: str, error: UserError) -> int:
    """Print an error, a line for each problem, and return its exit code.

    A line may quote a file: nothing in it can steer the reader's terminal.
    """
    for line in str(error).splitlines():
        sys.stderr.write(f"{program}: error: {printable(line, sys.maxsize)}\n")
    return error.exit_code


def run_program(program: str, action: Callable[[], None]) -> int:
    """Runs a command line to its end and returns its exit code.

    User errors become a line each; an interrupt, and a reader such as head that has seen enough of
    the output, end it quietly.

    Args:
        program: name for the lines.
        action: all there is to do.
    """
    try:
        action()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        return tell(program, error)
    except BrokenPipeError:
        _drop_output()
        return 141  # as of a process that SIGPIPE ends
    except KeyboardInterrupt:
        return 130
    return 0


def print_line(text: str) -> None:
    """Writes a line at once; nobody need be there to read it."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    # What is buffered goes nowhere, also when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'X'?` with the nearest known name; nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


class UsageError(UserError):
    """Wrong option, wrong combination of options, or a device that is not there."""

    exit_code = 2


class DataError(UserError):
    """Missing, unreadable or inconsistent training or validation data."""

    exit_code = 3


class ImageError(DataError):
    """One image cannot be read; `reason` says why, without path and cure."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class CheckpointError(UserError):
    """Missing, damaged, foreign or unsafe checkpoint or weight file."""

    exit_code = 4


class DivergedError(UserError):
    """Training produced non-finite values."""

    exit_code = 5


class DeviceMemoryError(UserError):
    """The device (or the host) ran out of memory."""

    exit_code = 6


class LostPeerError(UserError):
    """Another process of the run hangs or is gone."""

    exit_code = 7
