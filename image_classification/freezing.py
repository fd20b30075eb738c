# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a network that stay as they were loaded while the rest is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from image_classification.errors import UsageError
from models import NETWORK_PARTS


def without_weights(part: str, warn: Callable[[str], None]) -> str:
    """What to freeze of a network that begins with random numbers: nothing.

    Args:
        part: What is asked for, one of `models.NETWORK_PARTS`.
        warn: Is told if that is not done.
    """
    if part != "none":
        warn(
            f"this training began without pretrained weights: --freeze {part} would keep random "
            "numbers, nothing is frozen; give --pretrained or --pretrained-weights FILE"
        )
    return "none"


class Freezing:
    """Keeps the first parts of a network fixed, statistics of BatchNorm included.

    Args:
        model: A network of this package (`stages` returns its parts).
        until: The last part that is kept, one of `models.NETWORK_PARTS`; the backbone is everything
            but the classifier.
        epochs: Epochs after which everything is trained; None: never.

    Raises:
        UsageError: The network does not say what its stages are (TorchScript).
    """

    def __init__(self, model: nn.Module, until: str, epochs: int | None = None) -> None:
        self._modules: list[nn.Module] = []
        self._epochs = epochs
        self.active = False
        if number := NETWORK_PARTS.index(until):
            if not hasattr(model, "stages"):
                raise UsageError(f"--freeze {until}: this network does not say what its stages are")
            self._modules = [module for stage in model.stages()[: number + 1] for module in stage]

    def enter(self, epoch: int) -> bool:
        """Freezes or releases the parts for an epoch.

        Args:
            epoch: Epoch number from 0.

        Returns:
            Whether other parameters are trained than before.
        """
        active = bool(self._modules) and (self._epochs is None or epoch < self._epochs)
        changed = active != self.active
        self.active = active
        for module in self._modules if changed else ():
            module.requires_grad_(not active)
            module.zero_grad(set_to_none=True)
        return changed

    def hold(self) -> None:
        """Puts the frozen parts into evaluation mode: no dropout, no new statistics."""
        for module in self._modules if self.active else ():
            module.eval()
