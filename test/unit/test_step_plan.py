# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How the images of an epoch make up batches and optimizer steps."""

from __future__ import annotations

import pytest

from image_classification.errors import UsageError
from image_classification.step_plan import accumulation_steps, describe_steps, steps_per_epoch


def test_accumulation_steps() -> None:
    assert accumulation_steps(128, 4, 2048) == 4
    assert accumulation_steps(128, 4, -1) == 1
    with pytest.raises(UsageError, match=r"not a multiple of 512.*nearest: 1024"):
        accumulation_steps(128, 4, 1000)
    with pytest.raises(UsageError, match="nearest: 512"):
        accumulation_steps(128, 4, 100)


def test_whole_steps_within_the_limits() -> None:
    assert steps_per_epoch(1000, 256, []) == 3
    assert steps_per_epoch(1000, 256, [2, 9]) == 2
    assert steps_per_epoch(100, 256, []) == 1


@pytest.mark.parametrize(
    ("steps", "images", "rest"),
    [
        (3, 1000, "; 232 of 1000 images fill no step, others in each epoch"),
        (3, 768, ""),
        (1, 1000, ""),  # of a limit
        (1, 100, ""),  # some come twice
    ],
)
def test_what_is_said_of_an_epoch(steps: int, images: int, rest: str) -> None:
    plan = f"{steps} optimizer steps per epoch of 256 images (32 x 4 devices x 2), peak lr 0.1"
    assert describe_steps(steps, images, 32, 4, 2, 0.1) == plan + rest
