# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files: read without running code, refused when they do not fit."""

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
from image_classification.pretrained import (
    extract_weights,
    load_weight_file,
    load_weights,
)
from image_classification.safe_load import load_tensors
from models import create_model

TORCH_READS_LEGACY = safe_load._torch_version() >= (2, 6)


class Bomb:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


class TinyNet(nn.Module):
    def __init__(self, classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return TinyNet().state_dict()


def assert_one_clear_line(error: pytest.ExceptionInfo[CheckpointError], path: Path) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only=False" not in message  # torch's own advice, which would run the code


# ---- safe_load ----


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


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_noticed(
    legacy: bool, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    for length in [*range(1, len(content), max(1, len(content) // 40)), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as error:
            load_tensors(path)
        assert_one_clear_line(error, path)


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bits_load_unchanged_or_are_an_error(
    legacy: bool, tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
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


# ---- extract_weights ----


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
def test_weights_are_found_whatever_wraps_them(
    prefix: str, key: str | None, weights: dict[str, torch.Tensor]
) -> None:
    wrapped = {prefix + name: value for name, value in weights.items()}
    content = wrapped if key is None else {key: wrapped, "epoch": 3}
    assert list(extract_weights(content).state) == list(weights)


def test_module_inside_a_name_stays() -> None:
    name = "module.my_module.module.weight"
    assert list(extract_weights({name: torch.ones(1)}).state) == ["my_module.module.weight"]


def test_ema_weights_are_taken_on_demand() -> None:
    content = {"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}
    assert extract_weights(content).state["w"] == 0
    assert extract_weights(content, ema=True).state["w"] == 1
    torchvision = {
        "model": {},
        "model_ema": {"n_averaged": torch.tensor(9), "module.w": torch.ones(1)},
    }
    assert list(extract_weights(torchvision, ema=True).state) == ["w"]
    with pytest.raises(CheckpointError, match="no EMA weights"):
        extract_weights({"state_dict": {"w": torch.zeros(1)}}, ema=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "holds a list"),
        ({}, "empty"),
        ({"state_dict": {}}, "empty"),
        ({"epoch": 3, "best": 1.0}, "'epoch' is a int"),
        ({"w": torch.ones(2, 2).to_sparse()}, "not dense"),
        ({"w": torch.ones(2, device="meta")}, "not dense"),
        ({"\x1b[31mw": torch.ones(2, dtype=torch.complex64)}, r"'\?\[31mw' is .*ordinary numbers"),
    ],
)
def test_content_without_weights_is_an_error(content: object, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        extract_weights(content, source="x.pth")


# ---- load_weights ----


def test_all_weights_are_loaded(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": {f"module.{n}": v for n, v in weights.items()}}, tmp_path / "w.pth")
    model = TinyNet()
    report = load_weights(model, load_weight_file(tmp_path / "w.pth"))
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert report.matched == list(weights)
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])


def test_the_classifier_is_replaced_only_when_asked_and_with_a_message(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "w.pth"
    torch.save(weights, path)
    model = TinyNet(classes=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="3 classes, the model has 7"):
        load_weights(model, load_weight_file(path))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    report = load_weights(model, load_weight_file(path), replace_head=True)
    assert torch.equal(model.conv.weight, weights["conv.weight"])
    assert torch.equal(model.fc.weight, before["fc.weight"])
    assert report.mismatched == ["fc.weight", "fc.bias"]
    assert any("3 classes; replaced by a fresh one of 7" in line for line in report.messages)


def test_weights_without_a_classifier_need_one(
    tmp_path: Path, weights: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "w.pth"
    torch.save({name: v for name, v in weights.items() if not name.startswith("fc")}, path)
    with pytest.raises(CheckpointError, match="no classifier"):
        load_weights(TinyNet(), load_weight_file(path))
    report = load_weights(TinyNet(), load_weight_file(path), replace_head=True)
    assert report.missing == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("file", "model"),
    [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("resnet50", "resnet18")],
)
@pytest.mark.parametrize("replace_head", [False, True])
def test_another_network_is_refused(
    file: str, model: str, replace_head: bool, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save(create_model(file, 4).state_dict(), path)
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        load_weights(create_model(model, 5), load_weight_file(path), replace_head=replace_head)
    assert_one_clear_line(error, path)


def test_missing_batch_norm_is_refused_although_it_is_few_values(tmp_path: Path) -> None:
    state = {
        n: v for n, v in create_model("resnet18", 2).state_dict().items() if "running" not in n
    }
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="running_mean"):
        load_weights(create_model("resnet18", 2), load_weight_file(tmp_path / "w.pth"))


def test_step_counters_may_be_missing(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    state = {n: v for n, v in weights.items() if "num_batches" not in n}
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(TinyNet(), load_weight_file(tmp_path / "w.pth"), min_matched=1.0)
    assert report.missing == ["bn.num_batches_tracked"]
    assert len(report.messages) == 1


def test_a_few_missing_tensors_are_reported(tmp_path: Path) -> None:
    state = create_model("resnet18", 2).state_dict()
    del state["layer1.0.bn1.bias"]
    state["extra"] = torch.ones(1)
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(create_model("resnet18", 2), load_weight_file(tmp_path / "w.pth"))
    assert (report.missing, report.unexpected) == (["layer1.0.bn1.bias"], ["extra"])
    text = "\n".join(report.messages)
    assert "freshly initialised: layer1.0.bn1.bias" in text
    assert "not in the model: extra" in text
    with pytest.raises(CheckpointError, match="100% is needed"):
        load_weights(
            create_model("resnet18", 2), load_weight_file(tmp_path / "w.pth"), min_matched=1.0
        )


def test_non_finite_weights_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    weights["bn.running_var"][3] = float("nan")
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"NaN or infinite values in bn\.running_var"):
        load_weights(TinyNet(), load_weight_file(tmp_path / "w.pth"))
