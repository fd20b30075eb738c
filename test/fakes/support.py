# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""For tests: the environment of a process that has a fake accelerator.

sys.path.insert(0, "<project>/test/fakes")
from support import fake_environment, skip_reason
subprocess.run([sys.executable, "main.py", ...], env=fake_environment("npu", count=1))
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from fakes import build as fake_build

FAKES = Path(__file__).resolve().parent
PROJECT = FAKES.parents[1]
# The fake is written against this version; older ones lack parts of the plug-in interface.
MINIMUM_TORCH = (2, 15)
SWITCHES = (
    "count", "no_bf16", "saturate", "oom_mb", "no_memory_stats", "broken", "stats", "old_torch",
)  # fmt: skip
_FOREIGN = re.compile(
    r"FAKE_ACC_(?!BUILD_DIR)|(CUDA|ASCEND_RT|MLU|HIP|ROCR)_VISIBLE_DEVICES$|TORCH_DEVICE_BACKEND"
    r"|(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC|SLURM_"
)


def skip_reason() -> str | None:
    """Return why tests with the fake accelerator cannot run here, None if they can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
        wanted = ".".join(map(str, MINIMUM_TORCH))
        return f"the fake accelerator needs PyTorch >= {wanted}, this is {version}"
    if fake_build.compiler() is None:
        return "the fake accelerator needs a C++ compiler"
    return None


def fake_environment(kind: str, **switches: object) -> dict[str, str]:
    """Return the environment for a process in which PyTorch has a fake device.

    The library is built on the first call. The project is on the module path.

    Args:
        kind: "npu" (PyTorch loads it by itself) or "mlu" (the program must import torch_mlu).
        switches: count=2, no_bf16=True, saturate=True, oom_mb=64, no_memory_stats=True,
            broken=True, stats=path, old_torch=True; see test/fakes/README.md.

    Raises:
        ValueError: unknown kind or switch.
        RuntimeError: the library cannot be built.
    """
    unknown = set(switches) - set(SWITCHES)
    if kind not in ("npu", "mlu") or unknown:
        raise ValueError(f"unknown: {kind if not unknown else sorted(unknown)}; known: {SWITCHES}")
    environment = {key: value for key, value in os.environ.items() if not _FOREIGN.match(key)}
    path = [str(FAKES / kind), str(FAKES / "common"), str(PROJECT), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    environment["FAKE_ACC_LIBRARY"] = str(fake_build.build())
    for name, value in switches.items():
        if value is not None and value is not False:
            environment[f"FAKE_ACC_{name.upper()}"] = "1" if value is True else str(value)
    if switches.get("old_torch"):
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    return environment
