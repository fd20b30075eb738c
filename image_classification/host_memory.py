# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of the host, in bytes: what this process may still take, and what it took at most.

And whether freed memory stays with the process. A training step on a CPU frees and takes the same
hundreds of megabytes again and again; glibc gives large blocks back to the system, which clears
every page of them again: half of an FP32 step can go there.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
import sys
from pathlib import Path

from image_classification.control_group import read_control_group, read_text

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# mallopt(3): parameters of glibc, and what its own adaption makes of them at most.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST_KEPT = -1, 1 << 30
_GLIBC_TRIM, _GLIBC_MMAP = 64 << 20, 32 << 20


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


def keep_freed(keep: bool = True) -> bool:
    """Lets the process keep the memory of blocks below 1 GiB that it frees, for the next ones.

    Args:
        keep: False: give it back to the system, as glibc does without this after a while.

    Returns:
        Whether the C library can do it: glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    block, rest = (_LARGEST_KEPT, _NEVER) if keep else (_GLIBC_MMAP, _GLIBC_TRIM)
    return bool(mallopt(_M_MMAP_THRESHOLD, block) and mallopt(_M_TRIM_THRESHOLD, rest))


def give_back() -> None:
    """Gives freed memory back to the system, where the C library can (glibc)."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _fields(path: Path) -> dict[str, int]:
    """The sizes that a file of the kernel's tells by name, in bytes."""
    lines = re.findall(r"^(\w+):\s+(\d+) kB", read_text(path), re.M)
    return {name: 1024 * int(number) for name, number in lines}
