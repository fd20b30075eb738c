# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Files of weights are read without running code, and damage is noticed."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import random
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification import safe_load
from image_classification.errors import CheckpointError
from image_classification.safe_load import load_tensors
from image_classification.weight_files import load_weight_file

TORCH_READS_LEGACY = safe_load._torch_version() >= (2, 6)


class Bomb:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    layers = OrderedDict(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), fc=nn.Linear(8, 3))
    return nn.Sequential(layers).state_dict()


def assert_one_clear_line(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only=False" not in message  # torch's own advice, which would run the code


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "nested", "in_tensor_dict"])
def test_code_in_a_file_is_never_run(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.pth"
    bomb = Bomb(mark)
    if kind == "zip":
        torch.save(bomb, path)
    elif kind == "legacy":
        torch.save(bomb, path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif kind == "nested":
        torch.save({"epoch": 1, "optimizer": [{"state": (1, bomb)}]}, path)
    else:
        torch.save({"conv.weight": torch.ones(2), "fc.weight": bomb}, path)
    with pytest.raises(CheckpointError) as error:
        load_tensors(path)
    assert not mark.exists()
    assert_one_clear_line(error, path)
    # Names what the file wanted to call, unless its format alone is a reason.
    if kind not in ("pickle", *([] if TORCH_READS_LEGACY else ["legacy"])):
        assert "system" in str(error.value)
    if kind != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists()  # a careless reader would have run it


def test_a_pickle_inside_a_hand_made_zip_is_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises(CheckpointError, match="system"):
        load_tensors(path)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError, match="TorchScript") as error:
        load_tensors(path)
    assert_one_clear_line(error, path)


def test_old_torch_refuses_the_old_format_and_reads_the_new(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new.pth"
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    torch.save(weights, new)
    readable = TORCH_READS_LEGACY
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    assert set(load_weight_file(new).state) == set(weights)
    with pytest.raises(CheckpointError, match=r"torch 2\.6") as error:
        load_tensors(old)
    assert_one_clear_line(error, old)
    monkeypatch.setattr(torch, "__version__", "2.10.0a0+git1234")
    if readable:
        assert torch.equal(load_weight_file(old).state["conv.weight"], weights["conv.weight"])


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("sys_info")
        archive.addfile(info, io.BytesIO())


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "folder"),
        (lambda path: path.touch(), "empty"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.write_bytes(b"\0" * 5000), "neither"),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "LFS"),
        (lambda path: path.write_bytes(gzip.compress(b"weights")), "gzip"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "plain pickle"),
        (write_tar, "tar archive"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a/b.txt", "hello"), "zip"),
    ],
)
def test_what_is_not_a_weight_file_is_named(write, text: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(CheckpointError, match=text) as error:
        load_tensors(path)
    assert_one_clear_line(error, path)


def test_a_recompressed_file_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, tmp_path / "plain.pth")
    path = tmp_path / "packed.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.namelist():
            target.writestr(member, source.read(member))
    with pytest.raises(CheckpointError, match="compressed"):
        load_tensors(path)


@pytest.fixture
def saved(legacy: bool, tmp_path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A file in the form that the test's parameter asks for."""
    path = tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_noticed(legacy: bool, saved: Path) -> None:
    path, content = saved, saved.read_bytes()
    for length in [*range(1, len(content), max(1, len(content) // 40)), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            load_tensors(path)
        assert_one_clear_line(error, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bits_load_unchanged_or_are_an_error(
    legacy: bool, saved: Path, weights: dict[str, torch.Tensor]
) -> None:
    path, content = saved, saved.read_bytes()
    draws = random.Random(0)
    errors = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = load_tensors(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            errors += 1
        else:
            # The old format has no check sums: there a changed number goes unnoticed.
            if not legacy:
                torch.testing.assert_close(loaded, weights, rtol=0, atol=0)
    readable = TORCH_READS_LEGACY or not legacy
    assert 20 < errors < 200 if readable else errors == 200  # some bits are padding


def test_a_flipped_bit_inside_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 1.5).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)


def test_checkpoints_with_plain_values_load(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "arch": ("resnet50", "fanin", 10),
        "args": argparse.Namespace(lr=0.1),
        "classes": ["cat", "dog"],
        "state_dict": OrderedDict(w=torch.ones(1, dtype=torch.bfloat16)),
    }
    torch.save(content, tmp_path / "checkpoint.pth.tar")
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        del content["args"]
        torch.save(content, tmp_path / "checkpoint.pth.tar")
    loaded = load_tensors(str(tmp_path / "checkpoint.pth.tar"))
    assert loaded == content


def test_safetensors_without_its_package_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="pip install safetensors") as error:
        load_tensors(path)
    assert_one_clear_line(error, path)


def test_safetensors_files_load(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    safetensors.save_file(weights, path)
    torch.testing.assert_close(load_weight_file(path).state, dict(weights))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        load_tensors(path)


def test_descriptions_of_others_in_safetensors_files_do_not_count(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "weights.safetensors"
    for metadata in ({"arch": "resnet50"}, {"format": "pt", "arch": "x", "classes": "cat"}):
        safetensors.save_file(weights, path, metadata)
        torch.testing.assert_close(load_tensors(path), dict(weights))
    own = {"arch": "resnet18", "model_options": "{}", "classes": "[", "image_size": "32",
           "resize_size": "32", "interpolation": "bilinear"}  # fmt: skip
    safetensors.save_file(weights, path, own)
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        load_tensors(path)
    safetensors.save_file(weights, path, {**own, "classes": '["cat"]'})
    assert load_tensors(path)["classes"] == ["cat"]
