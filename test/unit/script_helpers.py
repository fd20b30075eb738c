# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Running a script without the settings of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# Variables that the scripts read.
SETTINGS = {
    *("DEVICE", "NPROC", "PYTHON", "PRECISION", "IMAGENET_TRAIN_DATASET", "IMAGE_NAME"),
    "CIFAR_DATASET",
    *("SHM_SIZE", "DOCKER_FLAGS", "HOST_ROOT", "CUDA_VISIBLE_DEVICES", "MLU_VISIBLE_DEVICES"),
    "ASCEND_RT_VISIBLE_DEVICES",
}


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        command, cwd=cwd, env={**environ, **env}, capture_output=True, text=True, timeout=60
    )
