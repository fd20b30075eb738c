# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From a folder of one's own images to a data set: `dataset_tools process`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from imagenet_archives import jpeg, picture
from PIL import Image
from processing_helpers import lines, process, report, tree, write_class
from runs import ROOT

from image_classification.data_processing import examination, placing, processing
from image_classification.datasets import load_split, load_splits
from image_classification.list_files import is_our_list, read_image_list, write_image_list


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with one folder per class and nothing else: 10, 4 and 1 images."""
    for start, (name, count) in enumerate((("rose", 10), ("my tulip", 4), ("#1", 1))):
        write_class(tmp_path / "own" / name, range(100 * start, 100 * start + count))
    return tmp_path / "own"


# ---- one's own images


def test_class_folders_are_split_and_listed(own: Path, capsys) -> None:
    before = tree(own)
    process(own)
    out = capsys.readouterr().out
    assert "train: 13 images in 3 classes, 1 to 9 per class" in out
    assert "val: 2 images in 2 classes, 1 to 1 per class" in out
    assert "note: 1 of 3 classes have one image, which stays in train; val has none of #1" in out
    splits = load_splits(own, train=True, val=True)
    assert splits.classes == ["#1", "my tulip", "rose"]
    assert splits.train is not None and splits.val is not None
    paths = [part.path(i) for part in (splits.train, splits.val) for i in range(len(part))]
    assert sorted(paths) == sorted(str(own / name) for name in before)
    for part in (splits.train, splits.val):
        for i in range(len(part)):
            assert Path(part.path(i)).parent.name == splits.classes[part.labels[i]]
    after = tree(own)
    made = {"train.txt", "val.txt", "classes.txt", "data_report.txt", "data_report.json"}
    assert set(after) - set(before) == made and {**after, **before} == after
    process(own)
    assert tree(own) == after
    process(own, "--val-share", "0.5", "--seed", "7")
    assert len(lines(own / "val.txt")) == 5 + 2
    assert report(own)["val_share"] == 0.5 and report(own)["seed"] == 7


def test_class_names_follow_the_folders_unless_they_are_the_users(own: Path, capsys) -> None:
    process(own)
    write_class(own / "zinnia", range(300, 303))
    process(own)
    assert (own / "classes.txt").read_text() == "#1\nmy tulip\nrose\nzinnia\n"
    (own / "classes.txt").write_text("one\ntwo\nthree\nfour\n")
    process(own)
    assert "note: classes.txt is yours and stays" in capsys.readouterr().out
    assert (own / "classes.txt").read_text() == "one\ntwo\nthree\nfour\n"


def test_train_without_val_is_split(own: Path) -> None:
    parent = own.parent / "parent"
    parent.mkdir()
    own.rename(parent / "train")
    process(parent)
    splits = load_splits(parent, train=True, val=True)
    assert splits.classes == ["#1", "my tulip", "rose"]
    val = load_split(parent, "val")  # as for an evaluation, without the training images
    assert splits.val is not None and len(val) == len(splits.val) == 2
    assert [val.classes[label] for label in val.labels] == ["my tulip", "rose"]


def test_another_folder_gets_links(own: Path, tmp_path: Path) -> None:
    before = tree(own)
    process(own, tmp_path / "target")
    assert tree(own) == before
    source, target = own / "rose/3.jpg", tmp_path / "target/train/rose/3.jpg"
    assert source.samefile(target)
    (own / "rose/link.jpg").symlink_to("3.jpg")
    process(own, tmp_path / "second")
    assert source.samefile(tmp_path / "second/train/rose/link.jpg")
    (own / "rose/lost.jpg").symlink_to("nowhere.jpg")
    process(own, tmp_path / "third", expect=3)


def test_another_disk_gets_copies(own: Path, tmp_path: Path, monkeypatch) -> None:
    def other_disk(source: str, target: str) -> None:
        raise OSError(placing.errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(placing.os, "link", other_disk)
    process(own, tmp_path / "target")
    source, target = own / "rose/3.jpg", tmp_path / "target/train/rose/3.jpg"
    assert not source.samefile(target) and source.read_bytes() == target.read_bytes()


def test_unreadable_and_mislabelled_files_are_named(own: Path, capsys) -> None:
    cut, empty = own / "rose/2.jpg", own / "rose/3.jpg"
    cut.write_bytes(cut.read_bytes()[:-60])
    empty.write_bytes(b"")
    picture(1).save(own / "rose/png.jpg", "PNG")
    picture(2).save(own / "rose/fine.png")
    (own / "rose/notes.heic").write_bytes(b"x")
    process(own)
    out = capsys.readouterr().out
    found = report(own)["splits"]["train"]
    assert [path for path, _ in found["unreadable"]] == [str(cut), str(empty)]
    assert [*found["wrong_ending"], *report(own)["splits"]["val"]["wrong_ending"]] == [
        [str(own / "rose/png.jpg"), "PNG"]
    ]
    assert "train: 1 files are no images by name: 1 .heic" in out
    listed = [line.rsplit(" ", 1)[0] for name in ("train.txt", "val.txt")
              for line in lines(own / name)]  # fmt: skip
    assert "rose/2.jpg" not in listed and "rose/3.jpg" not in listed
    assert Counter(line.split("/")[0] for line in listed if "rose" in line)["rose"] == 10


def test_equal_files_are_named_and_stay_on_one_side(own: Path, capsys) -> None:
    for number in range(20, 30):
        (own / f"rose/{number}.jpg").write_bytes(jpeg(0))
    (own / "my tulip/wrong.jpg").write_bytes(jpeg(0))
    process(own, "--val-share", "0.4")
    found = report(own)
    (both,) = found["equal_in_classes"]
    assert str(own / "my tulip/wrong.jpg") in both and len(both) == 12
    sides = {name: [line for line in lines(own / f"{name}.txt")
                    if line.split()[0] in {f"rose/{i}.jpg" for i in (0, *range(20, 30))}]
             for name in ("train", "val")}  # fmt: skip
    assert sorted(map(len, sides.values())) == [0, 11]
    assert "equal files under different classes (one label is wrong):" in capsys.readouterr().out


def test_leaks_between_train_and_val_are_named(tmp_path: Path, capsys) -> None:
    for split, start in (("train", 0), ("val", 50)):
        for label in range(2):
            write_class(tmp_path / split / f"class_{label}",
                        range(start + 10 * label, start + 10 * label + 4))  # fmt: skip
    copied, resaved = tmp_path / "val/class_1/copy.jpg", tmp_path / "val/class_0/again.jpg"
    copied.write_bytes(jpeg(12))
    resaved.write_bytes(jpeg(3, size=40, quality=60))
    process(tmp_path, "--similar")
    found = report(tmp_path)
    assert found["equal_in_train_and_val"] == [[str(tmp_path / "train/class_1/12.jpg"),
                                               str(copied)]]  # fmt: skip
    assert found["similar_in_train_and_val"] == [[str(tmp_path / "train/class_0/3.jpg"),
                                                 str(resaved)]]  # fmt: skip
    assert found["equal_in_classes"] == found["equal_in_class"] == []
    out = capsys.readouterr().out
    assert "train/class_1/12.jpg = val/class_1/copy.jpg" in out
    assert "1 pairs in train and val look the same (have a look):" in out
    process(tmp_path, "--val-share", "0.3")
    assert report(tmp_path)["similar_in_train_and_val"] is None
    assert "note: --val-share changes nothing: val is there" in capsys.readouterr().out


def test_lists_of_the_users_stay(tmp_path: Path, capsys) -> None:
    write_class(tmp_path / "pool", range(6))
    (tmp_path / "pool/5.jpg").write_bytes(b"no image")
    train = "".join(f"pool/{i}.jpg {i % 2}\n" for i in (0, 1, 2, 5))
    (tmp_path / "train.txt").write_text(train)
    process(tmp_path, expect=3)
    assert "has a train.txt of yours and no val" in capsys.readouterr().err
    (tmp_path / "val.txt").write_text("pool/3.jpg 0\npool/4.jpg 1\n")
    process(tmp_path)
    assert "note: train.txt is yours and stays as it is, with 1 bad images" in (
        capsys.readouterr().out
    )
    assert (tmp_path / "train.txt").read_text() == train
    process(tmp_path, tmp_path.parent / "elsewhere", expect=2)
    assert "process its folder in place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "words", "message", "code"),
    [
        (["train/a", "validation/a"], [], "rename it (mv validation val); if not, say so with", 3),
        (["training/a", "val/a"], [], "rename it (mv training train)", 3),
        (["train/a", "TEST/a"], [], "rename it (mv TEST val); if not, say so with --val-share", 3),
        (["train/a", "val/a", "val/b"], [], "1 of 2 val classes are not in train: b", 3),
        (["a"], ["--val-share", "1"], "--val-share 1: must be above 0 and below 1", 2),
        (["a"], ["inner"], "must not lie in SOURCE", 2),
        (["a"], ["--pack", "packed"], "must not lie in each other", 2),
        (["a"], ["--quality", "80"], "--short-side and --quality need --pack", 2),
        (["a"], ["--pack", "../p", "--quality", "0"], "--quality 0: must be between", 2),
        (["a"], [""], "TARGET: the name of a folder is empty", 2),
        ([], [], "empty; expected one folder of images per class", 3),
    ],
)
def test_errors_are_one_line(tmp_path: Path, capsys, make, words, message, code: int) -> None:
    (tmp_path / "own").mkdir()
    for number, name in enumerate(make):
        write_class(tmp_path / "own" / name, range(10 * number, 10 * number + 2))
    before = tree(tmp_path)
    process("-C", tmp_path / "own", ".", *words, expect=code)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert tree(tmp_path) == before
    process(tmp_path / "nowhere", expect=3)
    assert "SOURCE" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_a_share_says_that_another_folder_is_not_val(tmp_path: Path) -> None:
    write_class(tmp_path / "train/a", range(4))
    write_class(tmp_path / "test/a", range(10, 14))
    process(tmp_path, expect=3)
    process(tmp_path, "--val-share", "0.25")
    assert len(lines(tmp_path / "val.txt")) == 1


def test_a_target_in_the_source_leaves_no_trace(own: Path, capsys) -> None:
    before = sorted(own.parent.rglob("*"))
    process(own, own / "sub", expect=2)
    assert "must not lie in SOURCE" in capsys.readouterr().err
    assert sorted(own.parent.rglob("*")) == before
    process(own)


def test_names_with_line_feeds(own: Path, tmp_path: Path, capsys) -> None:
    (own / "rose/9.jpg").rename(own / "rose/9\n.jpg")
    process(own)
    (note,) = [line for line in report(own)["notes"] if "line feed" in line]
    assert "1 images are not in " in note and "line feeds in names: rose/9?.jpg; rename" in note
    load_splits(own, train=True, val=True)
    (own / "rose").rename(own / "ro\nse")
    for words in ([own], [own, tmp_path / "target"]):
        capsys.readouterr()
        process(*words, expect=3)
        (line,) = capsys.readouterr().err.splitlines()
        assert "line feeds in names of classes, which no list can hold: ro?se; rename" in line
    assert not (tmp_path / "target/train").exists()


@pytest.mark.parametrize("number", ["00", "zz"])
def test_a_link_to_nothing_is_one_line(own: Path, tmp_path: Path, capsys, number: str) -> None:
    link = own / f"rose/{number}.jpg"
    link.symlink_to("nowhere.jpg")
    process(own, tmp_path / "target", expect=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{link} is missing or no ordinary file; remove it")


def test_an_empty_val_names_the_cure(own: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "data/val").mkdir(parents=True)
    own.rename(tmp_path / "data/train")
    for words in ([], [tmp_path / "target"]):
        process(tmp_path / "data", *words, expect=3)
        assert "or remove it: main.py --val-split 0.2 and run_process_data.sh take" in (
            capsys.readouterr().err
        )
    (tmp_path / "data/val").rmdir()
    process(tmp_path / "data")


def test_packing_follows(own: Path, tmp_path: Path) -> None:
    process(own, "--pack", tmp_path / "packed", "--short-side", "16")
    splits = load_splits(own, train=True, val=True)
    packed = load_splits(tmp_path / "packed", train=True, val=True)
    assert packed.classes == splits.classes
    assert packed.train is not None and splits.train is not None
    assert packed.train.labels.tolist() == splits.train.labels.tolist()
    process(tmp_path / "packed", expect=2)


def test_the_sample_list_is_a_list(tmp_path: Path) -> None:
    sample = ROOT / "docs/sample_train_list.txt"
    names = ["n01440764/n01440764_10026.JPEG", "n01440764/n01440764_10027.JPEG",
             "n01443537/n01443537_10007.JPEG", "my own class/photo 1.jpg",
             "#4/deep/below/it.png"]  # fmt: skip
    for name in names:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listed = read_image_list(sample, tmp_path, "train")
    assert [os.fsdecode(path) for path in listed.builder.relative_paths()] == names
    assert listed.builder.labels().tolist() == [0, 0, 1, 2, 3]
    assert listed.folders == {0: "n01440764", 1: "n01443537", 2: "my own class", 3: "#4"}


def test_any_path_survives_a_list(tmp_path: Path) -> None:
    names = ["a/1.jpg", " b/2.jpg", "#c/3.jpg", "d e/4  5.jpg", "\udcff/6.jpg", "\ufeff/7.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    write_image_list(
        tmp_path / "val.txt", ((os.fsencode(name), 7) for name in names), "for this test"
    )
    assert is_our_list(tmp_path / "val.txt") and not is_our_list(tmp_path / "train.txt")
    listed = read_image_list(tmp_path / "val.txt", tmp_path, "val")
    assert [os.fsdecode(path) for path in listed.builder.relative_paths()] == names


# ---- the examination


def test_only_what_has_changed_is_examined_again(own: Path, monkeypatch) -> None:
    process(own)
    seen: list[bytes] = []
    examined = examination.examine_files

    def watched(paths: list[bytes]) -> examination.Findings:
        seen.extend(paths)
        return examined(paths)

    monkeypatch.setattr(examination, "_PIECE", 4)
    monkeypatch.setattr(examination, "_BATCH", 3)
    monkeypatch.setattr(examination, "examine_files", watched)
    process(own)
    assert len(seen) == 15  # the pieces are others
    first = report(own)
    seen.clear()
    process(own)
    assert seen == [] and report(own) == first
    (own / "rose/9.jpg").write_bytes(b"no image")
    process(own)
    assert len(seen) == 3 and report(own)["splits"]["train"]["unreadable_count"] == 1
    for note in (own / ".process_data/examined").iterdir():
        note.write_bytes(note.read_bytes()[:-30])
    seen.clear()
    process(own)
    assert len(seen) == 15 and report(own)["splits"]["train"]["unreadable_count"] == 1


def test_an_interrupted_examination_goes_on(own: Path, monkeypatch) -> None:
    monkeypatch.setattr(examination, "_PIECE", 4)
    monkeypatch.setattr(examination, "_BATCH", 2)
    examined, calls = examination.examine_files, []

    def interrupted(paths: list[bytes]) -> examination.Findings:
        calls.append(len(paths))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return examined(paths)

    monkeypatch.setattr(examination, "examine_files", interrupted)
    process(own, expect=130)
    assert not (own / "train.txt").exists() and not (own / "data_report.json").exists()
    process(own)
    assert sum(calls[6:]) == 15 - 8  # two pieces of four were finished
    assert len(lines(own / "train.txt")) + len(lines(own / "val.txt")) == 15


def test_two_processes_at_once(own: Path, capsys) -> None:
    with processing.contextlib.closing(placing.Workplace(own)):
        process(own, expect=2)
    assert "another process prepares data" in capsys.readouterr().err


def test_both_decoders_find_the_same(own: Path, monkeypatch) -> None:
    Image.new("RGB", (30, 20), "red").save(own / "rose/flat.jpg")
    (own / "rose/8.jpg").write_bytes(jpeg(8)[:-40])
    paths = sorted(os.fsencode(path) for path in own.rglob("*.jpg"))
    fast = examination.examine_files(paths)
    monkeypatch.setattr(examination, "load_core", lambda: None)
    slow = examination.examine_files(paths)
    assert (fast.good == slow.good).all() and (fast.digests == slow.digests).all()
    assert (fast.sizes == slow.sizes).all() and (fast.formats == slow.formats).all()
    bits = [bin(a ^ b).count("1") for a, b in zip(fast.looks.tolist(), slow.looks.tolist(),
                                                  strict=True)]  # fmt: skip
    assert max(bits) <= 3
