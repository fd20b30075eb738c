# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a weight file holds: its weights by our names, and what it says of their training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from image_classification.errors import CheckpointError, printable
from image_classification.safe_load import is_plain_tensor, load_tensors
from image_classification.weight_formats import WeightFormat, translate

# Where a checkpoint keeps its weights: this package, NVIDIA, timm, Lightning, mmpretrain;
# torchvision; PyTorch's tutorials; many a training script for CIFAR.
_KEYS = ("state_dict", "model", "model_state_dict", "net")
_EMA_KEYS = ("state_dict_ema", "model_ema")


class Weights(NamedTuple):
    """Weights of a file.

    Args:
        state: CPU tensors by torchvision's names.
        format: who named them in the file; None: nobody known, they are named as there.
        source: the file, for messages.
        channels: what pruning has left of the network's, see `models.resnet.ResNet`; else None.
        classes: class names by index; None: the file has none, or plain numbers.
        averaged: whether they are the exponential moving average of the training's.
    """

    state: dict[str, Tensor]
    format: WeightFormat | None = None
    source: str = "the file"
    channels: Any = None
    classes: tuple[str, ...] | None = None
    averaged: bool = False

    @property
    def bn_epsilon(self) -> float | None:
        """BatchNorm's epsilon with which they were trained; None where the file does not tell."""
        return self.format.bn_epsilon if self.format is not None else None


def load_weight_file(path: str | os.PathLike[str], *, ema: bool | None = None) -> Weights:
    """Read the weights out of a file, whatever it wraps them in.

    Args:
        path: a file of `torch.save` or a safetensors file.
        ema: see `extract_weights`.

    Returns:
        The weights by torchvision's parameter names, and the format that was recognised.

    Raises:
        CheckpointError: see `load_tensors` and `extract_weights`.
    """
    source = os.fspath(path)
    return extract_weights(load_tensors(path), source=source, ema=ema)


def extract_weights(
    content: object, *, source: str = "the file", ema: bool | None = None
) -> Weights:
    """Find the weights in the content of a file and give them torchvision's names.

    Args:
        content: a checkpoint with the weights under one of the usual keys, or the weights
            themselves.
        source: path of the file, or what to call the content in an error.
        ema: take the exponential moving average, `state_dict_ema` (this package, NVIDIA, timm) or
            `model_ema` (torchvision); False: only where there is nothing else; None: where it is.

    Returns:
        CPU tensors by name, without the prefixes of wrappers, and the format.

    Raises:
        CheckpointError: no weights there, values among them that are not dense CPU tensors, or
            two weights for the same place.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"no weights in {source!r}: it holds a {type(content).__name__}")
    average, plain = (_find(content, keys) for keys in (_EMA_KEYS, _KEYS))
    if ema and not average:
        raise CheckpointError(
            f"no EMA weights in {source!r}; train with --use-ema, or leave --ema out"
        )
    averaged = bool(average) and (ema is not False or plain is None)
    found = average if averaged else plain
    tensors = _check_tensors(content if found is None else found, source)
    names, row = translate(tensors, _hints(content, source))
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if names[name] in state:
            first = next(other for other, new in names.items() if new == names[name])
            raise CheckpointError(
                f"{source!r} is ambiguous: {printable(first, 60)!r} and {printable(name, 60)!r} "
                "are the same weight; save the one network that is wanted"
            )
        state[names[name]] = value
    options = content.get("model_options")
    channels = options.get("channels") if isinstance(options, Mapping) else None
    classes = known_names(content.get("classes"))
    return Weights(state, _with_own_epsilon(row, options), source, channels, classes, averaged)


def known_names(classes: object) -> tuple[str, ...] | None:
    """Class names that say what a class is; None where there are none, or plain numbers."""
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        return None
    return None if all(name.isdecimal() for name in classes) else tuple(classes)


def _check_tensors(weights: Mapping[Any, object], source: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        # torch's own averaging counts its updates in the state; the count is not a weight.
        if name == "n_averaged":
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"no weights in {source!r}: entry {str(name)[:60]!r} is a {type(value).__name__}, "
                "not a tensor"
            )
        if not is_plain_tensor(value):
            raise CheckpointError(
                f"no usable weights in {source!r}: {printable(name, 60)!r} is not dense, or not of "
                "ordinary numbers"
            )
        tensors[name] = value
    if not tensors:
        raise CheckpointError(f"no weights in {source!r}: it is empty")
    return tensors


def _hints(content: Mapping[str, object], source: str) -> str:
    """What a file says of itself: its name, or that of its folder in the cache of a hub; the
    network that is named in it (timm) or in the options of its training (torchvision)."""
    path = Path(source)
    hub = [part for part in path.parts if part.startswith("models--")]
    arch = content.get("arch", getattr(content.get("args"), "model", None))
    return " ".join([*hub, path.name, f"arch={arch}" if isinstance(arch, str) else ""])


def _with_own_epsilon(row: WeightFormat | None, options: object) -> WeightFormat | None:
    """The format; a checkpoint of this package also tells the options of its network."""
    if row is None or not isinstance(options, Mapping):
        return row
    # Without the option it is the network's own: 1e-5 in ResNet, which its row says, else 1e-3.
    epsilon = options.get("bn_epsilon", row.bn_epsilon or 1e-3)
    known = isinstance(epsilon, float) and math.isfinite(epsilon)
    name = "a checkpoint of this package"
    return row._replace(name=name, bn_epsilon=epsilon) if known else row


def _find(content: Mapping[str, object], keys: tuple[str, ...]) -> Mapping[str, object] | None:
    found = (content.get(key) for key in keys)
    return next((value for value in found if isinstance(value, Mapping)), None)
