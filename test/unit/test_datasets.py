# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Folders, list files, agreement of train and val, built-in data sets, and every error text."""

from __future__ import annotations

import builtins
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification import datasets, list_files, samples
from image_classification.data_index import ImageIndex
from image_classification.datasets import load_split, load_splits, match_classes, prepare_sample
from image_classification.errors import DataError, UsageError, printable


def touch(root: Path, *names: str) -> Path:
    """Create empty files; only their names matter to an index."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write_list(root: Path, split: str, *lines: str | bytes) -> None:
    content = [line if isinstance(line, bytes) else line.encode() for line in lines]
    (root / f"{split}.txt").write_bytes(b"".join(line + b"\n" for line in content))


def pairs(index: ImageIndex) -> list[tuple[str, int]]:
    relative = [os.path.relpath(index.path(i), index.root) for i in range(len(index))]
    return list(zip(relative, index.labels.tolist(), strict=True))


def fails(message: str, data: Path, **options) -> str:
    """Load both splits, which must fail with one line; return it."""
    options = {"train": True, "val": True} | options
    with pytest.raises(DataError, match=message) as caught:
        load_splits(data, **options)
    text = str(caught.value)
    assert text.isprintable(), "the message must be one line without control characters"
    return text


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes, two training images and one validation image each, as folders."""
    names = ["train/cat/1.jpg", "train/cat/2.JPEG", "train/dog/3.png", "train/dog/4.jpg"]
    return touch(tmp_path, *names, "val/cat/5.jpg", "val/dog/6.jpg")


# --- folders ------------------------------------------------------------------------------------


def test_folders(pets: Path) -> None:
    splits = load_splits(pets, train=True, val=True)
    assert splits.classes == ["cat", "dog"] and splits.num_classes == 2
    assert splits.warnings == []
    expected = [("cat/1.jpg", 0), ("cat/2.JPEG", 0), ("dog/3.png", 1), ("dog/4.jpg", 1)]
    assert pairs(splits.train) == expected
    assert pairs(splits.val) == [("cat/5.jpg", 0), ("dog/6.jpg", 1)]
    assert splits.train.labels.dtype == np.int64
    assert (splits.train.source, splits.train.split, splits.val.split) == ("folder", "train", "val")
    prefix = os.fsencode(pets / "val")
    assert splits.val.paths(np.array([1, 0])) == [prefix + b"/dog/6.jpg", prefix + b"/cat/5.jpg"]


def test_only_what_is_asked_for_is_read(pets: Path) -> None:
    (pets / "val").rename(pets / "elsewhere")
    splits = load_splits(pets, train=True, val=False)
    assert splits.val is None and len(splits.train) == 4
    with pytest.raises(ValueError, match="neither"):
        load_splits(pets, train=False, val=False)


def test_order_is_that_of_torchvision(tmp_path: Path) -> None:
    folder = pytest.importorskip("torchvision.datasets").ImageFolder
    names = ["b/2.jpg", "b/10.jpg", "b/B.jpg", "b/sub-1/1.jpg", "b/sub/1.jpg", "b/sub/deep/0.png"]
    names += ["b/sub/deep/x.txt", "b/sub.d/1.jpg", "B/1.webp", "\u00e4/1.tif", "10/a b.bmp"]
    touch(tmp_path / "train", *names)
    ours = load_split(tmp_path, "train")
    theirs = folder(str(tmp_path / "train"))
    assert ours.classes == theirs.classes
    assert [(ours.path(i), int(ours.labels[i])) for i in range(len(ours))] == theirs.samples


def test_hidden_files_and_folders_are_ignored(pets: Path) -> None:
    touch(pets, "train/.ipynb_checkpoints/x.jpg", "train/cat/.1.jpg", "train/cat/.cache/2.jpg")
    touch(pets, "train/.DS_Store", "train/README.txt", "train/cat/notes.txt")
    assert len(load_split(pets, "train")) == 4
    assert load_split(pets, "train").classes == ["cat", "dog"]


