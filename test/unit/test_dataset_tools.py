# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The tools for whole data sets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from runs import write_images

from image_classification import dataset_tools


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
        monkeypatch.setattr(dataset_tools, "load_core", lambda: None)
    cut, empty = images / "train/class_1/3.jpg", images / "val/class_2/1.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])  # the last rows of pixels
    empty.write_bytes(b"")
    listed = images / "bad.txt"
    assert dataset_tools.main(["check", str(images), "--list", str(listed)]) == 3
    out = capsys.readouterr().out
    assert f"cannot read image {cut}: image file is truncated" in out
    assert "36 images, 2 cannot be read" in out
    found = [line.split("\t")[0] for line in listed.read_text().splitlines()]
    assert found == [str(cut), str(empty)]


def test_one_split_is_enough(images: Path, capsys) -> None:
    (images / "val").rename(images / "other")
    assert dataset_tools.main(["check", str(images)]) == 0
    assert "Warning: " in capsys.readouterr().out
    assert dataset_tools.main(["check", str(images / "none")]) == 3
    assert "does not exist" in capsys.readouterr().err


def test_bad_options_are_one_line(capsys) -> None:
    assert dataset_tools.main(["chek"]) == 2
    assert "COMMAND: invalid choice: 'chek'" in capsys.readouterr().err
