# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The JPEG decoder on a 64-bit ARM processor, emulated: the same bytes as on this one.

Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user-static
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification.fast_loader.build import KERNEL_FLAGS, SOURCES

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
PROGRAM = Path(__file__).parents[1] / "cross/decode_hash.cpp"
UNUSED = {"c_api", "batch_decoder", "image_file"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which(CROSS) and shutil.which(EMULATOR)),
    reason=f"needs g++, {CROSS} and {EMULATOR}",
)


def compile_program(folder: Path, compiler: str, machine: str) -> Path:
    flags = KERNEL_FLAGS if machine == "x86_64" else {}
    folder.mkdir()
    sources = [path for path in sorted(SOURCES.glob("*.cpp")) if path.stem not in UNUSED]
    objects = [folder / f"{source.stem}.o" for source in [*sources, PROGRAM]]
    for source, made in zip([*sources, PROGRAM], objects, strict=True):
        command = [compiler, "-std=c++17", "-O2", f"-I{SOURCES}", "-c", source, "-o", made]
        subprocess.run([*command, *flags.get(source.stem, ())], check=True, capture_output=True)
    subprocess.run([compiler, "-static", *objects, "-o", folder / "decode_hash"], check=True)
    return folder / "decode_hash"


def write_pictures(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for i, subsampling in enumerate((0, 1, 2, 0, 2)):
        small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize(
            (200 + 31 * i, 150 + 17 * i), Image.Resampling.BICUBIC
        )
        paths.append(folder / f"{i}.jpg")
        image.save(paths[-1], quality=60 + 8 * i, subsampling=subsampling)
    return paths


@pytest.mark.slow
def test_arm_gives_the_same_bytes(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path)
    here = compile_program(tmp_path / "here", "g++", platform.machine())
    arm = compile_program(tmp_path / "arm", CROSS, "aarch64")
    lines = {}
    for command in ([here], [EMULATOR, arm]):
        done = subprocess.run([*command, *pictures], check=True, capture_output=True, text=True)
        for line in done.stdout.splitlines():
            name, *rest = line.split()
            lines[f"{Path(command[-1]).parent.name} {name}"] = rest
    assert "arm neon" in lines and "here plain" in lines
    assert len({tuple(rest) for rest in lines.values()}) == 1, lines
    assert lines["arm neon"][1] == "15"
