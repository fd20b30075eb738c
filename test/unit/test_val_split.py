# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Taking a validation set out of the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import write_images

from image_classification.data_index import scan_class_folders
from image_classification.errors import UsageError
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
