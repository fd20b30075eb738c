# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of batches: the same on any loader, in any batch; erasing; images that grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes.support import fake_environment, skip_reason
from loader_helpers import EVAL, HostDevice, StreamDevice, make
from PIL import Image
from test_augmentation import ks_distance
from test_fast_loader import DALI, FAST
from torch.utils._python_dispatch import TorchDispatchMode

from image_classification import batch_augmentation
from image_classification.augmentation import (
    ShiftPreset,
    TrainPreset,
    draw_erasing,
    draw_shifts,
    epoch_order,
)
from image_classification.bad_images import BadImages
from image_classification.batch_augmentation import (
    BatchAugmentation,
    apply_policy,
    create_augmentation,
    erase,
)
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import SyntheticIndex
from image_classification.datasets import load_splits
from image_classification.device_feed import DeviceFeeder
from image_classification.pixel_index import PixelIndex
from image_classification.presets import POLICIES

transforms = pytest.importorskip("torchvision.transforms")

SIDE, COUNT = 20, 13
TRAIN = TrainPreset(SIDE, policy="randaugment", policy_magnitude=20, erasing=0.5)
PLAIN = TrainPreset(SIDE)
all_backends = pytest.mark.parametrize("backend", ["pytorch", FAST, DALI])


def write_noise(root: Path) -> ImageIndex:
    """PNG files, which all loaders decode to the same bytes."""
    rng = np.random.default_rng(0)
    folder = root / "train" / "0"
    folder.mkdir(parents=True)
    for i in range(COUNT):
        noise = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        noise.resize((40 + i, 35), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return load_splits(root, train=True, val=False).train


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    return write_noise(tmp_path_factory.mktemp("noise"))


@pytest.fixture(scope="module")
def pixels() -> PixelIndex:
    images = np.random.default_rng(0).integers(0, 256, (24, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(24) // 12
    return PixelIndex(Path("memory"), labels, ["a", "b"], images, "train", "cifar")


def read(loader: Any) -> torch.Tensor:
    """The images of the rest of an epoch."""
    images = torch.cat([images.clone() for images, _ in loader])
    loader.close()
    return images


def feeder(preset: TrainPreset | ShiftPreset, device: Any = None) -> DeviceFeeder:
    device = device or HostDevice()
    return DeviceFeeder(
        device, create_augmentation(preset, 3, device), dtype=torch.float32,
        memory_format=torch.contiguous_format,
    )  # fmt: skip


# --- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_an_image_does_not_depend_on_its_batch(name: str, monkeypatch) -> None:
    monkeypatch.setattr(batch_augmentation, "_PIXELS_IN_CACHES", 10 * 16**2)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 3, 16, 16), generator=generator, dtype=torch.uint8)
    augmentation = BatchAugmentation(TrainPreset(16, policy=name), 3, HostDevice())
    before = images.clone()
    together = apply_policy(images, augmentation.plan(2, np.arange(70)))
    assert torch.equal(images, before)
    # More images than are treated at once get the same operation.
    repeated = apply_policy(images[:1].expand(40, -1, -1, -1), augmentation.plan(2, [0] * 40))
    for i in range(70):
        alone = apply_policy(images[i : i + 1], augmentation.plan(2, [i]))
        assert torch.equal(alone[0], together[i])
    assert all(torch.equal(image, together[0]) for image in repeated)
    assert sum(not torch.equal(*pair) for pair in zip(images, together, strict=True)) > 35


@all_backends
def test_loaders_ranks_and_positions_show_the_same_images(index, backend: str) -> None:
    whole = read(make(index, TRAIN, global_batch=4))
    plain = read(make(index, PLAIN, global_batch=4))
    changed = [not torch.equal(*pair) for pair in zip(whole, plain, strict=True)]
    assert sum(changed) > 8 and len(whole) == 12
    options = {"backend": backend, "global_batch": 4}
    assert torch.equal(read(make(index, TRAIN, workers=2, **options)), whole)
    assert torch.equal(read(make(index, TRAIN, device=StreamDevice(), **options)), whole)
    layout = {"memory_format": torch.channels_last}
    assert torch.equal(read(make(index, TRAIN, **layout, **options)), whole)
    ranks = [
        read(make(index, TRAIN, batch_size=2, world_size=2, rank=rank, **options)).view(3, 2, -1)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(ranks, dim=1).view_as(whole), whole)
    resumed = make(index, TRAIN, **options)
    resumed.set_position(0, 8)
    assert torch.equal(read(resumed), whole[8:])
    other_epoch = make(index, TRAIN, **options)
    other_epoch.set_position(1, 0)
    assert not torch.equal(read(other_epoch), whole)


@all_backends
def test_a_replaced_image_gets_its_own_draws(tmp_path: Path, backend: str) -> None:
    index = write_noise(tmp_path)
    (tmp_path / "train/0/05.png").write_bytes(b"no image")
    options = {"global_batch": 4, "backend": backend}
    made = make(index, TRAIN, bad=BadImages(COUNT, seed=3), **options)
    found = read(made)
    assert len(made.bad.paths) == 1
    shown = epoch_order(3, 0, COUNT, True)[:12]
    place = int(np.flatnonzero(shown == 5)[0])
    augmented = feeder(TRAIN)
    candidates = []
    for i in set(range(COUNT)) - {5}:
        image = np.empty((1, SIDE, SIDE, 3), dtype=np.uint8)
        made._reader.read(0, i, image[0])
        candidates.append(augmented.normalize(torch.from_numpy(image), augmented.plan(0, [i]))[0])
    assert sum(torch.equal(found[place], candidate) for candidate in candidates) == 1


def test_validation_is_not_augmented(index) -> None:
    assert create_augmentation(EVAL, 3, HostDevice()) is None
    assert create_augmentation(PLAIN, 3, HostDevice()) is None


@pytest.mark.parametrize("erasing", [0.0, 1.0])
@pytest.mark.parametrize("cutout", [0, 5])
def test_images_in_memory(pixels, cutout: int, erasing: float) -> None:
    preset = ShiftPreset(12, 3, cutout=cutout, policy="trivialaugment", erasing=erasing)
    options = {"backend": "resident", "batch_size": 8}
    found = read(make(pixels, preset, **options))
    order = epoch_order(3, 0, 24, True)
    crops = read(make(pixels, ShiftPreset(12, 3), **options))
    own = feeder(preset)
    bytes_of_crops = ((crops - own.shift) / own.scale).round().to(torch.uint8).permute(0, 2, 3, 1)
    expected = own.normalize(bytes_of_crops, own.plan(0, order))
    assert torch.equal(found, expected)
    if cutout:
        row, column = draw_shifts(preset, 3, 0, order[:1])[0, 3:].tolist()
        assert (found[0, :, row, column] == 0).all()

    class Small(StreamDevice):
        def memory(self) -> SimpleNamespace:
            return SimpleNamespace(total=1000)

    device = Small()
    device.torch_device = torch.device("cpu", 0)  # not the host, to the loader
    assert torch.equal(read(make(pixels, preset, device=device, **options)), expected)


def test_erasing_alone_leaves_the_cutout_as_it_is(pixels) -> None:
    options = {"backend": "resident", "batch_size": 8}
    plain = read(make(pixels, ShiftPreset(12, 3, cutout=5), **options))
    erased = read(make(pixels, ShiftPreset(12, 3, cutout=5, erasing=1.0), **options))
    gone = (erased == 0).all(dim=1, keepdim=True)
    assert torch.equal(erased, plain.masked_fill(gone, 0.0))
    assert 0.02 < gone.float().mean() < 0.4


def test_synthetic_images_are_augmented_batch_by_batch() -> None:
    source = SyntheticIndex(num_samples=64, num_classes=3)
    loader = make(source, TRAIN, backend="synthetic", batch_size=32, global_batch=32)
    first, second = [images for images, _ in loader]
    assert not torch.equal(first, second)  # the same 32 images otherwise
    loader.set_position(0, 0)
    assert torch.equal(next(iter(loader))[0], first)
    loader.set_position(1, 0)
    assert not torch.equal(next(iter(loader))[0], first)


def test_no_operator_waits_for_the_device() -> None:
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "bincount",
               "unique", "item", "_unique2"}  # fmt: skip
    seen: set[str] = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            seen.add(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
            return function(*arguments, **(options or {}))

    preset = TrainPreset(16, policy="trivialaugment", erasing=0.5)
    made = feeder(preset)
    images, plan = torch.zeros((64, 16, 16, 3), dtype=torch.uint8), made.plan(0, np.arange(64))
    with Recorder():
        made.normalize(images, plan)
    assert {"gather", "grid_sampler_2d", "scatter_add_", "masked_fill_"} <= seen
    assert not seen & waiting


ON_A_DEVICE = """
import json, numpy, torch
from image_classification.batch_augmentation import create_augmentation
from image_classification.device import Device
from image_classification.device_feed import DeviceFeeder
from image_classification.presets import TrainPreset

rng, made = numpy.random.default_rng(0), []
images = torch.from_numpy(rng.integers(0, 256, (40, 16, 16, 3), dtype=numpy.uint8))
preset = TrainPreset(16, policy="trivialaugment", erasing=0.5)
for name in ("npu", "cpu"):
    device = Device.select(name)
    feeder = DeviceFeeder(device, create_augmentation(preset, 3, device), dtype=torch.float32,
                          memory_format=torch.contiguous_format)
    plan = feeder.plan(0, numpy.arange(40))
    there = device.pin_memory(images) if device.can_pin_memory else images
    before = dict(torch.ops.fakeacc.counters("waits"))
    made.append(feeder.normalize(there, plan))
    waits = dict(torch.ops.fakeacc.counters("waits")) != before
    print(json.dumps([name, waits, plan.numbers.is_pinned(), plan.holes.is_pinned()]))
print(json.dumps(torch.equal(made[0].cpu(), made[1])))
"""


@pytest.mark.fake_accelerator
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
def test_a_device_gives_the_bytes_of_the_cpu_and_nobody_waits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_DEVICE], env=fake_environment("npu", count=1),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [["npu", False, True, True], ["cpu", False, False, False], True]


