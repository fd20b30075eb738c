# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""CIFAR's archives: found in every form, read without running anything, refused when damaged."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_archives import batch, colourful, pack, write_cifar10, write_cifar100, write_pickle

from image_classification.cifar import find_cifar, load_cifar
from image_classification.errors import DataError
from image_classification.plain_pickle import load_plain_pickle
from image_classification.small_images import cifar_files, load_cifar_splits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cifar100(tmp_path)


def load(data: Path, splits: tuple[str, ...] = ("train", "val")) -> Any:
    files = find_cifar(data)
    assert files is not None
    return load_cifar(files, list(splits))


# ---- where the data are ------------------------------------------------------------------------


def test_every_form_holds_the_same_images(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "packed.tar.gz")
    alone = tmp_path / "alone"
    alone.mkdir()
    named = archive.rename(alone / "cifar-100-python.tar.gz")
    for data in (folder, folder.parent, named, alone):
        found = load(data)
        images, labels = colourful(48, 6, 0)
        assert np.array_equal(found["train"].images, images)
        assert found["train"].labels.tolist() == labels and len(found["val"]) == 24
        assert found["val"].classes == [f"fine_{i}" for i in range(6)]


def test_cifar10_comes_in_five_batches(tmp_path: Path) -> None:
    found = load(write_cifar10(tmp_path))
    images, labels = colourful(50, 10, 0)
    assert np.array_equal(found["train"].images, images)
    assert found["train"].labels.tolist() == labels
    assert found["val"].classes[3] == "class 3" and found["val"].split == "val"


def test_only_what_is_asked_for_is_found(folder: Path, tmp_path: Path) -> None:
    assert find_cifar(tmp_path, "cifar10") is None
    assert find_cifar(tmp_path / "missing") is None
    write_cifar10(tmp_path)
    assert find_cifar(tmp_path, "cifar100").path == folder
    with pytest.raises(DataError, match="holds cifar10 and cifar100; say which one"):
        find_cifar(tmp_path)


def test_an_archive_may_have_any_name_if_its_kind_is_given(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "mine.tgz")
    assert find_cifar(archive) is None
    found = load_cifar(cifar_files(archive, "cifar100", print), ["val"])
    assert len(found["val"]) == 24


@pytest.mark.parametrize("wanted", [None, "cifar100"])
def test_a_folder_that_lacks_files_says_which(folder: Path, wanted: str | None) -> None:
    (folder / "meta").unlink()
    for data in (folder, folder.parent):
        with pytest.raises(DataError, match=r"cifar-100-python lacks meta; unpack cifar-100-pyth"):
            find_cifar(data, wanted)


