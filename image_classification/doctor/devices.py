# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Findings about devices: drivers, plug-ins, what can be used and calculates, collectives."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from image_classification.device_table import DEVICE_TABLE
from image_classification.doctor.finding import Finding, fix, gib, note, ok, one_line, split_cure
from image_classification.doctor.jobs import Outcome

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
ACCELERATORS = tuple(name for name in DEVICE_TABLE if name != "cpu")
# The files that a driver makes, one for each device.
_FILES = {
    "cuda": ("nvidia[0-9]*", "kfd"),
    "npu": ("davinci[0-9]*",),
    "mlu": ("cambricon_dev[0-9]*",),
}
# The vendors' programs that know the driver's version, and the device type.
TOOLS = {
    "nvidia-smi": ("cuda", ("-q", "-d", "PERFORMANCE")),
    "rocm-smi": ("cuda", ("--showdriverversion",)),
    "npu-smi": ("npu", ("info",)),
    "cnmon": ("mlu", ("version",)),
    "xpu-smi": ("xpu", ("-v",)),
}
_VERSION = re.compile(r"version\s*:?\s*v?(\d[\w.]*)", re.IGNORECASE)
_SLOWED = re.compile(r"((?:HW|SW)[ \w]*Slowdown)\s*:\s*Active\b")  # nvidia-smi
_ILL = re.compile(r"\|\s*(Warning|Alarm|Critical)\s*\|")  # npu-smi's column Health
_SETUP = {
    "cuda": "install the NVIDIA driver and a CUDA build of PyTorch (https://pytorch.org); "
    "docker: --gpus all",
    "npu": "install driver and CANN (source its set_env.sh) and the torch_npu of your PyTorch's "
    "version; docker: bash run_docker.sh hands the devices over",
    "mlu": "install the driver and the torch_mlu of your PyTorch's version; docker: bash "
    "run_docker.sh hands the devices over",
    "xpu": "install Intel's driver and an XPU build of PyTorch (https://pytorch.org); docker: "
    "bash run_docker.sh hands the devices over",
}
_COLLECTIVES = {
    "gloo": "export GLOO_SOCKET_IFNAME=lo, or add the host name to /etc/hosts; let no firewall "
    "block 127.0.0.1",
    "nccl": "export NCCL_DEBUG=INFO and look again; docker: --shm-size=8g --ulimit memlock=-1",
    "hccl": "export ASCEND_GLOBAL_LOG_LEVEL=1 ASCEND_SLOG_PRINT_TO_STDOUT=1 and look again; "
    "HCCL_IF_IP or HCCL_SOCKET_IFNAME name the network",
    "cncl": "export CNCL_LOG_LEVEL=INFO and look again",
    "xccl": "export CCL_LOG_LEVEL=info and look again",
}


def device_files(folder: Path = Path("/dev")) -> dict[str, list[str]]:
    """The files of devices that the drivers have made, for each device type."""
    return {
        device_type: sorted(str(path) for name in names for path in folder.glob(name))
        for device_type, names in _FILES.items()
    }


# ---- drivers -------------------------------------------------------------------------------


def tool_findings(tool: str, outcome: Outcome) -> Iterator[Finding]:
    """What a vendor's program says of driver and devices."""
    device_type, _ = TOOLS[tool]
    what = f"{device_type} driver"
    if outcome.hung:
        yield fix(
            what, f"{tool} {outcome.trouble}",
            "the driver or a device hangs: restart the driver, or the machine (dmesg may say why)",
        )  # fmt: skip
    elif outcome.trouble:
        said = one_line(outcome.output)[:120]
        yield note(what, f"{tool} {outcome.trouble} {said}", _SETUP[device_type])
    else:
        found = _VERSION.search(outcome.output)
        version = found[1] if found else one_line(outcome.output)[:120]
        yield ok(what, f"{version} ({tool})")
    for pattern in (_SLOWED, _ILL):
        if signs := sorted(set(pattern.findall(outcome.output))):
            yield note(
                f"{device_type} health", f"{tool} reports: {', '.join(signs)}",
                f"check cooling, power and errors of the devices: {tool}",
            )  # fmt: skip


def missing_tool_findings(files: Mapping[str, Sequence[str]], asked: set[str]) -> Iterator[Finding]:
    """Devices whose vendor's program is not there.

    Args:
        files: See `device_files`.
        asked: Device types whose driver was asked.
    """
    for device_type, found in files.items():
        if found and device_type not in asked:
            names = [name for name, (kind, _) in TOOLS.items() if kind == device_type]
            yield note(
                f"{device_type} driver", f"of unknown version: no {' or '.join(names)} found",
                "add the folder of the driver's programs to PATH",
            )  # fmt: skip


# ---- plug-ins ------------------------------------------------------------------------------


