# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the host, in bytes: what this process may still take, and what it took at most."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

from image_classification.control_group import read_control_group

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def available() -> int | None:
    """Returns what can be used without swapping, within a container's limit; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        rows = [line.split() for line in _MEMINFO.read_text().splitlines()]
        found += [int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:"]
    group = read_control_group()
    if group.memory is not None and group.used is not None:
        found.append(max(group.memory - group.used, 0))
    return min(found, default=None)


def peak() -> int:
    """Returns the most that this process has had in memory since `reset_peak`, or its start."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak() -> None:
    """Starts a new measurement of the peak, where the system can (Linux, proc(5): clear_refs)."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
