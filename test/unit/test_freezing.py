# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of the network that stay as they are, for some epochs or for good."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_classification.errors import UsageError
from image_classification.freezing import Freezing
from models import NETWORK_PARTS, create_model


def trained(model: nn.Module) -> set[str]:
    """The first words of the names of the parameters that are trained."""
    return {name.split(".")[0] for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("name", ["resnet18", "resnet50_cifar", "efficientnet-b0"])
def test_the_stages_are_everything_but_the_head(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 3)
    stages = model.stages()
    assert len(stages) == 5
    found = [id(one) for stage in stages for module in stage for one in module.parameters()]
    everything = {id(one): name for name, one in model.named_parameters()}
    assert len(found) == len(set(found))
    assert {everything[one] for one in set(everything) - set(found)} == {
        name for name in everything.values() if name.startswith(("fc.", "classifier."))
    }


def test_stages_of_resnet_and_efficientnet_have_the_same_resolutions() -> None:
    for name in ("resnet18", "efficientnet-b0"):
        model, x, sizes = create_model(name, 3).eval(), torch.zeros(1, 3, 64, 64), []
        for number, stage in enumerate(model.stages()):
            for module in stage:
                x = module(x)
            x = model.maxpool(x) if name == "resnet18" and not number else x
            sizes.append(64 // x.shape[2])
        assert sizes[1:] == [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("stage1", {"layer2", "layer3", "layer4", "fc"}),
        ("stage3", {"layer4", "fc"}),
        ("stage4", {"fc"}),
        ("backbone", {"fc"}),
    ],
)
def test_the_rest_is_trained(part: str, left: set[str]) -> None:
    model = create_model("resnet18", 3)
    freezing = Freezing(model, part)
    assert freezing.enter(0) and not freezing.enter(1)
    assert trained(model) == left
    model.train()
    freezing.hold()
    norms = {name: one.training for name, one in model.named_modules()
             if isinstance(one, nn.BatchNorm2d)}  # fmt: skip
    assert not norms["bn1"] and not norms["layer1.0.bn1"]
    assert norms["layer4.0.bn1"] == ("layer4" in left)


def test_none_is_nothing() -> None:
    model = create_model("resnet18", 3)
    freezing = Freezing(model, "none")
    assert not freezing.enter(0) and len(trained(model)) == 7
    assert NETWORK_PARTS[0] == "none"


def test_everything_is_trained_after_the_epochs() -> None:
    model = create_model("resnet18", 3)
    freezing = Freezing(model, "backbone", epochs=2)
    assert [freezing.enter(epoch) for epoch in range(4)] == [True, False, True, False]
    assert len(trained(model)) == 7
    resumed = Freezing(create_model("resnet18", 3), "backbone", epochs=2)
    assert not resumed.enter(3)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(UsageError, match="does not say what its stages are"):
        Freezing(nn.Linear(1, 1), "stage1")