def plug_in_findings(
    plug_ins: Mapping[str, str],
    loaded_by_torch: Sequence[str],
    autoload: str | None,
    broken: str | None,
) -> Iterator[Finding]:
    """The vendors' packages that give PyTorch a device.

    Args:
        plug_ins: Those of the device table that are installed, with their versions.
        loaded_by_torch: Entry points that `import torch` loads by itself.
        autoload: The variable that switches this off.
        broken: Why PyTorch can be imported without them, but not with them.
    """
    others = sorted({entry.split(":")[0] for entry in loaded_by_torch} - set(plug_ins))
    names = [f"{name} {version}" for name, version in plug_ins.items()] + others
    if len(names) > 1:
        first, *rest = [*plug_ins, *others]
        yield fix(
            "device plug-ins", f"{', '.join(names)}: PyTorch has room for one",
            f"keep one: {sys.executable} -m pip uninstall {first} (or {', '.join(rest)})",
        )  # fmt: skip
    elif not broken:
        yield ok("device plug-ins", names[0] if names else "none")
    if broken:
        yield fix(
            "device plug-ins", split_cure(broken, "")[0],
            "repair it (driver; Ascend: source set_env.sh of CANN), or uninstall it; without it: "
            f"--device cpu, or export {AUTOLOAD}=0",
        )  # fmt: skip
    if autoload not in (None, "1") and names:
        yield note(
            AUTOLOAD, f"{autoload!r}: import torch loads no plug-in; this package loads those of "
            "npu and mlu itself", f"unless it is meant: unset {AUTOLOAD}",
        )  # fmt: skip


def rival_findings(
    plug_ins: Collection[str], cuda: Mapping[str, Any], version: str
) -> Iterator[Finding]:
    """torch_npu refuses to work beside a GPU that PyTorch can use.

    Args:
        plug_ins: Those that are installed.
        cuda: The probe's answer for GPUs.
        version: PyTorch's.
    """
    if "torch_npu" in plug_ins and "devices" in cuda:
        plain = version.partition("+")[0]
        yield fix(
            "device plug-ins", "torch_npu beside a GPU and a CUDA build of PyTorch: it refuses",
            f"export CUDA_VISIBLE_DEVICES=, or {sys.executable} -m pip install torch=={plain} "
            "--index-url https://download.pytorch.org/whl/cpu",
        )  # fmt: skip


# ---- devices -------------------------------------------------------------------------------


def device_findings(
    device_type: str, answer: Mapping[str, Any], files: Sequence[str], expected: bool
) -> Iterator[Finding]:
    """What of a device type can be used here.

    Args:
        device_type: One of the device table.
        answer: The probe's.
        files: The files of devices of this type.
        expected: Devices or the vendor's package are there, and are not hidden on purpose.
    """
    if "error" in answer:
        if expected:
            there = f" (there is {', '.join(files[:8])})" if files else ""
            yield fix(device_type, f"{answer['error']}{there}", _SETUP[device_type])
        else:
            label = DEVICE_TABLE[device_type].label
            yield note(device_type, answer["error"], f"only for {label}s: {_SETUP[device_type]}")
        return
    for device in answer["devices"]:
        if "error" in device:
            yield fix(device["place"], device["error"], _SETUP.get(device_type, "reinstall torch"))
        elif device["wrong"]:
            yield fix(
                device["place"],
                f"{device['name']}: wrong products of matrices in {', '.join(device['wrong'])}",
                "do not train on it: update its driver and PyTorch, then have it checked",
            )
        else:
            yield ok(device["place"], _describe(device_type, device))


def _describe(device_type: str, device: Mapping[str, Any]) -> str:
    parts = [device["name"]]
    if device["memory"]:
        parts.append(gib(device["memory"]))
    without = "FP32" if device_type == "cpu" else "float16"
    parts.append("bfloat16" if device["bfloat16"] else f"no fast bfloat16 (--amp takes {without})")
    return ", ".join([*parts, "products of matrices are right"])


def are_hidden(device_type: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable says that no device of the type may be used."""
    spec = DEVICE_TABLE[device_type]
    masks = (environ.get(name or "") for name in (spec.visible_devices, *spec.other_masks))
    return any(mask is not None and mask.strip() in ("", "-1") for mask in masks)


def auto_finding(answer: Mapping[str, Any]) -> Finding:
    """The device that a run takes which asks for none."""
    if "error" in answer:
        problem, cure = split_cure(answer["error"], "repair what is named, or use --device cpu")
        return fix("--device auto", problem, cure)
    return ok("--device auto", f"takes {answer['type']}")


# ---- collectives ---------------------------------------------------------------------------


def collective_finding(group: str, answer: Mapping[str, Any]) -> Finding:
    """Whether processes can add up a tensor.

    Args:
        group: The processes: "npu:2" are two that use NPUs.
        answer: The probe's.
    """
    device_type, count = group.split(":")
    library = DEVICE_TABLE[device_type].collective
    if "error" in answer:
        return fix(library, answer["error"], _COLLECTIVES[library])
    size = answer["bytes"] / 2**20
    return ok(
        library,
        f"{count} process{'' if count == '1' else 'es'} on {device_type} added up {size:.0f} MiB: "
        f"{answer['start']:.2f} s with the start, then {1000 * answer['again']:.1f} ms",
    )
