# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Policies: torchvision's operations, magnitudes and frequencies, on batches and by our draws."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from image_classification.augmentation import draw_policy
from image_classification.errors import UsageError
from image_classification.image_operations import FILL, KINDS, Operations
from image_classification.policies import IDENTITY, Operation, Policy, read_policy
from image_classification.presets import POLICIES

v2 = pytest.importorskip("torchvision.transforms.v2")
CPU = torch.device("cpu")
BILINEAR = v2.InterpolationMode.BILINEAR


def torchvisions(name: str) -> Any:
    """torchvision's transform of this name."""
    if name.startswith("autoaugment"):
        found_for = "CIFAR10" if name.endswith("cifar10") else "IMAGENET"
        return v2.AutoAugment(
            v2.AutoAugmentPolicy[found_for], interpolation=BILINEAR, fill=[FILL] * 3
        )
    kind = v2.RandAugment if name == "randaugment" else v2.TrivialAugmentWide
    return kind(interpolation=BILINEAR, fill=[FILL] * 3)


def pictures(side: int) -> torch.Tensor:
    """Six images, uint8 [6, 3, S, S]: noise, smooth, pale, one colour, two values, dark."""
    generator = torch.Generator().manual_seed(side)
    noise = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
    rough = torch.rand(1, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(rough, size=side, mode="bilinear")[0]
    smooth = (smooth * 255).to(torch.uint8)
    two = torch.where(noise > 250, 200, 30).to(torch.uint8)
    return torch.stack(
        [noise, smooth, smooth // 5 + 100, torch.full_like(noise, 77), two, noise // 9]
    )


@pytest.mark.parametrize(
    ("name", "side"), [*((name, 24) for name in POLICIES), ("randaugment", 33), ("randaugment", 1)]
)
def test_each_operation_equals_torchvisions_at_each_magnitude(name: str, side: int) -> None:
    policy, images = read_policy(name, side, 2, 30), pictures(side)
    operations, theirs = Operations(policy.operations, side, CPU), torchvisions(name)
    for place, (operation, magnitude) in enumerate(policy.operations):
        expected = theirs._apply_image_or_video_transform(
            images, operation, magnitude, BILINEAR, theirs._fill
        )
        kind, which = int(operations.kinds[place]), torch.full((len(images),), place)
        found = operations.apply(kind, images, which)
        difference = (found.int() - expected.int()).abs()
        interpolates = KINDS[kind] == "affine"
        assert difference.max() <= int(interpolates), (operation, magnitude)
        assert (difference > 0).float().mean() < 0.02


def test_blends_round_once_as_torchvisions_do() -> None:
    """Where a device rounds product and sum, some values would be one lower."""
    values = torch.arange(256, dtype=torch.uint8)
    images = torch.stack([values.repeat(256, 1), values.repeat(256, 1).T, values.repeat(256, 1)])
    names = [Operation("Color", magnitude / 10) for magnitude in range(-9, 10)]
    operations = Operations(names, 256, CPU)
    batch = images.expand(len(names), -1, -1, -1)
    found = operations.apply(int(operations.kinds[0]), batch, torch.arange(len(names)))
    for image, (_, magnitude) in zip(found, names, strict=True):
        assert torch.equal(image, v2.functional.adjust_saturation(images, 1.0 + magnitude))


def outcomes(policy: Policy) -> dict[tuple[Operation, ...], float]:
    """The probability of each sequence of operations, those that change nothing left out."""
    found: dict[tuple[Operation, ...], float] = Counter()
    for row in policy.choices:
        weight = 1 / len(policy.choices) / policy.choices.shape[2] ** policy.choices.shape[1]
        for numbers in itertools.product(*row):
            steps = (policy.operations[number] for number in numbers)
            found[tuple(step for step in steps if step != IDENTITY)] += weight
    return found


def assert_follows(counts: Counter, expected: dict[Any, float]) -> None:
    total = sum(counts.values())
    assert not set(counts) - set(expected)
    for outcome, probability in expected.items():
        mean = total * probability
        assert abs(counts[outcome] - mean) < 5 * np.sqrt(mean) + 3, outcome


@pytest.mark.parametrize("name", POLICIES)
def test_operations_are_as_frequent_as_torchvisions(name: str, monkeypatch) -> None:
    theirs, image = torchvisions(name), torch.zeros(3, 64, 64, dtype=torch.uint8)
    seen: list[Operation] = []

    def note(image: torch.Tensor, operation: str, magnitude: float, **_: Any) -> torch.Tensor:
        if operation != IDENTITY.name:
            seen.append(Operation(operation, magnitude))
        return image

    monkeypatch.setattr(theirs, "_apply_image_or_video_transform", note)
    torch.manual_seed(0)
    counts: Counter = Counter()
    for _ in range(5000):
        theirs(image)
        counts[tuple(seen)] += 1
        seen.clear()
    assert_follows(counts, outcomes(read_policy(name, 64, 2, 9)))


@pytest.mark.parametrize("name", POLICIES)
def test_the_draws_follow_the_table(name: str) -> None:
    policy = read_policy(name, 64, 2, 9)
    drawn = draw_policy(policy.choices, 0, 0, np.arange(40_000))
    counts = Counter(
        tuple(policy.operations[number] for number in row if number) for row in drawn.tolist()
    )
    assert_follows(counts, outcomes(policy))


def test_draws_depend_on_seed_epoch_and_sample_alone() -> None:
    choices = read_policy("randaugment", 32, 3, 9).choices
    indices = np.random.default_rng(0).permutation(10_000)[:100]
    drawn = draw_policy(choices, 3, 4, indices)
    assert drawn.shape == (100, 3)
    for place, index in enumerate(indices):
        assert draw_policy(choices, 3, 4, index).tolist() == [drawn[place].tolist()]
    for other in (draw_policy(choices, 4, 4, indices), draw_policy(choices, 3, 5, indices)):
        assert (other == drawn).mean() < 0.2
    more = draw_policy(read_policy("randaugment", 32, 5, 9).choices, 3, 4, indices)
    assert np.array_equal(more[:, :3], drawn)


def test_number_and_strength_of_randaugment() -> None:
    weak, strong = (read_policy("randaugment", 331, 3, magnitude) for magnitude in (0, 30))
    assert strong.choices.shape[:2] == (1, 3)
    strengths = {name: abs(magnitude) for name, magnitude in strong.operations}
    assert strengths["TranslateX"] == pytest.approx(150) and strengths["Posterize"] == 4
    assert {magnitude for name, magnitude in weak.operations if name.startswith("S")} == {0.0, 1.0}


def test_other_tables_are_refused(monkeypatch) -> None:
    monkeypatch.delattr(v2.RandAugment, "_AUGMENTATION_SPACE")
    with pytest.raises(UsageError, match=r"randaugment reads .* torchvision 0\.19 .* install one"):
        read_policy("randaugment", 32, 2, 9)
    swirl = {"Swirl": (lambda *_: None, False)}
    monkeypatch.setattr(v2.TrivialAugmentWide, "_AUGMENTATION_SPACE", swirl)
    with pytest.raises(UsageError, match="operation 'Swirl', which is unknown here: install"):
        Operations(read_policy("trivialaugment", 32, 2, 9).operations, 32, CPU)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(UsageError, match=r"needs torchvision.*pip install torchvision"):
        read_policy("autoaugment", 32, 2, 9)
