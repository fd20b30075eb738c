# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Where a figure was measured: hardware, clocks, versions, load."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from image_classification.device import Device
from image_classification.environment import describe, installed_versions

ROOT = Path(__file__).resolve().parent.parent
PEERS = (
    "timm", "opencv-python-headless", "nvidia-nvimgcodec-cu13", "onnxruntime", "openvino",
)  # fmt: skip


def capture(device: Device) -> dict[str, Any]:
    """Collects what a reader needs to judge or repeat a measurement.

    Args:
        device: The device that is measured.

    Returns:
        JSON types: date (UTC), command, commit, load, and what `environment.describe` tells.
    """
    described = describe(device)
    described["versions"] |= installed_versions(PEERS)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": _commit(),
        "load_before": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        **described,
    }


def machine(found: dict[str, Any]) -> str:
    """What tells machines apart, of what `capture` returned."""
    able = found.get("cpu_instructions") if found["device"] == "cpu" else None
    return f"{found['device_name']}, {' '.join(able)}" if able else str(found["device_name"])


def text(found: dict[str, Any]) -> str:
    """Formats what `capture` returned as a few lines, with a warning where the machine is busy."""
    versions = ", ".join(f"{name} {v or 'not installed'}" for name, v in found["versions"].items())
    able = " ".join(found.get("cpu_instructions", []))
    lines = [
        f"device: {found['device']} ({found['device_name']})",
        f"cpu: {found['cpu']}{able and f' ({able})'}, {found['threads']} threads on "
        f"{found['cores_usable']} of {found['cores']} cores",
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


def _commit() -> str | None:
    """The version of this package, "-dirty" where files differ from it; None outside of git."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        return found.stdout.strip()
    return None
