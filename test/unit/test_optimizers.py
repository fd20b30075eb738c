# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weight-decay groups, optimizers, schedules, and 50 steps against a plain loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from image_classification import optimizers
from models import create_model


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return create_model("resnet50", 10)


def test_normalisation_and_biases_are_not_decayed(resnet50: nn.Module) -> None:
    decayed, undecayed = optimizers.parameter_groups(resnet50, 1e-4)
    assert decayed["weight_decay"] == 1e-4 and undecayed["weight_decay"] == 0.0
    # 53 convolutions and the classifier; 53 BatchNorms with two tensors each, and one bias.
    assert len(decayed["names"]) == 54
    assert len(undecayed["names"]) == 107
    assert "layer1.0.downsample.1.weight" in undecayed["names"]  # a name without "bn"
    assert "fc.bias" in undecayed["names"]


def test_decay_all_leaves_one_group(resnet50: nn.Module) -> None:
    (group,) = optimizers.parameter_groups(resnet50, 1e-4, decay_all=True)
    assert len(group["names"]) == 161
    assert len(group["params"]) == len(set(map(id, group["params"]))) == 161


def test_warmup_reaches_the_base_once_and_cosine_ends_at_the_end() -> None:
    lr = optimizers.lr_policy("cosine", 2.048, total_steps=900, warmup_steps=80, end_lr=1e-4)
    rates = [lr(step) for step in range(900)]
    assert rates[0] == pytest.approx(2.048 / 80)
    assert rates[79] == 2.048
    assert sum(rate == 2.048 for rate in rates) == 1
    assert rates[-1] == 1e-4
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[79:]))
    middle = 79 + 410
    expected = 1e-4 + (2.048 - 1e-4) * 0.5 * (1 + math.cos(math.pi * 410 / 820))
    assert rates[middle] == pytest.approx(expected)


def test_linear_without_warmup_starts_at_the_base_and_ends_at_zero() -> None:
    lr = optimizers.lr_policy("linear", 0.4, total_steps=5)
    assert [lr(step) for step in range(5)] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])
    assert lr(99) == 0.0


def test_step_falls_at_epochs_30_60_80_of_90() -> None:
    steps = 7
    lr = optimizers.lr_policy("step", 0.1, total_steps=90 * steps)
    by_epoch = [lr(epoch * steps) for epoch in range(90)]
    for epoch in range(90):
        falls = (epoch >= 30) + (epoch >= 60) + (epoch >= 80)
        assert by_epoch[epoch] == pytest.approx(0.1 * 0.1**falls)
    assert lr(30 * steps - 1) == 0.1


def test_exponential_falls_by_the_same_factor_to_the_end() -> None:
    lr = optimizers.lr_policy("exponential", 0.256, total_steps=101, warmup_steps=1, end_lr=0.003)
    rates = [lr(step) for step in range(101)]
    factors = [later / earlier for earlier, later in itertools.pairwise(rates)]
    assert factors == pytest.approx([(0.003 / 0.256) ** (1 / 100)] * 100)
    assert rates[0] == 0.256 and rates[-1] == pytest.approx(0.003)
    assert optimizers.lr_policy("exponential", 2.0, total_steps=9)(8) == pytest.approx(0.002)


