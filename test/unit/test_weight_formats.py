# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of other libraries: recognised, every tensor in its place, the rest said clearly."""

from __future__ import annotations

import argparse
from functools import cache
from pathlib import Path

import pytest
import torch
from foreign_names import (
    EFFICIENTNETS,
    RESNETS,
    Names,
    lukemelas_efficientnet,
    mmpretrain_efficientnet,
    mmpretrain_resnet,
    ngc_efficientnet,
    nvidia_efficientnet,
    nvidia_resnet,
    same,
    timm_efficientnet,
    timm_resnet,
    unlike,
)
from torch import Tensor, nn

from image_classification import inference
from image_classification.errors import CheckpointError, UsageError
from image_classification.pretrained import load_weights
from image_classification.weight_files import Weights, extract_weights, load_weight_file
from image_classification.weight_formats import FORMATS
from models import ARCHS, create_model

LARGE_LAST_STAGE = "torchvision's EfficientNet B5 to B7, as this package's"


@cache
def shapes(arch: str, **options: object) -> dict[str, Tensor]:
    with torch.device("meta"):
        return create_model(arch, **options).state_dict()


def empty_model(arch: str, **options: object) -> nn.Module:
    """A network whose weights are whatever was in memory: drawing them takes seconds."""
    with torch.device("meta"):
        model = create_model(arch, **options)
    return model.to_empty(device="cpu")


def foreign_file(arch: str, names: Names, **options: object) -> dict[str, Tensor]:
    """The tensors of a network under another library's names; no two hold the same number."""
    own = shapes(arch, **options)
    return {
        theirs: unlike(own[ours], number)
        for number, (ours, theirs) in enumerate(names(own).items(), start=1)
    }


def numbers(state: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value[(0,) * value.ndim]) for name, value in state.items()}


def one_number_each(model: nn.Module) -> dict[str, float]:
    """The number that fills each tensor, in the order of the names, from 1 on."""
    return {name: float(number) for number, name in enumerate(model.state_dict(), start=1)}


# ---- every tensor in its place ----


@pytest.mark.parametrize(
    "arch", [*(f"efficientnet-b{size}" for size in range(8)), "efficientnet-widese-b0"]
)
@pytest.mark.parametrize("library", EFFICIENTNETS)
def test_every_tensor_of_every_efficientnet_finds_its_place(arch: str, library: str) -> None:
    found = extract_weights(foreign_file(arch, EFFICIENTNETS[library]))
    own = shapes(arch)
    assert numbers(found.state) == {name: float(i) for i, name in enumerate(own, start=1)}
    assert {n: v.shape for n, v in found.state.items()} == {n: v.shape for n, v in own.items()}
    large = "torchvision" in library and int(arch[-1]) >= 5
    assert found.format is not None
    assert found.format.name == (LARGE_LAST_STAGE if large else library)


