# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What test/hardware_check.py runs in processes of its own beside main.py.

python hardware_probes.py NAME ARGUMENTS: the last line of the output is the answer, as JSON.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Below torch: what lets FP32 convolutions and products lose bits by default; main.py switches it
# off on cuda only (--no-tf32).
REDUCED_FLOAT32 = {
    "npu": ("npu.conv.allow_hf32", "npu.matmul.allow_hf32"),
    "mlu": ("backends.cnnl.allow_tf32", "backends.mlu.matmul.allow_tf32"),
}
DRIVER_COMMANDS = {
    "cuda": "nvidia-smi --query-gpu=driver_version --format=csv,noheader",
    "npu": "npu-smi -v",
    "mlu": "cnmon version",
    "xpu": "xpu-smi -v",
}
SETTINGS = re.compile(
    r"PYTORCH\w*_ALLOC_CONF|OMP_NUM_THREADS|(CUDA|ASCEND|HCCL|NCCL|CNCL|MLU|NEUWARE|ZE|TORCH|TASK|"
    r"ACL|INF_NAN|HIP|ROCR)_\w+"
)
WAIT_EVENTS = re.compile(
    r"aten::(_local_scalar_dense|nonzero|equal)$|(Device|Stream|Queue)_?Synchronize|Memcpy DtoH"
)
TELEMETRY_PATIENCE = 5.0  # seconds; the vendors' commands answer in the background


def probe_environment(wanted: str) -> dict[str, Any]:
    """Says what is there; without the device the process ends with exit code 2."""
    from image_classification.device import Device
    from image_classification.errors import UserError

    settings = {key: os.environ[key] for key in sorted(os.environ) if SETTINGS.match(key)}
    try:
        device = Device.select(wanted)
    except UserError as error:
        print(error)
        sys.exit(error.exit_code)
    import torch

    amp = {}
    for dtype in ("auto", "bfloat16", "float16"):
        try:
            line = device.amp_dtype(dtype)[1]
            amp[dtype] = line if dtype == "auto" else ""
        except UserError as error:
            amp[dtype] = str(error)
    torch.ones(8, device=device.torch_device).sum().item()
    memory, spec = device.memory(), device.spec
    return {
        "device": str(device), "type": device.type, "name": device.name, "count": device.count,
        "memory_GiB": memory.total / 2**30 if memory else None, "pinned": device.can_pin_memory,
        "torch": torch.__version__, "built_for": torch.version.cuda or torch.version.hip,
        "plugin": _plugin(spec.plugin), "driver": _driver(device.type),
        "collective": device.collective, "masks": spec.masks(), "mask_name": spec.visible_devices,
        "telemetry": _telemetry(device), "amp": amp, "saturates": device.saturates_on_overflow(),
        "python": platform.python_version(), "system": platform.platform(), "cpus": os.cpu_count(),
        "settings": settings,
    }  # fmt: skip


def _plugin(package: str | None) -> str:
    if package is None:
        return ""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = str(getattr(sys.modules.get(package), "__version__", "of unknown version"))
    return f"{package} {version}"


def _driver(device_type: str) -> str:
    command = DRIVER_COMMANDS.get(device_type, "").split()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, IndexError, subprocess.SubprocessError):
        return ""
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(lines[:4]))


def _telemetry(device: Any) -> str:
    figures = device.telemetry()
    until = time.monotonic() + (TELEMETRY_PATIENCE if device.spec.telemetry else 0.0)
    while not figures and time.monotonic() < until:
        time.sleep(0.2)
        figures = device.telemetry()
    return ", ".join(f"{name} {value:g}" for name, value in figures.items())


def probe_compare(first: str, second: str) -> dict[str, Any]:
    """Compares the tensors of two checkpoints: of the model and the optimizer."""
    import torch

    def flat(value: Any, path: str = "") -> dict[str, torch.Tensor]:
        if isinstance(value, dict):
            parts = [flat(entry, f"{path}/{key}") for key, entry in value.items()]
            return {key: entry for part in parts for key, entry in part.items()}
        return {path: value} if isinstance(value, torch.Tensor) else {}

    files = [torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)]
    a, b = ({**flat(file["state_dict"]), **flat(file["optimizer"], "optimizer")} for file in files)
    if a.keys() != b.keys():
        raise SystemExit(f"Error: other tensors: {sorted(a.keys() ^ b.keys())[:5]}")
    gaps = [(a[key].double() - b[key].double()).abs().max().item() for key in a if a[key].numel()]
    equal = all(torch.equal(a[key], b[key]) for key in a)
    return {"equal": equal, "tensors": len(a), "largest": max(gaps)}


def probe_waits(device: str, data: str, size: str) -> dict[str, Any]:
    """Counts what makes the host wait in a short and a longer training under torch.profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile, supported_activities

    import main

    name = {"cuda": "CUDA", "xpu": "XPU"}.get(device, "PrivateUse1")
    kind = getattr(ProfilerActivity, name, None)
    if kind is None or kind not in supported_activities():
        return {"skip": f"torch.profiler {torch.__version__} does not know {device}"}
    counts = []
    short, long = 3, 9
    for steps in (short, short, long):  # the first is for the warm-up
        flags = ["--arch", "resnet18", "--image-size", size, "-b", "8", "-j", "0", "--epochs", "1"]
        flags += ["--training-only", "--no-checkpoints", "-p", "100", "--workspace", "waits"]
        with profile(activities=[ProfilerActivity.CPU, kind]) as profiler:
            code = main.main([data, "--device", device, "--iters", str(steps), *flags])
        if code:
            sys.exit(code)
        names = (event.name for event in profiler.events())
        counts.append(Counter(name for name in names if WAIT_EVENTS.search(name)))
    more = counts[2] - counts[1]
    return {"steps": long - short, "waits": dict(counts[2]), "more_waits": dict(more)}


def run_main(*argv: str) -> int:
    """Runs main.py with the FP32 units of full width where it has no option for that."""
    from image_classification.device import Device
    from image_classification.errors import UserError

    wanted = argv[argv.index("--device") + 1]
    with contextlib.suppress(UserError):  # main.py will say it again
        Device.select(wanted, int(os.environ.get("LOCAL_RANK", "0")))
    import torch

    import main

    for path in REDUCED_FLOAT32.get(wanted, ()):
        owner, _, switch = path.rpartition(".")
        try:
            setattr(functools.reduce(getattr, owner.split("."), torch), switch, False)
        except (AttributeError, RuntimeError) as error:
            print(f"no switch torch.{path}: {error}")
    return main.main(list(argv))


if __name__ == "__main__":
    if sys.argv[1] == "main":
        sys.exit(run_main(*sys.argv[2:]))
    print("\n" + json.dumps(globals()[f"probe_{sys.argv[1]}"](*sys.argv[2:])))
