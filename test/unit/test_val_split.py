# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Taking a validation set out of the training images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import write_images

from image_classification import data_sources
from image_classification.data_index import ImageIndex, scan_class_folders
from image_classification.datasets import Splits, load_splits
from image_classification.errors import DataError, UsageError
from image_classification.val_split import lone_classes, split_index, stratified_split


@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_each_class_has_its_share_on_both_sides(share: float) -> None:
    rng = np.random.default_rng(int(1000 * share))
    for _ in range(20):
        labels = rng.choice(rng.permutation(30)[:9], size=rng.integers(1, 300))
        train, val = stratified_split(labels, share, seed=5)
        assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
        assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
        for label in np.unique(labels):
            count, in_val = int((labels == label).sum()), int((labels[val] == label).sum())
            if count == 1:
                assert in_val == 0
            else:
                assert 1 <= in_val <= count - 1
                assert in_val in (1, count - 1) or abs(in_val - count * share) <= 0.5


def test_the_seed_alone_decides() -> None:
    labels = np.repeat(np.arange(5), 40)
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # Pinned: the same images for ever, on any machine and with any numpy.
    assert first[:8].tolist() == [5, 7, 10, 15, 16, 26, 31, 36]
    larger = stratified_split(labels, 0.5, 0)[1]
    assert set(first) < set(larger)


def test_every_image_is_as_likely() -> None:
    labels = np.zeros(20, dtype=np.int64)
    chosen = np.concatenate([stratified_split(labels, 0.25, seed)[1] for seed in range(400)])
    counts = np.bincount(chosen, minlength=20)
    assert counts.sum() == 2000 and counts.min() > 60 and counts.max() < 145  # 100 +- 4.6 sigma


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_bad_share_is_an_error(share: float) -> None:
    with pytest.raises(UsageError, match="must be above 0 and below 1"):
        stratified_split([0, 0], share, 0)


def test_classes_with_one_image_are_named() -> None:
    names = ["cat", "dog", "emu"]
    assert lone_classes([0, 0, 2, 2], names) is None
    line = lone_classes([0, 1, 1, 2], names)
    assert line is not None and line.startswith("2 of 3 classes have one image")
    assert "cat, emu" in line


def test_an_index_is_split_with_its_paths(tmp_path: Path) -> None:
    write_images(tmp_path, train=5, val=1)
    index = scan_class_folders(tmp_path / "train", "train")
    train, val = split_index(index, 0.2, seed=3)
    assert (train.split, val.split, len(train), len(val)) == ("train", "val", 12, 3)
    both = [part.path(i) for part in (train, val) for i in range(len(part))]
    assert sorted(both) == sorted(index.path(i) for i in range(len(index)))
    for part in (train, val):
        for i in range(len(part)):
            assert part.path(i).startswith(f"{tmp_path}/train/class_{part.labels[i]}/")
    (tmp_path / "one/a").mkdir(parents=True)
    (tmp_path / "one/a/0.jpg").touch()
    with pytest.raises(UsageError, match="val would be empty"):
        split_index(scan_class_folders(tmp_path / "one", "train"), 0.5, 0)


# ---- --val-split of the commands


def touch(root: Path, *classes: str, count: int = 4) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").touch()
    return root


def load(data: Path, share: float | None, lists: Path | None = None, say: Any = print) -> Splits:
    return data_sources.load(
        str(data), "folder", train=True, val=True, layout="auto", num_classes=None, samples=data,
        small_side=None, create=False, val_share=share, lists=lists, say=say,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["training/a", "validation/a"], "training/ and no train/: .*mv training train.*below a"),
        (["Train/a", "a"], "holds Train/ and no train/"),
        (["a", "b", "test"], "holds test/ and no val/: .*; if not, put all class folders below a"),
        (["train/a", "TEST/a"], r"holds TEST/ and no val/: .*mv TEST val.*give .*/train as DIR"),
        (["train/a", "valid/a", "test/a"], "holds valid/ and no val/"),
    ],
)
def test_a_split_by_another_name_is_no_class(tmp_path: Path, folders, message: str) -> None:
    touch(tmp_path, *folders)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path, 0.5)
    assert str(caught.value).isprintable()