def test_links_are_followed_but_not_for_ever(pets: Path, tmp_path_factory) -> None:
    elsewhere = touch(tmp_path_factory.mktemp("other"), "bird/7.jpg", "more/8.jpg")
    (pets / "train/bird").symlink_to(elsewhere / "bird")
    (pets / "train/cat/more").symlink_to(elsewhere / "more")
    (pets / "train/cat/up").symlink_to(pets / "train/cat")
    (pets / "train/cat/self").symlink_to("self")
    index = load_split(pets, "train")
    assert index.classes == ["bird", "cat", "dog"]
    assert [path for path, _ in pairs(index)][:4] == [
        "bird/7.jpg", "cat/1.jpg", "cat/2.JPEG", "cat/more/8.jpg"
    ]  # fmt: skip


def test_numeric_names_that_sort_as_text_are_pointed_out(tmp_path: Path) -> None:
    names = [f"{split}/{name}/x.jpg" for split in ("train", "val") for name in range(11)]
    splits = load_splits(touch(tmp_path, *names), train=True, val=True)
    assert splits.classes[:3] == ["0", "1", "10"]
    assert len(splits.warnings) == 1
    assert "label 2 is class 10, not 2" in splits.warnings[0]


def test_memory_per_image_is_its_path_and_16_bytes(tmp_path: Path) -> None:
    touch(tmp_path, *[f"train/c{i % 3}/image_{i:05d}.jpg" for i in range(300)])
    index = load_split(tmp_path, "train")
    arrays = (index.labels, index.path_bytes, index.path_offsets)
    assert sum(a.nbytes for a in arrays) == 300 * (len("c0/image_00000.jpg") + 16) + 8


def test_empty_class(pets: Path) -> None:
    touch(pets, "train/bird/readme.txt")
    fails("1 of 3 class folders hold no image: bird; remove them or add images", pets)


def test_classes_that_differ(pets: Path) -> None:
    touch(pets, "train/bird/1.jpg", "train/cow/1.jpg", "train/eel/1.jpg", "train/fox/1.jpg")
    fails("4 of 6 train classes are not in val: bird, cow, eel and 1 more; .*same class", pets)
    touch(pets, "val/zebra/1.jpg")
    fails("1 of 3 val classes are not in train: zebra;", pets)


def test_num_classes(pets: Path) -> None:
    assert load_splits(pets, train=True, val=True, num_classes=2).num_classes == 2
    for wrong in (1, 3, 1000):
        text = fails(f"--num-classes {wrong} contradicts", pets, num_classes=wrong)
        assert "2 classes" in text


def test_missing_folders_and_hints(tmp_path: Path) -> None:
    data = tmp_path / "set"
    fails("set does not exist", data)
    touch(tmp_path, "set/labels.csv", "file")
    fails("file is not a folder", tmp_path / "file")
    fails("neither train/ nor train.txt; found: labels.csv; expected", data)
    touch(data, "train/cat/1.jpg", "validation/cat/1.jpg")
    fails("neither val/ nor val.txt, but validation/; rename it: mv validation val", data)
    (data / "validation").rename(data / "test")
    fails("but test/", data)
    fails("give the folder above it: .*set$", data / "train")
    touch(data, "val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG")
    fails("2 images lie directly in this folder.*ILSVRC.*val.txt", data)
    (tmp_path / "bare/train").mkdir(parents=True)
    fails("train: empty", tmp_path / "bare")


def test_unreadable_folder(pets: Path, monkeypatch) -> None:
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    fails(r"dog: cannot read this folder \(Permission denied\)", pets)


def test_layout(pets: Path) -> None:
    fails("train.txt does not exist; the layout 'list' needs", pets, layout="list")
    write_list(pets, "train", "cat/1.jpg 0", "dog/3.png 1")
    assert len(load_split(pets, "train", "auto")) == 2
    assert len(load_split(pets, "train", "folder")) == 4
    with pytest.raises(ValueError, match="auto, folder, list"):
        load_split(pets, "train", "tar")


