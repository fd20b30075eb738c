# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Images of 16 bits per pixel keep their grey levels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification.errors import DataError
from image_classification.image_reading import read_image

# All 65536 levels, as 256 rows of 256.
LEVELS = np.arange(65536, dtype=np.uint16).reshape(256, 256)
EXPECTED = np.rint(LEVELS / 257).astype(np.uint8)


def written(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def as_read(content: bytes) -> np.ndarray:
    return np.asarray(read_image(io.BytesIO(content)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, big-endian", "PGM"])
def test_16_bits_become_8_without_clipping(kind: str) -> None:
    swapped = LEVELS.astype(">u2").tobytes()
    if kind == "PGM":
        content = b"P5 256 256 65535\n" + swapped
    elif kind == "TIFF, big-endian":
        content = written(Image.frombytes("I;16B", (256, 256), swapped), "TIFF")
    else:
        content = written(Image.fromarray(LEVELS), kind)
    pixels = as_read(content)
    assert pixels.shape == (256, 256, 3) and pixels.dtype == np.uint8
    for channel in range(3):
        assert np.array_equal(pixels[:, :, channel], EXPECTED)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 1), (np.int32, 1000), (np.float32, 1)])
def test_other_grey_images_are_as_pillow_converts_them(dtype: type, scale: int) -> None:
    image = Image.fromarray((np.arange(200).reshape(10, 20) * scale).astype(dtype))
    assert np.array_equal(as_read(written(image, "TIFF")), np.asarray(image.convert("RGB")))


def test_a_truncated_file_of_16_bits_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    noise = np.random.default_rng(0).permutation(LEVELS.ravel()).reshape(256, 256)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"half\.png"):
        read_image(path)
