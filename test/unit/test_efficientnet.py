# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet: the networks of the paper and of torchvision, and NVIDIA's wide variants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from image_classification.errors import UsageError
from models import create_model, find_arch
from models.efficientnet import MBConv, StochasticDepth, round_channels

# Millions of parameters as the paper's table 2 prints them, and torchvision's exact numbers.
PAPER = [5.3, 7.8, 9.2, 12, 19, 30, 43, 66]
PARAMETERS = [
    5_288_548, 7_794_184, 9_109_994, 12_233_232, 19_341_616, 30_389_784, 43_040_704, 66_347_960,
]  # fmt: skip
RESOLUTIONS = [224, 240, 260, 300, 380, 456, 528, 600]


def torchvision_model(size: int, **options: object) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    model = getattr(models, f"efficientnet_b{size}")(weights=None, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.01  # theirs differ from size to size
    return model


def count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


@pytest.mark.parametrize("size", range(8))
def test_the_number_of_parameters_is_the_papers(size: int) -> None:
    assert count(f"efficientnet-b{size}") == PARAMETERS[size]
    assert count(f"efficientnet-b{size}") / 1e6 == pytest.approx(PAPER[size], rel=0.03)
    assert find_arch(f"efficientnet-b{size}").image_size == RESOLUTIONS[size]


@pytest.mark.parametrize("size", range(8))
def test_state_dict_has_the_names_order_and_shapes_of_torchvision(size: int) -> None:
    with torch.device("meta"):
        ours = create_model(f"efficientnet-b{size}").state_dict()
        theirs = torchvision_model(size).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in theirs.items()
    ]


@pytest.mark.parametrize("size", range(8))
def test_torchvision_weights_give_torchvision_outputs(size: int) -> None:
    torch.manual_seed(size)
    theirs = torchvision_model(size, num_classes=5).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.01, 1.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.running_mean.uniform_(-0.2, 0.2)
            module.bias.data.uniform_(-0.2, 0.2)
    with torch.device("meta"):
        ours = create_model(f"efficientnet-b{size}", 5).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(expected[0], expected[1])


def test_training_equals_torchvision_step_for_step() -> None:
    theirs = torchvision_model(0, num_classes=5, dropout=0.0, stochastic_depth_prob=0.0)
    ours = create_model("efficientnet-b0", 5, dropout=0.0)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 32, 32)
    for model in (ours, theirs):
        model(images).square().mean().backward()
    gradients = [dict(model.named_parameters()) for model in (ours, theirs)]
    for name in ("features.0.0.weight", "features.3.1.block.2.fc1.weight", "classifier.1.bias"):
        torch.testing.assert_close(*(found[name].grad for found in gradients))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # running statistics too


def test_wide_gates_are_computed_from_the_expanded_channels() -> None:
    for name, squeezed in (("efficientnet-b0", 4), ("efficientnet-widese-b0", 24)):
        with torch.device("meta"):
            model = create_model(name)
        block = model.features[2][0]  # 16 channels, expanded to 96
        assert block.block[2].fc1.out_channels == squeezed
    assert count("efficientnet-widese-b0") == 8_423_848


def test_blocks_are_left_out_more_often_towards_the_end() -> None:
    def drops(**options: float) -> list[float]:
        with torch.device("meta"):
            model = create_model("efficientnet-b0", **options)
        return [block.stochastic_depth.p for block in model.modules() if isinstance(block, MBConv)]

    assert not any(drops())  # NVIDIA's B0
    half = drops(survival_prob=0.5)
    shortcuts = [at for at, drop in enumerate(half) if drop]
    assert shortcuts == [2, 4, 6, 7, 9, 10, 12, 13, 14]  # of 16: those that keep the shape
    assert [half[at] for at in shortcuts] == pytest.approx([0.5 * at / 16 for at in shortcuts])
    with torch.device("meta"):
        last = [m.p for m in create_model("efficientnet-b4").modules()
                if isinstance(m, StochasticDepth)][-1]  # fmt: skip
    assert last == pytest.approx(0.2 * 31 / 32)


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 2, 3, 3)
    out = layer(x)
    per_image = out.flatten(1)
    assert bool((per_image == per_image[:, :1]).all())
    values = per_image[:, 0].unique().tolist()
    assert values == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert layer.eval()(x) is x


def test_networks_start_by_the_fan_of_one_group() -> None:
    torch.manual_seed(0)
    model = create_model("efficientnet-b0", conv_init="fan_out")
    depthwise = model.features[6][1].block[1][0]  # 1152 channels, 5 x 5
    assert depthwise.weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)
    dense = model.features[8][0]
    for mode, fan in (("fan_out", 1280), ("fan_in", 320)):
        dense = create_model("efficientnet-b0", conv_init=mode).features[8][0]
        assert dense.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)


def test_options_reach_the_layers() -> None:
    model = create_model("efficientnet-b0", 3, dropout=0.4, bn_momentum=0.1, bn_epsilon=1e-5,
                         zero_init_last_bn=True)  # fmt: skip
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}
    assert model.classifier[0].p == 0.4
    assert create_model("efficientnet-b0").classifier[0].p == 0.2
    block = model.eval().features[3][1]
    x = torch.rand(1, 40, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
def test_the_network_can_be_scripted() -> None:
    model = create_model("efficientnet-b1", 3).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(torch.jit.script(model)(images), model(images))
    assert torch.jit.script(model.train())(images.expand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"survival_prob": 0.0}, "survival_prob must be above 0"),
        ({"bn_momentum": 0.0}, "bn_momentum must be above 0"),
        ({"bn_epsilon": 0.0}, "bn_epsilon must be above 0"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
        ({"conv_init": "classic"}, "got 'classic'"),
    ],
)
def test_values_out_of_range_are_named(options: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create_model("efficientnet-b0", **options)


def test_channels_are_rounded_to_eights_but_not_far_down() -> None:
    assert [round_channels(channels) for channels in (1, 32, 35.2, 38.4, 17.6, 28)] == [
        8, 32, 32, 40, 16, 32,
    ]  # fmt: skip
