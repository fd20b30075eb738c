# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the first inputs of the fuzzer: small JPEG files of every kind the decoder reads.

    python test/fuzz/build_corpus.py FOLDER
"""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def pictures() -> dict[str, Image.Image]:
    """Small images: colour and grey, smooth and noisy, of odd sizes."""
    rng = np.random.default_rng(0)
    found = {}
    for width, height in ((8, 8), (17, 9), (33, 40), (64, 48)):
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found[f"noise_{width}x{height}"] = Image.fromarray(noise)
        ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
        found[f"ramp_{width}x{height}"] = Image.fromarray(ramp.astype(np.uint8))
    found["grey"] = found["noise_33x40"].convert("L")
    return found


def main(folder: Path) -> None:
    """Write the files, each behind 16 bytes that choose crop, size, filter and kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    variants = itertools.product((0, 1, 2), (30, 95), (0, 2), (False, True))
    for subsampling, quality, restart, optimize in variants:
        for name, image in pictures().items():
            buffer = io.BytesIO()
            options = {"subsampling": subsampling} if image.mode == "RGB" else {}
            image.save(buffer, "JPEG", quality=quality, restart_marker_blocks=restart,
                       optimize=optimize, **options)  # fmt: skip
            label = f"{name}_{subsampling}_{quality}_{restart}_{optimize:d}"
            (folder / label).write_bytes(rng.bytes(16) + buffer.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
