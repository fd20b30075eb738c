# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The training loss, with and without weights of the classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn import functional

from image_classification.datasets import Splits
from image_classification.errors import UsageError


def training_loss(weights: str, splits: Splits, label_smoothing: float) -> nn.Module:
    """Builds the loss of a training.

    Args:
        weights: "none", or "balanced": all classes count the same in an epoch.
        splits: The data, with C classes.
        label_smoothing: Share of the target that is spread over all classes, 0..1.

    Returns:
        The mean loss, float [], of logits [N, C] and class indices [N].

    Raises:
        UsageError: Weights for data whose classes nobody knows beforehand.
    """
    if weights == "none":
        return nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    labels = getattr(splits.train, "labels", None)
    if labels is None:
        raise UsageError("--class-weights balanced needs images whose classes can be counted")
    counts = np.bincount(labels, minlength=splits.num_classes)
    return ClassWeightedLoss(balanced_weights(counts), label_smoothing)


def balanced_weights(counts: ArrayLike) -> torch.Tensor:
    """Returns the weight of each class with which all classes count the same in an epoch.

    Args:
        counts: Training images of each class, int [C]; a class without any weighs 1.

    Returns:
        float32 [C]; their mean over the training images is 1, so that the loss keeps its scale.
    """
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    weights = counts.sum() / (max(int(present.sum()), 1) * np.maximum(counts, 1.0))
    return torch.from_numpy(np.where(present, weights, 1.0)).float()


class ClassWeightedLoss(nn.Module):
    """Cross entropy in which each image counts as much as its class weighs.

    torch's own divides by the weights of the batch, so that an image would count differently in
    another company, and on another number of devices.

    Args:
        weights: Of each class, float32 [C].
        label_smoothing: Share of the target that is spread over all classes, 0..1.
    """

    def __init__(self, weights: torch.Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weights", weights)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss, float [], of logits [N, C] and class indices [N]."""
        losses = functional.cross_entropy(
            logits, target, reduction="none", label_smoothing=self.label_smoothing
        )
        return (losses * self.weights[target]).mean()
