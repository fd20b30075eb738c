# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Where a figure was measured: hardware, clocks, versions, load."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from image_classification.device import Device

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless",
    "nvidia-nvimgcodec-cu13",
)  # fmt: skip


def capture(device: Device) -> dict[str, Any]:
    """Collects what a reader needs to judge or repeat a measurement.

    Args:
        device: The device that is measured.

    Returns:
        JSON types: date (UTC), command, commit, hardware, versions, threads and load.
    """
    cpu = Device.select("cpu")
    memory = device.memory()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": _commit(),
        "device": device.type,
        "device_name": device.name,
        "device_memory": memory.total if memory else None,
        "driver": _driver(device),
        "cpu": cpu.name,
        "cores": os.cpu_count(),
        "cores_usable": len(cores) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
    }


def text(found: dict[str, Any]) -> str:
    """Formats what `capture` returned as a few lines, with a warning where the machine is busy."""
    versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in found["versions"].items())
    lines = [
        f"device: {found['device']} ({found['device_name']})",
        f"cpu: {found['cpu']}, {found['threads']} threads on {found['cores_usable']} of "
        f"{found['cores']} cores",
        f"python {found['python']}, {versions}",
        f"date: {found['date']}, commit: {found['commit'] or 'unknown'}",
    ]
    if found["driver"]:
        versions_below = f"cuda {found['cuda']}, cudnn {found['cudnn']}"
        lines.insert(1, f"driver: {found['driver']}, {versions_below}")
    load = found["load_before"]
    if load and load[0] > 0.3 * found["cores_usable"]:
        lines.append(f"the machine was busy before the start (load {load[0]:.1f}): do not trust "
                     "the rates; repeat on an idle machine")  # fmt: skip
    return "\n".join(lines)


def clock_mhz(device: Device) -> float | None:
    """Returns the clock of the device in MHz (cpu: mean of the cores), None where not known."""
    if device.is_accelerator:
        return device.telemetry().get("clock")
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        return sum(clocks) / len(clocks) if clocks else None
    return None


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit() -> str | None:
    """The version of this package, "-dirty" where files differ from it; None outside of git."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return found.stdout.strip()
    return None


def _driver(device: Device) -> str | None:
    if device.type != "cuda":
        return None
    with contextlib.suppress(Exception):  # a version is never worth a failure
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    return None