@pytest.mark.parametrize("schedule", optimizers.LR_SCHEDULES)
def test_one_step_of_training_is_enough_for_every_schedule(schedule: str) -> None:
    assert optimizers.lr_policy(schedule, 0.1, total_steps=1, warmup_steps=1)(0) == 0.1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="known: step, linear, cosine, exponential"):
        optimizers.lr_policy("stairs", 0.1, total_steps=1)
    with pytest.raises(ValueError, match="known: sgd, adamw, rmsprop, rmsprop-tf, lars"):
        optimizers.create_optimizer("lamb", nn.Linear(1, 1), lr=1.0, weight_decay=0.0)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_state_by_name_restores_the_next_step(name: str) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        net = net.to(memory_format=torch.channels_last)
        optimizer = optimizers.create_optimizer(name, net, lr=0.01, weight_decay=1e-3)
        return net, optimizer

    def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        net(torch.randn(4, 3, 4, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    straight, straight_optimizer = fresh()
    for seed in range(4):
        step(straight, straight_optimizer, seed)

    first, first_optimizer = fresh()
    for seed in range(2):
        step(first, first_optimizer, seed)
    weights = {key: value.clone() for key, value in first.state_dict().items()}
    state = optimizers.state_by_name(first_optimizer)
    assert set(state) == {key for key, _ in first.named_parameters()}

    second, second_optimizer = fresh()
    second.load_state_dict(weights)
    assert optimizers.load_state_by_name(second_optimizer, state) == []
    for seed in range(2, 4):
        step(second, second_optimizer, seed)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_rmsprop_of_tensorflow_is_its_formula() -> None:
    """Ones at first, epsilon under the root, the rate within the momentum, decay in the gradient.

    TensorFlow's kernel: ms += (g^2 - ms)(1 - rho); mom = momentum mom + lr g / sqrt(ms + epsilon).
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = optimizers.create_optimizer(
        "rmsprop-tf", layer, lr=0.1, weight_decay=0.01, momentum=0.8, rmsprop_alpha=0.7,
        rmsprop_eps=0.02,
    )  # fmt: skip
    weights = {name: one.detach().double().clone() for name, one in layer.named_parameters()}
    squares = {name: torch.ones_like(one) for name, one in weights.items()}
    momenta = {name: torch.zeros_like(one) for name, one in weights.items()}
    for rate in (0.1, 0.1, 0.02):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        for name, one in layer.named_parameters():
            one.grad = torch.randn(one.shape, generator=generator)
            gradient = one.grad.double() + (0.01 * weights[name] if name == "weight" else 0.0)
            squares[name] += (gradient**2 - squares[name]) * (1 - 0.7)
            momenta[name] = 0.8 * momenta[name] + rate * gradient / (squares[name] + 0.02).sqrt()
            weights[name] -= momenta[name]
        optimizer.step()
    for name, one in layer.named_parameters():
        torch.testing.assert_close(one.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


def test_rmsprop_of_tensorflow_equals_timms() -> None:
    timm = pytest.importorskip("timm.optim")
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "eps": 1e-3, "alpha": 0.9}
    pair = [(ours, optimizers.RMSpropTF(ours.parameters(), **settings)),
            (theirs, timm.RMSpropTF(theirs.parameters(), **settings))]  # fmt: skip
    for seed in range(3):
        for layer, optimizer in pair:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_the_head_has_a_rate_of_its_own() -> None:
    model = create_model("resnet18", 3)
    optimizer = optimizers.create_optimizer("sgd", model, lr=0.1, weight_decay=1e-4, head_lr=0.5)
    scales = {name: group["lr_scale"] for group in optimizer.param_groups
              for name in group["names"]}  # fmt: skip
    assert {name for name, scale in scales.items() if scale != 1.0} == {"fc.weight", "fc.bias"}
    assert scales["fc.weight"] == pytest.approx(5.0) and len(scales) == 62
    decays = {name: group["weight_decay"] for group in optimizer.param_groups
              for name in group["names"]}  # fmt: skip
    assert (decays["fc.weight"], decays["fc.bias"], decays["conv1.weight"]) == (1e-4, 0.0, 1e-4)
    plain = optimizers.create_optimizer("sgd", model, lr=0.1, weight_decay=1e-4)
    assert [group["lr_scale"] for group in plain.param_groups] == [1.0, 1.0]


def test_missing_state_is_named() -> None:
    net = nn.Linear(2, 2)
    optimizer = optimizers.create_optimizer("sgd", net, lr=0.1, weight_decay=0.0)
    assert set(optimizers.load_state_by_name(optimizer, {})) == {"weight", "bias"}
