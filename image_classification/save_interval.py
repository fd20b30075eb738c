# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How often a run saves within an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class SaveInterval:
    """The largest distance between two saves; None where it does not matter.

    Attributes:
        seconds: In time.
        steps: In optimizer steps.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> SaveInterval:
        """Read an interval.

        Args:
            text: "30s", "10m", "1.5h", a number of steps like "500", or "0" for none at all.

        Raises:
            ValueError: It is nothing of that.
        """
        unit = _UNITS.get(text[-1:].lower())
        number = float(text[:-1]) if unit else int(text)
        if not 0 <= number < math.inf:
            raise ValueError(text)
        if number == 0:
            return cls()
        return cls(seconds=number * unit) if unit else cls(steps=int(number))
