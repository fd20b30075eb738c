# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The fast and DALI backends keep the pytorch one's contract: order, draws, positions, bad images.

DALI takes part where it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_helpers import EVAL, TRAIN, HostDevice, StreamDevice, make, write_photos
from PIL import Image

from image_classification.augmentation import IMAGENET_STD, EvalPreset, TrainPreset
from image_classification.bad_images import BadFileLog, BadImages
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import choose_backend
from image_classification.datasets import load_splits
from image_classification.errors import DataError, ImageError, UsageError
from image_classification.fast_loader import native

HAS_DALI = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
FAST = pytest.param(
    "fast", marks=pytest.mark.skipif(not native.kernel_names(), reason="the core is not built")
)
DALI = pytest.param("dali-cpu", marks=pytest.mark.skipif(not HAS_DALI, reason="no NVIDIA DALI"))
own_decoders = pytest.mark.parametrize("backend", [FAST, DALI])
all_backends = pytest.mark.parametrize("backend", [FAST, DALI, "pytorch"])
needs_core = pytest.mark.skipif(not native.kernel_names(), reason="the core is not built")
PHOTO = TrainPreset(image_size=24, scale=(0.3, 1.0))


def write_greys(root: Path, ending: str = "jpg") -> ImageIndex:
    """26 images in two classes; sample i is grey of value 9 i, whatever the crop."""
    for i in range(26):
        path = root / "train" / f"c{i // 13}" / f"{i:02d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20 + i, 45 - i), 9 * i).save(path)
    return load_splits(root, train=True, val=False).train


