# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The device table, and finding out what of it can be used here.

This module is part of `device`: import its names from there. PyTorch is imported by the functions
and not by the module, so that the table can be read without it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .errors import UsageError

DEVICE_TYPES = ("cuda", "npu", "mlu", "xpu", "cpu")
# torch.cuda is asked last: Ascend's transfer_to_npu patches it to answer for an NPU.
_PROBE_ORDER = ("npu", "mlu", "xpu", "cuda")

# Below the time-out of the process group (600 s), so that HCCL's own message is seen, above the
# launcher's for hangs (300 s), which tells more; a multiple of 68 s, to which some devices round
# it down. Connections wait 20 s longer than this says.
_COLLECTIVE_WAIT_S = 544
# End the process without cleaning up the communicator: PyTorch's own choice for NCCL, while
# torch_mlu's is to go on waiting (0).
_TEAR_DOWN = "3"


@dataclass(frozen=True)
class DeviceSpec:
    """One row of the device table.

    Args:
        type: the device type of PyTorch.
        label: what a user calls such a device.
        plugin: the package that brings the device into PyTorch, None when PyTorch has it.
        collective: the process group backend.
        visible_devices: the environment variable that hides devices, None when there is none.
        telemetry: where utilisation and power are read: a Python module or a command.
        other_masks: further variables that hide devices.
        deterministic_environment: variables that deterministic mode needs, with their values.
        collective_waits: variables that say how long (s) the collective library waits for a peer.
        collective_ends: variable that lets an operation without a peer end the process, under all
            its names.
    """

    type: str
    label: str
    plugin: str | None
    collective: str
    visible_devices: str | None
    telemetry: str | None
    other_masks: tuple[str, ...] = ()
    deterministic_environment: tuple[tuple[str, str], ...] = ()
    collective_waits: tuple[str, ...] = ()
    collective_ends: tuple[str, ...] = ()

    def masks(self) -> dict[str, str]:
        """Return the variables that hide devices of this type and are set, with their values."""
        names = (self.visible_devices, *self.other_masks)
        return {name: os.environ[name] for name in names if name and name in os.environ}

    def physical_index(self, index: int) -> str:
        """Return what the mask calls the visible device `index`: a number or an identifier."""
        for value in self.masks().values():
            entries = [entry.strip() for entry in value.split(",")]
            if index < len(entries) and entries[index]:
                return entries[index]
        return str(index)

    def limit_collectives(self, group_timeout_s: float) -> list[str]:
        """Set how long collectives wait for a peer that is gone; call it before the first one.

        Args:
            group_timeout_s: time-out of the process group.

        Returns:
            One line for each variable of the user's that contradicts it; it stays as it is.
        """
        problems = []
        for name in self.collective_waits:
            value = os.environ.setdefault(name, str(_COLLECTIVE_WAIT_S))
            if not (value.isdecimal() and 0 < int(value) < group_timeout_s):
                problems.append(
                    f"{name}={value} is not within 1 to {group_timeout_s:g} s, the time-out of the "
                    "process group: a lost peer is found late; unset it"
                )
        if self.collective_ends:
            given = [name for name in self.collective_ends if name in os.environ]
            name = [*given, *self.collective_ends][0]
            value = os.environ.setdefault(name, _TEAR_DOWN)
            if value not in ("1", _TEAR_DOWN):
                problems.append(
                    f"{name}={value}: a rank waits for a lost peer for ever; unset it"
                )
        return problems


#: What a plain RuntimeError says where it means out of memory: the host's allocator, torch_npu's,
#: the libraries of cuda, and Level Zero's of xpu.
OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate", " out of memory", "_ALLOC_FAILED",
                 "OUT_OF_DEVICE_MEMORY", "OUT_OF_HOST_MEMORY")  # fmt: skip

