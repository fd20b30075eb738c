# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Recomputed blocks: the same bits, less memory."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from image_classification.recomputing import Recomputed, recompute_blocks
from models import create_model


def train(model: nn.Module) -> nn.Module:
    """Two steps on the same images, with dropout and stochastic depth."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(images).logsumexp(1).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("arch", "options", "blocks"),
    [
        ("resnet18_cifar", {"dropout": 0.2}, 8),
        ("se-resnext101-32x4d", {}, 33),
        ("efficientnet-b0", {"survival_prob": 0.5}, 16),
    ],
)
def test_the_result_is_the_same_bit_for_bit(
    arch: str, options: dict[str, float], blocks: int
) -> None:
    torch.manual_seed(0)
    plain = create_model(arch, 5, **options)
    again = recompute_blocks(copy.deepcopy(plain))
    assert sum(len(row) for row in again.modules() if isinstance(row, Recomputed)) == blocks
    assert list(again.state_dict()) == list(plain.state_dict())
    one, other = train(plain).state_dict(), train(again).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), again.eval()(images))


def test_frozen_statistics_stay_frozen() -> None:
    model = recompute_blocks(create_model("resnet18_cifar", 5)).train()
    norm = model.layer2[0].bn1.eval()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert not norm.running_mean.any() and norm.momentum == 0.1 and norm.num_batches_tracked == 0
    assert model.layer2[0].bn2.num_batches_tracked == 1


def test_the_counter_of_batches_is_there_all_the_time() -> None:
    """SyncBatchNorm refuses to do without."""
    model = recompute_blocks(create_model("resnet18_cifar", 5)).train()
    counters = []
    norm = model.layer1[0].bn1
    norm.register_forward_hook(lambda *call: counters.append(norm.num_batches_tracked))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(counters) == 2 and None not in counters and norm.num_batches_tracked == 1


def test_a_block_keeps_its_input_only() -> None:
    model = recompute_blocks(create_model("resnet18_cifar", 5)).train()
    alive = []
    for name, module in model.named_modules():
        if name.endswith("bn1") and name != "bn1":
            module.register_forward_hook(lambda *call: alive.append(weakref.ref(call[2])))
    loss = model(torch.randn(2, 3, 32, 32)).sum()
    assert len(alive) == 8 and not any(output() is not None for output in alive)
    loss.backward()
    assert len(alive) == 16  # computed again
