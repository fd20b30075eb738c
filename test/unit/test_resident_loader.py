# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Images in memory: the loaders' contract, and draws applied to whole batches as to single ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loader_helpers import StreamDevice, make
from numpy.typing import NDArray
from PIL import Image

from image_classification import resident_loader
from image_classification.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalPreset,
    ShiftPreset,
    draw_shifts,
    epoch_order,
)
from image_classification.datasets import load_splits
from image_classification.fast_loader.native import load_core, small_crops
from image_classification.pixel_index import PixelIndex
from image_classification.small_images import into_memory

SIDE, COUNT = 12, 26
TRAIN = ShiftPreset(SIDE, padding=3)
EVAL = EvalPreset(SIDE, SIDE)


@pytest.fixture(scope="module")
def index() -> PixelIndex:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(COUNT) // 13
    return PixelIndex(Path("memory"), labels, ["a", "b"], images, "train", "cifar")


def expected(index: PixelIndex, preset: ShiftPreset, i: int, epoch: int) -> NDArray[np.float64]:
    """Sample i, prepared by itself, in units of the standard deviation, [S, S, 3]."""
    p, s = preset.padding, preset.image_size
    top, left, flip, row, column = draw_shifts(preset, 3, epoch, [i])[0].tolist()
    image = np.pad(index.images[i], ((p, p), (p, p), (0, 0)))[top : top + s, left : left + s]
    image = (image[:, ::-1] if flip else image).astype(float)
    if preset.cutout:
        rows, columns = (
            slice(max(0, centre - preset.cutout // 2), centre + (preset.cutout + 1) // 2)
            for centre in (row, column)
        )
        image[rows, columns] = np.rint(IMAGENET_MEAN)
    return (image - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)


def prepared(index: PixelIndex, preset: ShiftPreset, epoch: int = 0) -> torch.Tensor:
    """The training images of an epoch, prepared one by one, [24, 3, S, S]."""
    order = epoch_order(3, epoch, COUNT, True)[:24]
    images = np.stack([expected(index, preset, int(i), epoch) for i in order])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def read(loader) -> tuple[torch.Tensor, list[int]]:
    batches = [(images.clone(), target) for images, target in loader]
    labels = torch.cat([target for _, target in batches]).tolist()
    return torch.cat([images for images, _ in batches]), labels


@pytest.mark.parametrize("cutout", [0, 1, 4, 5])
@pytest.mark.parametrize("padding", [0, 3])
def test_batches_equal_images_prepared_one_by_one(index, padding: int, cutout: int) -> None:
    preset = ShiftPreset(SIDE, padding=padding, cutout=cutout)
    loader = make(index, preset, backend="resident")
    for epoch in range(2):
        images, labels = read(loader)
        assert torch.allclose(images, prepared(index, preset, epoch), atol=1e-5)
        assert labels == index.labels[epoch_order(3, epoch, COUNT, True)[:24]].tolist()


def test_every_shift_and_both_flips_occur() -> None:
    draws = draw_shifts(ShiftPreset(32, 4), 0, 0, np.arange(5000))
    for column, size in zip(draws.T, (9, 9, 2, 32, 32), strict=True):
        counts = np.bincount(column, minlength=size)
        assert len(counts) == size and counts.min() > 0.7 * 5000 / size


def test_validation_shows_the_images_as_they_are(index) -> None:
    loader = make(index, EVAL, backend="resident", batch_size=10)
    images, labels = read(loader)
    std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
    shown = (images.permute(0, 2, 3, 1) * std + mean).round().to(torch.uint8)
    assert np.array_equal(shown.numpy(), index.images) and labels == index.labels.tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(index, world: int) -> None:
    whole, labels = read(make(index, TRAIN, backend="resident", batch_size=6, global_batch=6))
    parts = [
        read(make(index, TRAIN, backend="resident", batch_size=6 // world, rank=rank,
                  world_size=world, global_batch=6))
        for rank in range(world)
    ]  # fmt: skip
    together = torch.stack([images.view(4, 6 // world, 3, SIDE, SIDE) for images, _ in parts], 1)
    assert torch.equal(together.flatten(0, 2), whole)
    assert sorted(label for _, found in parts for label in found) == sorted(labels)


def test_positions_and_abandoned_epochs(index) -> None:
    loader = make(index, TRAIN, backend="resident", batch_size=4)
    loader.set_position(1, 8)
    assert len(loader) == 4
    rest, _ = read(loader)
    assert torch.allclose(rest, prepared(index, TRAIN, 1)[8:], atol=1e-5)
    loader.set_position(1, 0)
    next(iter(loader))
    assert torch.equal(read(loader)[0][8:], rest)


def test_validation_on_ranks_without_images(index) -> None:
    seen = [
        read(make(index, EVAL, backend="resident", batch_size=13, rank=rank, world_size=2))[1]
        for rank in range(2)
    ]
    assert seen == [[0] * 13, [1] * 13]
    last = make(index, EVAL, backend="resident", batch_size=26, rank=1, world_size=2)
    assert list(last) == []


@pytest.mark.skipif(load_core() is None, reason="the core is not built")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("cutout", [0, 5])
def test_the_compiled_core_gives_the_same_bits(index, layout, cutout: int, monkeypatch) -> None:
    preset = ShiftPreset(SIDE, padding=3, cutout=cutout)
    options = {"backend": "resident", "batch_size": 12, "global_batch": 12, "memory_format": layout}
    compiled, _ = read(make(index, preset, **options))
    monkeypatch.setattr(resident_loader, "load_core", lambda: None)
    assert torch.equal(compiled, read(make(index, preset, **options))[0])


@pytest.mark.skipif(load_core() is None, reason="the core is not built")
def test_the_core_refuses_what_lies_outside() -> None:
    pixels, plan = np.zeros((2, 8, 8), np.int32), np.zeros((1, 6), np.int64)
    output, one = np.zeros((1, 3, 6, 6), np.float32), np.ones(3, np.float32)
    options = {"cutout": 0, "mean": 0, "scale": one, "shift": one, "threads": 1}
    small_crops(pixels, plan, output, **options)
    assert (output == 1).all()
    for column, value in ((0, 2), (0, -1), (1, 3), (1, -1), (2, 3), (2, 2**62)):
        wrong = plan.copy()
        wrong[0, column] = value
        with pytest.raises(ValueError, match="do not fit"):
            small_crops(pixels, wrong, output, **options)
    for wrong_output in (
        output[:, :2],
        output.astype(np.float64),
        output[:, :, :5],
        output[..., ::2],
    ):
        with pytest.raises(ValueError, match="do not fit"):
            small_crops(pixels, plan, wrong_output, **options)
    for far in ((5, 5), (0, 0), (-100, 2**40)):
        plan[0, 4:] = far
        small_crops(pixels, plan, output, **{**options, "cutout": 4})


def test_types_and_memory_formats(index) -> None:
    loader = make(index, TRAIN, backend="resident", dtype=torch.bfloat16,
                  memory_format=torch.channels_last)  # fmt: skip
    images, target = next(iter(loader))
    assert images.dtype == torch.bfloat16 and target.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_too_large_for_the_device_stays_on_the_host(index) -> None:
    class Small(StreamDevice):
        torch_device = torch.device("cpu")

        def memory(self) -> SimpleNamespace:
            return SimpleNamespace(total=1000)

    device = Small()
    device.torch_device = torch.device("cpu", 0)  # not the host, to the loader
    loader = make(index, TRAIN, backend="resident", device=device)
    assert "of images stay on the host" in loader.notes[0]
    images, _ = read(loader)
    assert torch.allclose(images, prepared(index, TRAIN), atol=1e-5)
    assert device.calls.count("enter side") == 6


def test_presets_must_fit(index) -> None:
    with pytest.raises(ValueError, match="images of 12 pixels, a preset for 16"):
        make(index, ShiftPreset(16), backend="resident")
    with pytest.raises(ValueError, match="needs an ImageIndex"):
        make(index, TRAIN, backend="pytorch")


# ---- folders -----------------------------------------------------------------------------------


def write_folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        for i, (width, height) in enumerate(sizes):
            path = root / split / f"c{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


def test_a_folder_of_one_small_size_comes_into_memory(tmp_path: Path) -> None:
    splits = load_splits(write_folder(tmp_path, [(32, 32)] * 6), train=True, val=True)
    found = into_memory(splits, 32)
    assert found.in_memory and not splits.in_memory
    assert found.train.images.shape == (6, 32, 32, 3) and found.val.split == "val"
    for i in range(6):
        assert np.array_equal(found.train.images[i], Image.open(splits.train.path(i)))
    assert found.train.labels.tolist() == splits.train.labels.tolist()
    assert into_memory(splits, 28) is splits


@pytest.mark.parametrize("odd", [(33, 32), (32, 31)])
def test_another_size_or_a_bad_image_leaves_the_files(tmp_path: Path, odd) -> None:
    splits = load_splits(write_folder(tmp_path, [(32, 32), (32, 32), odd]), train=True, val=True)
    assert into_memory(splits, 32) is splits
    write_folder(tmp_path, [(32, 32)] * 3)
    assert into_memory(splits, 32).in_memory
    (tmp_path / "val/c1/1.png").write_bytes(b"no image")
    assert into_memory(splits, 32) is splits
