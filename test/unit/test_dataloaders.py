# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Loaders: which rank sees which sample, exact positions, pixels on the device."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from loader_helpers import (
    EVAL,
    NUM_IMAGES,
    HostDevice,
    StreamDevice,
    colours,
    make,
    numbers,
    write_colours,
    write_photos,
)

from image_classification.affinity import usable_cores
from image_classification.augmentation import TrainPreset
from image_classification.batch_schedule import BatchSchedule
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import SyntheticIndex
from image_classification.device_feed import DeviceFeeder
from image_classification.errors import DataError


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    return write_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageIndex:
    return write_photos(tmp_path_factory.mktemp("photos"))


# --- the schedule -------------------------------------------------------------------------------


def test_each_image_is_validated_exactly_once() -> None:
    for total in range(1, 18):
        for world in range(1, 4):
            for batch in range(1, 5):
                ranks = [
                    BatchSchedule(
                        total, batch_size=batch, rank=rank, world_size=world, global_batch=0,
                        seed=0, training=False,
                    )
                    for rank in range(world)
                ]  # fmt: skip
                parts = [list(rank) for rank in ranks]
                assert [len(rank) for rank in ranks] == [len(part) for part in parts]
                assert all(0 < len(piece) <= batch for part in parts for piece in part)
                seen = [i for part in parts for piece in part for i in piece.tolist()]
                assert sorted(seen) == list(range(total))


def test_training_drops_other_samples_in_each_epoch() -> None:
    schedule = BatchSchedule(
        13, batch_size=2, rank=0, world_size=1, global_batch=4, seed=0, training=True
    )
    assert schedule.num_samples == 12 and len(schedule) == 6
    dropped = set()
    for epoch in range(20):
        schedule.set_position(epoch, 0)
        seen = np.concatenate(list(schedule)).tolist()
        assert len(set(seen)) == 12
        dropped |= set(range(13)) - set(seen)
    assert len(dropped) > 5


@pytest.mark.parametrize(
    "epoch, samples", [(0, 3), (0, 4), (0, -8), (-1, 0), (0, 32), (1, 25)], ids=str
)
def test_positions_between_steps_are_refused(epoch: int, samples: int) -> None:
    schedule = BatchSchedule(
        26, batch_size=4, rank=0, world_size=1, global_batch=8, seed=0, training=True
    )
    with pytest.raises(ValueError, match=f"multiple of 8 .* up to 24, .* {epoch}, .* {samples}"):
        schedule.set_position(epoch, samples)


def test_numbers_that_do_not_fit() -> None:
    options = {"batch_size": 4, "rank": 0, "world_size": 2, "seed": 0}
    with pytest.raises(DataError, match=r"26 training .* of 32 \(2 devices x 4 x 4 accum.*reduce"):
        BatchSchedule(26, global_batch=32, training=True, **options)
    with pytest.raises(DataError, match="no validation image"):
        BatchSchedule(0, global_batch=0, training=False, **options)
    for wrong in (0, 4, 12):
        with pytest.raises(ValueError, match="multiple of world_size"):
            BatchSchedule(26, global_batch=wrong, training=True, **options)
    with pytest.raises(ValueError, match="rank"):
        BatchSchedule(26, global_batch=8, training=True, **options | {"rank": 2})


