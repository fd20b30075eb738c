# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The networks: a table of names, and one function that builds any of them.

Importing this package does not import torch, so that option parsers can list the names at once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from image_classification.errors import UsageError, suggestion

if TYPE_CHECKING:
    from torch import nn

# What --freeze names, from the input on; each includes what comes before it.
NETWORK_PARTS = ("none", "stage1", "stage2", "stage3", "stage4", "backbone")

# Images up to this side (pixels) are small: a data set of them fits into memory.
SMALL_SIDE = 64


@dataclass(frozen=True)
class Arch:
    """What is known about a network without building it.

    Args:
        family: the module of this package that builds it.
        image_size: side of the square input in pixels that its recipe uses.
    """

    family: str
    image_size: int = 224

    @property
    def small_images(self) -> bool:
        """Whether it takes data sets of small images as they are."""
        return self.image_size <= SMALL_SIDE


ARCHS: dict[str, Arch] = {
    "resnet18": Arch("resnet"),
    "resnet34": Arch("resnet"),
    "resnet50": Arch("resnet"),
    "resnet101": Arch("resnet"),
    "resnet152": Arch("resnet"),
    "resnext101-32x4d": Arch("resnet"),
    "se-resnext101-32x4d": Arch("resnet"),
    "resnet18_cifar": Arch("resnet", 32),
    "resnet34_cifar": Arch("resnet", 32),
    "resnet50_cifar": Arch("resnet", 32),
    "resnet101_cifar": Arch("resnet", 32),
    "resnet152_cifar": Arch("resnet", 32),
}
for _size, _side in enumerate((224, 240, 260, 300, 380, 456, 528, 600)):
    ARCHS[f"efficientnet-b{_size}"] = Arch("efficientnet", _side)
for _size in range(8):
    ARCHS[f"efficientnet-widese-b{_size}"] = ARCHS[f"efficientnet-b{_size}"]


def model_names() -> list[str]:
    """Return every name that `create_model` accepts, in the order of the table."""
    return list(ARCHS)


def find_arch(name: str) -> Arch:
    """Look a network up by name.

    Args:
        name: one of `model_names()`.

    Returns:
        Its row of the table.

    Raises:
        UsageError: unknown name; the message lists the known ones and suggests the nearest.
    """
    if name in ARCHS:
        return ARCHS[name]
    # Other packages write the same networks as resnext101_32x4d or ResNet50.
    hint = suggestion(name.lower().replace("_", "-"), ARCHS)
    raise UsageError(f"unknown network {name[:60]!r}{hint} (known: {', '.join(ARCHS)})")


def create_model(
    name: str,
    num_classes: int = 1000,
    *,
    bn_momentum: float | None = None,
    bn_epsilon: float | None = None,
    **options: Any,
) -> nn.Module:
    """Build a network with freshly initialised weights, on the CPU, in training mode.

    Args:
        name: one of `model_names()`.
        num_classes: number of outputs, >= 1.
        bn_momentum: weight of a batch in BatchNorm's running statistics, in (0, 1]; None: the
            family's.
        bn_epsilon: added to BatchNorm's variances, > 0; None: the family's.
        **options: keyword arguments of the family, e.g. those of `models.resnet.ResNet`.

    Returns:
        A module that maps images float [N, 3, H, W] to logits [N, num_classes].

    Raises:
        UsageError: unknown name, a value out of range, or an option that does not apply.
        TypeError: an option that the family does not have.
    """
    arch = find_arch(name)
    if num_classes < 1:
        raise UsageError(f"the number of classes must be at least 1, got {num_classes}")
    family = importlib.import_module(f"{__name__}.{arch.family}")
    model = family.build(name, num_classes=num_classes, **options)
    common = importlib.import_module(f"{__name__}.common")
    common.set_batch_norm(model, bn_momentum, bn_epsilon)
    return model
