# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""LARS is the paper's formula, for weight tensors alone, and never asks the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from image_classification.lars import LARS
from image_classification.optimizers import create_optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def set_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for one in net.parameters():
        one.grad = torch.randn(one.shape, generator=generator)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def test_two_steps_by_hand() -> None:
    """The length of the weights is 5, that of the gradient 2; then the gradient is zero."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimizer = LARS(
        [{"params": [weight], "weight_decay": 0.1}, {"params": [bias]}], lr=10.0, momentum=0.5
    )
    weight.grad, bias.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([2.0])
    optimizer.step()
    # 0.001 x 5 / (2 + 0.1 x 5) = 0.002; 10 x 0.002 x (0.3, 2.4) = (0.006, 0.048)
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.994, 3.952]]))
    torch.testing.assert_close(bias.detach(), torch.tensor([1.0 - 10 * 2.0]))
    weight.grad, bias.grad = torch.zeros(1, 2), torch.zeros(1)
    set_rate(optimizer, 5.0)
    optimizer.step()
    # 0.5 x (0.006, 0.048) + 5 x 1 x 0.1 x (2.994, 3.952) = (1.5, 2); 0.5 x 20 = 10
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.494, 1.952]]))
    torch.testing.assert_close(bias.detach(), torch.tensor([-29.0]))


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_steps_of_a_network_are_those_of_a_plain_loop(decay_all: bool, decay: float) -> None:
    net = network()
    optimizer = create_optimizer(
        "lars", net, lr=3.0, weight_decay=decay, momentum=0.8, lars_eta=0.01, decay_all=decay_all,
        head_lr=6.0,
    )  # fmt: skip
    weights = {name: one.detach().double().clone() for name, one in net.named_parameters()}
    velocity = {name: torch.zeros_like(one) for name, one in weights.items()}
    for step, rate in enumerate((3.0, 3.0, 1.0, 0.0)):
        set_gradients(net, step)
        set_rate(optimizer, rate)
        for name, one in net.named_parameters():
            g, w = one.grad.double(), weights[name]
            beta, ratio = decay if decay_all else 0.0, 1.0
            if name in ("0.weight", "3.weight"):  # neither BatchNorm's nor a bias
                beta = decay
                of_w, of_g = (math.sqrt(float((x * x).sum())) for x in (w, g))
                ratio = 0.01 * of_w / (of_g + beta * of_w)
            local = rate * (2.0 if name.startswith("3.") else 1.0) * ratio
            velocity[name] = 0.8 * velocity[name] + local * (g + beta * w)
            weights[name] = w - velocity[name]
        before = {name: one.grad.clone() for name, one in net.named_parameters()}
        optimizer.step()
        for name, one in net.named_parameters():
            assert torch.equal(one.grad, before[name])
            torch.testing.assert_close(one.detach().double(), weights[name], rtol=1e-5, atol=1e-5)


def test_batchnorm_and_biases_take_the_steps_of_sgd() -> None:
    ours, theirs = network(), network()
    settings = {"lr": 0.5, "momentum": 0.9}
    pair = [
        (ours, create_optimizer("lars", ours, weight_decay=0.1, **settings)),
        (theirs, torch.optim.SGD(theirs.parameters(), **settings)),
    ]
    for step in range(3):
        for net, optimizer in pair:
            set_gradients(net, step)
            optimizer.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5) == (name not in ("0.weight", "3.weight")), name


def test_it_equals_timms_while_the_rate_stays() -> None:
    """There the rate is outside of the buffer."""
    timm = pytest.importorskip("timm.optim")
    ours, theirs = (nn.Linear(5, 3, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 4.0, "momentum": 0.9, "weight_decay": 0.01}
    pair = [(ours, LARS(ours.parameters(), **settings)),
            (theirs, timm.Lars(theirs.parameters(), **settings))]  # fmt: skip
    for step in range(4):
        for layer, optimizer in pair:
            set_gradients(layer, step)
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_what_is_zero_has_the_plain_rate(zero: str) -> None:
    weight = nn.Parameter(torch.zeros(2, 2) if zero == "weights" else torch.ones(2, 2))
    weight.grad = torch.zeros(2, 2) if zero == "gradient" else torch.ones(2, 2)
    LARS([weight], lr=0.5, weight_decay=0.0).step()
    expected = -0.5 if zero == "weights" else 1.0
    assert torch.equal(weight.detach(), torch.full((2, 2), expected))


def test_frozen_parameters_and_none_at_all_are_no_problem() -> None:
    net = network()
    optimizer = create_optimizer("lars", net, lr=1.0, weight_decay=0.1)
    before = {name: one.detach().clone() for name, one in net.named_parameters()}
    optimizer.step()
    net[3].weight.grad = torch.ones_like(net[3].weight)
    optimizer.step()
    changed = {n for n, one in net.named_parameters() if not torch.equal(one, before[n])}
    assert changed == {"3.weight"} and len(optimizer.state) == 1


def test_the_host_never_looks_at_a_number() -> None:
    """Tensors of the meta device have none: reading one raises."""
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    optimizer = create_optimizer("lars", net, lr=1.0, weight_decay=0.1)
    for one in net.parameters():
        one.grad = torch.empty_like(one)
    optimizer.step()
    optimizer.step()
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(net[0].weight.detach().sum())  # the trap works


def test_the_gradient_scaler_scales_and_skips() -> None:
    net, plain = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # which makes its tensors
    optimizers = [create_optimizer("lars", one, lr=2.0, weight_decay=0.1) for one in (net, plain)]
    for step in range(3):
        for one in (net, plain):
            set_gradients(one, step)
        for one in net.parameters():
            one.grad *= 1024.0
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)  # a power of two does not round
    set_gradients(net, 3)
    net[0].weight.grad[0, 0, 0, 0] = math.inf
    scaler.step(optimizers[0])
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        buffers = [made.state[key]["momentum_buffer"]
                   for made, key in zip(optimizers, (one, other), strict=True)]  # fmt: skip
        assert torch.equal(*buffers)
