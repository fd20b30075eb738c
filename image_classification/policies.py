# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation policies: operations and magnitudes as torchvision has them, to be drawn by us.

torchvision's classes draw with torch's generator, image by image. Here their tables are read once
and turned into lists of equally probable operations, from which `augmentation.draw_policy` draws
for whole batches; `image_operations` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from image_classification.errors import UsageError

# torchvision's names of the sub-policies that were found for a data set.
_FOUND_FOR = {"autoaugment": "IMAGENET", "autoaugment-cifar10": "CIFAR10"}
_CLASSES = {"randaugment": "RandAugment", "trivialaugment": "TrivialAugmentWide"}
# AutoAugment's magnitudes are numbered 0 .. 9; probabilities are multiples of a tenth.
_AUTOAUGMENT_BINS = 10
_TENTHS = 10
_SIGNS = (1.0, -1.0)


class Operation(NamedTuple):
    """What is done to an image.

    Attributes:
        name: torchvision's name of the operation.
        magnitude: Its strength, in torchvision's unit of that operation; 0.0 where it has none.
    """

    name: str
    magnitude: float


IDENTITY = Operation("Identity", 0.0)


@dataclass(frozen=True)
class Policy:
    """What may be done to images.

    Attributes:
        operations: Different ones; the first is IDENTITY.
        choices: int64 [G, S, E], numbers of operations. An image gets one of G rows, and in each
            of its S steps one of E operations, all with the same probability.
    """

    operations: tuple[Operation, ...]
    choices: NDArray[np.int64]


def read_policy(name: str, image_size: int, num_operations: int, magnitude: int) -> Policy:
    """A policy for square images.

    Args:
        name: One of presets.POLICIES.
        image_size: Side of the images in pixels; shifts depend on it.
        num_operations: RandAugment's N.
        magnitude: RandAugment's M.

    Raises:
        UsageError: torchvision cannot be imported, or is none whose tables can be read.
    """
    transforms = require_torchvision(name)
    try:
        if name in _FOUND_FOR:
            auto = transforms.AutoAugment(transforms.AutoAugmentPolicy[_FOUND_FOR[name]])
            space = _Space(auto._AUGMENTATION_SPACE, _AUTOAUGMENT_BINS, image_size)
            return _numbered([[_step(space, *part) for part in parts] for parts in auto._policies])
        found = getattr(transforms, _CLASSES[name])()
        space = _Space(found._AUGMENTATION_SPACE, found.num_magnitude_bins, image_size)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"--augmentation {name} reads the tables of torchvision 0.19 to 0.29, and this one "
            f"keeps them elsewhere ({error}): install one of those, or leave the option out"
        ) from error
    bins = [magnitude] if name == "randaugment" else range(found.num_magnitude_bins)
    step = [one for which in space.names for place in bins for one in space.signed(which, place)]
    return _numbered([[step] * (num_operations if name == "randaugment" else 1)])


def require_torchvision(name: str) -> Any:
    """torchvision.transforms.v2, which a policy needs.

    Raises:
        UsageError: It cannot be imported; the message names the install command.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"--augmentation {name} needs torchvision, which cannot be imported ({error}); "
            "install the version that belongs to your torch: pip install torchvision"
        ) from error
    return v2


class _Space:
    """torchvision's table of magnitudes: name -> (function of bins, height, width; signed)."""

    def __init__(
        self, table: dict[str, tuple[Callable[..., Any], bool]], bins: int, side: int
    ) -> None:
        self.names = tuple(table)
        self._signed = {name: signed for name, (_, signed) in table.items()}
        self._magnitudes = {
            name: None if (found := magnitudes(bins, side, side)) is None else found.tolist()
            for name, (magnitudes, _) in table.items()
        }

    def signed(self, name: str, place: int | None) -> list[Operation]:
        """The operation with its magnitude and with the opposite one, which may be the same."""
        magnitudes = self._magnitudes[name]
        value = 0.0 if magnitudes is None or place is None else float(magnitudes[place])
        signs = _SIGNS if self._signed[name] else (1.0, 1.0)
        return [Operation(name, value * sign) for sign in signs]


def _step(space: _Space, name: str, probability: float, place: int | None) -> Sequence[Operation]:
    """AutoAugment's step as twenty equally probable operations, some of them IDENTITY."""
    tenths = round(probability * _TENTHS)
    if abs(probability * _TENTHS - tenths) > 1e-9:
        raise ValueError(f"the probability of {name}, {probability}, is no multiple of 0.1")
    return space.signed(name, place) * tenths + [IDENTITY] * (2 * (_TENTHS - tenths))


def _numbered(rows: Sequence[Sequence[Sequence[Operation]]]) -> Policy:
    """The policy with these operations in place of their numbers."""
    numbers = {IDENTITY: 0}
    choices = [
        [[numbers.setdefault(one, len(numbers)) for one in step] for step in row] for row in rows
    ]
    return Policy(tuple(numbers), np.array(choices, dtype=np.int64))
