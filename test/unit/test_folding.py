# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in the convolutions: the same logits, no BatchNorm left, the network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_classification.folding import fold_batch_norm
from models import create_model


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50_cifar", "se-resnext101-32x4d", "efficientnet-b0"]
)
def test_the_logits_are_the_same(arch: str) -> None:
    torch.manual_seed(0)
    network = create_model(arch, 5).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):  # as a training leaves them
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, std=0.2)
    images = torch.randn(2, 3, 64, 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batch_norm(network)
    with torch.inference_mode():
        expected, found = network(images), folded(images)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class Shared(nn.Module):
    """A convolution whose output somebody else wants, too, and BatchNorm without one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.first = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.first(x))
        return x + self.norm(x)


def test_what_cannot_be_folded_stays() -> None:
    network = Shared().eval()
    nn.init.normal_(network.norm.running_mean), nn.init.normal_(network.first.running_mean)
    folded, images = fold_batch_norm(network), torch.randn(2, 3, 4, 4)
    assert torch.equal(folded(images), network(images))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == 2
