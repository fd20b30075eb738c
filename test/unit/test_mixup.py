# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""MixUp: the draw is a function of its key, the blend is the paper's."""

from __future__ import annotations

import numpy as np
import torch

from image_classification.mixup import MixDraw, draw_mixup, mix_images, partner


def test_the_draw_depends_on_the_key_alone() -> None:
    assert draw_mixup(0.2, 8, 123) == draw_mixup(0.2, 8, 123)
    draws = [draw_mixup(0.2, 8, key) for key in range(200)]
    assert len({draw.weight for draw in draws}) == 200
    assert {draw.shift for draw in draws} == set(range(1, 8))


def test_weights_follow_the_beta_distribution() -> None:
    weights = np.array([draw_mixup(0.2, 4, key).weight for key in range(4000)])
    assert abs(weights.mean() - 0.5) < 0.02
    # Variance of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert abs(weights.var() - 1 / (4 * 1.4)) < 0.01


def test_images_blend_with_their_partner() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    mixed = mix_images(images, MixDraw(0.75, 1))
    own, other = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 0.0])
    assert torch.allclose(mixed[:, 0, 0, 0], 0.75 * own + 0.25 * other)
    assert partner(torch.tensor([5, 6, 7]), MixDraw(0.75, 1)).tolist() == [6, 7, 5]


def test_the_memory_format_stays() -> None:
    images = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    assert mix_images(images, MixDraw(0.4, 2)).is_contiguous(memory_format=torch.channels_last)


def test_a_single_image_stays_as_it_is() -> None:
    draw = draw_mixup(0.2, 1, 5)
    images = torch.randn(1, 3, 4, 4)
    assert draw.shift == 0
    assert torch.allclose(mix_images(images, draw), images)