def test_the_way_out_of_another_name(tmp_path: Path) -> None:
    touch(tmp_path, "train/a", "train/b", "test/a")
    assert load(tmp_path / "train", 0.5).classes == ["a", "b"]
    touch(tmp_path, "all/train/a", "all/train/test")
    assert load(tmp_path / "all", 0.5).classes == ["a", "test"]


def test_a_share_where_val_is_there_changes_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "train/a", "train/b", "val/a", "val/b")
    told: list[str] = []
    load(tmp_path, None, say=told.append)
    assert told == []
    splits = load(tmp_path, 0.5, say=told.append)
    assert told == ["--val-split 0.5 changes nothing: val is there"]
    assert splits.train is not None and len(splits.train) == 8


def test_names_with_line_feeds_stay_out_of_lists(tmp_path: Path) -> None:
    data, lists = touch(tmp_path / "data", "cat", "dog"), tmp_path / "lists"
    for number in range(4):
        (data / f"cat/a{number}\nb.jpg").touch()
    lists.mkdir()
    splits = load(data, 0.5, lists)
    assert splits.train is not None and len(splits.train) == 6
    assert len(splits.warnings) == 2
    for line, split in zip(splits.warnings, ("train", "val"), strict=True):
        assert f" images are not in {split}.txt: line feeds in names: cat/a" in line
        assert line.isprintable()
        (lists / f"{split}.txt").rename(data / f"{split}.txt")
    again = load_splits(data, train=True, val=True)  # as docs/transfer-learning.md says
    whole = [part.path(i) for part in (again.train, again.val) if isinstance(part, ImageIndex)
             for i in range(len(part))]  # fmt: skip
    assert sorted(whole) == sorted(str(path) for path in data.glob("*/?.jpg"))


def test_classes_with_line_feeds_cannot_be_divided(tmp_path: Path) -> None:
    touch(tmp_path, "cat", "do\ng")
    with pytest.raises(DataError, match=r"which no list can hold: do\?g; rename") as caught:
        load(tmp_path, 0.5)
    assert str(caught.value).isprintable()


def test_a_class_called_train_is_pointed_out(tmp_path: Path) -> None:
    touch(tmp_path / "flat", "bus", "car", "train")
    with pytest.raises(DataError, match=r"taken for all training images .*rename the folder, or"):
        load(tmp_path / "flat", 0.5)
    list_file = tmp_path / "flat/bus/train.txt"
    with pytest.raises(DataError, match=f"and nothing says their classes; write {list_file} with"):
        load(tmp_path / "flat/bus", 0.5)


def test_errors_name_the_share(tmp_path: Path) -> None:
    touch(tmp_path, "cat", "dog")
    with pytest.raises(DataError, match=r"nothing but class folders, --val-split 0.2 divides them"):
        load(tmp_path, None)
    touch(tmp_path, "train/cat", "train/dog")
    with pytest.raises(DataError, match=r"--val-split 0.2 takes it out of train"):
        load(tmp_path, None)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"val: empty; .*; or remove it: main.py --val-split 0.2"):
        load(tmp_path, 0.2)


def test_a_network_is_judged_on_the_images_held_out(tmp_path: Path) -> None:
    touch(tmp_path, "cat", "dog", count=10)
    trained = load(tmp_path, 0.3)
    found = data_sources.load_for_network(
        str(tmp_path), ["cat", "dog"], train=True, val_share=0.3, samples=tmp_path, say=print
    )
    for one, other in ((found.train, trained.train), (found.val, trained.val)):
        assert isinstance(one, ImageIndex) and isinstance(other, ImageIndex)
        assert one.paths(range(len(one))) == other.paths(range(len(other)))
