# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp and CutMix: functions of a key, the papers' mixtures, the same for any division."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_classification.mixup import (
    Mix,
    cut_images,
    draw_cut,
    draw_weight,
    mix,
    mix_images,
    partner,
)


def test_the_weight_depends_on_the_key_alone() -> None:
    assert draw_weight(0.2, 123) == draw_weight(0.2, 123)
    assert len({draw_weight(0.2, key) for key in range(200)}) == 200


def test_weights_follow_the_beta_distribution() -> None:
    weights = np.array([draw_weight(0.2, key) for key in range(4000)])
    assert abs(weights.mean() - 0.5) < 0.02
    # Variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert abs(weights.var() - 1 / (4 * 1.4)) < 0.01


def test_images_blend_with_their_partner() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    own, other = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0, 0.0])
    before = images.clone()
    assert torch.allclose(mix_images(images, 0.75)[:, 0, 0, 0], 0.75 * own + 0.25 * other)
    assert torch.equal(images, before)
    assert torch.equal(mix_images(images, 1.0), images)
    assert partner(torch.tensor([5, 6, 7, 8])).tolist() == [6, 7, 8, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_parts_of_a_batch_blend_as_the_whole(dtype: torch.dtype) -> None:
    images, target = torch.randn(24, 3, 5, 5).to(dtype), torch.arange(24)
    for size in (4, 8, 12):
        parts = [mix_images(part, 0.3) for part in images.split(size)]
        assert torch.equal(torch.cat(parts), mix_images(images, 0.3))
        assert torch.equal(torch.cat([partner(part) for part in target.split(size)]),
                           partner(target))  # fmt: skip


def test_the_memory_format_stays() -> None:
    for count in (4, 5):
        images = torch.randn(count, 3, 8, 8).to(memory_format=torch.channels_last)
        assert mix_images(images, 0.4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("count", "partners"),
    [(1, [0]), (2, [1, 0]), (3, [1, 2, 0]), (5, [1, 2, 3, 0, 4]), (7, [1, 2, 3, 0, 5, 6, 4])],
)
def test_what_is_left_beyond_groups_of_four_is_a_group(count: int, partners: list[int]) -> None:
    assert partner(torch.arange(count)).tolist() == partners
    images = torch.randn(count, 3, 4, 4)
    expected = torch.lerp(images[partners], images, 0.4)
    assert torch.equal(mix_images(images, 0.4), expected)


# --- CutMix -------------------------------------------------------------------------------------


def test_the_rectangle_depends_on_the_key_alone() -> None:
    assert draw_cut(1.0, 123, 64, 48) == draw_cut(1.0, 123, 64, 48)
    assert len({draw_cut(1.0, key, 64, 48) for key in range(200)}) > 190


def test_rectangles_follow_the_paper() -> None:
    drawn = [draw_cut(1.0, key, 200, 100) for key in range(4000)]
    boxes = np.array([one.box for one in drawn])
    (top, left, bottom, right), weights = boxes.T, np.array([one.weight for one in drawn])
    assert (top >= 0).all() and (left >= 0).all()
    assert (bottom <= 200).all() and (right <= 100).all()
    assert (bottom >= top).all() and (right >= left).all()
    # The exact share of the pixels that stay, whatever was cut off at the edges.
    assert np.allclose(weights, 1 - (bottom - top) * (right - left) / (200 * 100), atol=1e-12)
    whole = (top > 0) & (left > 0) & (bottom < 200) & (right < 100)
    height, width = (bottom - top)[whole], (right - left)[whole]
    assert (np.abs(height - 2 * width) <= 3).all()
    # E[(1 - lambda) clipped at the edges]: each side s keeps s (1 - s / 4) on average, s^2 uniform.
    assert abs((1 - weights).mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.015
    centre = (top + bottom)[whole] / 2
    assert 80 < centre.mean() < 120


def test_the_part_of_the_partner_is_in_the_rectangle() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 6, 8)
    mixed = mix(images, Mix(0.75, (1, 2, 4, 6)))
    inside = torch.zeros(6, 8, dtype=torch.bool)
    inside[1:4, 2:6] = True
    for image, own, other in zip(mixed, (0, 1, 2, 3), (1, 2, 3, 0), strict=True):
        assert (image[:, inside] == other).all() and (image[:, ~inside] == own).all()
    assert images[:, 0, 3, 3].tolist() == [0, 1, 2, 3]
    assert torch.equal(cut_images(images, (3, 3, 3, 5)), images)
    assert torch.equal(mix(images, Mix(0.3)), mix_images(images, 0.3))


@pytest.mark.parametrize("count", [4, 5])
def test_the_parts_of_a_batch_are_cut_as_the_whole(count: int) -> None:
    images = torch.randn(24, 3, 6, 5).to(memory_format=torch.channels_last)
    for size in (4, 8, 12):
        parts = [cut_images(part, (1, 0, 5, 3)) for part in images.split(size)]
        assert torch.equal(torch.cat(parts), cut_images(images, (1, 0, 5, 3)))
    cut = cut_images(images[:count], (0, 0, 2, 2))
    assert cut.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(cut[..., :2, :2], images[partner(torch.arange(count))][..., :2, :2])
