# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The draws: fixed values, statistical quality, equality with torchvision's geometry and pixels."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from PIL import Image

from image_classification import augmentation
from image_classification.augmentation import (
    EvalPreset,
    ShiftPreset,
    TrainPreset,
    center_crop_boxes,
    epoch_order,
    hash64,
    horizontal_flips,
    random_resized_crop_boxes,
    uniform,
)
from image_classification.image_reading import eval_pixels, train_pixels

N = 20_000


def ks_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance of two empirical distribution functions (Kolmogorov-Smirnov)."""
    points = np.concatenate([first, second])
    ranks = [np.searchsorted(np.sort(a), points, side="right") / len(a) for a in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


def smooth_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with structure at several scales, like a photograph."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 9, 40):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.BICUBIC))
    return Image.fromarray((total / 3).astype(np.uint8))


# --- the mixing function ------------------------------------------------------------------------


def test_fixed_values() -> None:
    # A change here silently changes the order and the crops of every resumed run.
    assert hash64(0) == 0xE220A8397B1DCDAF  # first output of splitmix64 for seed 0
    assert hash64(1, 2, 3) == 9613205829653846581
    assert epoch_order(1, 2, 10, shuffle=True).tolist() == [5, 2, 6, 1, 0, 4, 3, 7, 8, 9]
    boxes = random_resized_crop_boxes(1, 2, [3, 4], [500, 31], [375, 400])
    assert boxes.tolist() == [[64, 32, 463, 366], [0, 179, 31, 220]]


def test_scalars_arrays_and_shapes_agree() -> None:
    indices = np.arange(5)
    hashes = hash64(7, 1, indices, 9)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [hash64(7, 1, int(i), 9) for i in indices]
    assert hash64(7, indices[:, None], indices).shape == (5, 5)
    assert isinstance(hash64(7, np.int64(3)), int)
    assert hash64(3, 1, 2) != hash64(3, 2, 1)
    assert hash64(2**64 + 5) == hash64(5) and hash64(-1) == hash64(2**64 - 1)


def test_no_overflow_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hash64(2**63, 2**62, np.array([-1, 2**62]))
        uniform(2**63, 10, 4, 5)
        random_resized_crop_boxes(-5, 0, [0, 1], [1, 3000], [3000, 1])


def test_floats_are_refused() -> None:
    with pytest.raises(TypeError, match="integers"):
        hash64(1, np.array([0.5]))


def test_one_changed_bit_changes_half_of_the_hash() -> None:
    base = np.arange(500)
    for bit in (0, 1, 7, 20, 40):
        difference = hash64(3, 2, base, 1) ^ hash64(3, 2, base ^ (1 << bit), 1)
        changed = np.unpackbits(difference.view(np.uint8)).reshape(500, 64)
        assert abs(changed.sum(axis=1).mean() - 32) < 1
        assert (np.abs(changed.mean(axis=0) - 0.5) < 0.12).all()


@pytest.mark.parametrize("seed, epoch, draw", [(0, 0, 0), (0, 0, 1), (1, 0, 0), (42, 89, 1000)])
def test_uniform_is_uniform(seed: int, epoch: int, draw: int) -> None:
    values = uniform(seed, epoch, np.arange(N), draw)
    assert values.min() >= 0 and values.max() < 1
    grid = (np.arange(N) + 0.5) / N
    assert ks_distance(values, grid) < 1.95 / np.sqrt(N)  # 0.1 % level
    assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * N)


@pytest.mark.parametrize("neighbour", ["seed", "epoch", "index", "draw"])
def test_neighbours_are_independent(neighbour: str) -> None:
    first = {"seed": 5, "epoch": 5, "index": np.arange(N), "draw": 5}
    second = dict(first, **{neighbour: first[neighbour] + 1})
    a, b = (uniform(d["seed"], d["epoch"], d["index"], d["draw"]) for d in (first, second))
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(N)
    counts = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
    chi_square = ((counts - N / 64) ** 2 / (N / 64)).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom: mean 63, standard deviation 11


# --- order --------------------------------------------------------------------------------------


def test_order_is_a_permutation_of_its_own_in_each_epoch_and_seed() -> None:
    orders = [epoch_order(s, e, 1000, shuffle=True) for s in range(3) for e in range(3)]
    for order in orders:
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(1000))
    fixed_points = [np.sum(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(fixed_points) < 10  # one is expected
    assert epoch_order(0, 5, 4, shuffle=False).tolist() == [0, 1, 2, 3]
    assert len(epoch_order(0, 0, 0, shuffle=True)) == 0


def test_each_sample_comes_anywhere_in_the_order() -> None:
    places = [np.argsort(epoch_order(9, epoch, 8, shuffle=True)) for epoch in range(2000)]
    counts = np.array([np.bincount(column, minlength=8) for column in np.array(places).T])
    assert (np.abs(counts - 250) < 70).all()  # standard deviation 15


# --- crops and flips ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (60, 400), (224, 224), (30, 9)])
def test_crops_are_distributed_as_in_torchvision(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    width, height = size
    count = 4000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = Image.new("RGB", size)
        theirs = np.array([
            transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            for _ in range(count)
        ])  # fmt: skip
    theirs = np.stack(
        [theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], 1
    )
    ours = random_resized_crop_boxes(0, 0, np.arange(count), [width] * count, [height] * count)
    for feature in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_distance(feature(ours), feature(theirs)) < 1.95 * np.sqrt(2 / count)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 1000), (1000, 30), (3, 2)])
def test_crops_stay_inside_extreme_images(size: tuple[int, int]) -> None:
    count = 500
    boxes = random_resized_crop_boxes(1, 0, np.arange(count), [size[0]] * count, [size[1]] * count)
    left, top, right, bottom = boxes.T
    assert boxes.dtype == np.int32
    assert (left >= 0).all() and (top >= 0).all()
    assert (right > left).all() and (bottom > top).all()
    assert (right <= size[0]).all() and (bottom <= size[1]).all()


def test_fall_back_is_torchvisions_central_crop() -> None:
    # No area in this range fits a very long image with these ratios.
    boxes = random_resized_crop_boxes(0, 0, [0, 1], [3000, 30], [30, 3000], scale=(0.9, 1.0))
    assert boxes.tolist() == [[1480, 0, 1520, 30], [0, 1480, 30, 1520]]


def test_draws_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(1, 700, (2, 200))
    indices = rng.permutation(10_000)[:200]
    boxes = random_resized_crop_boxes(3, 4, indices, widths, heights)
    flips = horizontal_flips(3, 4, indices, 0.5)
    for i in range(200):
        one = random_resized_crop_boxes(3, 4, indices[i], widths[i], heights[i])
        assert one[0].tolist() == boxes[i].tolist()
        assert horizontal_flips(3, 4, indices[i], 0.5)[0] == flips[i]


def test_flips() -> None:
    indices = np.arange(N)
    flips = horizontal_flips(0, 0, indices, 0.5)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / np.sqrt(N)
    assert not horizontal_flips(0, 0, indices, 0.0).any()
    assert horizontal_flips(0, 0, indices, 1.0).all()
    again = horizontal_flips(0, 1, indices, 0.5)
    assert abs((flips == again).mean() - 0.5) < 4 * 0.5 / np.sqrt(N)
    left = random_resized_crop_boxes(0, 0, indices, [500] * N, [400] * N)[:, 0]
    assert abs(np.corrcoef(left, flips)[0, 1]) < 4 / np.sqrt(N)


# --- pixels -------------------------------------------------------------------------------------

SIZES = [(500, 375), (375, 500), (256, 256), (257, 300), (120, 90), (640, 101), (33, 1000), (5, 7)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_validation_pixels_equal_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = smooth_image(*size)
    mode = transforms.InterpolationMode(interpolation)
    for image_size, resize_size in ((64, 73), (224, 256), (96, 96)):
        reference = transforms.Resize(resize_size, interpolation=mode)(image)
        reference = np.asarray(transforms.CenterCrop(image_size)(reference)).astype(int)
        ours = eval_pixels(image, EvalPreset(image_size, resize_size, interpolation)).astype(int)
        assert ours.shape == (image_size, image_size, 3)
        assert np.abs(ours - reference).mean() < 0.1


def test_crop_larger_than_the_resized_image_is_enlarged_not_padded() -> None:
    boxes = center_crop_boxes([100, 300], [50, 100], image_size=64, resize_size=32)
    assert boxes.tolist() == [[25, 0, 75, 50], [100, 0, 200, 100]]
    pixels = eval_pixels(Image.new("RGB", (10, 10), "white"), EvalPreset(64, 32))
    assert (pixels == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (999, 1000), (31, 32)])
def test_central_boxes_stay_inside(size: tuple[int, int]) -> None:
    for image_size, resize_size in ((224, 256), (32, 32), (299, 341), (7, 8)):
        left, top, right, bottom = center_crop_boxes(*size, image_size, resize_size)[0]
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_pixels_equal_torchvisions_exactly(interpolation: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = smooth_image(150, 120)
    mode = functional.InterpolationMode(interpolation)
    preset = TrainPreset(image_size=48, interpolation=interpolation)
    boxes = random_resized_crop_boxes(0, 0, np.arange(8), [150] * 8, [120] * 8).tolist()
    for i, (left, top, right, bottom) in enumerate(boxes):
        reference = functional.resized_crop(
            image, top, left, bottom - top, right - left, [48, 48], mode
        )
        reference = functional.hflip(reference) if i % 2 else reference
        ours = train_pixels(image, (left, top, right, bottom), bool(i % 2), preset)
        assert np.array_equal(ours, np.asarray(reference))


# --- presets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset",
    [TrainPreset(), EvalPreset(), TrainPreset(32, (0.5, 1.0), (1.0, 1.0), 0.0, "bicubic")],
)
def test_presets_survive_json(preset: TrainPreset | EvalPreset) -> None:
    assert type(preset).from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TrainPreset(image_size=0), "image_size .* 1 .. 16384, received 0"),
        (lambda: TrainPreset(scale=(0.5, 0.1)), "scale"),
        (lambda: TrainPreset(scale=(0.5, 1.5)), "at most 1.0"),
        (lambda: TrainPreset(ratio=(0.0, 1.0)), "ratio"),
        (lambda: TrainPreset(flip=1.5), "flip .* received 1.5"),
        (lambda: TrainPreset(policy="fastaugment"), "policy must be one of None, autoaugment, "),
        (lambda: ShiftPreset(policy_magnitude=31), "policy_magnitude .* 0 .. 30, received 31"),
        (lambda: TrainPreset(policy_operations=0), "policy_operations .* 1 .. 16, received 0"),
        (lambda: ShiftPreset(erasing=-0.1), "erasing .* received -0.1"),
        (lambda: TrainPreset(32, start_size=64, growth_epochs=2), "start_size .* 0 .. 32"),
        (lambda: TrainPreset(start_size=50, growth_epochs=2), "multiple of 32, received 50"),
        (lambda: TrainPreset(start_size=64), "both be above 0, or both 0; received 64, 0"),
        (lambda: TrainPreset.from_dict({"growth_epochs": "2"}), "growth_epochs must be a whole"),
        (lambda: EvalPreset(interpolation="nearest"), "bilinear, bicubic, triangular"),
        (lambda: EvalPreset(resize_size=-1), "resize_size"),
        (lambda: EvalPreset(16385, 16385), "image_size .* 1 .. 16384, received 16385"),
        (lambda: ShiftPreset(padding=16385), "padding .* 0 .. 16384, received 16385"),
        (lambda: EvalPreset.from_dict({"size": 3}), r"unknown keys \['size'\]"),
    ],
)
def test_bad_presets(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_mean_and_std_are_in_pixel_units() -> None:
    assert np.allclose(np.array(augmentation.IMAGENET_MEAN) / 255, [0.485, 0.456, 0.406])
    assert np.allclose(np.array(augmentation.IMAGENET_STD) / 255, [0.229, 0.224, 0.225])
