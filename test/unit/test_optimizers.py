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


@pytest.mark.parametrize("schedule", optimizers.LR_SCHEDULES)
def test_one_step_of_training_is_enough_for_every_schedule(schedule: str) -> None:
    assert optimizers.lr_policy(schedule, 0.1, total_steps=1, warmup_steps=1)(0) == 0.1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="known: step, linear, cosine"):
        optimizers.lr_policy("stairs", 0.1, total_steps=1)
    with pytest.raises(ValueError, match="known: sgd, adamw, rmsprop"):
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


def test_missing_state_is_named() -> None:
    net = nn.Linear(2, 2)
    optimizer = optimizers.create_optimizer("sgd", net, lr=0.1, weight_decay=0.0)
    assert set(optimizers.load_state_by_name(optimizer, {})) == {"weight", "bias"}
