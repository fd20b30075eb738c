# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp: the weight is a function of its key, the blend is the paper's and divides over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_classification.mixup import draw_weight, mix_images, partner


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
