# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Findings about the machine: cores, memory, limits, folders, host name, variables."""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from image_classification.affinity import usable_cores
from image_classification.control_group import ControlGroup, number_in, read_control_group
from image_classification.cpu_features import cpu_info
from image_classification.device_table import DEVICE_TABLE
from image_classification.doctor.finding import Finding, fix, gib, note, ok
from image_classification.host_memory import read_meminfo

UNLIMITED = resource.RLIM_INFINITY
_GIB = 2**30
# The pytorch loader's defaults: 5 processes with 2 batches each ahead and two more on their way,
# 256 images of 224 x 224; with 1 batch ahead it just works.
_BATCH = 256 * (3 * 224**2 + 8)
_WANTED_BATCHES, _FEWEST_BATCHES = 5 * 2 + 2, 5 + 2

_THROTTLED = Path("/sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count")


# ---- cores and memory ----------------------------------------------------------------------


def core_findings(cores: int, usable: int, cpus: float | None) -> Iterator[Finding]:
    """Which cores may be used, and how much of their time.

    Args:
        cores: Those of the machine.
        usable: Those that the process may run on.
        cpus: The processor time that its control group gets, in cores.
    """
    if usable < cores:
        yield note(
            "cores", f"bound to {usable} of {cores}",
            "unless that is meant: taskset -pc, docker --cpuset-cpus, srun --cpus-per-task",
        )  # fmt: skip
    else:
        yield ok("cores", str(cores))
    if cpus is not None and cpus < usable:
        threads = max(1, math.floor(cpus))
        yield note(
            "processor time", f"limited to {cpus:g} cores by a quota, but {usable} are visible",
            f"give more (docker --cpus), or use no more threads: export OMP_NUM_THREADS={threads}, "
            f"and -j {threads}",
        )  # fmt: skip


def clock_findings(counter: Path = _THROTTLED) -> Iterator[Finding]:
    """Whether the processor had to slow down."""
    if count := number_in(counter):
        yield note(
            "processor clock", f"was throttled {count} times since the machine started",
            "check its cooling and power limits",
        )  # fmt: skip


def memory_findings(meminfo: Mapping[str, int], group: ControlGroup) -> Iterator[Finding]:
    """Memory that is left, of the machine or of the control group.

    Args:
        meminfo: Fields of /proc/meminfo in bytes.
        group: The limits of this process.
    """
    total, free = meminfo.get("MemTotal", 0), meminfo.get("MemAvailable", 0)
    whose = ""
    if group.memory is not None and group.memory < total:
        total, whose = group.memory, ", the limit of this container or job"
        free = min(free, total - (group.used or 0))
    swap = meminfo.get("SwapTotal", 0)
    used = gib(swap - meminfo.get("SwapFree", 0))
    value = f"{gib(free)} of {gib(total)} available{whose}; swap: "
    value += f"{used} of {gib(swap)} used" if swap else "none"
    cure = "end other programs, raise the limit (docker --memory), or use fewer processes (-j) and "
    cure += "a smaller --batch-size"
    level = fix if free < _GIB else note
    yield level("memory", value, cure) if free < 4 * _GIB else ok("memory", value)
    if group.killed:
        yield note(
            "killed processes", f"{group.killed} in this container or job, as memory was short",
            cure,
        )  # fmt: skip


def shared_memory_finding(space: tuple[int, int] | None, ranks: int, fast: bool) -> Finding:
    """/dev/shm against what the pytorch loader's processes and the vendors' libraries put there.

    Args:
        space: Bytes in all and free; None where there is no such folder.
        ranks: Processes that a run would have on this machine.
        fast: The fast loader works, which needs none.
    """
    what = "shared memory"
    fewest, wanted = (batches * _BATCH * ranks for batches in (_FEWEST_BATCHES, _WANTED_BATCHES))
    total, free = space or (0, 0)
    value = f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free in /dev/shm"
    if free >= wanted:
        return ok(what, value)
    size = math.ceil(max(2 * wanted, 8 * _GIB) / _GIB)
    cure = f"docker: --shm-size={size}g or --ipc=host"
    cure += f"; elsewhere, as root: mount -o remount,size={size}g /dev/shm"
    if total >= wanted:
        cure = "somebody uses it: remove what dead programs left there (ls -l /dev/shm)"
    value += f", the pytorch loader wants {wanted / 2**20:.0f} (256 images of 224 px, -j 5)"
    if ranks > 1:
        value += f" for {ranks} processes"
    if free >= fewest or fast:
        less = "; the fast loader needs none" if fast else ""
        return note(what, value + less, f"{cure}; or fewer processes (-j)")
    return fix(what, value, f"{cure}; or build the fast loader, or use -j 0")


# ---- limits --------------------------------------------------------------------------------


def read_limits() -> dict[str, tuple[int, int]]:
    """The soft and the hard limits of this process: open files, processes, locked memory."""
    kinds = {"files": "NOFILE", "processes": "NPROC", "locked": "MEMLOCK"}
    return {
        name: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}"))
        for name, kind in kinds.items()
    }