# --- list files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "{split}/", "./"])
def test_lists_as_in_the_documents(pets: Path, prefix: str) -> None:
    base = prefix.format(split="train")
    write_list(pets, "train", f"{base}dog/3.png 0", f"{base}cat/1.jpg 1", f"{base}cat/2.JPEG 1")
    write_list(pets, "val", f"{prefix.format(split='val')}cat/5.jpg 1")
    splits = load_splits(pets, train=True, val=True)
    assert splits.classes == ["dog", "cat"]
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert [os.path.relpath(splits.train.path(i), pets) for i in range(3)] == [
        "train/dog/3.png", "train/cat/1.jpg", "train/cat/2.JPEG"
    ]  # fmt: skip
    assert splits.val.labels.tolist() == [1]
    assert splits.warnings == ["1 of 2 train classes are not in val: dog"]
    assert splits.train.source == "list"


def test_white_space_comments_duplicates_and_odd_names(tmp_path: Path) -> None:
    odd = b"a/\xff\x1b[31m.jpg"
    touch(tmp_path, "train/a/my cat 1.jpg", f"train/{os.fsdecode(odd)}", "train/b/2.jpg")
    write_list(
        tmp_path, "train", b"\xef\xbb\xbf# path label", "", "a/my cat 1.jpg\t 0\r", "   ",
        odd + b" 0", "b/2.jpg 1", "b/2.jpg 1",
    )  # fmt: skip
    index = load_split(tmp_path, "train")
    assert index.labels.tolist() == [0, 0, 1, 1]
    assert all(os.path.isfile(index.path(i)) for i in range(4))
    assert index.paths([1]) == [os.fsencode(tmp_path) + b"/train/" + odd]


def test_flat_val_with_folders_for_train(pets: Path) -> None:
    (pets / "val/cat/5.jpg").rename(pets / "val/5.jpg")
    (pets / "val/dog/6.jpg").rename(pets / "val/6.jpg")
    write_list(pets, "val", "6.jpg 1", "5.jpg 0")
    splits = load_splits(pets, train=True, val=True)
    assert splits.classes == ["cat", "dog"] == splits.val.classes
    assert pairs(splits.val) == [("6.jpg", 1), ("5.jpg", 0)]
    write_list(pets, "val", "6.jpg 1", "5.jpg 2")
    fails("val.txt has labels up to 2, but train has 2 classes", pets)


def test_val_numbers_follow_train_by_folder_name(pets: Path) -> None:
    write_list(pets, "train", "dog/3.png 0", "cat/1.jpg 1")
    splits = load_splits(pets, train=True, val=True)  # val is a folder: cat, dog
    assert splits.classes == ["dog", "cat"]
    assert pairs(splits.val) == [("cat/5.jpg", 1), ("dog/6.jpg", 0)]
    write_list(pets, "val", "cat/5.jpg 0", "dog/6.jpg 1")  # numbered the other way round
    splits = load_splits(pets, train=True, val=True)
    assert pairs(splits.val) == [("cat/5.jpg", 1), ("dog/6.jpg", 0)]
    assert "numbers the class folders differently" in splits.warnings[0]


def test_class_names_as_labels(pets: Path) -> None:
    write_list(pets, "train", "dog/3.png dog", "cat/1.jpg cat", "cat/2.JPEG cat")
    write_list(pets, "val", "dog/6.jpg dog", "cat/5.jpg cat")
    splits = load_splits(pets, train=True, val=True)
    assert splits.classes == ["cat", "dog"]
    assert splits.train.labels.tolist() == [1, 0, 0]
    assert splits.val.labels.tolist() == [1, 0]
    write_list(pets, "val", "dog/6.jpg puma")
    fails("1 of 1 val classes are not in train: puma", pets)


def test_class_names_of_numbers(tmp_path: Path) -> None:
    touch(tmp_path, *[f"train/{i}.jpg" for i in range(4)])
    write_list(tmp_path, "train", "0.jpg 0", "1.jpg 2")
    assert load_split(tmp_path, "train").classes == ["0", "1", "2"]
    splits = load_splits(tmp_path, train=True, val=False)
    assert splits.warnings == ["train.txt: 1 of 3 classes have no image in it"]
    assert load_splits(tmp_path, train=True, val=False, num_classes=5).num_classes == 5
    text = fails("--num-classes 2 contradicts", tmp_path, val=False, num_classes=2)
    assert "3 classes (labels up to 2)" in text
    (tmp_path / "classes.txt").write_text("cat\ndog\ngreat white shark\ncow\n")
    named = load_splits(tmp_path, train=True, val=False)
    assert named.classes == ["cat", "dog", "great white shark", "cow"]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    fails("classes.txt: 2 class names, but the lists use labels up to 2", tmp_path, val=False)
    (tmp_path / "classes.txt").write_text("cat\ncrane\ncrane\n")
    fails("class names appear twice: crane", tmp_path, val=False)


