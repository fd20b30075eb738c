# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the values of options may be: the `type` of each."""

from __future__ import annotations

import argparse
import math

from image_classification.presets import MAX_SIDE
from image_classification.save_interval import SaveInterval

#: Stands for "auto" where a number is expected.
AUTO = -1
LARGEST_SEED = 2**63 - 1


#: Ways to run a trained network, see runtimes.py.
RUNTIMES = ("eager", "folded", "compile", "onnxruntime", "openvino", "tensorrt")


class Number:
    """Reads a number within bounds; the `type` of an option.

    Args:
        kind: int or float.
        low: Smallest value.
        high: Largest value.
        also: One further value that is allowed.
        open_low: Only values above `low`.
        open_high: Only values below `high`.
    """

    def __init__(
        self, kind: type[int] | type[float], low: float, high: float = math.inf, *,
        also: float | None = None, open_low: bool = False, open_high: bool = False,
    ) -> None:  # fmt: skip
        self._kind = kind
        self._low, self._high, self._also = low, high, also
        self._open_low, self._open_high = open_low, open_high

    def __call__(self, text: str) -> float:
        """Reads the number.

        Raises:
            argparse.ArgumentTypeError: What is allowed and what was received.
        """
        kind = "a whole number" if self._kind is int else "a number"
        try:
            value = self._kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind}, received {text!r}") from None
        above = value > self._low if self._open_low else value >= self._low
        below = value < self._high if self._open_high or self._high == math.inf else (
            value <= self._high)  # fmt: skip
        if value != self._also and not (above and below):
            raise argparse.ArgumentTypeError(f"must be {self._bounds()}, received {text}")
        return value

    def _bounds(self) -> str:
        low = f"{'above' if self._open_low else 'at least'} {self._low}"
        if self._high == math.inf:
            return low if self._also is None else f"{low} or {self._also}"
        if not self._open_low and not self._open_high:
            return f"between {self._low} and {self._high}"
        return f"{low} and {'below' if self._open_high else 'at most'} {self._high}"


COUNT = Number(int, 1)
COUNT_OR_ALL = Number(int, 1, also=-1)
INDEX = Number(int, 0)
#: Side of an image.
PIXELS = Number(int, 1, MAX_SIDE)
AMOUNT = Number(float, 0)
POSITIVE = Number(float, 0, open_low=True)
SHARE = Number(float, 0, 1)
#: A share that is never the whole.
PART = Number(float, 0, 1, open_high=True)
#: A share that is never nothing.
CHANCE = Number(float, 0, 1, open_low=True)
SEED = Number(int, 0, LARGEST_SEED)


def boolean(text: str) -> bool:
    """Reads True or False, as NVIDIA's scripts pass them."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected True or False, received {text!r}")
    return values[text.lower()]


def count_or_auto(text: str) -> float:
    """Reads a whole number from 1; AUTO for auto."""
    return AUTO if text == "auto" else COUNT(text)


def interval(text: str) -> str:
    """Reads what `SaveInterval.parse` takes."""
    try:
        SaveInterval.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a time like 10m (30s, 1h) or steps like 500, received {text!r}"
        ) from None
    return text


def numbers(text: str) -> list[int]:
    """Reads whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        message = f"expected numbers like 0,1,2, received {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def counts(text: str) -> list[int]:
    """Reads whole numbers from 1 with commas between them."""
    found = numbers(text)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"needs numbers from 1, received {text}")
    return found


def seeds(text: str) -> list[int]:
    """Reads different seeds with commas between them."""
    found = numbers(text)
    if not 0 <= min(found) <= max(found) <= LARGEST_SEED or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(
            f"needs different numbers between 0 and {LARGEST_SEED}, received {text}"
        )
    return found
