# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How others turn a JPEG file into a training crop: one function each, on one thread.

Each takes the content of a file, the crop box (left, top, right, bottom), whether to flip, and the
side of the output; it returns uint8 [side, side, 3]. The functions are made by `create`, so that a
library that is not installed is noticed before anything is measured.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import require

Decode = Callable[[bytes, tuple[int, int, int, int], bool, int], NDArray[np.uint8]]


def create(name: str) -> Decode:
    """Make the decoder of one of NAMES.

    Raises:
        Unavailable: Its library is not installed.
    """
    return NAMES[name]()


def _pillow() -> Decode:
    """torchvision's ImageFolder and RandomResizedCrop on Pillow: what most loaders run."""
    functional = require("torchvision.transforms.v2", "torchvision").functional
    from PIL import Image

    def decode(data: bytes, box: tuple[int, int, int, int], flip: bool, side: int) -> Any:
        left, top, right, bottom = box
        image = Image.open(io.BytesIO(data)).convert("RGB")
        image = functional.resized_crop(image, top, left, bottom - top, right - left, [side, side])
        return np.asarray(functional.hflip(image) if flip else image)

    return decode


def _torchvision() -> Decode:
    """torchvision's own JPEG decoder and tensor transforms, antialiased."""
    functional = require("torchvision.transforms.v2", "torchvision").functional
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(data: bytes, box: tuple[int, int, int, int], flip: bool, side: int) -> Any:
        left, top, right, bottom = box
        file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        image = decode_jpeg(file, mode=ImageReadMode.RGB)
        image = functional.resized_crop(
            image, top, left, bottom - top, right - left, [side, side], antialias=True
        )
        image = functional.hflip(image) if flip else image
        return image.permute(1, 2, 0).contiguous().numpy()

    return decode


def _opencv() -> Decode:
    """OpenCV, full decoding, bilinear without antialiasing: its usual fast path."""
    cv2 = require("cv2", "opencv-python-headless")
    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(data: bytes, box: tuple[int, int, int, int], flip: bool, side: int) -> Any:
        left, top, right, bottom = box
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
        image = cv2.resize(image[top:bottom, left:right], (side, side))
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return image[:, ::-1] if flip else image

    return decode


def _nvimgcodec() -> Decode:
    """nvImageCodec on the CPU, decoding the region only, then OpenCV's bilinear resize."""
    codec = require("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    cv2 = require("cv2", "opencv-python-headless")
    cv2.setNumThreads(1)
    backend = codec.Backend(codec.BackendKind.CPU_ONLY)
    decoder = codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=[backend]
    )
    params = codec.DecodeParams(apply_exif_orientation=False)

    def decode(data: bytes, box: tuple[int, int, int, int], flip: bool, side: int) -> Any:
        left, top, right, bottom = box
        region = codec.Region(top, left, bottom, right)
        source = codec.CodeStream(data).get_sub_code_stream(region=region)
        image = np.asarray(decoder.decode(source, params=params).cpu())
        image = cv2.resize(image, (side, side))
        return image[:, ::-1] if flip else image

    return decode


NAMES: dict[str, Callable[[], Decode]] = {
    "pillow": _pillow,
    "torchvision": _torchvision,
    "opencv": _opencv,
    "nvimgcodec": _nvimgcodec,
}