@pytest.mark.parametrize(
    "line, message",
    [
        ("dog/3.png", "line 3: expected 'relative/path label'; the line: dog/3.png"),
        ("dog/3.png one", "line 3: expected a number as label"),
        ("dog/3.png 1.5", "line 3: expected a number as label"),
        ("dog/3.png -1", "line 3: negative label"),
        ("dog/3.png 1000000", "line 3: label too large; at most 999999"),
        ("dog/3.png " + "9" * 5000, "line 3: label too large"),
        ("/etc/passwd 0", "line 3: the path must be relative"),
        ("../../etc/passwd 0", "line 3: the path must not leave"),
        ("dog/../../x.jpg 0", "line 3: the path must not leave"),
        (b"dog/\x00.jpg 0", "line 3: the path holds a zero byte"),
        (b"\x1b[31mred\x07", r"the line: \?\[31mred\?"),
        ("dog/missing.jpg 1", "1 of 2 files looked for do not exist below .*: dog/missing.jpg"),
    ],
)
def test_bad_lines(pets: Path, line: str | bytes, message: str) -> None:
    write_list(pets, "train", "# comment", "cat/1.jpg 0", line)
    fails(message, pets)


@pytest.mark.parametrize(("cat", "dog", "eel"), [("0", "1", "2"), ("cat", "dog", "eel")])
def test_an_image_with_two_labels(pets: Path, monkeypatch, cat: str, dog: str, eel: str) -> None:
    lines = [f"cat/1.jpg {cat}", "# comment", "", f"dog/3.png {dog}", f"./cat/1.jpg {cat}"]
    write_list(pets, "train", *lines, f"cat/1.jpg {dog}", f"cat/1.jpg {eel}", f"dog/3.png {cat}")
    fails("two labels, lines 4 and 8: dog/3.png, lines 5 and 6: cat/1.jpg, lines 6 and 7: ", pets)
    write_list(pets, "train", *lines)  # the same label again does no harm
    assert len(load_split(pets, "train")) == 3
    monkeypatch.setattr(list_files, "hash", lambda path: 7, raising=False)
    assert len(load_split(pets, "train")) == 3  # nor do other paths of the same hash


def test_first_line_missing_and_empty_lists(pets: Path) -> None:
    write_list(pets, "train", "cow/1.jpg 0")
    fails("line 1: no such file, neither below .*/train nor below", pets)
    write_list(pets, "train", "# nothing")
    fails("no image in this list", pets)


def test_long_lists_are_only_sampled(pets: Path, monkeypatch) -> None:
    monkeypatch.setattr(list_files, "FULL_CHECK_LINES", 10)
    monkeypatch.setattr(list_files, "SAMPLE_CHECK_LINES", 4)
    lines = ["cat/1.jpg 0"] * 40
    lines[1] = "cat/gone.jpg 0"
    write_list(pets, "train", *lines)
    assert len(load_split(pets, "train")) == 40  # the loader reports that file
    lines[20] = "cat/gone.jpg 0"
    write_list(pets, "train", *lines)
    fails("1 of 4 files looked for do not exist", pets)


def test_labels_of_a_checkpoint(pets: Path) -> None:
    index = load_split(pets, "val")
    matched = match_classes(index, ["eel", "dog", "cat"], "the checkpoint")
    assert matched.labels.tolist() == [2, 1]
    with pytest.raises(DataError, match="1 of 2 val classes are unknown to the checkpoint: cat"):
        match_classes(index, ["dog", "eel"], "the checkpoint")
    touch(pets, "val/5.jpg")
    write_list(pets, "val", "5.jpg 1")
    flat = match_classes(load_split(pets, "val"), ["x", "y", "z"], "the checkpoint")
    assert flat.labels.tolist() == [1] and flat.classes == ["x", "y", "z"]
    adopted = datasets.adopt_classes(
        load_splits(pets, train=True, val=True), ["dog", "cat"], "the checkpoint"
    )
    assert adopted.train.labels.tolist() == [1, 1, 0, 0] and adopted.num_classes == 2