@pytest.mark.parametrize(
    "arch",
    [name for name, arch in ARCHS.items() if arch.family == "resnet" and arch.image_size > 32],
)
@pytest.mark.parametrize("library", RESNETS)
def test_every_tensor_of_every_resnet_finds_its_place(arch: str, library: str) -> None:
    found = extract_weights(foreign_file(arch, RESNETS[library]))
    assert numbers(found.state) == {n: float(i) for i, n in enumerate(shapes(arch), start=1)}
    assert found.format is not None
    plain = "SE" in library and not arch.startswith("se-")  # those names are torchvision's
    assert found.format.name == ("torchvision's ResNet, as timm's and this package's"
                                 if plain else library)  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        ("resnet50", nvidia_resnet),
        ("resnet50", mmpretrain_resnet),
        ("efficientnet-b0", nvidia_efficientnet),
        ("efficientnet-b0", ngc_efficientnet),
        ("efficientnet-b0", lukemelas_efficientnet),
        ("efficientnet-b0", mmpretrain_efficientnet),
        ("efficientnet-b0", timm_efficientnet),
    ],
)
def test_files_of_other_libraries_load_completely(arch: str, names: Names, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    state = {f"module.{name}": value for name, value in foreign_file(arch, names).items()}
    torch.save({"epoch": 90, "arch": "x", "best_prec1": 1.0, "state_dict": state}, path)
    model = empty_model(arch)
    report = load_weights(model, load_weight_file(path), min_matched=1.0)
    assert numbers(model.state_dict()) == one_number_each(model)
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    tensors = sum("num_batches" not in name for name in model.state_dict())
    assert report.messages == [
        f"loaded {tensors} of {tensors} tensors from {path} ({report.format}): 0 missing, "
        "0 that do not fit, 0 only in the file"
    ]


@pytest.mark.parametrize("as_conv", [False, True])
def test_gates_load_as_linear_layers_and_as_convolutions(as_conv: bool) -> None:
    state = foreign_file("se-resnext101-32x4d", nvidia_resnet, se_as_conv=as_conv)
    model = empty_model("se-resnext101-32x4d", se_as_conv=not as_conv)
    load_weights(model, extract_weights(state), min_matched=1.0)
    assert numbers(model.state_dict()) == one_number_each(model)
    # NVIDIA's EfficientNet has linear gates unless it was built for TensorRT.
    state = foreign_file("efficientnet-widese-b0", nvidia_efficientnet)
    if not as_conv:
        state = {n: v.flatten(1) if ".se." in n and v.ndim == 4 else v for n, v in state.items()}
    model = empty_model("efficientnet-widese-b0")
    load_weights(model, extract_weights(state), min_matched=1.0)
    assert numbers(model.state_dict()) == one_number_each(model)


# ---- the real modules of other libraries ----


def settled(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with statistics of images, as after a training."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(0.05)  # small variances, beside which epsilon matters
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


def assert_same_outputs(theirs: nn.Module, arch: str, path: Path, **options: object) -> Weights:
    settled(theirs)
    torch.save(theirs.state_dict(), path)
    weights = extract_weights(torch.load(path, weights_only=True), source=str(path))
    ours = create_model(arch, **options).eval()
    report = load_weights(ours, weights, min_matched=1.0)
    assert report.warnings == []
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()
    return weights


@pytest.mark.parametrize(
    ("builder", "arch", "file", "epsilon"),
    [
        ("resnet50", "resnet50", "resnet50-0676ba61.pth", 1e-5),
        ("efficientnet_b0", "efficientnet-b0", "efficientnet_b0_rwightman-7f5810bc.pth", 1e-5),
    ],
)
def test_torchvision(builder: str, arch: str, file: str, epsilon: float, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision.models")
    theirs = getattr(torchvision, builder)(weights=None)
    options = {"bn_epsilon": epsilon} if "efficientnet" in arch else {}
    weights = assert_same_outputs(theirs, arch, tmp_path / file, **options)
    assert weights.bn_epsilon == epsilon


@pytest.mark.parametrize(
    ("builder", "arch", "epsilon"),
    [("resnet50", "resnet50", 1e-5), ("efficientnet_b0", "efficientnet-b0", 1e-5)],
)
def test_timm(builder: str, arch: str, epsilon: float, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    options = {"bn_epsilon": epsilon} if "efficientnet" in arch else {}
    path = tmp_path / f"{builder}_ra-3dd342df.pth"
    assert assert_same_outputs(timm.create_model(builder), arch, path, **options).bn_epsilon == 1e-5


@pytest.mark.parametrize(
    ("builder", "arch", "names"),
    [
        ("efficientnet_b0", "efficientnet-b0", timm_efficientnet),
        ("tf_efficientnet_b1", "efficientnet-b1", timm_efficientnet),
        ("resnext101_32x4d", "resnext101-32x4d", timm_resnet),
        ("resnet18", "resnet18", timm_resnet),
    ],
)
def test_timms_names_are_those_of_these_tests(builder: str, arch: str, names: Names) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(builder).state_dict()
    own = shapes(arch)
    assert {names(own)[name]: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in theirs.items()
    }


# ---- prefixes, containers ----


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "module.model._orig_mod.", "model.backbone.", "_orig_mod.module.encoder."],
)
def test_one_common_prefix_is_taken_off(prefix: str) -> None:
    other = {"criterion.weight": torch.ones(1000), "train_accuracy.total": torch.zeros(())}
    for arch, names in (("efficientnet-b0", timm_efficientnet), ("resnet18", timm_resnet)):
        state = foreign_file(arch, names)
        content = {  # as Lightning writes it
            "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4.0", "loops": {},
            "state_dict": {prefix + name: value for name, value in state.items()} | other,
        }  # fmt: skip
        assert list(extract_weights(content).state) == [*shapes(arch), *other]


def test_a_backbone_with_another_head_beside_it() -> None:
    state = foreign_file("resnet18", lambda names: {n: f"backbone.{n}" for n in names})
    head = {"fc.weight": state.pop("backbone.fc.weight"), "fc.bias": state.pop("backbone.fc.bias")}
    assert list(extract_weights(state | head).state) == list(shapes("resnet18"))


def test_two_networks_in_one_file_are_not_guessed_at() -> None:
    state = foreign_file("resnet18", nvidia_resnet)
    both = {
        f"{who}.{name}": value for who in ("student", "teacher") for name, value in state.items()
    }
    found = extract_weights(both)
    assert found.format is None and list(found.state) == list(both)
    with pytest.raises(CheckpointError, match=r"only in the file: student\.conv1\.weight"):
        load_weights(empty_model("resnet18"), found)


def test_two_weights_for_one_place_are_an_error() -> None:
    state = foreign_file("resnet18", lambda names: {n: f"model.{n}" for n in names})
    state["fc.weight"] = torch.ones(10, 512)
    with pytest.raises(CheckpointError, match=r"ambiguous: 'model\.fc\.weight' and 'fc\.weight'"):
        extract_weights(state)


def test_averaged_weights_of_other_libraries() -> None:
    state = foreign_file("efficientnet-b0", timm_efficientnet)
    ema = {name: value + 1000 for name, value in state.items()}
    timm = {"epoch": 1, "arch": "efficientnet_b0", "state_dict": state, "state_dict_ema": ema,
            "version": 2, "args": argparse.Namespace(model="efficientnet_b0")}  # fmt: skip
    assert extract_weights(timm, ema=False).state["classifier.1.bias"][0] == 360
    assert extract_weights(timm, ema=True).state["classifier.1.bias"][0] == 1360
    torchvision = {"model": {}, "model_ema": {f"module.{n}": v for n, v in state.items()}
                   | {"n_averaged": torch.tensor(9)}}  # fmt: skip
    assert extract_weights(torchvision, ema=True).state["classifier.1.bias"][0] == 360


def test_safetensors_of_another_library(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = foreign_file("efficientnet-b0", lukemelas_efficientnet)
    safetensors.save_file({n: v.contiguous() for n, v in state.items()}, tmp_path / "w.safetensors")
    model = empty_model("efficientnet-b0")
    load_weights(model, load_weight_file(tmp_path / "w.safetensors"), min_matched=1.0)
    assert numbers(model.state_dict()) == one_number_each(model)


# ---- what does not fit ----


def test_what_no_table_knows_keeps_its_name() -> None:
    state = foreign_file("efficientnet-b0", timm_efficientnet)
    state |= {"blocks.2.0.conv_se.weight": torch.ones(1), "extra": torch.ones(1)}
    found = extract_weights(state)
    assert list(found.state)[-2:] == ["blocks.2.0.conv_se.weight", "extra"]
    report = load_weights(empty_model("efficientnet-b0"), found)
    assert report.unexpected == ["blocks.2.0.conv_se.weight", "extra"]
    assert "0 missing, 0 that do not fit, 2 only in the file" in report.messages[0]


def test_blocks_are_not_placed_where_one_is_not_complete() -> None:
    state = foreign_file("efficientnet-b0", lukemelas_efficientnet)
    del state["_blocks.5._project_conv.weight"]  # without it nobody knows the stage of block 5
    found = extract_weights(state)
    assert "_blocks.6._bn1.weight" in found.state and "classifier.1.weight" in found.state
    with pytest.raises(CheckpointError, match=r"EfficientNet-PyTorch .* does not fit the model"):
        load_weights(empty_model("efficientnet-b0"), found)


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "x", "\u0663"])
def test_crafted_block_numbers_are_only_names(number: str) -> None:
    state = foreign_file("efficientnet-b0", timm_efficientnet)
    state[f"blocks.{number}.0.conv_dw.weight"] = torch.ones(())
    assert len(extract_weights(state).state) == len(state)


def test_wider_gates_are_named_with_both_shapes() -> None:
    """timm's and mmpretrain's SE-ResNeXt squeeze to C / 16 channels, NVIDIA's and ours to 16."""
    state = foreign_file("se-resnext101-32x4d", timm_resnet)
    for name, value in state.items():
        if name.startswith(("layer2", "layer3", "layer4")) and ".se.fc1." in name:
            rows = 32 * 2 ** (int(name[5]) - 2)
            state[name] = value[:1].expand(rows, *value.shape[1:])
    weights = extract_weights(state, source="w.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(empty_model("se-resnext101-32x4d"), weights)
    text = str(error.value)
    assert "w.pth (timm's SE-ResNeXt) does not fit the model" in text
    assert "layer2.0.se.squeeze.weight [32, 512] instead of [16, 512]" in text


def test_the_share_that_must_fit_can_be_told() -> None:
    state = foreign_file("efficientnet-b0", nvidia_efficientnet)
    kept = {name: value for name, value in state.items() if "layers.6" not in name}
    weights, model = extract_weights(kept), empty_model("efficientnet-b0")
    with pytest.raises(CheckpointError, match=r"9\d\.\d% matches|8\d\.\d% matches"):
        load_weights(model, weights)
    report = load_weights(model, weights, min_matched=0.5)
    assert len(report.missing) == sum("layers.6" in name for name in state)


# ---- what else has to be right ----


def warnings(state: dict[str, Tensor], source: str, epsilon: float, **content: object) -> list[str]:
    weights = extract_weights({"state_dict": state, **content}, source=source)
    model = empty_model("efficientnet-b0", bn_epsilon=epsilon)
    return load_weights(model, weights).warnings


@pytest.mark.parametrize(
    ("names", "source", "content", "epsilon", "padding"),
    [
        (nvidia_efficientnet, "x.pth", {}, 1e-3, False),
        (lukemelas_efficientnet, "efficientnet-b0-355c32eb.pth", {}, 1e-3, True),
        (mmpretrain_efficientnet, "x.pth", {}, 1e-3, True),
        (timm_efficientnet, "/w/tf_efficientnet_b0_aa-827b6e33.pth", {}, 1e-3, True),
        (timm_efficientnet, "/w/efficientnet_b0_ra-3dd342df.pth", {}, 1e-5, False),
        (timm_efficientnet, "x.pth.tar", {"arch": "tf_efficientnet_b0"}, 1e-3, True),
        (timm_efficientnet, "x.pth.tar", {"arch": "efficientnet_b0"}, 1e-5, False),
        (timm_efficientnet, "/hub/models--timm--tf_efficientnet_b0.in1k/x.pth", {}, 1e-3, True),
        (same, "x.pth", {"args": argparse.Namespace(model="efficientnet_b0")}, 1e-5, False),
        (same, "/w/efficientnet_b0_rwightman-7f5810bc.pth", {}, 1e-5, False),
        (same, "x.pth", {"model_options": {"bn_epsilon": 1e-4}}, 1e-4, False),
        (
            same,
            "x.pth",
            {"model_options": {"dropout": 0.1}, "arch": "efficientnet-b0"},
            1e-3,
            False,
        ),
    ],
)
def test_epsilon_and_padding_of_the_training(
    names: Names, source: str, content: dict, epsilon: float, padding: bool
) -> None:
    state = foreign_file("efficientnet-b0", names)
    right = warnings(state, source, epsilon, **content)
    assert ["TensorFlow's padding" in line for line in right] == [True] * padding
    wrong = warnings(state, source, 7e-3, **content)
    assert len(wrong) == 1 + padding
    assert f"add --bn-epsilon {epsilon:g}" in wrong[0] and "the model has 0.007" in wrong[0]


@pytest.mark.parametrize(
    ("names", "text"),
    [(timm_efficientnet, "timm's efficientnet_b"), (same, "torchvision's own B0 to B4 have 1e-5")],
)
def test_doubt_about_epsilon_is_said(names: Names, text: str) -> None:
    state = foreign_file("efficientnet-b0", names)
    (line,) = warnings(state, "model.safetensors", 1e-3)
    assert text in line and "add --bn-epsilon 1e-5" in line
    assert warnings(state, "model.safetensors", 1e-5) == []


def test_classification_takes_epsilon_from_the_file(tmp_path: Path) -> None:
    model = settled(create_model("efficientnet-b0", 5, bn_epsilon=1e-5))
    names = timm_efficientnet(model.state_dict())
    state = {names[name]: value for name, value in model.state_dict().items()}
    path = tmp_path / "efficientnet_b0_ra-3dd342df.pth"
    torch.save({"state_dict": state, "arch": "efficientnet_b0"}, path)
    classifier = inference.load_classifier(path, "cpu", arch="efficientnet-b0")
    assert not any("epsilon" in note for note in classifier.notes)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(images)
        found = classifier._runtime.model(images)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        other = inference.load_classifier(path, "cpu", arch="efficientnet-b0", bn_epsilon=1e-3)
        assert not torch.allclose(other._runtime.model(images), expected, rtol=1e-2)
    assert any("trained with a BatchNorm epsilon of 1e-05" in note for note in other.notes)
    with pytest.raises(UsageError, match=r"its network 'efficientnet_b0'.*add --arch NAME"):
        inference.load_classifier(path, "cpu")


def test_each_format_has_marks_of_its_own_or_a_hint() -> None:
    """None is hidden behind one that comes before it."""
    for position, row in enumerate(FORMATS):
        for earlier in FORMATS[:position]:
            assert not earlier.marks <= row.marks or earlier.hint, (row.name, earlier.name)