def read_greys(loader) -> list[list[int]]:
    """The sample indices of each batch; their labels must belong to them."""
    batches = []
    for images, target in loader:
        red = images[:, 0, 5, 5] * IMAGENET_STD[0] + 0.485 * 255
        found = (red / 9).round().int().tolist()
        assert target.tolist() == [number // 13 for number in found]
        batches.append(found)
    loader.close()
    return batches


@pytest.fixture(scope="module")
def greys(tmp_path_factory) -> ImageIndex:
    return write_greys(tmp_path_factory.mktemp("greys"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> ImageIndex:
    return write_photos(tmp_path_factory.mktemp("photos"))


def pixels(loader) -> torch.Tensor:
    """All images of the rest of the epoch, in 0..255 units."""
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    images = torch.cat([images * std for images, _ in loader])
    loader.close()
    return images


# ---- the contract ------------------------------------------------------------------------------


@own_decoders
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_labels_are_the_pytorch_backends(greys, world, workers, backend) -> None:
    for rank in range(world):
        options = {"batch_size": 4 // world, "rank": rank, "world_size": world}
        expected = read_greys(make(greys, **options))
        assert read_greys(make(greys, backend=backend, workers=workers, **options)) == expected


@own_decoders
@pytest.mark.parametrize("preset", [PHOTO, EvalPreset(image_size=24, resize_size=28)])
def test_crops_and_flips_are_those_of_the_pytorch_backend(photos, preset, backend) -> None:
    options = {"batch_size": 4, "global_batch": 4}
    expected = pixels(make(photos, preset, **options))
    found = pixels(make(photos, preset, backend=backend, **options))
    each = (found - expected).abs().mean(dim=(1, 2, 3))
    assert each.max() < 1.0  # a flip or a box of its own would make it 20 or more


@own_decoders
def test_epochs_and_positions(greys, backend) -> None:
    loader = make(greys, backend=backend, batch_size=2)
    loader.set_position(1, 8)
    rest = [images.clone() for images, _ in loader]
    assert len(rest) == 8
    loader.set_position(1, 0)
    assert len(loader) == 12
    whole = [images.clone() for images, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[4:], strict=True))
    third = torch.cat([images for images, _ in loader])  # the position has moved on to epoch 2
    assert not torch.equal(third, torch.cat(whole))
    loader.close()


@own_decoders
def test_validation_on_ranks_with_fewer_or_no_images(greys, backend) -> None:
    seen = []
    for rank in range(3):
        loader = make(greys, EVAL, backend=backend, batch_size=10, rank=rank, world_size=3)
        seen += chain.from_iterable(read_greys(loader))
    assert sorted(seen) == list(range(26))


@own_decoders
def test_an_abandoned_epoch_starts_again(greys, backend) -> None:
    loader = make(greys, backend=backend, batch_size=2)
    first = next(iter(loader))[0].clone()
    again = [images.clone() for images, _ in loader]
    assert torch.equal(first, again[0]) and len(again) == 12
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(loader)


@own_decoders
def test_a_loader_closed_in_its_epoch_yields_nothing_more(greys, backend) -> None:
    loader = make(greys, backend=backend, batch_size=2)
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


@pytest.mark.timeout(60)
@all_backends
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pipe_is_a_bad_image(tmp_path: Path, backend, workers: int) -> None:
    index = write_greys(tmp_path)
    path = tmp_path / "train/c0/05.jpg"
    path.unlink()
    os.mkfifo(path)
    bad = BadImages(26, seed=3)
    loader = make(index, backend=backend, bad=bad, workers=workers)
    read_greys(loader)
    assert bad.paths == {str(path)}


@pytest.mark.timeout(60)
@needs_core
def test_storage_that_hangs_is_told(greys, monkeypatch) -> None:
    wait = native.NativeBatch._wait

    def hang(self: native.NativeBatch, seconds: float) -> bool:
        return seconds < native.STORAGE_TIMEOUT_S and wait(self, seconds)

    monkeypatch.setattr(native.NativeBatch, "_wait", hang)
    loader = make(greys, backend="fast")
    with pytest.raises(DataError, match="no image could be read for 300 s: the storage of the"):
        next(iter(loader))
    loader.close()


@needs_core
def test_threads_end_with_the_loader(greys) -> None:
    before, ours = len(os.listdir("/proc/self/task")), threading.active_count()
    loader = make(greys, backend="fast", workers=4)
    assert len(os.listdir("/proc/self/task")) >= before + 4
    next(iter(loader))
    loader.close()
    assert len(os.listdir("/proc/self/task")) <= before
    assert threading.active_count() == ours


@own_decoders
def test_buffers_are_reused_after_their_copy(greys, backend) -> None:
    device = StreamDevice()
    loader = make(greys, backend=backend, batch_size=2, device=device, prefetch=1)
    assert len([loader.set_position(epoch, 0) or list(loader) for epoch in range(3)]) == 3
    assert device.calls.count("wait for copy") > 20  # 36 batches in a handful of buffers
    assert len(loader._ring._free) <= 6
    loader.close()


@own_decoders
def test_streams_change_no_value(photos, backend) -> None:
    direct = pixels(make(photos, PHOTO, backend=backend))
    assert torch.equal(direct, pixels(make(photos, PHOTO, backend=backend, device=StreamDevice())))


# ---- images that the core does not read --------------------------------------------------------


@own_decoders
def test_other_formats_are_read_by_pillow_and_counted(tmp_path: Path, backend) -> None:
    index = write_greys(tmp_path, "png")
    loader = make(index, backend=backend)
    assert loader.news() is None
    assert read_greys(loader) == read_greys(make(index))
    assert loader.fallbacks == 24
    line = str(loader.news())
    assert "24 images so far were read by Pillow" in line
    assert loader.news() is None
    row = {"train.data_wait": 11.0, "train.total_ips": 5.0, "train.compute_ips": 6.0}
    slow = make(index, backend=backend, batch_size=1, global_batch=1)
    assert "more threads than 1" in str(slow.explain_waiting(row))


@needs_core
def test_progressive_among_baseline(photos, tmp_path: Path) -> None:
    for source in sorted((photos.root).rglob("*.jpg")):
        target = tmp_path / "train" / "0" / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(source)
        image.save(target, quality=95, progressive=int(source.stem) % 3 == 0)
    index = load_splits(tmp_path, train=True, val=False).train
    loader = make(index, PHOTO, backend="fast", global_batch=4)
    expected = pixels(make(index, PHOTO, global_batch=4))
    assert (pixels(loader) - expected).abs().mean() < 0.6
    assert loader.fallbacks == 4


# ---- images that nobody can read ---------------------------------------------------------------


def spoil(root: Path, names: tuple[str, ...]) -> ImageIndex:
    index = write_greys(root)
    for name in names:
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:-40] if "0" in name else b"no image")
    return index


BAD = ("c0/03.jpg", "c0/11.jpg", "c1/22.jpg")


@needs_core
def test_bad_training_images_are_replaced_alike_everywhere(tmp_path: Path) -> None:
    index = spoil(tmp_path, BAD)
    reports: list[tuple[str, ImageError]] = []
    runs = []
    for backend, world in (("fast", 1), ("fast", 2), ("pytorch", 1), ("pytorch", 2)):
        steps: list[list[int]] = [[], [], []]
        for rank in range(world):
            bad = BadImages(26, seed=3, report=lambda *found: reports.append(found))
            loader = make(index, backend=backend, batch_size=8 // world, rank=rank,
                          world_size=world, bad=bad)  # fmt: skip
            for step, batch in zip(steps, read_greys(loader), strict=True):
                step += batch
        runs.append(steps)
    assert all(steps == runs[0] for steps in runs[1:])
    shown = set(chain.from_iterable(runs[0]))
    assert not shown & {3, 11, 22}
    assert {Path(path).name for path, _ in reports} == {"03.jpg", "11.jpg", "22.jpg"}
    assert all("cannot read image" in str(error) for _, error in reports)


@all_backends
def test_each_bad_file_is_reported_once_and_listed(tmp_path: Path, backend) -> None:
    index = spoil(tmp_path, BAD)
    said: list[str] = []
    log = BadFileLog(tmp_path, said.append)
    for _ in range(2):  # two runs in the same folder
        bad = BadImages(26, seed=3, report=log.add)
        loader = make(index, backend=backend, bad=bad)
        for epoch in range(4):
            loader.set_position(epoch, 0)
            list(loader)
        loader.close()
        assert bad.paths == {index.path(3), index.path(11), index.path(22)}
    assert len(said) == 6
    lines = (tmp_path / "bad_files.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == sorted(bad.paths)


def test_the_limit_of_bad_images_is_that_of_the_run(tmp_path: Path) -> None:
    log = BadFileLog(tmp_path, lambda line: None)
    ranks = [BadImages(100, report=log.add, root="/set/train") for _ in range(3)]
    error = ImageError("cannot read", "why")
    for i in range(10):
        ranks[i % 3].record(f"/set/train/{i}", error)
        ranks[0].record(f"/set/train/{i % 3}", error)  # met again in a later epoch
    BadImages(100, report=log.add, root="/set/val").record("/set/val/0", error)
    with pytest.raises(DataError, match="11 of 100 images cannot be read, more than the 10"):
        ranks[1].record("/set/train/10", error)


@all_backends
def test_too_many_bad_images_stop_the_run(tmp_path: Path, backend) -> None:
    index = spoil(tmp_path, tuple(f"c{i // 13}/{i:02d}.jpg" for i in range(11)))
    loader = make(index, backend=backend, bad=BadImages(26, max_bad=0.1, seed=3))
    with pytest.raises(DataError, match=r"11 of 26 images cannot be read, more than the 10 that"):
        for epoch in range(9):
            loader.set_position(epoch, 0)
            list(loader)
    loader.close()


@all_backends
def test_validation_stops_at_the_first_bad_image_unless_told(tmp_path: Path, backend) -> None:
    index = spoil(tmp_path, BAD)
    loader = make(index, EVAL, backend=backend)
    with pytest.raises(DataError, match=r"cannot read image .*/c0/03.jpg"):
        list(loader)
    loader.close()
    loader = make(index, EVAL, backend=backend, bad=BadImages(26, tolerated=True, seed=3))
    assert len(list(chain.from_iterable(read_greys(loader)))) == 26


@own_decoders
def test_a_data_set_of_bad_images(tmp_path: Path, backend) -> None:
    index = spoil(tmp_path, tuple(f"c{i // 13}/{i:02d}.jpg" for i in range(26)))
    loader = make(index, backend=backend, bad=BadImages(26, max_bad=1.0, seed=3))
    with pytest.raises(DataError, match="100 images in a row cannot be read"):
        list(loader)
    loader.close()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@own_decoders
def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch, backend) -> None:
    index = write_greys(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 800)
    loader = make(index, EVAL, backend=backend)
    with pytest.raises(DataError, match="pixels are above the limit of 800"):
        list(loader)
    loader.close()


# ---- the choice of the backend -----------------------------------------------------------------


@needs_core
def test_auto_takes_the_fast_one_where_it_can(monkeypatch) -> None:
    assert choose_backend("auto", None) == ("fast", None)
    assert choose_backend("synthetic", None) == ("synthetic", None)
    monkeypatch.setattr(native, "load_core", lambda: None)
    backend, note = choose_backend("auto", None)
    assert backend == "pytorch" and "python -m image_classification.fast_loader.build" in str(note)
    with pytest.raises(UsageError, match="not built"):
        choose_backend("fast", None)


@needs_core
def test_memory_stays_flat(photos) -> None:
    loader = make(photos, PHOTO, backend="fast", batch_size=4, global_batch=4)
    sizes = []
    for epoch in range(60):
        loader.set_position(epoch, 0)
        list(loader)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
    loader.close()
    assert max(sizes[20:]) - sizes[10] < 4 << 20


@own_decoders
def test_the_device_is_asked_for_pinned_memory(greys, backend) -> None:
    class Pinning(HostDevice):
        can_pin_memory = True

        def __init__(self) -> None:
            super().__init__()
            self.pinned: list[tuple[int, ...]] = []

        def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
            self.pinned.append(tuple(tensor.shape))
            return tensor.clone()

    device = Pinning()
    assert numbers_of(make(greys, TRAIN, backend=backend, device=device)) == 24
    assert (4, 16, 16, 3) in device.pinned and (4,) in device.pinned


def numbers_of(loader) -> int:
    total = sum(len(target) for _, target in loader)
    loader.close()
    return total


@own_decoders
def test_reads_what_numpy_wrote(tmp_path: Path, backend) -> None:
    """End to end on one image whose pixels are known."""
    (tmp_path / "train/a").mkdir(parents=True)
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "train/a/ramp.jpg", quality=100)
    index = load_splits(tmp_path, train=True, val=False).train
    ((images, _),) = list(make(index, EvalPreset(32, 32), backend=backend))
    red = images[0, 0] * IMAGENET_STD[0] + 0.485 * 255
    assert (red - torch.from_numpy(ramp)).abs().max() <= 1.5
