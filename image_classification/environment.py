# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The machine and the software of a run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from typing import Any

import torch

from image_classification.cpu_features import cpu_name, instructions
from image_classification.device import Device

PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def describe(device: Device) -> dict[str, Any]:
    """Collects what a reader needs to judge or repeat a run.

    Args:
        device: The device of this process.

    Returns:
        JSON types; None where something is not known or does not apply.
    """
    memory = device.memory()
    plug_in = device.spec.plugin
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": device.name,
        "device_memory": memory.total if memory else None,
        "driver": _driver() if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        "cpu": cpu_name(),
        "cpu_instructions": instructions(),
        "cores": os.cpu_count(),
        "cores_usable": len(cores) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": installed_versions([*PACKAGES, *([plug_in] if plug_in else [])]),
    }


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the version of each distribution, None where it is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _driver() -> str | None:
    with contextlib.suppress(Exception):  # a version is never worth a failure
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    return None
