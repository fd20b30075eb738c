# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of files: found whatever wraps them, refused when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification.errors import CheckpointError
from image_classification.pretrained import load_weights
from image_classification.weight_files import extract_weights, load_weight_file
from models import create_model


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


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("ema", [None, False, True])
def test_averaged_weights_alone_are_taken_and_said(
    key: str, ema: bool | None, weights: dict[str, torch.Tensor]
) -> None:
    found = extract_weights({key: weights}, source="w.pth", ema=ema)
    assert list(found.state) == list(weights)
    messages = load_weights(TinyNet(), found).messages
    assert "using the averaged (EMA) weights of w.pth" in messages


def test_averaged_weights_are_taken_unless_they_are_not_wanted() -> None:
    content = {"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"w": torch.ones(1)}}
    for ema, value in ((False, 0), (True, 1), (None, 1)):
        found = extract_weights(content, ema=ema)
        assert (found.state["w"], found.averaged) == (value, bool(value))
    none = extract_weights({**content, "state_dict_ema": None})
    assert (none.state["w"], none.averaged) == (0, False)
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


def test_numbers_that_the_model_cannot_hold_are_refused(weights: dict[str, torch.Tensor]) -> None:
    model = TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for kind in (torch.int8, torch.uint8, torch.int64, torch.bool):
        state = {name: value.to(kind) for name, value in weights.items()}
        with pytest.raises(CheckpointError, match=rf"whole numbers \({kind}\) in conv\.weight"):
            load_weights(model, extract_weights(state))
    one = {**weights, "bn.running_mean": weights["bn.running_mean"].int()}
    with pytest.raises(CheckpointError, match=r"whole numbers .* in bn\.running_mean"):
        load_weights(model, extract_weights(one))
    large = {**weights, "fc.bias": torch.full((3,), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"infinite values in fc\.bias \(as torch\.float32"):
        load_weights(model, extract_weights(large))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    for kind in (torch.float64, torch.bfloat16):
        load_weights(model, extract_weights({n: v.to(kind) for n, v in weights.items()}))
        assert torch.equal(model.conv.weight, weights["conv.weight"].to(kind).float())


# ---- class names ----


def test_a_classifier_for_other_classes_is_replaced(weights: dict[str, torch.Tensor]) -> None:
    file = extract_weights({"state_dict": weights, "classes": ["ant", "\x1bbee", "cat"]})
    model, classes = TinyNet(), ["ant", "dog", "cat"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(model, file, classes=classes)
    assert "3 classes (class 1 is '?bee'), the model has 3 (class 1 is 'dog'); " in str(error.value)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    report = load_weights(model, file, classes=classes, replace_head=True)
    assert torch.equal(model.conv.weight, weights["conv.weight"])
    assert torch.equal(model.fc.weight, before["fc.weight"])
    assert report.mismatched == ["fc.weight", "fc.bias"]
    said = "class 1 is '?bee'); replaced by a fresh one of 3 (class 1 is 'dog')"
    assert said in report.messages[0]
    with pytest.raises(CheckpointError, match=r"class 0 is 'ant'.*class 0 is 'cat'"):
        load_weights(model, file, classes=["cat", "dog", "ant"])


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["ant", "bee", "cat"], ["ant", "bee", "cat"]),
        (("ant", "bee", "cat"), None),
        (["0", "1", "2"], ["ant", "bee", "cat"]),
        (["ant", "bee", "cat"], ["0", "1", "2"]),
        (None, ["ant", "bee", "cat"]),
        ({"ant": 0}, ["ant", "bee", "cat"]),
        ([0, 1, 2], ["ant", "bee", "cat"]),
    ],
)
def test_a_classifier_stays_where_nothing_speaks_against_it(
    names: object, classes: list[str] | None, weights: dict[str, torch.Tensor]
) -> None:
    file = extract_weights({"state_dict": weights, "classes": names})
    model = TinyNet()
    report = load_weights(model, file, classes=classes, replace_head=True)
    assert torch.equal(model.fc.weight, weights["fc.weight"])
    assert len(report.messages) == 1
