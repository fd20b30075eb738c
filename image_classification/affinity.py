# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Binding a process to the CPU cores near its device (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

from image_classification.errors import UsageError

MODES = (
    "none",
    "socket",
    "socket_single",
    "socket_single_unique",
    "socket_unique_interleaved",
    "socket_unique_contiguous",
)

# More readers than this are a slip of the keyboard.
MAX_THREADS = 1024

_NODES = Path("/sys/devices/system/node")


def bind(mode: str, local_rank: int, local_world_size: int) -> list[int]:
    """Restricts this process, and the loader processes it starts, to some CPU cores.

    The processes of a host are spread over its NUMA nodes in the order of their local rank, which
    is how vendors number devices. `mode` says which cores of the node a process gets: all
    (`socket`), the first (`socket_single`), one of its own (`socket_single_unique`), or an equal
    share, every n-th (`socket_unique_interleaved`) or a block (`socket_unique_contiguous`).

    Args:
        mode: One of `MODES`; "none" changes nothing.
        local_rank: Index of this process on the host.
        local_world_size: Processes on the host, >= 1.

    Returns:
        The cores this process may use afterwards, sorted.

    Raises:
        UsageError: The system cannot bind processes.
    """
    if not hasattr(os, "sched_setaffinity"):
        if mode == "none":
            return []
        raise UsageError(f"--gpu-affinity {mode} needs Linux; leave the option out")
    allowed = os.sched_getaffinity(0)
    if mode != "none":
        cores = choose_cores(mode, local_rank, local_world_size, _numa_nodes(allowed))
        os.sched_setaffinity(0, cores)
    return sorted(os.sched_getaffinity(0))


def usable_cores() -> int:
    """Cores that this process may run on, >= 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return len(allowed) if allowed else os.cpu_count() or 1


def default_threads(mode: str, local_world_size: int, computes: bool) -> int:
    """How many threads of a process should read images.

    Args:
        mode: The `MODES` entry that `bind` was called with.
        local_world_size: Processes on the host, >= 1.
        computes: The network runs on the same cores, which it needs more.

    Returns:
        This process's share of the cores, >= 1; 1 where it computes.
    """
    if computes:
        return 1
    cores = usable_cores()
    shared = mode in ("none", "socket")
    return max(1, cores // local_world_size if shared else cores)


def choose_cores(
    mode: str, local_rank: int, local_world_size: int, nodes: list[list[int]]
) -> list[int]:
    """Returns the cores of one process.

    Args:
        mode: One of `MODES` except "none".
        local_rank: Index of the process on the host.
        local_world_size: Processes on the host.
        nodes: Sorted cores of each NUMA node, none of them empty.

    Returns:
        At least one core.
    """
    node_of = [rank * len(nodes) // local_world_size for rank in range(local_world_size)]
    cores = nodes[node_of[local_rank]]
    mates = [rank for rank in range(local_world_size) if node_of[rank] == node_of[local_rank]]
    place, share = mates.index(local_rank), max(1, len(cores) // len(mates))
    chosen = {
        "socket": cores,
        "socket_single": cores[:1],
        "socket_single_unique": [cores[place % len(cores)]],
        "socket_unique_interleaved": cores[place :: len(mates)],
        "socket_unique_contiguous": cores[place * share : (place + 1) * share],
    }[mode]
    return chosen or [cores[place % len(cores)]]


def _numa_nodes(allowed: set[int]) -> list[list[int]]:
    """Returns the allowed cores of each NUMA node; one node where the system does not say."""
    lists = (path.read_text() for path in sorted(_NODES.glob("node[0-9]*/cpulist")))
    nodes = [sorted(_parse_cpulist(text) & allowed) for text in lists]
    return [node for node in nodes if node] or [sorted(allowed)]


def _parse_cpulist(text: str) -> set[int]:
    """Parses the kernel's list format, for example "0-3,8"."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores
