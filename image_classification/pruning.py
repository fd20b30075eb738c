# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Structured pruning: a network with fewer channels, which is a network like any other.

Torch-Pruning (arXiv:2301.12900) finds which layers belong together, the residual sums among them,
and removes the channels with the smallest weights. What is left are the numbers of channels, an
option of `create_model`: the result is saved as weights and numbers, and loaded as such.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path

import torch

from image_classification.atomic_file import atomic_file
from image_classification.errors import UsageError
from image_classification.trained_network import TrainedNetwork
from models import create_model
from models.resnet import VARIANTS, ResNet, channels_of

# Vector units and matrix units work on as many channels at a time.
_MULTIPLE = 8


def prune(network: TrainedNetwork, keep: float) -> TrainedNetwork:
    """Remove the same share of the channels everywhere.

    Args:
        network: a ResNet without groups; it stays as it is.
        keep: share of the channels that is left, in (0, 1), rounded to multiples of 8. Parameters
            and multiply-adds are left with about its square.

    Returns:
        The narrower network, which needs training.

    Raises:
        UsageError: another kind of network, a share that leaves a layer without channels, or
            Torch-Pruning is missing.
    """
    model = copy.deepcopy(network.model)
    if not isinstance(model, ResNet) or VARIANTS[network.arch].groups > 1:
        raise UsageError(f"{network.arch} cannot be pruned; use a resnet without groups")
    narrowest = min(channels_of(model))
    if narrowest * keep < _MULTIPLE:
        raise UsageError(
            f"--keep {keep:g} would leave less than {_MULTIPLE} of the {narrowest} channels of the "
            f"narrowest layers: give {_MULTIPLE / narrowest:g} or more"
        )
    try:
        tools = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise UsageError("pruning needs Torch-Pruning; pip install torch-pruning") from error
    size = network.preset.image_size
    pruner = tools.pruner.MagnitudePruner(
        model, torch.zeros(1, 3, size, size),
        importance=tools.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1.0 - keep, round_to=_MULTIPLE, ignored_layers=[model.fc],
    )  # fmt: skip
    pruner.step()
    options = {**network.options, "channels": channels_of(model)}
    narrow = create_model(network.arch, len(network.classes), **options)
    narrow.load_state_dict(model.state_dict())
    return dataclasses.replace(network, model=narrow.eval(), options=options)


def save(network: TrainedNetwork, path: Path) -> None:
    """Write a network as `load_trained_network` and `main.py --pretrained-weights` read it.

    Raises:
        UsageError: the file cannot be written.
    """
    content = {
        "arch": network.arch,
        "num_classes": len(network.classes),
        "model_options": network.options,
        "classes": network.classes,
        "preprocessing": {"val": network.preset.to_dict()},
        "state_dict": network.model.state_dict(),
    }
    try:
        with atomic_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--output {path} cannot be written: {reason}") from error
