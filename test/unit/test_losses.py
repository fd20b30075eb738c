# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The training loss with weights of the classes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from image_classification.errors import UsageError
from image_classification.losses import ClassWeightedLoss, balanced_weights, training_loss


def test_all_classes_count_the_same_and_the_scale_stays() -> None:
    counts = np.array([90, 9, 1])
    weights = balanced_weights(counts).numpy()
    assert weights * counts == pytest.approx(100 / 3)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    assert balanced_weights([3, 0, 3]).tolist() == [1.0, 1.0, 1.0]


def test_equal_weights_are_the_plain_loss() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    for smoothing in (0.0, 0.1):
        plain = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, target)
        ours = ClassWeightedLoss(torch.ones(3), smoothing)(logits, target)
        torch.testing.assert_close(ours, plain)


def test_an_image_counts_the_same_in_any_company() -> None:
    """The mean over halves is the whole's: what several devices compute."""
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    loss = ClassWeightedLoss(torch.tensor([0.5, 2.0, 7.0]))
    halves = (loss(logits[:4], target[:4]) + loss(logits[4:], target[4:])) / 2
    torch.testing.assert_close(halves, loss(logits, target))
    each = nn.functional.cross_entropy(logits, target, reduction="none")
    expected = (each * torch.tensor([0.5] * 5 + [2.0] * 2 + [7.0])).mean()
    torch.testing.assert_close(loss(logits, target), expected)


def test_the_loss_of_a_training() -> None:
    images = SimpleNamespace(labels=np.array([0, 0, 0, 1]))
    splits = SimpleNamespace(train=images, num_classes=2)
    plain = training_loss("none", splits, 0.1)
    assert isinstance(plain, nn.CrossEntropyLoss) and plain.label_smoothing == 0.1
    balanced = training_loss("balanced", splits, 0.1)
    assert isinstance(balanced, ClassWeightedLoss) and balanced.label_smoothing == 0.1
    assert balanced.weights.tolist() == pytest.approx([4 / 6, 2.0])
    with pytest.raises(UsageError, match="classes can be counted"):
        training_loss("balanced", SimpleNamespace(train=object()), 0.0)
