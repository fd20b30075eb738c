# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the kernel grants a container or a job (man 7 cgroups, versions 1 and 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**60  # version 1 has no word for it, but a number that no machine has


@dataclass(frozen=True)
class ControlGroup:
    """Limits and use, None where nothing is said.

    Attributes:
        memory: Bytes that all its processes may use.
        used: Bytes that they use, without files that are only kept as long as there is room.
        cpus: Processor time, in cores.
        processes: How many processes and threads there may be.
        killed: Processes that were ended as memory was short.
    """

    memory: int | None = None
    used: int | None = None
    cpus: float | None = None
    processes: int | None = None
    killed: int = 0


def read_control_group(mount: Path = _MOUNT, own: str | None = None) -> ControlGroup:
    """Read the limits of this process; those of the groups around its own count, too.

    Args:
        mount: Where the control groups are.
        own: The text of /proc/self/cgroup, by default read there.
    """
    places = _places(mount, read_text(Path("/proc/self/cgroup")) if own is None else own)
    new, memory, cpu = (places.get(controller, []) for controller in ("", "memory", "cpu"))
    limits = [number_in(place / "memory.max") for place in new]
    limits += [number_in(place / "memory.limit_in_bytes") for place in memory]
    quotas = [read_text(place / "cpu.max").split() for place in new]
    for place in cpu:
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quotas.append([read_text(place / name).strip() for name in files])
    shares = [int(quota) / int(period) for quota, period in filter(_is_quota, quotas)]
    counts = [number_in(place / "pids.max") for place in [*new, *places.get("pids", [])]]
    events = [read_text(place / "memory.events") for place in new[:1]]
    events += [read_text(place / "memory.oom_control") for place in memory[:1]]
    killed = [count for text in events for count in re.findall(r"^oom_kill (\d+)", text, re.M)]
    return ControlGroup(
        memory=min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None),
        used=_used([*new[:1], *memory[:1]]),
        cpus=min(shares, default=None),
        processes=min((count for count in counts if count), default=None),
        killed=max(map(int, killed), default=0),
    )


def _places(mount: Path, own: str) -> dict[str, list[Path]]:
    """The folders of each controller, the own group first; "" is version 2."""
    places = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            base = mount / controller
            group = base / path.lstrip("/")
            # In a container the own group may be the top, whatever its path says.
            around = [folder for folder in (group, *group.parents) if folder.is_relative_to(base)]
            places[controller] = [folder for folder in around if folder.is_dir()]
    return places


def _used(groups: list[Path]) -> int | None:
    for group in groups:
        for name in ("memory.current", "memory.usage_in_bytes"):
            if (total := number_in(group / name)) is not None:
                kept = re.search(
                    r"^(?:total_)?inactive_file (\d+)", read_text(group / "memory.stat"), re.M
                )
                return total - int(kept[1] if kept else 0)
    return None


def _is_quota(words: list[str]) -> bool:
    return len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0


def read_text(path: Path) -> str:
    """A file of the kernel's, "" where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number_in(path: Path) -> int | None:
    """The number that a file of the kernel's holds, None where there is none."""
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None