def test_another_data_set_or_a_mistyped_folder_downloads_nothing(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds cifar100, --dataset asks for cifar10"):
        cifar_files(tmp_path, "cifar10", print)
    with pytest.raises(DataError, match=r"mistyped does not exist; give the folder that holds"):
        cifar_files(tmp_path / "mistyped", "cifar10", print)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_splits_of_a_run(folder: Path) -> None:
    files = find_cifar(folder)
    splits = load_cifar_splits(files, train=False, val=True)
    assert splits.train is None and splits.num_classes == 6 and splits.in_memory
    with pytest.raises(DataError, match="--num-classes 7 contradicts the data: cifar100 has 6"):
        load_cifar_splits(files, train=True, val=True, num_classes=7)


# ---- hostile and damaged files -----------------------------------------------------------------


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "value",
    [Hostile(), {b"data": Hostile()}, [Hostile()], {b"data": np.array([Hostile()], dtype=object)},
     {b"data": np.dtype("f8")}, {b"data": np.float64(1.0)}],
    ids=["alone", "in a dictionary", "in a list", "in an array", "a dtype", "a number"],
)  # fmt: skip
def test_a_hostile_pickle_executes_nothing(value: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        loaded = load_plain_pickle(pickle.dumps(value, protocol=2), "it")
    except DataError as error:
        assert "it cannot be read" in str(error) or "no dictionary" in str(error)
    else:
        assert not isinstance(loaded["data"], np.generic | np.dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", [b"os system", b"builtins eval", b"numpy load", b"numpy.core.multiarray scalar"]
)
def test_other_names_are_refused(name: bytes) -> None:
    module, function = name.split()
    stream = b"\x80\x02c" + module + b"\n" + function + b"\n(X\x01\x00\x00\x00xtR."
    with pytest.raises(DataError, match=r"it asks for .*, which plain data never do"):
        load_plain_pickle(stream, "it")


@pytest.mark.parametrize(
    "stream", [b"\x80\x02}r\xff\xff\xff\x07", b"\x80\x05\x96\0\0\0\x80\0\0\0\0"]
)
def test_ten_bytes_take_no_gigabytes(stream: bytes) -> None:
    """A table with a far entry; a byte array that is announced."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="cannot be read"):
        load_plain_pickle(stream, "it")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18


def test_names_in_a_pickle_steer_no_terminal() -> None:
    with pytest.raises(DataError, match=r"it asks for os.\?\[31m"):
        load_plain_pickle(b"\x80\x02cos\n\x1b[31m\n.", "it")


def test_arrays_must_be_bytes_of_their_shape() -> None:
    for array in (np.zeros((2, 3), np.int64), np.zeros((3, 2), np.uint8).T):
        with pytest.raises(DataError, match="not of bytes in row order"):
            load_plain_pickle(pickle.dumps({b"data": array}, protocol=2), "it")
    content = pickle.dumps({b"data": np.zeros((2, 3), np.uint8)}, protocol=2)
    with pytest.raises(DataError, match="cannot reshape"):
        load_plain_pickle(content.replace(b"K\x02K\x03\x86", b"K\x7fK\x03\x86"), "it")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_truncated_files(folder: Path, share: float) -> None:
    path = folder / "train"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match="train cannot be read"):
        load(folder)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archives(folder: Path, tmp_path: Path, share: float) -> None:
    archive = pack(folder, tmp_path / "cifar-100-python-copy.tar.gz")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=r"(cannot be read|is damaged|holds no|ends within)"):
        load(archive)


def test_an_archive_without_a_batch(folder: Path, tmp_path: Path) -> None:
    (folder / "test").unlink()
    archive = pack(folder, tmp_path / "cifar-100-python.tar.gz")
    with pytest.raises(DataError, match="holds no cifar-100-python/test"):
        load(archive)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": [1, 2]}, "has no 'data' of 3,072 bytes an image"),
        ({b"data": np.zeros((8, 100), np.uint8)}, "has no 'data' of 3,072 bytes an image"),
        ({b"fine_labels": [0]}, "has not one of 'fine_labels' for each image"),
        ({b"fine_labels": [6] * 8}, "has labels outside 0..5"),
        ({b"fine_labels": [-1] * 8}, "has labels outside 0..5"),
        ({b"fine_labels": [0.5] * 8}, "has labels outside 0..5"),
    ],
)
def test_contents_that_do_not_fit(folder: Path, change: dict[bytes, Any], message: str) -> None:
    write_pickle(folder / "train", batch(*colourful(8, 6, 0), b"fine_labels") | change)
    with pytest.raises(DataError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "names", [5, b"abcdef", [], [b"a", b"a", b"b", b"c", b"d", b"e"], [b"a", [b"b"], None], None]
)
def test_class_names_are_a_list_of_different_texts(folder: Path, names: Any) -> None:
    write_pickle(folder / "meta", {b"fine_label_names": names})
    with pytest.raises(DataError, match="meta has no list of different class names"):
        load(folder)


@pytest.mark.parametrize("place", range(30, 100, 7))
def test_a_flipped_bit_in_an_archive_is_found(folder: Path, tmp_path: Path, place: int) -> None:
    archive = pack(folder, tmp_path / "cifar-100-python.tar.gz")
    data = bytearray(archive.read_bytes())
    data[len(data) * place // 100] ^= 4
    archive.write_bytes(data)
    shutil.rmtree(folder)
    with pytest.raises(DataError) as told:
        load(archive)
    assert "\n" not in str(told.value) and str(archive) in str(told.value)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08broken", b"no archive at all"])
def test_what_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cifar-100-python.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged or no archive of CIFAR.*get it again") as told:
        load(path)
    assert "\n" not in str(told.value)


def test_an_archive_packed_with_dots(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "./cifar-100-python")
    assert len(load(path)["val"]) == 24


@pytest.mark.parametrize("kind", ["link", "fifo", "device"])
def test_what_is_no_ordinary_file_is_not_read(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / "train").unlink()
    if kind == "fifo":
        os.mkfifo(folder / "train")
    elif kind == "device":
        (folder / "train").symlink_to("/dev/zero")
    if kind != "link":
        with pytest.raises(DataError, match="no ordinary file"):
            load(folder)
        return
    path = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
        member = tarfile.TarInfo(f"{folder.name}/train")
        member.type, member.linkname = tarfile.SYMTYPE, "train"
        archive.addfile(member)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="train is not an ordinary file"):
        load(path)


def test_no_class_names(folder: Path) -> None:
    write_pickle(folder / "meta", {b"coarse_label_names": [b"all"]})
    with pytest.raises(DataError, match="meta has no list of different class names"):
        load(folder)