# --- the same samples on any number of ranks and workers ------------------------------------------


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_a_step_holds_the_same_samples(index: ImageIndex, world: int, workers: int) -> None:
    expected = BatchSchedule(
        NUM_IMAGES, batch_size=8, rank=0, world_size=1, global_batch=8, seed=3, training=True
    )
    ranks = [
        make(index, batch_size=8 // world, rank=rank, world_size=world, workers=workers)
        for rank in range(world)
    ]
    assert all(rank.num_samples == 24 and len(rank) == 3 for rank in ranks)
    steps = zip(*(numbers(rank) for rank in ranks), strict=True)
    assert [[i for part in step for i in part] for step in steps] == [
        step.tolist() for step in expected
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ_and_follow_each_other(index: ImageIndex, workers: int) -> None:
    loader = make(index, workers=workers)
    epochs = [[colours(images) for images, _ in loader] for _ in range(2)]
    assert epochs[0] != epochs[1]
    loader.set_position(1, 0)
    assert numbers(loader) == epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_position_gives_the_rest_of_the_epoch(index: ImageIndex, workers: int) -> None:
    loader = make(index, batch_size=2, workers=workers)
    loader.set_position(5, 0)
    whole = [colours(images) for images, _ in loader]
    for samples in (16, 8, 24, 0):
        loader.set_position(5, samples)
        assert len(loader) == 12 - samples // 2
        assert [colours(images) for images, _ in loader] == whole[samples // 2 :]
    loader.set_position(5, 8)
    for images, _ in loader:
        assert colours(images) == whole[4]
        break
    assert len(loader) == 8, "an abandoned loop leaves the position where it was"
    assert numbers(loader) == whole[4:]


def test_augmentation_does_not_depend_on_workers_ranks_or_resume(photos: ImageIndex) -> None:
    preset = TrainPreset(image_size=24)
    loaders = [make(photos, preset, batch_size=4, global_batch=4, workers=w) for w in (0, 1, 2)]
    first, *others = [torch.cat([images for images, _ in loader]) for loader in loaders]
    assert all(torch.equal(first, other) for other in others)
    second_epoch = torch.cat([images for images, _ in loaders[0]])
    assert not torch.equal(second_epoch.sort(0)[0], first.sort(0)[0])
    for loader in loaders:
        loader.close()
    ranks = [
        make(photos, preset, batch_size=2, world_size=2, global_batch=4, rank=r) for r in (0, 1)
    ]
    parts = [[images for images, _ in rank] for rank in ranks]
    assert torch.equal(torch.cat([p for pair in zip(*parts, strict=True) for p in pair]), first)
    resumed = make(photos, preset, batch_size=4, global_batch=4)
    resumed.set_position(0, 8)
    assert torch.equal(torch.cat([images for images, _ in resumed]), first[8:])


def test_policy_is_seeded_per_sample_and_seen_by_nobody_else(photos: ImageIndex) -> None:
    pytest.importorskip("torchvision")
    preset = TrainPreset(image_size=24, policy="autoaugment")
    plain = torch.cat([x for x, _ in make(photos, TrainPreset(image_size=24), global_batch=4)])
    results = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        loader = make(photos, preset, global_batch=4, workers=workers)
        results.append(torch.cat([images for images, _ in loader]))
        loader.close()
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)
    changed = [not torch.equal(a, b) for a, b in zip(results[0], plain, strict=True)]
    assert sum(changed) > 6


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_on_ranks_with_fewer_or_no_images(index: ImageIndex, workers: int) -> None:
    ranks = [
        make(index, EVAL, batch_size=10, world_size=3, rank=rank, workers=workers)
        for rank in range(3)
    ]
    assert ranks[0].num_samples == NUM_IMAGES
    parts = [numbers(rank) for rank in ranks]
    assert parts == [[[*range(10)]], [[*range(10, 20)]], [[*range(20, 26)]]]
    empty = make(index, EVAL, batch_size=13, world_size=3, rank=2, workers=workers)
    assert len(empty) == 0 and numbers(empty) == []


def test_workers_of_a_fork_server(photos: ImageIndex) -> None:
    loader = make(photos, batch_size=4, workers=2, device=HostDevice(accelerator=True))
    expected = torch.cat([images for images, _ in make(photos, batch_size=4)])
    assert torch.equal(torch.cat([images for images, _ in loader]), expected)
    processes = loader._loader._iterator._workers
    assert all(type(process).__name__ == "ForkServerProcess" for process in processes)
    loader.close()
    assert not any(process.is_alive() for process in processes)


# --- on the device ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normalised_as_by_torchvision(dtype, memory_format) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = torch.arange(256).repeat(3, 2, 1).permute(1, 2, 0).reshape(2, 16, 16, 3)
    pixels = pixels.to(torch.uint8)
    reference = transforms.Compose([
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    expected = torch.stack([reference(image) for image in pixels.numpy()])
    ours = DeviceFeeder(HostDevice(), dtype=dtype, memory_format=memory_format).normalize(pixels)
    assert ours.dtype == dtype and ours.shape == (2, 3, 16, 16)
    assert ours.is_contiguous(memory_format=memory_format)
    error = (ours.double() - expected.double()).abs().max().item()
    assert error < (1e-5 if dtype == torch.float32 else 2.64 * torch.finfo(dtype).eps)


def test_side_stream_runs_one_batch_ahead() -> None:
    device = StreamDevice()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i in range(3):
            device.calls.append(f"read {i}")
            yield torch.full((1, 2, 2, 3), i, dtype=torch.uint8), torch.tensor([i])

    feeder = DeviceFeeder(device, dtype=torch.float32, memory_format=torch.contiguous_format)
    for _, target in feeder(batches()):
        device.calls.append(f"use {int(target)}")
    copy, hand_over = ["enter side", "leave"], ["wait side", "record", "record"]
    assert device.calls == [
        "read 0", *copy,
        "read 1", *hand_over, *copy, "use 0",
        "read 2", *hand_over, *copy, "use 1",
        *hand_over, "use 2",
    ]  # fmt: skip
    assert list(feeder([])) == []


def test_streams_change_no_value(photos: ImageIndex) -> None:
    direct = list(make(photos, batch_size=4))
    streamed = list(make(photos, batch_size=4, device=StreamDevice()))
    assert len(direct) == len(streamed) == 2
    for (images, target), (other_images, other_target) in zip(direct, streamed, strict=True):
        assert torch.equal(images, other_images) and torch.equal(target, other_target)


# --- synthetic ----------------------------------------------------------------------------------


def test_synthetic_epochs_end_and_follow_the_slices() -> None:
    source = SyntheticIndex(num_samples=100, num_classes=7)
    whole = make(source, backend="synthetic", batch_size=48, global_batch=48, dtype=torch.float16)
    assert whole.num_samples == 96 and len(whole) == 2
    batches = list(whole)
    assert len(batches) == 2
    images = torch.cat([x for x, _ in batches])
    target = torch.cat([y for _, y in batches])
    assert images.shape == (96, 3, 16, 16) and images.dtype == torch.float16
    assert target.min() >= 0 and target.max() < 7 and len(target.unique()) > 4
    assert images.unique(dim=0).shape[0] == 32
    assert abs(images.float().mean()) < 0.5 and 1 < images.float().std() < 2
    ranks = [
        make(source, backend="synthetic", batch_size=12, rank=r, world_size=2, global_batch=48)
        for r in range(2)
    ]
    parts = [[y for _, y in rank] for rank in ranks]
    assert torch.equal(torch.cat([y for pair in zip(*parts, strict=True) for y in pair]), target)
    whole.set_position(4, 48)
    assert torch.equal(next(iter(whole))[1], target[48:])
    val = make(source, EVAL, backend="synthetic", batch_size=30)
    assert [len(y) for _, y in val] == [30, 30, 30, 10]


def test_synthetic_batches_cost_no_memory() -> None:
    loader = make(SyntheticIndex(400, 5), backend="synthetic", memory_format=torch.channels_last)
    storages = {images.untyped_storage().data_ptr() for images, _ in loader}
    assert len(storages) == 1
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x, _ in loader)


def test_synthetic_stands_in_for_a_real_index(index: ImageIndex) -> None:
    loader = make(index, backend="synthetic")
    assert loader.num_samples == 24 and len(list(loader)) == 6


def test_workers_hold_no_index(index: ImageIndex) -> None:
    loader = make(index, workers=1)
    held = pickle.dumps(loader._loader.dataset)
    assert len(held) < 500 and b".png" not in held and os.fsencode(index.root) not in held


def test_waiting_for_data_is_explained(index: ImageIndex) -> None:
    row = {"train.data_wait": 34.4, "train.total_ips": 656.0, "train.compute_ips": 1000.0}
    loader = make(index, batch_size=1, global_batch=1, workers=5)
    assert loader.explain_waiting({**row, "train.data_wait": 9.9}) is None
    assert loader.explain_waiting({**row, "train.data_wait": None}) is None
    assert loader.explain_waiting(row) == (
        "34 % of the time went into waiting for images: the loader gave 656 images/s, the network "
        "could take 1000; take --data-backend fast, or more worker processes than 5, up to "
        f"{usable_cores()} (-j)"
    )
    assert loader.explain_waiting(row) is None
    loader.set_position(1, 0)
    assert loader.explain_waiting(row) is not None
    loader.close()
    assert make(index).explain_waiting(row) is None  # an epoch of a few batches
    assert make(index, backend="synthetic", batch_size=1).explain_waiting(row) is None
