# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the host, in bytes: what this process may still take, and what it took at most."""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from pathlib import Path

from image_classification.control_group import read_control_group, read_text

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def available() -> int | None:
    """Returns what can be used without swapping, within a container's limit; None if unknown."""
    free, group = read_meminfo().get("MemAvailable"), read_control_group()
    found = [] if free is None else [free]
    if group.memory is not None and group.used is not None:
        found.append(max(group.memory - group.used, 0))
    return min(found, default=None)


def read_meminfo() -> dict[str, int]:
    """Returns the fields of /proc/meminfo in bytes; empty where there is no such file."""
    return _fields(_MEMINFO)


def peak() -> int:
    """Returns the most that this process has had in memory since `reset_peak`, or its start."""
    if (high := _fields(_STATUS).get("VmHWM")) is not None:
        return high
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak() -> None:
    """Starts a new measurement of the peak, where the system can (Linux, proc(5): clear_refs)."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def _fields(path: Path) -> dict[str, int]:
    """The sizes that a file of the kernel's tells by name, in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read_text(path), re.M)
    return {name: 1024 * int(number) for name, number in lines}
