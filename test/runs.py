# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Starting the real command line in a subprocess and reading what it leaves behind."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forked import Nursery
from PIL import Image

from models import create_model

ROOT = Path(__file__).resolve().parent.parent


def write_images(
    root: Path, *, train: int = 8, val: int = 4, classes: int = 3, size: int = 40
) -> Path:
    """Writes a folder of small JPEGs whose class can be seen from their colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 90, (size, size + label, 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=92)
    return root


def write_narrow_weights(path: Path, arch: str, classes: int = 3) -> tuple[str, Path]:
    """Writes weights of a network of few channels; returns the flags to start from them.

    For tests whose point is not the size: a CPU computes low precision, and a network for small
    images, slowly.
    """
    channels = [16] * 9
    torch.manual_seed(0)
    model = create_model(arch, classes, channels=channels)
    torch.save({"arch": arch, "state_dict": model.state_dict(),
                "model_options": {"channels": channels}}, path)  # fmt: skip
    return "--pretrained-weights", path


def environment(**extra: str) -> dict[str, str]:
    """The environment of a run: no launcher, one thread, as on a busy machine."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
               "PYTHONDONTWRITEBYTECODE")  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


@functools.cache
def nursery() -> Nursery:
    """Where runs are forked; ends with this process."""
    return Nursery(environment())


def run_main(
    *arguments: Any, ranks: int = 1, env: dict[str, str] | None = None, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs main.py, under multiproc.py for several ranks, and checks the exit code."""
    launcher = [ROOT / "multiproc.py", "--nproc_per_node", ranks] if ranks > 1 else []
    command = [*launcher, ROOT / "main.py", *arguments]
    if {"FAKE_ACC_OLD_TORCH", "FAKE_ACC_BROKEN"} & {*(env or ())}:  # concern PyTorch's import
        done = subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True,
                              text=True, timeout=280)  # fmt: skip
    else:
        done = nursery().run(*command, timeout=280, env=env)
    output = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == expect, f"exit code {done.returncode}\n{output}"
    return done


def rows(workspace: Path, kind: str) -> list[dict[str, Any]]:
    """The records of metrics.jsonl of one type: parameter, train, validation, epoch, summary."""
    lines = (workspace / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == kind]


def values(workspace: Path, kind: str, metric: str) -> list[float]:
    """One metric over the records of a type."""
    found = [record["data"].get(metric) for record in rows(workspace, kind)]
    return [value for value in found if value is not None]


def checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, loaded without executing code."""
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def same(first: Any, second: Any, path: str = "") -> list[str]:
    """Names of the entries in which two nested structures of tensors differ, bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        return [
            line for key in keys
            for line in same(first.get(key), second.get(key), f"{path}/{key}")
        ]  # fmt: skip
    equal = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if equal else [path]
