# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: created, writable, and never shared with an earlier run by accident."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from image_classification import distributed
from image_classification.errors import UsageError


def open_workspace(wanted: Path, *, traces: Iterable[str], reuse: bool, primary: bool) -> Path:
    """Creates the folder of a run on rank 0 and tells every rank its name.

    Args:
        wanted: The folder asked for.
        traces: File names by which an earlier run is recognised.
        reuse: Go on in the folder even if it holds a run; otherwise `-2`, `-3`, ... is appended.
        primary: True on rank 0.

    Returns:
        The folder, existing and writable.

    Raises:
        UsageError: The folder cannot be created or written.
    """
    chosen, problem = str(wanted), ""
    if primary:
        chosen = str(wanted if reuse else _unused(wanted, tuple(traces)))
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
    """A start that failed early leaves empty logs behind; they are no run."""
    return path.exists() and path.stat().st_size > 0


def _unused(wanted: Path, traces: tuple[str, ...]) -> Path:
    """Returns the first of wanted, wanted-2, wanted-3, ... without a trace of a run."""
    folder, number = wanted, 1
    is_here = wanted.resolve() == Path.cwd().resolve()
    while any(_holds_something(folder / name) for name in traces):
        number += 1
        # The current folder has no sibling that belongs to the user for certain.
        sibling = wanted.with_name(f"{wanted.name}-{number}")
        folder = wanted / f"run-{number}" if is_here else sibling
    return folder