def test_printable() -> None:
    assert printable("a\nb\x1b\udcff") == "a?b??"
    assert printable(b"\xff.jpg") == "?.jpg"
    assert len(printable("x" * 1000)) == 300


# --- built-in data sets -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    pytest.importorskip("sklearn")
    return prepare_sample("digits", tmp_path_factory.mktemp("samples") / "deep" / "digits")


def test_digits(digits: Path) -> None:
    splits = load_splits(digits, train=True, val=True)
    assert splits.classes == [str(digit) for digit in range(10)]
    assert (len(splits.train), len(splits.val)) == (1437, 360)
    assert splits.train.source == "list" and splits.warnings == []
    train, val = np.bincount(splits.train.labels), np.bincount(splits.val.labels)
    assert (np.abs(val - (train + val) / 5) <= 1).all()
    folders = load_splits(digits, train=True, val=True, layout="folder")
    assert (len(folders.train), len(folders.val)) == (1437, 360)
    line = (digits / "train.txt").read_text().splitlines()[0]
    assert line == "0/digit_0010.jpg 0"


def test_digits_show_the_original_pixels(digits: Path) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    index = load_split(digits, "val")
    for i in range(0, 360, 40):
        number = int(index.path(i)[-8:-4])
        assert source.target[number] == index.labels[i]
        image = Image.open(index.path(i))
        assert image.size == (32, 32)
        small = np.asarray(image.resize((8, 8), Image.BOX), dtype=float) * 16 / 255
        assert np.abs(small - source.images[number]).mean() < 1.0


def test_complete_sample_is_reused_and_leaves_nothing_beside(digits: Path) -> None:
    before = (digits / "train.txt").stat().st_mtime_ns
    assert prepare_sample("sample:digits", digits) == digits
    assert (digits / "train.txt").stat().st_mtime_ns == before
    assert os.listdir(digits.parent) == ["digits"]


def tiny_sample(writer) -> samples.Sample:
    return samples.Sample("tiny", "two files", writer, num_images=2, image_size=8)


def write_tiny(folder: Path) -> None:
    touch(folder, "train/0/a.jpg", "val/0/b.jpg")
    write_list(folder, "train", "0/a.jpg 0")
    write_list(folder, "val", "0/b.jpg 0")


def test_racing_ranks(tmp_path: Path, monkeypatch) -> None:
    barrier = threading.Barrier(4, timeout=20)
    written = []

    def write(folder: Path) -> None:
        write_tiny(folder)
        written.append(folder)
        barrier.wait()  # all four are about to rename

    monkeypatch.setitem(samples.SAMPLES, "tiny", tiny_sample(write))
    results: list[Path] = []
    ranks = [
        threading.Thread(target=lambda: results.append(prepare_sample("tiny", tmp_path / "t")))
        for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert results == [tmp_path / "t"] * 4 and len(set(written)) == 4
    assert os.listdir(tmp_path) == ["t"]


def test_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def stop(folder: Path) -> None:
        write_tiny(folder)
        raise KeyboardInterrupt

    monkeypatch.setitem(samples.SAMPLES, "tiny", tiny_sample(stop))
    with pytest.raises(KeyboardInterrupt):
        prepare_sample("tiny", tmp_path / "t")
    assert os.listdir(tmp_path) == []


def test_sample_errors(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UsageError, match="unknown sample 'nothing'; known: digits"):
        prepare_sample("nothing", tmp_path / "x")
    touch(tmp_path, "mine/photo.jpg")
    with pytest.raises(DataError, match=r"mine exists but is not a complete .*\(0 of 1797"):
        prepare_sample("digits", tmp_path / "mine")
    with pytest.raises(DataError, match="cannot be written to"):
        prepare_sample("digits", tmp_path / "mine/photo.jpg/digits")
    import_module = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        prepare_sample("digits", tmp_path / "new")
    assert os.listdir(tmp_path) == ["mine"]
