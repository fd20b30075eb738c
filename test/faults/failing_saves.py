# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be written, for some attempts of a run to save."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

# Bytes that a file may have while the kind "limit" is on: logs fit, checkpoints do not.
_LIMIT = 1 << 20


@contextlib.contextmanager
def spoiled_saves(first: int, last: int, kind: str, error: str = "EIO") -> Iterator[list[int]]:
    """Lets the attempts number `first` to `last` to save fail; yields the attempts made."""
    from image_classification.checkpoint_files import CheckpointFiles

    healthy, attempts = CheckpointFiles.write, [0]

    def write(self: CheckpointFiles, state: dict[str, Any], **options: bool) -> None:
        attempts[0] += 1
        hit = first <= attempts[0] <= last
        with broken(kind, error) if hit else contextlib.nullcontext():
            healthy(self, state, **options)

    CheckpointFiles.write = write  # type: ignore[method-assign]
    try:
        yield attempts
    finally:
        CheckpointFiles.write = healthy  # type: ignore[method-assign]


@contextlib.contextmanager
def broken(kind: str, error: str) -> Iterator[None]:
    """While it lasts, this thread cannot save.

    Args:
        kind: "limit": the kernel refuses large files; "slow": every write takes its time;
            "create", "write", "fsync", "rename": this call fails; "sum": the check sum's file
            cannot be created; "kill": the process dies before a name is given.
        error: Name of the errno of the call that fails; for "kill" the file's name.
    """
    from image_classification import checkpoint_files

    if kind == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    owner, name = {
        "create": (tempfile, "mkstemp"), "sum": (tempfile, "mkstemp"), "fsync": (os, "fsync"),
        "rename": (os, "replace"), "write": (checkpoint_files._Hashing, "write"),
        "slow": (checkpoint_files._Hashing, "write"),
        "kill": (checkpoint_files.CheckpointFiles, "_name"),
    }[kind]  # fmt: skip
    healthy, writer = getattr(owner, name), threading.get_ident()

    def call(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() == writer:
            if kind == "slow":
                time.sleep(0.05)
            elif kind == "kill":
                if arguments[-1].name == error:
                    os.kill(os.getpid(), signal.SIGKILL)
            elif kind != "sum" or ".sha256" in options["prefix"]:
                number = getattr(errno, error)
                raise OSError(number, os.strerror(number))
        return healthy(*arguments, **options)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, healthy)
