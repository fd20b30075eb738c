# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The draws: sample order, crops, flips, policies, erasing; computed here and nowhere else.

Every draw is a pure function of (seed, epoch, sample index, draw number): a counter-based hash,
vectorised with numpy. Nothing depends on the number of workers, threads or processes, on what was
drawn before, or on the library that decodes the image, so each backend is handed the same boxes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from image_classification.presets import EvalPreset, ShiftPreset, TrainPreset

__all__ = ["EvalPreset", "ShiftPreset", "TrainPreset"]  # most callers need a preset, too

# Mean and standard deviation of the ImageNet training set per channel (R, G, B), in 0..255 units.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

CROP_ATTEMPTS = 10
# Share of the image and height / width of an erased rectangle, as in torchvision.
ERASED_SCALE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)

# Each kind of draw has its own numbers. A crop attempt uses four: area, ratio, top, left.
_DRAW_CROP = 0
_DRAW_FLIP = 1000
_DRAW_SHIFT = 1002  # two: down, right
_DRAW_CUTOUT = 1004  # two: row, column
_DRAW_POLICY = 1100  # one, and one for each operation
_DRAW_ERASING = 1200  # one, and four for each attempt: area, ratio, top, left

# First hashed value after the seed, so that orders, draws and labels never share a hash.
_STREAM_ORDER = 1
_STREAM_SAMPLE = 2

