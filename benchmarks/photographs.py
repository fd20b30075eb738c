# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""JPEG files that decode like photographs, for machines without any.

Their spectrum falls with the frequency as that of photographs does (Field 1987,
doi:10.1364/JOSAA.4.002379), so that the files have the usual size: about 110 kB at 500 x 375.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 500, 375
_CLASSES = 4
_DIFFERENT = 24  # images; more are copies of their files


def write_photographs(folder: Path, count: int) -> Path:
    """Writes images of a few classes below a folder; returns the one above it.

    Args:
        folder: For example DIR/train.
        count: Number of files.
    """
    rng = np.random.default_rng(0)
    contents: list[bytes] = []
    for number in range(count):
        path = folder / f"class_{number % _CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(contents) < _DIFFERENT:
            Image.fromarray(_photograph(rng)).save(path, quality=88)
            contents.append(path.read_bytes())
        else:
            path.write_bytes(contents[number % _DIFFERENT])
    return folder.parent


def _photograph(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise whose amplitude is 1 / frequency: uint8 [H, W, 3]."""
    rows, columns = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None, :]
    amplitude = 1.0 / np.maximum(np.hypot(rows, columns), 1.0 / WIDTH)
    phases = rng.uniform(0, 2 * np.pi, (3, *amplitude.shape))
    phases[1:] = phases[0] + 0.4 * phases[1:]  # the colours go together
    planes = np.fft.irfft2(amplitude * np.exp(1j * phases), s=(HEIGHT, WIDTH))
    planes = 128 + 50 * planes / planes.std()
    return planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