DEVICE_TABLE: dict[str, DeviceSpec] = {
    spec.type: spec
    for spec in (
        DeviceSpec("cuda", "GPU", None, "nccl", "CUDA_VISIBLE_DEVICES", "pynvml",
                   ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
                   (("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),),
                   collective_ends=("TORCH_NCCL_ASYNC_ERROR_HANDLING",
                                    "NCCL_ASYNC_ERROR_HANDLING")),
        DeviceSpec("npu", "Ascend NPU", "torch_npu", "hccl", "ASCEND_RT_VISIBLE_DEVICES",
                   "npu-smi", (), (("HCCL_DETERMINISTIC", "true"),),
                   collective_waits=("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")),
        DeviceSpec("mlu", "Cambricon MLU", "torch_mlu", "cncl", "MLU_VISIBLE_DEVICES", "cnmon",
                   collective_ends=("TORCH_CNCL_ASYNC_ERROR_HANDLING",
                                    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
                                    "NCCL_ASYNC_ERROR_HANDLING")),
        DeviceSpec("xpu", "Intel XPU", None, "xccl", "ZE_AFFINITY_MASK", None),
        DeviceSpec("cpu", "CPU", None, "gloo", None, None),
    )
}  # fmt: skip


def collectives(device_type: str) -> tuple[str, ...]:
    """The process group backends that take tensors of a device, its own first."""
    own = DEVICE_TABLE[device_type].collective
    return (own, "gloo") if device_type == "cuda" else (own,)


# --- importing PyTorch and its plug-ins -----------------------------------------------------


_PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def import_torch_or_explain(wanted: str = "auto") -> ModuleType:
    """Import PyTorch and turn a failure into one line.

    A device plug-in that PyTorch loads by itself can make `import torch` fail. A run that asks
    for cpu or cuda needs no plug-in, so loading them is switched off for it.

    Args:
        wanted: the value of `--device`.

    Returns:
        The module torch.

    Raises:
        UsageError: PyTorch is missing or cannot be imported.
    """
    if wanted in ("cpu", "cuda", "gpu") and "torch" not in sys.modules:
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name == "torch":
            cure = f"install it with: {sys.executable} -m pip install -r requirements-torch.txt"
            if (_PACKAGE_ROOT / ".venv/bin/activate").is_file():
                cure = f"the environment is ready: source {_PACKAGE_ROOT}/.venv/bin/activate"
            raise UsageError(f"PyTorch is not installed for {sys.executable}; {cure}") from None
        reason = _one_line(error)
    except Exception as error:  # a plug-in may raise anything
        reason = _one_line(error.__cause__ or error)
    plugins = sorted({entry.value for entry in plugin_entry_points()})
    if plugins and os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD", "1") == "1":
        raise UsageError(
            f"PyTorch cannot be imported with its device plug-in ({', '.join(plugins)}): {reason}; "
            "repair or uninstall the plug-in, or run without it: --device cpu"
        )
    raise UsageError(f"PyTorch is installed but cannot be imported: {reason}; reinstall it")


def plugin_entry_points() -> list[importlib.metadata.EntryPoint]:
    """Return what `import torch` loads by itself: the device plug-ins that are installed."""
    return list(importlib.metadata.entry_points(group="torch.backends"))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:300]}"


def _import_plugin(torch: ModuleType, spec: DeviceSpec) -> str | None:
    """Import the plug-in unless PyTorch has the device already; return what went wrong."""
    if spec.plugin is None or hasattr(torch, spec.type):
        return None
    if importlib.util.find_spec(spec.plugin) is None:
        return f"its maker's package {spec.plugin} is not installed for {sys.executable}"
    try:
        importlib.import_module(spec.plugin)
    except Exception as error:  # the vendor's start-up code may raise anything
        return f"the package {spec.plugin} is installed but unusable: {_one_line(error)}"
    return None


def _why_unusable(torch: ModuleType, spec: DeviceSpec) -> str | None:
    """Return None when devices of this type can be used, else what is missing."""
    if spec.type == "cpu":
        return None
    problem = _import_plugin(torch, spec)
    if problem is not None:
        return problem
    module = getattr(torch, spec.type, None)
    if module is None:
        return f"PyTorch {torch.__version__} does not know this device type"
    if spec.type == "cuda" and not (torch.version.cuda or torch.version.hip):
        return f"PyTorch {torch.__version__} is built without CUDA; install a CUDA build of it"
    try:
        if module.is_available() and module.device_count() > 0:
            return None
        init = getattr(module, "init", None)
        if init is not None:
            init()
        reason = (
            f"no {spec.label} found; check its driver and, in a container, that it was given "
            "the devices"
        )
    except Exception as error:  # the drivers' own message is the best explanation
        reason = f"no usable {spec.label}: {_one_line(error)}"
    for name, value in spec.masks().items():
        effect = "empty, which hides all devices" if not value.strip() else "what may be used"
        reason += f" ({name}={value!r} is {effect})"
    return reason