# --- random erasing -----------------------------------------------------------------------------


def test_erased_rectangles_are_torchvisions() -> None:
    count, side = 3000, 96
    image = torch.empty(3, side, side)
    torch.manual_seed(0)
    scale, ratio = (0.02, 0.33), (0.3, 3.3)
    drawn = [transforms.RandomErasing.get_params(image, scale, ratio, [0.0]) for _ in range(count)]
    theirs = np.array([box[:4] for box in drawn])  # top, left, height, width
    theirs[:, 2:] += theirs[:, :2]
    ours = draw_erasing(1.0, side, 0, 0, np.arange(count))
    # Where nothing fits, torchvision "erases" the whole image with itself.
    assert abs((theirs[:, 2] - theirs[:, 0] == side).sum() - (ours[:, 2] == 0).sum()) <= 5
    theirs, ours = theirs[theirs[:, 2] - theirs[:, 0] < side], ours[ours[:, 2] > 0]
    assert ours.min() >= 0 and ours.max() <= side
    for feature in (
        lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
        lambda box: (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1]),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert ks_distance(feature(ours), feature(theirs)) < 1.95 * np.sqrt(2 / count)


def test_the_share_of_erased_images() -> None:
    indices = np.random.default_rng(0).permutation(20_000)
    boxes = draw_erasing(0.25, 64, 1, 2, indices)
    assert abs((boxes[:, 2] > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)
    for place in (0, 1, 2, 3):
        assert draw_erasing(0.25, 64, 1, 2, indices[place]).tolist() == [boxes[place].tolist()]
    assert not draw_erasing(0.0, 64, 1, 2, indices).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_erased_pixels_are_the_mean_and_no_others(dtype: torch.dtype) -> None:
    plan = BatchAugmentation(TrainPreset(32, erasing=0.7), 3, HostDevice()).plan(0, np.arange(40))
    erased = erase(torch.ones((40, 3, 32, 32), dtype=dtype), plan)
    for image, (top, left, bottom, right) in zip(
        erased, draw_erasing(0.7, 32, 3, 0, np.arange(40)), strict=True
    ):
        assert (image == 0).sum() == 3 * (bottom - top) * (right - left)
        assert not image[:, top:bottom, left:right].any()


# --- images that grow ---------------------------------------------------------------------------


def test_sizes_grow_in_a_straight_line_to_the_full_size() -> None:
    preset = TrainPreset(224, start_size=128, growth_epochs=90)
    sides = [preset.at(epoch).image_size for epoch in range(100)]
    assert sides == sorted(sides) and sides[0] == 128
    assert set(sides) == {128, 160, 192, 224}
    assert [sides.count(side) for side in (128, 160, 192)] == [15, 30, 30]
    assert preset.at(3) == TrainPreset(128) and preset.at(89) == preset.at(200) == TrainPreset(224)
    odd = TrainPreset(300, start_size=96, growth_epochs=4)
    assert [odd.at(epoch).image_size for epoch in range(4)] == [96, 160, 224, 300]
    assert TrainPreset(64, start_size=32, growth_epochs=1).at(0).image_size == 64
    assert PLAIN.at(5) is PLAIN and EVAL.at(5) is EVAL


@all_backends
@pytest.mark.parametrize("policy", [None, "randaugment"])
def test_an_epoch_of_growing_images_is_one_of_that_size(index, backend: str, policy) -> None:
    growing = TrainPreset(96, policy=policy, start_size=32, growth_epochs=3)
    loader = make(index, growing, backend, global_batch=4, workers=1)
    for epoch, side in enumerate((32, 64, 96, 96)):
        expected = make(index, TrainPreset(side, policy=policy), global_batch=4)
        expected.set_position(epoch, 0)
        images = torch.cat([images.clone() for images, _ in loader])
        assert images.shape == (12, 3, side, side)
        assert torch.equal(images, read(expected))
    loader.set_position(1, 8)  # as after a resume
    assert next(iter(loader))[0].shape == (4, 3, 64, 64)
    loader.close()


def test_growing_synthetic_images() -> None:
    growing = TrainPreset(64, start_size=32, growth_epochs=2)
    loader = make(SyntheticIndex(8, 2), growing, backend="synthetic")
    assert [next(iter(loader))[0].shape[2], list(loader)[-1][0].shape[3]] == [32, 32]
    assert next(iter(loader))[0].shape == (4, 3, 64, 64)
