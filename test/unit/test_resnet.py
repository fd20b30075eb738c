# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The ResNet family: the same networks as torchvision's, with the documented options."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from image_classification.errors import UsageError
from models import create_model, model_names
from models.resnet import VARIANTS, BasicBlock, Bottleneck, SqueezeExcitation

ROOT = Path(__file__).resolve().parents[2]

# The first five as published with torchvision, ResNeXt with its paper's widths.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext101-32x4d": 44_177_704,
}


def torchvision_model(name: str) -> nn.Module:
    resnet = pytest.importorskip("torchvision.models.resnet")
    if name == "resnext101-32x4d":
        return resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return getattr(resnet, name)(weights=None)


def randomise_batch_norm(model: nn.Module, generator: torch.Generator) -> None:
    """Statistics other than 0 and 1, so that a swapped or skipped BatchNorm shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.2, 0.2, generator=generator)


def test_importing_models_does_not_import_torch() -> None:
    code = "import sys, models; models.model_names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_state_dict_has_the_names_order_and_shapes_of_torchvision(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(name).state_dict(), torchvision_model(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [
        (key, value.shape) for key, value in theirs.items()
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext101-32x4d"])
def test_torchvision_weights_give_torchvision_outputs(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    theirs = torchvision_model(name).eval()
    randomise_batch_norm(theirs, generator)
    ours = create_model(name).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


def test_training_outputs_and_gradients_equal_torchvision() -> None:
    theirs = torchvision_model("resnet18")
    ours = create_model("resnet18")
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for model in (ours, theirs):
        model(images).square().mean().backward()
    torch.testing.assert_close(ours.conv1.weight.grad, theirs.conv1.weight.grad)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # running statistics too


@pytest.mark.parametrize("name", [name for name in model_names() if name in VARIANTS])
def test_every_network_classifies_small_images(name: str) -> None:
    model = create_model(name, num_classes=5).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 5)
    assert bool(logits.isfinite().all())
    assert not torch.equal(logits[0], logits[1])


def test_bottlenecks_have_their_stride_on_the_3x3_convolution() -> None:
    with torch.device("meta"):
        model = create_model("resnet50")
    strides = [
        (block.conv1.stride[0], block.conv2.stride[0], block.conv3.stride[0])
        for block in model.modules()
        if isinstance(block, Bottleneck)
    ]
    expected = []
    for depth, stride in ((3, 1), (4, 2), (6, 2), (3, 2)):
        expected += [(1, stride, 1)] + [(1, 1, 1)] * (depth - 1)
    assert strides == expected


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_convolutions_start_with_kaiming_deviation(mode: str) -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", conv_init=mode)
    for name in ("layer1.0.conv1", "layer2.0.conv1", "layer4.1.conv2"):
        weight = model.get_submodule(name).weight
        fan = (weight.shape[1] if mode == "fan_in" else weight.shape[0]) * 9
        # Of n >= 36,864 normal numbers the deviation is known to 1 / sqrt(2 n) = 0.4 %.
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * math.sqrt(2 / fan)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_init_makes_every_residual_branch_start_at_zero(name: str) -> None:
    blocks = [m for m in create_model(name).modules() if isinstance(m, BasicBlock | Bottleneck)]
    zeroed = create_model(name, zero_init_last_bn=True)
    assert all((block.get_parameter(f"{block.last_bn}.weight") == 1).all() for block in blocks)
    scales = {n: m.weight for n, m in zeroed.named_modules() if isinstance(m, nn.BatchNorm2d)}
    last = {"resnet18": "bn2", "resnet50": "bn3"}[name]
    for path, scale in scales.items():
        expected = 0.0 if path.startswith("layer") and path.endswith(last) else 1.0
        assert bool((scale == expected).all()), path
    block = zeroed.layer1[1]  # its shortcut is the identity
    x = torch.rand(1, block.conv1.in_channels, 8, 8)
    assert torch.equal(block(x), x)


def test_dropout_acts_on_the_features_in_training_only() -> None:
    model = create_model("resnet18", num_classes=2, dropout=0.5)
    seen: list[torch.Tensor] = []
    model.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model(images)
    model.eval()(images)
    assert 0.4 < (seen[0] == 0).float().mean() < 0.75
    assert (seen[1] == 0).float().mean() < 0.1


def test_squeeze_excitation_scales_channels_by_its_gates() -> None:
    gate = SqueezeExcitation(8, 2)
    x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    hidden = (x.mean((2, 3)) @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    expected = torch.sigmoid(hidden @ gate.expand.weight.T + gate.expand.bias)
    torch.testing.assert_close(gate(x), expected[:, :, None, None])


def test_the_forms_of_squeeze_excitation_compute_the_same() -> None:
    reference = create_model("se-resnext101-32x4d", 4).eval()
    randomise_batch_norm(reference, torch.Generator().manual_seed(0))
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = reference.state_dict()
    convolutions = {
        name: value[:, :, None, None] if ".se." in name and name.endswith("weight") else value
        for name, value in weights.items()
    }
    with torch.inference_mode():
        expected = reference(images)
        for options, state in (
            ({"fused_se": False}, weights),
            ({"se_as_conv": True}, convolutions),
        ):
            model = create_model("se-resnext101-32x4d", 4, **options).eval()
            model.load_state_dict(state)
            torch.testing.assert_close(model(images), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
def test_networks_can_be_scripted() -> None:
    for name in ("resnet18", "se-resnext101-32x4d"):
        model = create_model(name, 3).eval()
        images = torch.randn(1, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(torch.jit.script(model)(images), model(images))


def test_an_unknown_name_lists_the_known_ones_and_suggests_one() -> None:
    with pytest.raises(UsageError) as error:
        create_model("ResNext101_32x4d")
    assert "did you mean 'resnext101-32x4d'" in str(error.value)
    assert all(name in str(error.value) for name in models.model_names())
    with pytest.raises(UsageError) as error:
        create_model("vgg16")
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"conv_init": "classic"}, "fan_out, fan_in, got 'classic'"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
        ({"num_classes": 0}, "at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_named(arguments: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        create_model("resnet18", **arguments)


def test_an_option_that_the_network_does_not_have_is_an_error() -> None:
    with pytest.raises(UsageError, match="no squeeze-and-excitation"):
        create_model("resnet50", fused_se=False)
    with pytest.raises(TypeError, match="dropuot"):
        create_model("se-resnext101-32x4d", dropuot=0.5)
