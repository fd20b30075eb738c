# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One image from file to uint8 pixels with Pillow: the reference that other decoders must equal."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import sys
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from image_classification.augmentation import EvalPreset, TrainPreset, center_crop_boxes
from image_classification.errors import ImageError, printable

# As in fast_loader/csrc/image_file.h; no photograph comes near.
_MAX_FILE_BYTES = 1 << 28
_PACKED = re.compile(rb"(.+\.pack)@([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL)

# What the file itself says, whatever its name. Pillow's other formats are left out: for EPS, say,
# it starts Ghostscript, which executes the file.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")

# "triangular" is DALI's name of the antialiased bilinear filter.
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "triangular": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def pixel_limit() -> int:
    """The largest width x height that is read: Pillow's guard against decompression bombs."""
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def open_image(source: str | bytes | os.PathLike | BinaryIO, name: str | None = None) -> Any:
    """Open an image file and read its size; the pixels wait for `decode_image`.

    Args:
        source: Path, or a binary file.
        name: Name for the error; the path by default.

    Returns:
        PIL.Image.Image, a context manager that closes the file.

    Raises:
        ImageError: Missing, unreadable, not an image, or so large that it may be a decompression
            bomb (Pillow's own limit, Image.MAX_IMAGE_PIXELS).
    """
    # Decoders raise nearly anything on hostile files: struct.error, SyntaxError, MemoryError, ...
    try:
        image = Image.open(_unpacked(source), formats=FORMATS)
    except Exception as error:
        raise unreadable(source, name, _reason(error)) from error
    limit = pixel_limit()
    if image.width * image.height > limit:
        image.close()
        pixels = f"{image.width} x {image.height} pixels are above the limit of {limit}"
        raise unreadable(source, name, pixels)
    return image


def _unpacked(source: Any) -> Any:
    """A packed image (`<shard>.pack@<offset>+<length>`, see packing) as a file in memory."""
    if not isinstance(source, (str, bytes, os.PathLike)):
        return source
    path = os.fsencode(source)
    if _PACKED.fullmatch(path):
        return io.BytesIO(_read(path))
    _check_regular(path)
    return source


def file_content(path: bytes) -> bytes:
    """The bytes of an image file, packed or not.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        return _read(path)
    except OSError as error:
        raise unreadable(path, None, _reason(error)) from error


def _check_regular(path: bytes) -> None:
    """A pipe could keep its reader waiting for ever, and a device have no end."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL, "")
    if status.st_size > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "")


def _read(path: bytes) -> bytes:
    match = _PACKED.fullmatch(path)
    if match is None:
        _check_regular(path)
        with open(path, "rb") as file:
            return file.read()
    length = int(match[3])
    if length > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, "")
    with open(match[1], "rb") as shard:
        shard.seek(int(match[2]))
        return shard.read(length)


def decode_image(image: Any, source: Any, name: str | None = None) -> Any:
    """Decode an opened image to RGB.

    EXIF rotation is ignored, as in torchvision; of an animation the first frame is taken. Unlike
    there, 16 bits of grey become 8 by division by 257, where Pillow would cut them off at 255.

    Args:
        image: What `open_image` returned.
        source: What `open_image` was given, for the error.
        name: Name for the error; the path by default.

    Returns:
        PIL.Image.Image in mode RGB; `image` itself where it is RGB already.

    Raises:
        ImageError: Truncated or damaged; `image` is closed then.
    """
    try:
        if image.format == "JPEG" and image.mode == "RGB":
            image.load()  # convert() would copy all pixels
            return image
        # Formats of 16 bits that Pillow opens in mode I: PGM, and in older versions PNG.
        as_integers = image.mode == "I" and image.format in ("PNG", "PPM")
        if as_integers or image.mode.startswith("I;16"):
            image.load()
            grey = (np.asarray(image).astype(np.uint32) + 128) // 257
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        image.close()
        raise unreadable(source, name, _reason(error)) from error


def read_image(source: str | bytes | os.PathLike | BinaryIO, name: str | None = None) -> Any:
    """Open and decode an image file.

    Args:
        source: Path, or a binary file.
        name: Name for the error; the path by default.

    Returns:
        PIL.Image.Image in mode RGB.

    Raises:
        ImageError: See `open_image` and `decode_image`.
    """
    image = open_image(source, name)
    rgb = decode_image(image, source, name)
    if rgb is not image:
        image.close()
    return rgb


def unreadable(source: Any, name: str | None, reason: str) -> ImageError:
    """The error for an image.

    Args:
        source: What `open_image` was given.
        name: Name of the image; the path by default.
        reason: Why it cannot be read.
    """
    path = os.fsdecode(source) if isinstance(source, (str, bytes, os.PathLike)) else "image"
    if reason == os.strerror(errno.ENOENT):
        cure = "check the path"
    elif _PACKED.fullmatch(os.fsencode(path)):
        cure = "pack the data set again"
    else:
        cure = "repair, replace or remove the file"
    text = f"cannot read image {printable(path if name is None else name)}: {reason}; {cure}"
    return ImageError(text, reason)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of an unknown format"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return printable(str(error)) or type(error).__name__


def train_pixels(
    image: Any,
    box: tuple[int, int, int, int],
    flip: bool,
    preset: TrainPreset,
) -> NDArray[np.uint8]:
    """Crop, resize and flip a training image; equal to torchvision's `resized_crop` and `hflip`.

    Args:
        image: PIL image in mode RGB.
        box: left, top, right, bottom in whole pixels.
        flip: Mirror left to right.
        preset: Size and filter.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    size = (preset.image_size, preset.image_size)
    # Cropped first, not resize(box=): there the filter would reach over the edge of the box.
    image = image.crop(box).resize(size, FILTERS[preset.interpolation])
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def eval_pixels(image: Any, preset: EvalPreset) -> NDArray[np.uint8]:
    """Resize and crop a validation image, in one go; see `center_crop_boxes`.

    Args:
        image: PIL image in mode RGB.
        preset: Sizes and filter.

    Returns:
        uint8 [image_size, image_size, 3].
    """
    size = (preset.image_size, preset.image_size)
    box = center_crop_boxes(image.width, image.height, preset.image_size, preset.resize_size)[0]
    return np.asarray(image.resize(size, FILTERS[preset.interpolation], box=tuple(box.tolist())))
