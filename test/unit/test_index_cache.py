# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The index of a large folder tree is remembered, and only while it is true."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image_classification import data_index, datasets, index_cache
from image_classification.data_index import ImageIndex
from image_classification.datasets import load_split


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_cache, "WORTH_CACHING", 10)
    for name in ("a", "b/deep", "c\udcff"):
        folder = tmp_path / "data/train" / name
        folder.mkdir(parents=True)
        for i in range(5):
            (folder / f"{i}.jpg").touch()
    settle(tmp_path / "data")
    return tmp_path / "data"


def settle(root: Path) -> None:
    """As if nobody had touched the folders for a minute."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 60, time.time() - 60))


def no_scan(*arguments: object) -> ImageIndex:
    raise AssertionError("the folders were scanned again")


def same(one: ImageIndex, other: ImageIndex) -> bool:
    return one.classes == other.classes and one.root == other.root and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("labels", "path_bytes", "path_offsets")
    )  # fmt: skip


def test_the_second_start_scans_nothing(data: Path, monkeypatch) -> None:
    scanned = load_split(data, "train")
    before = sorted(path.name for path in data.rglob("*"))
    monkeypatch.setattr(datasets, "scan_class_folders", no_scan)
    assert same(load_split(data, "train"), scanned)
    assert len(scanned) == 15 and scanned.classes[-1] == "c\udcff"
    assert sorted(path.name for path in data.rglob("*")) == before  # nothing in the data set


CHANGES: dict[str, Callable[[Path], object]] = {
    "added file": lambda train: (train / "a/9.jpg").touch(),
    "removed file": lambda train: (train / "b/deep/0.jpg").unlink(),
    "renamed file": lambda train: (train / "a/0.jpg").rename(train / "a/x.jpg"),
    "renamed folder": lambda train: (train / "b/deep").rename(train / "b/other"),
    "added class": lambda train: ((train / "d").mkdir(), (train / "d/0.jpg").touch()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_seen(data: Path, change: str) -> None:
    before = load_split(data, "train")
    CHANGES[change](data / "train")
    assert not same(load_split(data, "train"), before)


def test_folders_that_are_being_written_are_not_remembered(data: Path, monkeypatch) -> None:
    (data / "train/a/new.jpg").touch()
    load_split(data, "train")
    monkeypatch.setattr(datasets, "scan_class_folders", no_scan)
    with pytest.raises(AssertionError):
        load_split(data, "train")


def test_a_file_that_arrives_during_the_scan_is_seen(data: Path, monkeypatch) -> None:
    """It comes into a folder that has been read already."""
    read = data_index._class_images

    def slow(folder: str, *arguments: Any) -> list[str]:
        found = read(folder, *arguments)
        (Path(folder) / "late.jpg").touch()
        return found

    monkeypatch.setattr(data_index, "_class_images", slow)
    assert len(load_split(data, "train")) == 15
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(data.parent / "cache"))
    assert len(load_split(data, "train")) == 18


def test_relative_paths_mean_the_folder_that_was_scanned(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load_split(Path("data"), "train")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copytree(data, tmp_path / "elsewhere/data")  # keeps all times
    (data / "train/a/new.jpg").touch()
    monkeypatch.chdir(copy.parent)
    assert len(load_split(data, "train")) == 16


CONTENTS = [b"", b"not an archive", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\0\x02\0{}"]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_damaged_cache_is_made_anew(data: Path, tmp_path: Path, content: bytes) -> None:
    scanned = load_split(data, "train")
    (file,) = (tmp_path / "cache/image_classification").iterdir()
    file.write_bytes(content)
    assert same(load_split(data, "train"), scanned)
    assert file.read_bytes() != content


def test_a_cache_that_cannot_be_written_is_no_problem(data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_split(data, "train")) == 15


def test_small_sets_leave_nothing_behind(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(index_cache, "WORTH_CACHING", 16)
    load_split(data, "train")
    assert not (tmp_path / "cache").exists()
