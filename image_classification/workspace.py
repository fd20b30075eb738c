# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: created, writable, and never shared with an earlier run by accident."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from image_classification import distributed
from image_classification.errors import UsageError
from image_classification.run_files import METRICS_NAME

Use = Literal["new", "newest", "same"]


def open_workspace(wanted: Path, *, traces: Sequence[str], use: Use, primary: bool) -> Path:
    """Creates the folder of a run on rank 0 and tells every rank its name.

    Args:
        wanted: The folder asked for.
        traces: File names by which an earlier run is recognised, its last checkpoint first.
        use: "new": a folder without a run, `-2`, `-3`, ... is appended where there is one;
            "newest": of these folders the one with the newest checkpoint; "same": the folder,
            whatever it holds.
        primary: True on rank 0.

    Returns:
        The folder, existing and writable.

    Raises:
        UsageError: The folder cannot be created or written.
    """
    chosen, problem = str(wanted), ""
    if primary:
        choose = {"new": _unused, "newest": _newest, "same": lambda folder, _: folder}[use]
        chosen = str(choose(wanted, traces))
        try:
            os.makedirs(chosen, exist_ok=True)
            if not os.access(chosen, os.W_OK | os.X_OK):
                problem = "no write permission"
        except OSError as error:
            problem = error.strerror or str(error)
    chosen, problem = distributed.share_from_primary([chosen, problem])
    if problem:
        raise UsageError(f"--workspace {chosen} cannot be written ({problem}); choose another")
    return Path(chosen)


def _holds_something(path: Path) -> bool:
    """Whether a file is one of a run: a log without a step is that of a start that failed."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    if path.name != METRICS_NAME:
        return path.suffix != ".json" or not _is_only_a_start(path.with_name(METRICS_NAME))
    return not _is_only_a_start(path)


def _is_only_a_start(log: Path) -> bool:
    """Whether a `METRICS_NAME` has messages and options alone."""
    try:
        with open(log, encoding="utf-8") as lines:
            return all(json.loads(line)["type"] in ("message", "parameter") for line in lines)
    except (OSError, ValueError, TypeError, KeyError):  # none, or somebody else's
        return False


def choose(
    given: str | None, default: Path, resume: str | None, *, traces: Sequence[str], only_logs: bool
) -> tuple[Path, Use]:
    """Which folder a run goes to, so that none writes over the files of another.

    Args:
        given: The folder asked for, if any.
        default: The folder if none was asked for and there is no checkpoint with a run around it.
        resume: The checkpoint to go on from, or "auto", or None.
        traces: File names by which a run is recognised, its last checkpoint first.
        only_logs: Nothing but log lines will be written: a folder asked for is taken as it is.

    Returns:
        The folder, and what to do where it holds a run; see `open_workspace`.
    """
    if resume == "auto":
        return Path(given or default), "newest"
    own = None if resume is None else Path(resume).parent
    if own is not None and not is_run(own, traces):
        own = None  # a checkpoint by itself, say in a folder of downloads
    wanted = Path(given or own or default)
    same = own is not None and own.resolve() == wanted.resolve()
    return wanted, "same" if same or (only_logs and given is not None) else "new"


@contextlib.contextmanager
def tidy(folder: Path, traces: Iterable[str], always: bool = False) -> Iterator[None]:
    """After an error, or always, removes the logs of a start without a step, and their folder."""
    done = False
    try:
        yield
        done = True
    finally:
        if always or not done:
            with contextlib.suppress(OSError):  # the folder holds something else
                for name in traces:
                    path = folder / name
                    if path.exists() and not _holds_something(path):
                        path.unlink()
                folder.rmdir()


def is_run(folder: Path, traces: Iterable[str]) -> bool:
    """Whether a run has left any of `traces` in the folder."""
    return any(_holds_something(folder / name) for name in traces)


def _numbered(wanted: Path, number: int) -> Path:
    """The folder that stands in for `wanted` where that one is in use; number 1 is `wanted`."""
    if number == 1:
        return wanted
    if wanted.resolve() == Path.cwd().resolve():
        # The current folder has no sibling that belongs to the user for certain.
        return wanted / f"run-{number}"
    return wanted.with_name(f"{wanted.name}-{number}")


def _unused(wanted: Path, traces: Sequence[str]) -> Path:
    return next(
        folder
        for folder in (_numbered(wanted, number) for number in itertools.count(1))
        if not is_run(folder, traces)
    )


def _newest(wanted: Path, traces: Sequence[str]) -> Path:
    """The run that was saved last; `wanted` where none was."""
    last_checkpoint, found = traces[0], []
    for number in itertools.count(1):
        folder = _numbered(wanted, number)
        if (folder / last_checkpoint).is_file():
            found.append(folder)
        elif number > 1 and not is_run(folder, traces):
            break
    return max(found, key=lambda path: (path / last_checkpoint).stat().st_mtime_ns, default=wanted)
