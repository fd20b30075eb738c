# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From archives and folders to a data set: `dataset_tools process`."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import imagenet_archives as imagenet
import pytest
from imagenet_archives import WNIDS, jpeg, picture
from PIL import Image
from runs import ROOT

from image_classification import dataset_tools
from image_classification.data_processing import examination, placing, processing
from image_classification.datasets import load_split, load_splits
from image_classification.list_files import is_our_list, read_image_list, write_image_list


def process(*words: Any, expect: int = 0) -> None:
    assert dataset_tools.main(["process", *map(str, words), "-j", "1"]) == expect


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "data_report.json").read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """The visible files below a folder, with their content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "/." not in f"/{path.relative_to(folder).as_posix()}"
    }


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def write_class(folder: Path, seeds: range) -> None:
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with one folder per class and nothing else: 10, 4 and 1 images."""
    for start, (name, count) in enumerate((("rose", 10), ("my tulip", 4), ("#1", 1))):
        write_class(tmp_path / "own" / name, range(100 * start, 100 * start + count))
    return tmp_path / "own"


# ---- ImageNet


@pytest.fixture
def archives(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    source = tmp_path / "source"
    source.mkdir()
    imagenet.write_train(source)
    return source, imagenet.write_val(source)


def check_imagenet(target: Path, labels: dict[str, str], val: bool = True) -> None:
    splits = load_splits(target, train=True, val=val)
    assert splits.classes == sorted(WNIDS) and splits.train is not None
    assert len(splits.train) == 15
    if val:
        assert splits.val is not None and len(splits.val) == len(labels)
        for i in range(len(splits.val)):
            path = Path(splits.val.path(i))
            assert splits.classes[splits.val.labels[i]] == labels[path.name]


@pytest.mark.parametrize(
    "form",
    ["devkit", "folder", "ids", "named ids", "kaggle", "valprep", "numbers", "wnids", "pairs"],
)
def test_archives_become_a_data_set(tmp_path: Path, archives, form: str) -> None:
    source, labels = archives
    names, words = sorted(labels), []
    if form == "devkit":
        imagenet.write_devkit(source, labels)
    elif form == "folder":
        data = source / imagenet.DEVKIT / "data"
        data.mkdir(parents=True)
        (data / imagenet.GROUND_TRUTH).write_text(imagenet.ground_truth(labels))
        (data / "meta.mat").write_bytes(imagenet.meta(compressed=False))
    elif form in ("ids", "named ids"):
        (source / imagenet.GROUND_TRUTH).write_text(imagenet.ground_truth(labels))
        rows = enumerate(WNIDS, start=1)
        listed = WNIDS if form == "ids" else [f"{wnid} {i} kit_fox" for i, wnid in rows]
        (tmp_path / "synsets.txt").write_text("\n".join(listed))
        words = ["--synsets", tmp_path / "synsets.txt"]
    elif form == "kaggle":
        rows = [f"{Path(name).stem},{labels[name]} 1 2 3 4 {labels[name]} 5 6 7 8"
                for name in reversed(names)]  # fmt: skip
        text = "\n".join(["ImageId,PredictionString", *rows])
        (source / "LOC_val_solution.csv").write_text(text)
    elif form == "valprep":
        text = "".join(f"mv {name} {labels[name]}/\n" for name in names)
        (source / "valprep.sh").write_text(f"#!/bin/bash\nmkdir -p {WNIDS[0]}\n{text}")
    elif form == "numbers":
        known = sorted(WNIDS)
        text = "".join(f"{name} {known.index(labels[name])}\n" for name in names)
        (source / "val.txt").write_text(text)
    else:
        pairs = [f"val/{name} {labels[name]}" if form == "pairs" else labels[name]
                 for name in names]  # fmt: skip
        (tmp_path / "labels.txt").write_text("\n".join(pairs))
        words = ["--val-labels", tmp_path / "labels.txt"]
    process(source, tmp_path / "target", *words)
    check_imagenet(tmp_path / "target", labels)
    found = tree(tmp_path / "target")
    assert found[f"train/{WNIDS[1]}/{WNIDS[1]}_3.JPEG"] == jpeg(103)
    assert found[f"val/{WNIDS[0]}/{imagenet.val_name(4)}"] == jpeg(903)
    assert len(found) == 15 + 7 + 5  # two lists, the class names and two reports
    (note, _) = report(tmp_path / "target")["notes"]
    assert note == "train: 15 images in 3 classes, but ILSVRC2012 has 1,281,167 in 1,000"


def test_in_place_a_second_time_nothing_is_done(archives, capsys) -> None:
    source, labels = archives
    imagenet.write_devkit(source, labels)
    process(source)
    check_imagenet(source, labels)
    stamps = {path: os.stat(path).st_mtime_ns for path in source.rglob("*.JPEG")}
    first = tree(source)
    capsys.readouterr()
    process(source)
    assert "train: 0 classes made from" in capsys.readouterr().out
    assert stamps == {path: os.stat(path).st_mtime_ns for path in source.rglob("*.JPEG")}
    assert tree(source) == first


def test_a_list_of_numbers_gives_way_to_one_of_the_sorted_images(archives) -> None:
    source, labels = archives
    known = sorted(WNIDS)
    text = "".join(f"{name} {known.index(name_class)}\n" for name, name_class in labels.items())
    (source / "val.txt").write_text(text)
    for _ in range(2):
        process(source)
        check_imagenet(source, labels)
        assert (source / "val.txt.original").read_text() == text


def test_flat_validation_images_are_sorted(tmp_path: Path, archives) -> None:
    source, labels = archives
    (source / imagenet.VAL).unlink()
    imagenet.write_devkit(source, labels)
    flat = source / "val"
    flat.mkdir()
    for number, name in enumerate(sorted(labels)):
        (flat / name).write_bytes(jpeg(900 + number))
    process(source, tmp_path / "elsewhere")
    check_imagenet(tmp_path / "elsewhere", labels)
    assert len(list(flat.glob("*.JPEG"))) == len(labels)  # SOURCE stays as it was
    last = sorted(labels)[-1]
    (flat / labels[last]).mkdir()
    (flat / last).rename(flat / labels[last] / last)  # as after an interruption
    process(source)
    check_imagenet(source, labels)


def test_kaggles_folder(tmp_path: Path) -> None:
    images = tmp_path / "kaggle/ILSVRC/Data/CLS-LOC"
    for n, wnid in enumerate(WNIDS):
        write_class(images / "train" / wnid, range(10 * n, 10 * n + 5))
    (images / "val").mkdir()
    (images / "test").mkdir()
    rows = ["ImageId,PredictionString"]
    labels = {imagenet.val_name(i + 1): WNIDS[i % 3] for i in range(4)}
    for name, wnid in labels.items():
        (images / "val" / name).write_bytes(jpeg(int(name[-8:-5])))
        rows.append(f"{Path(name).stem},{wnid} 1 2 3 4")
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text("\n".join(rows))
    process(tmp_path / "kaggle")
    check_imagenet(images, labels)


@pytest.mark.parametrize(
    ("text", "words", "message", "code"),
    [
        (None, [], "nothing in .* says the classes of the validation images", 3),
        ("1\n2\n3\n", [], "put that file beside it, or give --synsets FILE", 2),
        ("1\n2\n3\n", ["--synsets", "sorted"], "is sorted by wnid, but ILSVRC2012_IDs are not", 2),
        ("1\n2\n3\n", ["--synsets", "ids"], "no class for 4 of 7 validation images: ", 3),
        ("1\n2\n9\n1\n1\n1\n1\n", ["--synsets", "ids"], "no class for 1 of 7", 3),
        ("1\nfox\n", ["--synsets", "ids"], "line 2: unlike the lines before it: fox", 3),
        ("fox\n", [], "line 1: in no known form: fox; known: ILSVRC2012_devkit", 3),
        ("", [], "holds no labels", 3),
        ("../../x.JPEG n01440764\n", [], "no class for 7 of 7", 3),
        ("a\n", ["--synsets", "none"], "in no known form", 3),
        ("1\n", ["--synsets", "none"], "cannot be read", 3),
        ("1\n", ["--synsets", "bad"], "line 2: expected a wnid like n02119789", 3),
    ],
)  # fmt: skip
def test_labels_that_cannot_be(archives, capsys, text, words, message, code: int) -> None:
    source, _ = archives
    (source / imagenet.TRAIN).unlink()
    (source / "sorted").write_text("".join(f"{wnid} fish\n" for wnid in sorted(WNIDS)))
    (source / "ids").write_text("\n".join(WNIDS))
    (source / "bad").write_text("n02119789\nfox\n")
    if text is not None:
        (source / imagenet.GROUND_TRUTH).write_text(text)
    process("-C", source, ".", *words, expect=code)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (source / "val").exists()


def test_validation_images_alone(archives) -> None:
    source, labels = archives
    (source / imagenet.TRAIN).unlink()
    imagenet.write_devkit(source, labels)
    process(source)
    index = load_split(source, "val")
    assert index.classes == sorted(WNIDS) and len(index) == 7
    assert not (source / "train.txt").exists()


def test_an_interrupted_unpacking_goes_on(tmp_path: Path, archives, capsys, monkeypatch) -> None:
    source, labels = archives
    imagenet.write_devkit(source, labels)
    target = tmp_path / "target"
    fill = placing.ArchiveClass.fill

    def interrupted(job: placing.ArchiveClass, folder: str) -> None:
        fill(job, folder)
        if job.name == sorted(WNIDS)[1]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(placing.ArchiveClass, "fill", interrupted)
        process(source, target, expect=130)
    assert "go on where they were" in capsys.readouterr().err
    assert [path.name for path in (target / "train").glob("n*")] == sorted(WNIDS)[:1]
    first = target / "train" / sorted(WNIDS)[0]
    stamp = first.stat().st_mtime_ns
    with open(target / ".process_data/placed.jsonl", "a") as journal:
        journal.write('\n{"split": "train", "cla')  # a power cut
    process(source, target)
    assert "train: 2 classes made from" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == stamp
    check_imagenet(target, labels)
    assert not list(target.glob("*/.*"))
    process(source, target)
    assert "train: 0 classes made from" in capsys.readouterr().out


def test_what_is_there_is_not_overwritten(tmp_path: Path, archives, capsys) -> None:
    source, labels = archives
    imagenet.write_devkit(source, labels)
    target = tmp_path / "target"
    process(source, target)
    imagenet.write_train(source, images=20)  # another archive
    process(source, target, expect=2)
    assert "not (wholly) made from ILSVRC2012_img_train.tar" in capsys.readouterr().err
    imagenet.write_train(source)
    emptied = target / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    emptied.write_bytes(b"")  # a power cut
    process(source, target, expect=2)
    assert f"holds {WNIDS[0]}, not (wholly)" in capsys.readouterr().err
    (target / ".process_data/placed.jsonl").unlink()
    process(source, target)  # somebody else's folders stay as they are
    assert f"{target}/train is there: ILSVRC2012_img_train.tar is not unpacked" in (
        capsys.readouterr().out
    )
    assert report(target)["splits"]["train"]["unreadable"] == [
        [str(emptied), "not an image, or of an unknown format"]
    ]


def test_the_disk_is_asked_before(tmp_path: Path, archives, capsys, monkeypatch) -> None:
    source, labels = archives
    imagenet.write_devkit(source, labels)
    usage = (100, 90, 10)
    monkeypatch.setattr(placing.shutil, "disk_usage", lambda _: type("U", (), {"free": usage[2]}))
    process(source, tmp_path / "target", expect=2)
    assert "0.0 GB free, but 0.0 GB are needed" in capsys.readouterr().err
    assert not (tmp_path / "target/train").exists()


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
