# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The tools for whole data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from loader_helpers import make
from PIL import Image
from runs import write_images

from image_classification import dataset_tools, packing
from image_classification.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TrainPreset,
    epoch_order,
)
from image_classification.data_processing import examination
from image_classification.datasets import load_splits
from image_classification.errors import DataError
from image_classification.image_reading import read_image
from image_classification.sample_reader import SampleReader


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data", size=80)


def test_a_good_data_set(images: Path, capsys) -> None:
    Image.open(images / "val/class_0/0.jpg").save(images / "val/class_0/0.png")
    assert dataset_tools.main(["check", str(images), "-j", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["train: 24 images in 3 classes", "val: 13 images in 3 classes"]
    assert lines[2].startswith("37 images, 0 cannot be read, 1 are read by Pillow")


@pytest.mark.parametrize("native", [True, False])
def test_damage_is_found_wherever_it_is(images: Path, capsys, monkeypatch, native: bool) -> None:
    if not native:
        monkeypatch.setattr(examination, "load_core", lambda: None)
    cut, empty = images / "train/class_1/3.jpg", images / "val/class_2/1.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])  # the last rows of pixels
    empty.write_bytes(b"")
    listed = images / "bad.txt"
    assert dataset_tools.main(["check", str(images), "--list", str(listed)]) == 3
    out = capsys.readouterr().out
    assert f"cannot read image {cut}: image file is truncated" in out
    assert "36 images, 2 cannot be read" in out
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    assert [line[0] for line in lines] == [str(cut), str(empty)]
    assert lines[0][1].startswith("image file is truncated") and str(cut) not in lines[0][1]


def test_one_split_is_enough(images: Path, capsys) -> None:
    (images / "val").rename(images / "other")
    assert dataset_tools.main(["check", str(images)]) == 0
    assert "Warning: " in capsys.readouterr().out
    assert dataset_tools.main(["check", str(images / "none")]) == 3
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "pack"])
def test_a_split_that_is_there_must_be_whole(images: Path, capsys, command: str) -> None:
    (images / "val.txt").write_text("class_0/nowhere.jpg 0\n")
    target = [str(images.parent / "packed")] if command == "pack" else []
    assert dataset_tools.main([command, str(images), *target]) == 3
    assert "nowhere.jpg" in capsys.readouterr().err
    assert not (images.parent / "packed").exists()


def test_bad_options_are_one_line(images: Path, capsys) -> None:
    for words, text in (
        (["chek"], "COMMAND: invalid choice: 'chek'"),
        (["check", str(images), "-j", "x"], "--workers: invalid int value: 'x'"),
        (["check", str(images), "-j", "9999"], "-j 9999: must be between 1 and 1024"),
        (["check", str(images), "--list", "/none/x"], "--list /none/x cannot be written (No such"),
        (["pack", str(images), "t", "--quality", "0"], "--quality 0: must be between 1 and 95"),
        (["pack", str(images), str(images)], "must not lie in each other"),
        (["pack", str(images), str(images / "p")], "must not lie in each other"),
        (["pack", str(images / "train"), str(images)], "must not lie in each other"),
    ):
        assert dataset_tools.main(words) == 2
        assert text in capsys.readouterr().err
    assert not (images / "p").exists()


# ---- packing -----------------------------------------------------------------------------------


@pytest.fixture
def packed(images: Path, tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 10)
    assert dataset_tools.main(["pack", str(images), str(tmp_path / "packed"),
                               "--short-side", "40", "-j", "2"]) == 0  # fmt: skip
    return tmp_path / "packed"


def test_packed_images_are_read_like_a_folder(images: Path, packed: Path) -> None:
    assert sorted(path.name for path in packed.glob("*.pack")) == [
        "train-00000.pack", "train-00001.pack", "train-00002.pack",
        "val-00000.pack", "val-00001.pack",
    ]  # fmt: skip
    plain = load_splits(images, train=True, val=True)
    small = load_splits(packed, train=True, val=True)
    assert small.classes == plain.classes
    for one, other in ((small.train, plain.train), (small.val, plain.val)):
        assert one is not None and other is not None
        assert one.labels.tolist() == other.labels.tolist()
    assert small.train is not None and plain.train is not None
    with read_image(small.train.path(13)) as image, read_image(plain.train.path(13)) as original:
        assert min(image.size) == 40 and min(original.size) == 80
        shrunk = original.resize(image.size)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(shrunk)).mean() < 12