_WORD = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 output function (Steele, Lea, Flood 2014), a bijection of 64-bit words."""
    words = (words ^ (words >> np.uint64(30))) * _MIX_1
    words = (words ^ (words >> np.uint64(27))) * _MIX_2
    return words ^ (words >> np.uint64(31))


def _words(value: int | ArrayLike) -> NDArray[np.uint64]:
    """`value` as 64-bit words (modulo 2**64) in an array of at least one dimension.

    One dimension at least, because numpy warns of overflow in scalars but not in arrays.
    """
    if isinstance(value, (int, np.integer)):
        return np.array([int(value) & _WORD], dtype=np.uint64)
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"hash64 takes integers, received an array of {array.dtype}")
    return np.atleast_1d(array).astype(np.uint64)


def hash64(seed: int, *values: int | ArrayLike) -> Any:
    """Mix integers into evenly distributed 64-bit words: the one mixing function of the package.

    Chained splitmix64: each value is added to the state as a counter and mixed. The order of the
    values matters; two different sequences of the same length collide only by chance (2**-64).

    Args:
        seed: Any integer; taken modulo 2**64.
        values: Integers or integer arrays, broadcast against each other.

    Returns:
        A Python int when no value is an array, otherwise uint64 in the broadcast shape.

    Raises:
        TypeError: A value is not an integer.
    """
    state = _mix(_words(seed) + _GOLDEN)
    for value in values:
        state = _mix(state + (_words(value) + np.uint64(1)) * _GOLDEN)
    if any(np.ndim(value) for value in values):
        return state
    return int(state[0])


def uniform(seed: int, epoch: int, indices: ArrayLike, draw: int | ArrayLike) -> NDArray:
    """Uniform random numbers, one for each sample.

    Args:
        seed: Seed of the run.
        epoch: Epoch number, from 0.
        indices: int64 [N], sample indices in the data set.
        draw: Number of the draw; an array is broadcast against `indices`.

    Returns:
        float64 [N] in [0, 1), multiples of 2**-53.
    """
    words = hash64(seed, _STREAM_SAMPLE, epoch, np.atleast_1d(indices), draw)
    return (words >> np.uint64(11)) * 2.0**-53


def epoch_order(seed: int, epoch: int, num_samples: int, shuffle: bool) -> NDArray[np.int64]:
    """The order in which one epoch visits the samples, the same for any number of ranks.

    Args:
        seed: Seed of the run.
        epoch: Epoch number, from 0; each epoch has its own order.
        num_samples: Size of the data set.
        shuffle: False gives 0, 1, 2, ...

    Returns:
        int64 [num_samples], a permutation.
    """
    order = np.arange(num_samples, dtype=np.int64)
    if not shuffle:
        return order
    # A stable sort of fixed keys: unlike numpy's own permutation it cannot change with numpy.
    keys = hash64(seed, _STREAM_ORDER, epoch, order)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def random_resized_crop_boxes(
    seed: int,
    epoch: int,
    indices: ArrayLike,
    widths: ArrayLike,
    heights: ArrayLike,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> NDArray[np.int32]:
    """Crop boxes with the distribution of torchvision's `RandomResizedCrop.get_params`.

    The area is uniform in `scale`, the aspect ratio log-uniform in `ratio`; sides are rounded, the
    position is a uniform integer. After ten boxes that do not fit, the largest central box whose
    ratio is within `ratio` is taken. (Szegedy et al. 2014, "Going deeper with convolutions".)

    Args:
        seed: Seed of the run.
        epoch: Epoch number, from 0.
        indices: int64 [N], sample indices.
        widths: int [N], image widths in pixels, >= 1.
        heights: int [N], image heights in pixels, >= 1.
        scale: Smallest and largest share of the image area.
        ratio: Smallest and largest width / height of the crop.

    Returns:
        int32 [N, 4]: left, top, right, bottom in pixels; right and bottom are exclusive.
    """
    indices, widths, heights = (
        np.atleast_1d(np.asarray(array, dtype=np.int64)) for array in (indices, widths, heights)
    )
    boxes = _central_boxes(widths, heights, ratio)
    open_rows = np.arange(len(indices))
    for attempt in range(CROP_ATTEMPTS):
        width, height = widths[open_rows], heights[open_rows]
        numbers = _DRAW_CROP + 4 * attempt + np.arange(4)
        area, aspect, top, left = uniform(seed, epoch, indices[open_rows], numbers[:, None])
        area = width * height * (scale[0] + area * (scale[1] - scale[0]))
        log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
        aspect = np.exp(log_low + aspect * (log_high - log_low))
        crop_width = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        crop_height = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (crop_width > 0) & (crop_width <= width)
        fits &= (crop_height > 0) & (crop_height <= height)
        left = np.floor(left * (width - crop_width + 1)).astype(np.int64)
        top = np.floor(top * (height - crop_height + 1)).astype(np.int64)
        found = np.stack([left, top, left + crop_width, top + crop_height], axis=1)
        boxes[open_rows[fits]] = found[fits]
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    return boxes.astype(np.int32)


def _central_boxes(
    widths: NDArray[np.int64], heights: NDArray[np.int64], ratio: tuple[float, float]
) -> NDArray[np.int64]:
    """The largest central boxes with a ratio within `ratio`; int64 [N, 4]."""
    image_ratio = widths / heights
    narrow, wide = image_ratio < min(ratio), image_ratio > max(ratio)
    crop_width = np.where(wide, np.rint(heights * max(ratio)), widths).astype(np.int64)
    crop_height = np.where(narrow, np.rint(widths / min(ratio)), heights).astype(np.int64)
    crop_width, crop_height = np.maximum(crop_width, 1), np.maximum(crop_height, 1)
    left, top = (widths - crop_width) // 2, (heights - crop_height) // 2
    return np.stack([left, top, left + crop_width, top + crop_height], axis=1)


def horizontal_flips(
    seed: int, epoch: int, indices: ArrayLike, probability: float
) -> NDArray[np.bool_]:
    """Which samples are mirrored left to right.

    Args:
        seed: Seed of the run.
        epoch: Epoch number, from 0.
        indices: int64 [N], sample indices.
        probability: Share of mirrored samples, 0..1.

    Returns:
        bool [N].
    """
    return uniform(seed, epoch, indices, _DRAW_FLIP) < probability


def draw_policy(
    choices: NDArray[np.int64], seed: int, epoch: int, indices: ArrayLike
) -> NDArray[np.int64]:
    """Which operations a policy applies to samples.

    Args:
        choices: int64 [G, S, E], see `policies.Policy`: one of G rows is drawn for a sample, and
            for each of its S steps one of the E numbers there.
        seed: Seed of the run.
        epoch: Epoch number, from 0.
        indices: int64 [N], sample indices.

    Returns:
        int64 [N, S], entries of `choices`.
    """
    rows, steps, entries = choices.shape
    draws = _DRAW_POLICY + np.arange(1 + steps)
    numbers = uniform(seed, epoch, np.atleast_1d(indices)[:, None], draws[None, :])
    row = (numbers[:, :1] * rows).astype(np.int64)
    return choices[row, np.arange(steps), (numbers[:, 1:] * entries).astype(np.int64)]


def draw_erasing(
    probability: float, image_size: int, seed: int, epoch: int, indices: ArrayLike
) -> NDArray[np.int64]:
    """The rectangles that random erasing covers, with the distribution of torchvision's.

    Area and height / width are drawn like those of crops; after ten rectangles that do not fit
    nothing is erased. (Zhong et al. 2017, "Random Erasing Data Augmentation".)

    Args:
        probability: Share of the samples, 0..1.
        image_size: Side of the square images in pixels.
        seed: Seed of the run.
        epoch: Epoch number, from 0.
        indices: int64 [N], sample indices.

    Returns:
        int64 [N, 4]: top, left, bottom, right in pixels; bottom and right are exclusive, all are 0
        where nothing is erased.
    """
    indices = np.atleast_1d(np.asarray(indices, dtype=np.int64))
    boxes = np.zeros((len(indices), 4), dtype=np.int64)
    open_rows = np.flatnonzero(uniform(seed, epoch, indices, _DRAW_ERASING) < probability)
    log_low, log_high = (math.log(ratio) for ratio in ERASED_RATIO)
    for attempt in range(CROP_ATTEMPTS):
        if not len(open_rows):
            break
        numbers = _DRAW_ERASING + 1 + 4 * attempt + np.arange(4)
        area, ratio, top, left = uniform(seed, epoch, indices[open_rows], numbers[:, None])
        area = image_size**2 * (ERASED_SCALE[0] + area * (ERASED_SCALE[1] - ERASED_SCALE[0]))
        ratio = np.exp(log_low + ratio * (log_high - log_low))
        sides = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=1))).astype(np.int64)
        starts = np.stack([top, left], axis=1) * (image_size - sides + 1)
        starts = np.floor(starts).astype(np.int64)
        fits = (sides < image_size).all(axis=1)
        boxes[open_rows[fits]] = np.concatenate([starts, starts + sides], axis=1)[fits]
        open_rows = open_rows[~fits]
    return boxes


def center_crop_boxes(
    widths: ArrayLike, heights: ArrayLike, image_size: int, resize_size: int
) -> NDArray[np.float64]:
    """The part of each image that torchvision's Resize(resize_size) + CenterCrop(image_size) shows.

    Resizing this box to `image_size` x `image_size` in one go gives the same pixels. One case
    differs on purpose: where `resize_size` is smaller than `image_size`, torchvision would pad with
    black; here the short side is resized to `image_size` instead. Small images are enlarged, as
    torchvision does.

    Args:
        widths: int [N], image widths in pixels, >= 1.
        heights: int [N], image heights in pixels, >= 1.
        image_size: Side of the square output in pixels.
        resize_size: Short side in pixels after the resizing, before the central crop.

    Returns:
        float64 [N, 4]: left, top, right, bottom in pixels of the source image.
    """
    widths, heights = (
        np.atleast_1d(np.asarray(array, dtype=np.int64)) for array in (widths, heights)
    )
    short_side = max(resize_size, image_size)
    shortest = np.minimum(widths, heights)
    # Integer division: torchvision truncates the long side.
    sides = np.stack([widths, heights], axis=1)
    resized = short_side * sides // shortest[:, None]
    offsets = np.rint((resized - image_size) / 2.0)
    source_per_pixel = sides / resized
    boxes = np.concatenate([offsets, offsets + image_size], axis=1)
    boxes *= np.concatenate([source_per_pixel, source_per_pixel], axis=1)
    # Rounding must not push a box over the edge: resize functions refuse such boxes.
    return np.minimum(boxes, np.concatenate([sides, sides], axis=1))


def draw_shifts(
    preset: ShiftPreset, seed: int, epoch: int, indices: ArrayLike
) -> NDArray[np.int32]:
    """The shifts, flips and cutouts of samples as an epoch shows them.

    Args:
        preset: How images are prepared.
        seed: Seed of the run.
        epoch: Epoch number.
        indices: [N], sample indices.

    Returns:
        int32 [N, 5]: top and left of the crop in the padded image, each 0 .. 2 * padding; 1 where
        the crop is flipped; row and column of the cutout's centre, each 0 .. image_size - 1.
    """
    sizes = np.array([2 * preset.padding + 1] * 2 + [preset.image_size] * 2)
    draws = np.array([_DRAW_SHIFT, _DRAW_SHIFT + 1, _DRAW_CUTOUT, _DRAW_CUTOUT + 1])
    numbers = uniform(seed, epoch, np.atleast_1d(indices)[:, None], draws[None, :])
    top, left, row, column = (numbers * sizes).astype(np.int32).T
    flips = horizontal_flips(seed, epoch, indices, preset.flip).astype(np.int32)
    return np.stack([top, left, flips, row, column], axis=1)


def draw_crops(
    preset: TrainPreset | EvalPreset,
    seed: int,
    epoch: int,
    indices: ArrayLike,
    widths: ArrayLike,
    heights: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The crops and flips of samples as an epoch shows them.

    Args:
        preset: How images are prepared.
        seed: Seed of the run.
        epoch: Epoch number.
        indices: [N], sample indices.
        widths: [N], image widths in pixels.
        heights: [N], image heights in pixels.

    Returns:
        Boxes float64 [N, 4] as left, top, right, bottom, in training whole numbers, and bool [N].
    """
    if isinstance(preset, EvalPreset):
        boxes = center_crop_boxes(widths, heights, preset.image_size, preset.resize_size)
        return boxes, np.zeros(len(boxes), dtype=bool)
    whole = random_resized_crop_boxes(
        seed, epoch, indices, widths, heights, preset.scale, preset.ratio
    )
    return whole.astype(np.float64), horizontal_flips(seed, epoch, indices, preset.flip)
