# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Options that all families have, and their checks."""

from __future__ import annotations

from typing import Literal, get_args

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
