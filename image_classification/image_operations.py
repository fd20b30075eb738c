# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The operations of augmentation policies, on batches of uint8 images on any device.

They give what torchvision's functions for tensors (transforms.v2.functional) give for each image by
itself: the same bytes, or where pixels are interpolated a difference of at most one. All the others
are whole numbers, or products and sums in float32 that are rounded one by one: their bytes are the
same on every device. What else is in the batch does not matter, and the host never waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import grid_sample

from image_classification.errors import UsageError
from image_classification.policies import IDENTITY, Operation

# Grey where an image has been moved away.
FILL = 128.0

_LEVELS = 256
_TOP = 255
# torchvision's weights of red, green and blue, each rounded to float32.
_GREY = (0.2989, 0.587, 0.114)
# Splits a float32 into halves of twelve bits, whose products are exact (Dekker 1971).
_SPLIT = 4097.0


class Operations:
    """Operations with their magnitudes, ready to be applied to images of one size on one device.

    Args:
        operations: They are referred to by their place.
        side: Side of the images in pixels.
        device: Where the images are.

    Attributes:
        kinds: int64 [V], for each operation its place in KINDS.

    Raises:
        UsageError: An operation is unknown.
    """

    def __init__(self, operations: Sequence[Operation], side: int, device: torch.device) -> None:
        self.kinds = np.array([_kind(name) for name, _ in operations], dtype=np.int64)
        parameters = [_parameters(name, magnitude, side) for name, magnitude in operations]
        self._parameters = torch.from_numpy(np.stack(parameters)).to(device)
        self._tables = torch.from_numpy(np.stack([_table(*one) for one in operations])).to(device)

    def apply(self, kind: int, images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Applies operations of one kind.

        Args:
            kind: As in `kinds`.
            images: uint8 [n, 3, H, W], contiguous, on the device.
            which: int64 [n], places of the operations, on the device.

        Returns:
            uint8 [n, 3, H, W]; `images` itself where nothing is done.
        """
        name = KINDS[kind]
        if name == "identity":
            return images
        if name == "table":
            return look_up(images, self._tables.index_select(0, which)[:, None])
        if (function := _PLAIN.get(name)) is not None:
            return function(images)
        return _SCALED[name](images, self._parameters.index_select(0, which))


def look_up(images: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Replaces each value by its entry.

    Args:
        images: uint8 [n, 3, H, W].
        tables: uint8 [n, 3, 256], or [n, 1, 256] for all channels.
    """
    values = images.flatten(2).long()
    return tables.expand(-1, 3, -1).gather(2, values).view_as(images)


def equalize(images: torch.Tensor) -> torch.Tensor:
    """Spreads the values of each channel evenly: Pillow's ImageOps.equalize. uint8 [n, 3, H, W]."""
    values = images.flatten(2).long()
    counts = torch.zeros((*values.shape[:2], _LEVELS), dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(counts[:1, :1, :1]).expand_as(values))
    levels = torch.arange(_LEVELS, device=images.device)
    brightest = (levels * (counts > 0)).amax(2, keepdim=True)
    step = (values.shape[2] - counts.gather(2, brightest)).div(_TOP, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    spread = (below + step.div(2, rounding_mode="floor")).div(
        step.clamp(min=1), rounding_mode="floor"
    )
    # The darkest value stays dark; a channel with too few values stays as it is.
    spread = torch.where(levels == 0, levels, spread.clamp(max=_TOP))
    return look_up(images, torch.where(step > 0, spread, levels).to(torch.uint8))


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretches the values of each channel to 0 .. 255. uint8 [n, 3, H, W]."""
    values = images.flatten(2).float()
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / _TOP))
    levels = torch.arange(_LEVELS, device=images.device, dtype=torch.float32)
    return look_up(images, _to_bytes((levels - torch.where(flat, 0.0, low)) / scale))


def contrast(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blends images uint8 [n, 3, H, W] with their mean grey; parameters: see `_blend`."""
    ratio, rest = parameters[:, :1], parameters[:, 1:2] + parameters[:, 2:3]
    grey = _grey(images.float()).flatten(1)
    # Whole numbers: the sum is exact in any order.
    mean = grey.to(torch.int32).sum(1, keepdim=True).float() / grey.shape[1]
    levels = torch.arange(_LEVELS, device=images.device, dtype=torch.float32)
    blended = _add(levels * ratio, *_product(mean, rest))
    return look_up(images, _to_bytes(blended)[:, None])


def color(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blends images uint8 [n, 3, H, W] with their grey form; parameters: see `_blend`."""
    ratio, high, low = (part[:, None, None] for part in parameters[:, :3, None].unbind(1))
    pixels = images.float()
    grey = _grey(pixels)[:, None]
    return _to_bytes(_add(pixels * ratio, grey * high, grey * low))


def sharpness(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Blends images uint8 [n, 3, H, W] with a blurred form of them, but for the pixels on the edge.

    Args:
        images: uint8 [n, 3, H, W].
        parameters: See `_blend`.
    """
    _, high, low = (part[:, None, None] for part in parameters[:, :3, None].unbind(1))
    pixels = images.float()
    inner = pixels[:, :, 1:-1, 1:-1]
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4.0 * inner
    difference = (total / 13.0).round_() - inner  # never a tie: thirteen is odd
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _to_bytes(_add(inner, difference * high, difference * low))
    return result


def affine(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Moves pixels, with FILL where none comes from; bilinear.

    Args:
        images: uint8 [n, 3, H, W].
        parameters: float32 [n, 6], see `_matrix`.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = (part[:, None, None] for part in parameters.unbind(1))
    x, y = (
        torch.arange(size, device=images.device, dtype=torch.float32) - (size - 1) / 2
        for size in (width, height)
    )
    y = y[:, None]
    grid = torch.stack([a * x + (b * y + c), d * x + (e * y + f)], dim=-1)
    pixels = images.float()
    # The fourth channel says how much of a pixel comes from inside.
    pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    moved = grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    colours, inside = moved[:, :3], moved[:, 3:]
    return ((colours - FILL) * inside + FILL).round_().to(torch.uint8)


def _to_bytes(values: torch.Tensor) -> torch.Tensor:
    """float32 as uint8, cut off."""
    return values.clamp_(0.0, _TOP).to(torch.uint8)


def _grey(pixels: torch.Tensor) -> torch.Tensor:
    """The grey form of float32 [n, 3, H, W] with whole numbers, likewise, [n, H, W]."""
    red, green, blue = pixels.unbind(1)
    grey = red * _GREY[0]
    for channel, weight in ((green, _GREY[1]), (blue, _GREY[2])):
        high, low = _parts(weight)
        grey = _add(grey, channel * float(high), channel * float(low))
    return grey.floor_()


def _add(term: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """term + (high + low), rounded once (Knuth's sum and its error); `term` is used up.

    torchvision blends with `add(..., alpha=...)`, which CPUs and GPUs compute as a fused
    multiply-add. With `high` and `low` an exact product this is the same number, on devices that
    would round twice, too. Since blends are cut off to whole numbers, a last bit can be one level.
    """
    total = term + high
    part = total - term
    error = (high - part).add_(low)
    return total.add_(term.sub_(torch.sub(total, part, out=part)).add_(error))


def _product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact product of float32 numbers as a sum of two (Dekker)."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = a * _SPLIT
    high = scaled - (scaled - a)
    return high, a - high


# ---- what the host prepares --------------------------------------------------------------------


def _parts(value: float) -> tuple[np.float32, np.float32]:
    """float32 `value` as a sum of two whose products with whole numbers up to 255 are exact."""
    whole = np.float32(value)
    high = (whole.view(np.uint32) & np.uint32(0xFFFFFF00)).view(np.float32)
    return high, whole - high


def _blend(magnitude: float) -> list[np.float32]:
    """The weight of the image, and that of what it is blended with, in two parts."""
    ratio = 1.0 + magnitude
    return [np.float32(ratio), *_parts(1.0 - ratio)]


def _matrix(name: str, magnitude: float, side: int) -> list[float]:
    """Where a pixel comes from: x' = a x + b y + c, y' = d x + e y + f, from the centre in pixels.

    The result is in the units of grid_sample, half the side.
    """
    half, shift = side / 2, float(int(magnitude))
    turn = math.radians(magnitude)
    sine, cosine = math.sin(turn), math.cos(turn)
    matrix = {
        "ShearX": [1.0, magnitude, magnitude * half, 0.0, 1.0, 0.0],
        "ShearY": [1.0, 0.0, 0.0, magnitude, 1.0, magnitude * half],
        "TranslateX": [1.0, 0.0, -shift, 0.0, 1.0, 0.0],
        "TranslateY": [1.0, 0.0, 0.0, 0.0, 1.0, -shift],
        "Rotate": [cosine, -sine, 0.0, sine, cosine, 0.0],
    }[name]
    return [float(np.float32(number) / np.float32(half)) for number in matrix]


def _table(name: str, magnitude: float) -> NDArray[np.uint8]:
    """What an operation makes of each value, uint8 [256]; those of no table leave it."""
    levels: NDArray[np.uint8] = np.arange(_LEVELS, dtype=np.uint8)
    if name == "Brightness":
        bright = levels.astype(np.float32) * np.float32(1.0 + magnitude)
        return np.clip(bright, 0, _TOP).astype(np.uint8)
    if name == "Posterize":
        return levels & np.uint8(_LEVELS - (1 << (8 - int(magnitude))))
    if name == "Solarize":
        return np.where(levels >= np.float32(_TOP * magnitude), _TOP - levels, levels)
    return _TOP - levels if name == "Invert" else levels


def _kind(name: str) -> int:
    for kind, names in enumerate(_NAMES.values()):
        if name in names:
            return kind
    raise UsageError(
        f"--augmentation: this torchvision's policy has the operation {name!r}, which is unknown "
        "here: install torchvision 0.19 to 0.29, or take another policy"
    )


def _parameters(name: str, magnitude: float, side: int) -> NDArray[np.float32]:
    """What `Operations.apply` hands to an operation, float32 [6]."""
    numbers: Sequence[float] = ()
    if name in _NAMES["affine"]:
        numbers = _matrix(name, magnitude, side)
    elif name in ("Contrast", "Color", "Sharpness"):
        numbers = [float(number) for number in _blend(magnitude)]
    return np.array([*numbers, *[0.0] * (6 - len(numbers))], dtype=np.float32)


_NAMES = {
    "identity": (IDENTITY.name,),
    "table": ("Brightness", "Posterize", "Solarize", "Invert"),
    "equalize": ("Equalize",),
    "autocontrast": ("AutoContrast",),
    "contrast": ("Contrast",),
    "color": ("Color",),
    "sharpness": ("Sharpness",),
    "affine": ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
}
KINDS = tuple(_NAMES)
_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "equalize": equalize, "autocontrast": autocontrast,
}  # fmt: skip
_SCALED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "contrast": contrast, "color": color, "sharpness": sharpness, "affine": affine,
}  # fmt: skip