def limit_findings(
    limits: Mapping[str, tuple[int, int]], group: ControlGroup, accelerators: int
) -> Iterator[Finding]:
    """What the shell, the container or the job allows.

    Args:
        limits: See `read_limits`.
        group: The limits of the control group.
        accelerators: How many devices there seem to be.
    """
    soft, hard = limits["files"]
    value = f"{_limit(soft)} (at most {_limit(hard)})"
    if _below(soft, 1024):
        most = 65536 if hard == UNLIMITED else min(hard, 65536)
        cure = f"ulimit -n {most}" if most > soft else "raise it in /etc/security/limits.conf"
        level = fix if soft < 256 else note
        yield level("open files", value, f"{cure}; docker: --ulimit nofile=65536:65536")
    else:
        yield ok("open files", value)
    soft, hard = limits["processes"]
    if group.processes is not None and (soft == UNLIMITED or group.processes < soft):
        soft = group.processes
    # Each process of a run has threads for operators, images, devices and collectives.
    if _below(soft, 1024):
        yield note(
            "processes and threads", f"at most {soft}",
            "ulimit -u 65536; docker: --pids-limit=-1",
        )  # fmt: skip
    else:
        yield ok("processes and threads", f"at most {_limit(soft)}")
    soft, hard = limits["locked"]
    value = "unlimited" if soft == UNLIMITED else f"at most {soft // 1024} KiB"
    if accelerators > 1 and _below(soft, _GIB):
        yield note(
            "locked memory", f"{value}: collectives over InfiniBand or RoCE need more",
            "ulimit -l unlimited; docker: --ulimit memlock=-1",
        )  # fmt: skip
    else:
        yield ok("locked memory", value)


def _below(limit: int, wanted: int) -> bool:
    return limit != UNLIMITED and limit < wanted


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


# ---- folders, name, variables --------------------------------------------------------------


def folder_finding(
    what: str, path: str, answer: Mapping[str, Any], needed: bool, cure: str
) -> Finding:
    """Space and write access of a folder.

    Args:
        what: What lies there.
        path: The folder.
        answer: The probe's.
        needed: Runs write there by default.
        cure: What to do where it cannot be written.
    """
    level = fix if needed else note
    if "error" in answer:
        return level(what, f"{path}: {answer['error']}", f"check its disk or server; {cure}")
    value = f"{path}{'' if answer['exists'] else ' (not made yet)'}, {gib(answer['free'])} free"
    if "refused" in answer:
        return level(what, f"{value}, cannot be written: {answer['refused']}", cure)
    if answer["free"] < _GIB:
        return level(what, value, f"make room; {cure}")
    if needed and answer["free"] < 10 * _GIB:
        return note(what, value, "the checkpoints of a ResNet-50 take about 1 GiB; make room")
    return ok(what, value)


def host_finding(name: str, answer: Mapping[str, Any], environ: Mapping[str, str]) -> Finding:
    """Whether the name of this host leads to it, as gloo expects."""
    interface = environ.get("GLOO_SOCKET_IFNAME")
    if interface:
        return ok("host name", f"{name}; gloo uses GLOO_SOCKET_IFNAME={interface}")
    if "error" in answer:
        return note(
            "host name",
            f"{name} does not resolve ({answer['error']}): gloo falls back to the loopback "
            "address, several nodes do not find each other",
            "add it to /etc/hosts, or export GLOO_SOCKET_IFNAME=<interface> (ip -brief address)",
        )
    addresses = answer["addresses"]
    local = all(address.startswith(("127.", "::1")) for address in addresses)
    more = "; enough for one node, several need GLOO_SOCKET_IFNAME" if local else ""
    return ok("host name", f"{name} is {', '.join(addresses[:3])}{more}")


_MASKS = {
    name
    for spec in DEVICE_TABLE.values()
    for name in (spec.visible_devices, *spec.other_masks)
    if name
}
# Variables, and what they decide; the first line that fits counts.
_VARIABLES = (
    (r"\w+_VISIBLE_DEVICES|ZE_AFFINITY_MASK", "which devices may be used"),
    (r"(OMP|MKL|OPENBLAS|NUMEXPR)_\w+|[KG]OMP_\w+", "threads on the CPU"),
    (r"(NCCL|HCCL|CNCL|RCCL|CCL|GLOO|UCX|FI|TORCH_NCCL)_\w+", "the collective library"),
    (r"\w+_LAUNCH_BLOCKING", "waits for every operator: slow, for debugging"),
    (r"(PY)?TORCH_\w+|CUBLAS_\w+|ASCEND_\w+|CUDA_(?!HOME|PATH|VERSION)\w+", "the device software"),
    (r"(MASTER|TORCHELASTIC)_\w+|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|SLURM_STEP_NUM_TASKS",
     "a launcher's: this process takes itself for one of several"),
    (r"PYTHONPATH|LD_PRELOAD|LD_LIBRARY_PATH|CXX", "which programs and libraries are used"),
)  # fmt: skip


def variable_findings(environ: Mapping[str, str]) -> Iterator[Finding]:
    """The variables that are set and change how runs behave."""
    for name in sorted(environ):
        value = environ[name]
        effect = next((text for names, text in _VARIABLES if re.fullmatch(names, name)), None)
        if effect is None or name == "TORCH_DEVICE_BACKEND_AUTOLOAD":  # see `devices`
            continue
        if name in _MASKS and not value.strip():
            effect = "empty, which hides all devices"
        shown = value if len(value) <= 80 else f"{value[:76]} ..."
        yield note(name, f"{shown!r} ({effect})", f"unless it is meant: unset {name}")


# ---- what is there -------------------------------------------------------------------------


def shared_memory() -> tuple[int, int] | None:
    """Bytes of /dev/shm, in all and free."""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage("/dev/shm")
        return usage.total, usage.free
    return None


def findings(environ: Mapping[str, str], accelerators: int) -> Iterator[Finding]:
    """What the kernel tells at once.

    Args:
        environ: The environment.
        accelerators: How many devices there seem to be.
    """
    group = read_control_group()
    yield ok("processor", cpu_info("model name") or os.uname().machine)
    yield from core_findings(os.cpu_count() or 1, usable_cores(), group.cpus)
    yield from clock_findings()
    yield from memory_findings(read_meminfo(), group)
    yield from limit_findings(read_limits(), group, accelerators)
    yield from variable_findings(environ)
