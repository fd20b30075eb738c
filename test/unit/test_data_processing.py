# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""From archives and folders to a data set: `dataset_tools process`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import imagenet_archives as imagenet
import pytest
from imagenet_archives import WNIDS, jpeg
from processing_helpers import process, report, tree, write_class

from image_classification.data_processing import placing
from image_classification.datasets import load_split, load_splits

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


def test_a_kept_list_is_not_overwritten(archives, capsys) -> None:
    source, labels = archives
    known = sorted(WNIDS)
    text = "".join(f"{name} {known.index(name_class)}\n" for name, name_class in labels.items())
    (source / "val.txt").write_text(text)
    (source / "val.txt.original").write_text("the user's")
    process(source, expect=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "val.txt.original exists and is not overwritten with val.txt" in line
    assert (source / "val.txt.original").read_text() == "the user's"
    assert (source / "val.txt").read_text() == text and not (source / "val").exists()


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


def test_sorting_overwrites_nothing(archives, capsys) -> None:
    source, labels = archives
    (source / imagenet.VAL).unlink()
    imagenet.write_devkit(source, labels)
    flat = source / "val"
    first, *_, last = sorted(labels)
    (flat / labels[last]).mkdir(parents=True)
    (flat / labels[last] / last).write_bytes(b"the user's")
    for number, name in enumerate(sorted(labels)):
        (flat / name).write_bytes(jpeg(900 + number))
    before = tree(flat)
    process(source, expect=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"moved over what is there: {labels[last]}/{last}; nothing is moved" in line
    assert tree(flat) == before
    (flat / labels[last] / last).unlink()
    (flat / labels[last]).rmdir()
    (flat / labels[last]).symlink_to("nowhere")
    process(source, expect=2)
    assert f"moved over what is there: {labels[last]}; nothing" in capsys.readouterr().err
    assert (flat / first).is_file()
    (flat / labels[last]).unlink()
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
