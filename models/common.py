# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What all families of networks have in common."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import nn

from image_classification.errors import UsageError

ConvInit = Literal["fan_out", "fan_in"]
CONV_INITS: tuple[str, ...] = get_args(ConvInit)


def check_common(conv_init: str, dropout: float) -> None:
    """Check the options of any network.

    Raises:
        UsageError: an unknown initialisation, or a dropout outside [0, 1).
    """
    if conv_init not in CONV_INITS:
        raise UsageError(f"conv_init must be one of {', '.join(CONV_INITS)}, got {conv_init!r}")
    if not 0.0 <= dropout < 1.0:
        raise UsageError(f"dropout must be at least 0 and below 1, got {dropout}")


def set_batch_norm(model: nn.Module, momentum: float | None, epsilon: float | None) -> None:
    """Set momentum and epsilon of every BatchNorm; None leaves what is there.

    Raises:
        UsageError: a momentum outside (0, 1], or an epsilon that is not above 0.
    """
    if momentum is not None and not 0.0 < momentum <= 1.0:
        raise UsageError(f"bn_momentum must be above 0 and at most 1, got {momentum}")
    if epsilon is not None and not 0.0 < epsilon < math.inf:
        raise UsageError(f"bn_epsilon must be above 0, got {epsilon}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = module.momentum if momentum is None else momentum
            module.eps = module.eps if epsilon is None else epsilon


def head_name(model: nn.Module) -> str:
    """Return the name of the classifier: the model's last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the model has no linear layer")
    return linear[-1]