@pytest.mark.parametrize("backend", ["fast", "pytorch"])
def test_every_backend_reads_packed_images(packed: Path, backend: str) -> None:
    index = load_splits(packed, train=True, val=False).train
    preset = TrainPreset(image_size=24)
    loader = make(index, preset, backend=backend)
    found = torch.cat([images.clone() for images, _ in loader])
    loader.close()
    reader, images = SampleReader(index, preset, 3), np.zeros((24, 24, 24, 3), dtype=np.uint8)
    for place, i in enumerate(epoch_order(3, 0, 24, True)):
        reader.read(0, int(i), images[place])
    expected = (images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert np.abs(found.permute(0, 2, 3, 1).numpy() - expected).mean() < 0.02
    if backend == "fast":
        assert loader.fallbacks == 0


def test_an_interrupted_packing_goes_on(images: Path, packed: Path, capsys) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in packed.glob("*.pack")}
    lost = packed / "train-00001.pack"
    content = lost.read_bytes()
    lost.write_bytes(content[:-1])
    arguments = ["pack", str(images), str(packed), "--short-side", "40"]
    assert dataset_tools.main(arguments) == 0
    assert lost.read_bytes() == content
    again = {path: path.stat().st_mtime_ns for path in packed.glob("*.pack")}
    assert {path for path in stamps if stamps[path] != again[path]} == {lost}
    capsys.readouterr()
    assert dataset_tools.main([*arguments[:-1], "30"]) == 2
    assert "packed from other images or with other settings" in capsys.readouterr().err
    assert all(path.stat().st_mtime_ns == again[path] for path in again)
    for path in packed.glob("*.npz"):
        path.unlink()
    assert dataset_tools.main([*arguments[:-1], "30"]) == 0  # it was never finished
    assert all(path.stat().st_mtime_ns != again[path] for path in again)
    assert dataset_tools.main(["pack", str(packed), str(packed.parent / "twice")]) == 2
    assert "is packed already" in capsys.readouterr().err


def test_packing_again_notices_what_has_changed(images: Path, packed: Path, capsys) -> None:
    arguments = ["pack", str(images), str(packed), "--short-side", "40"]
    shard = packed / "train-00000.pack"
    content = bytearray(shard.read_bytes())
    content[500:520] = bytes(20)
    shard.write_bytes(content)
    (packed / ".train-00000.pack-abc.tmp").write_bytes(b"of a packing that was killed")
    assert dataset_tools.main(arguments) == 0
    assert shard.read_bytes() != content and not list(packed.glob(".*.tmp"))
    source = images / "train/class_0/0.jpg"
    Image.new("RGB", (90, 90)).save(source)
    stamps = {path: path.stat().st_mtime_ns for path in packed.glob("*.pack")}
    assert dataset_tools.main(arguments) == 0
    again = {path: path.stat().st_mtime_ns for path in packed.glob("*.pack")}
    assert {path for path in stamps if stamps[path] != again[path]} == {shard}


def test_a_repaired_image_is_packed(images: Path, tmp_path: Path, capsys) -> None:
    path = images / "train/class_1/3.jpg"
    arguments = ["pack", str(images), str(tmp_path / "packed")]
    good = path.read_bytes()
    path.write_bytes(good[:-60])
    assert dataset_tools.main(arguments) == 0
    assert "train: 23 of 24 images, 1 left out" in capsys.readouterr().out
    path.write_bytes(good)
    assert dataset_tools.main(arguments) == 0
    assert "train: 24 of 24 images, 0 left out" in capsys.readouterr().out


def test_what_cannot_be_read_is_left_out(images: Path, tmp_path: Path, capsys) -> None:
    (images / "train/class_1/3.jpg").write_bytes(b"no image")
    assert dataset_tools.main(["pack", str(images), str(tmp_path / "packed")]) == 0
    out = capsys.readouterr().out
    assert "left out: cannot read image" in out and "train: 23 of 24 images, 1 left out" in out
    index = load_splits(tmp_path / "packed", train=True, val=False).train
    assert index is not None and len(index) == 23 and (index.labels == 1).sum() == 7


def test_damage_to_packed_data_is_one_line(packed: Path) -> None:
    (packed / "val-00001.pack").unlink()
    with pytest.raises(DataError, match=r"val-00001.pack is missing or damaged; pack"):
        load_splits(packed, train=False, val=True)
    (packed / "train.packed.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=r"train.packed.npz is damaged"):
        load_splits(packed, train=True, val=False)


@pytest.mark.parametrize("flags, text", [(["--quality", "96"], "between 1 and 95"),
                                         (["--short-side", "0"], "at least 1")])  # fmt: skip
def test_bad_pack_settings(images: Path, tmp_path: Path, capsys, flags, text) -> None:
    assert dataset_tools.main(["pack", str(images), str(tmp_path / "packed"), *flags]) == 2
    assert text in capsys.readouterr().err


def test_names_that_only_look_packed(tmp_path: Path) -> None:
    """A file whose name ends like a packed image's is nobody's shard."""
    path = tmp_path / "x.pack@1+y"
    Image.new("RGB", (8, 8)).save(path, "PNG")
    assert read_image(path).size == (8, 8)
