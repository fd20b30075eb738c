# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the host, in bytes: what this process may still take, and what it took at most."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Returns what can be used without swapping, within a container's limit; None if unknown."""
    found = [free for free in (_of_machine(), _of_container()) if free is not None]
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


def _of_machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _of_container() -> int | None:
    """What a control group (version 2) leaves; files that it caches can be given up."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" without a limit
        used = int((_CGROUP / "memory.current").read_text())
        rows = [line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines()]
        cached = next((int(size) for name, size in rows if name == "inactive_file"), 0)
        return max(limit - used + cached, 0)
    return None