def available_devices(types: Iterable[str] = DEVICE_TYPES) -> dict[str, str]:
    """Ask for device types whether they can be used here.

    Installed plug-ins of these types are imported.

    Args:
        types: types of the table, by default all.

    Returns:
        Device type -> "ok, N devices" or what is missing.

    Raises:
        UsageError: PyTorch cannot be imported.
    """
    torch = import_torch_or_explain()
    answers = {}
    for name in types:
        problem = _why_unusable(torch, DEVICE_TABLE[name])
        if problem is None:
            count = 1 if name == "cpu" else int(getattr(torch, name).device_count())
            problem = f"ok, {count} device{'s' if count != 1 else ''}"
        answers[name] = problem
    return answers


# --- choosing -------------------------------------------------------------------------------


def _reported_type(torch: ModuleType) -> str | None:
    """Return the accelerator type that PyTorch itself reports as available."""
    accelerator = getattr(torch, "accelerator", None)  # PyTorch >= 2.6
    if accelerator is None:
        known = (DEVICE_TABLE[name] for name in _PROBE_ORDER if hasattr(torch, name))
        return next((spec.type for spec in known if _why_unusable(torch, spec) is None), None)
    try:
        device = accelerator.current_accelerator(check_available=True)
    except TypeError:  # PyTorch 2.6 has no such argument and names what it was built for
        device = accelerator.current_accelerator() if accelerator.is_available() else None
    return device.type if device is not None and device.type in DEVICE_TABLE else None


def _automatic_type(torch: ModuleType) -> str:
    """Resolve `--device auto`: reported, else an installed plug-in, else cpu."""
    reported = _reported_type(torch)
    if reported is not None:
        return reported
    problems = []
    for spec in DEVICE_TABLE.values():
        if spec.plugin is None or importlib.util.find_spec(spec.plugin) is None:
            continue
        problem = _why_unusable(torch, spec)
        if problem is None:
            return spec.type
        problems.append(f"{spec.type}: {problem}")
    if problems:
        raise UsageError(
            f"--device auto found a device plug-in that does not work: {'; '.join(problems)}; "
            "repair or uninstall it, or use --device cpu"
        )
    return "cpu"


def choose_index(spec: DeviceSpec, count: int, local_rank: int, index: int | None) -> int:
    """Return the index of the device that this process uses.

    Args:
        spec: row of the table.
        count: number of visible devices.
        local_rank: number of this process on its node.
        index: an explicit wish, or None: the local rank decides.

    Raises:
        UsageError: there is no such device.
    """
    masks = spec.masks()
    shown = ", ".join(f"{name}={value!r}" for name, value in masks.items())
    shown = shown or (f"{spec.visible_devices} is not set" if spec.visible_devices else "no mask")
    if index is not None:
        if 0 <= index < count:
            return index
        raise UsageError(
            f"device index {index} does not exist: {count} {spec.label}(s) visible ({shown}); "
            f"use 0 to {count - 1}"
        )
    if spec.type == "cpu":
        return 0
    if 0 <= local_rank < count:
        return local_rank
    if count == 1 and any(len(value.split(",")) == 1 for value in masks.values()):
        return 0  # the launcher shows each process only its own device
    raise UsageError(
        f"the process with LOCAL_RANK={local_rank} has no device: {count} {spec.label}(s) visible "
        f"({shown}); start at most {count} process(es) per node (--nproc_per_node {count}) or make "
        "more devices visible"
    )


def choose_spec(wanted: str) -> DeviceSpec:
    """Resolve the value of `--device` to a row of the table whose devices can be used.

    Args:
        wanted: "auto", "gpu" (= cuda) or a type of the table.

    Raises:
        UsageError: not in the table, or not available.
    """
    device_type = {"gpu": "cuda"}.get(wanted, wanted)
    if device_type != "auto" and device_type not in DEVICE_TABLE:
        allowed = ", ".join(("auto", "gpu", *DEVICE_TYPES))
        raise UsageError(f"--device {wanted} is unknown; choose one of: {allowed}")
    torch = import_torch_or_explain(device_type)
    if device_type == "auto":
        device_type = _automatic_type(torch)
    spec = DEVICE_TABLE[device_type]
    problem = _why_unusable(torch, spec)
    if problem is not None:
        raise UsageError(
            f"--device {wanted} is not available: {problem}; "
            "--device auto takes what is there, --device cpu always works"
        )
    return spec
