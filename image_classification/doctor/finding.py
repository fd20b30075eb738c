# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One thing that was found, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST = 400


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and what to do where it is not right.

    Attributes:
        status: "ok"; "note": good to know, runs work; "FIX": something is broken, or a run fails.
        what: The topic, a few words.
        value: One line.
        cure: One line, a command where there is one; empty where all is well.
    """

    status: str
    what: str
    value: str
    cure: str = ""

    def __str__(self) -> str:
        line = f"{self.status:<4}  {self.what:<22}  {one_line(self.value)}"
        return f"{line}\n      -> {one_line(self.cure)}" if self.cure else line


def ok(what: str, value: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", what, value)


def note(what: str, value: str, cure: str) -> Finding:
    """Runs work, with less than there could be or otherwise than somebody may expect."""
    return Finding("note", what, value, cure)


def fix(what: str, value: str, cure: str) -> Finding:
    """Something is broken, or a run would fail."""
    return Finding("FIX", what, value, cure)


def one_line(text: str) -> str:
    """The text without line breaks, its end cut off where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 4] + " ..."


def split_cure(text: str, otherwise: str) -> tuple[str, str]:
    """Divide a user error into what is wrong and its last part, which says what to do.

    Args:
        text: The error.
        otherwise: The cure of an error that names none.
    """
    problem, divider, cure = text.rpartition("; ")
    return (problem, cure) if divider else (text, otherwise)


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.1f} GiB"
