# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which classes were taken for which: the confusion matrix of a validation, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from image_classification.errors import printable

#: Up to so many classes a terminal shows the matrix.
MATRIX_CLASSES = 20
_LARGEST = 2**53
Integers = npt.NDArray[np.int64]


class ClassResult(NamedTuple):
    """How one class fared.

    Attributes:
        name: The class.
        images: Its images.
        correct: Those that were recognised.
        predicted: Images of any class that were taken for it.
        confused_with: The other classes that its images were taken for, with their counts, the
            most frequent first.
    """

    name: str
    images: int
    correct: int
    predicted: int
    confused_with: list[tuple[str, int]]

    @property
    def recall(self) -> float | None:
        """Share of its images that were recognised (%): the class's own top-1."""
        return 100.0 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the images taken for it that are of it (%)."""
        return 100.0 * self.correct / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of recall and precision (%)."""
        both = self.images + self.predicted
        return 200.0 * self.correct / both if both else None


@dataclass(frozen=True)
class Confusion:
    """A sparse confusion matrix: one entry per pair of classes that occurred.

    Attributes:
        target: [P] the class of the images, from 0.
        predicted: [P] the class they were taken for.
        count: [P] how many they are, >= 1.
    """

    target: Integers
    predicted: Integers
    count: Integers

    @classmethod
    def of(cls, target: npt.ArrayLike, predicted: npt.ArrayLike) -> Confusion:
        """Count pairs.

        Args:
            target: [N] classes of the images, from 0.
            predicted: [N] classes that they were taken for.
        """
        pairs = np.stack([np.asarray(target, np.int64), np.asarray(predicted, np.int64)])
        (targets, predictions), count = np.unique(pairs, axis=1, return_counts=True)
        return cls(targets, predictions, count.astype(np.int64))

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.count.sum())

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy in percent."""
        correct = int(self.count[self.target == self.predicted].sum())
        return 100.0 * correct / self.images if self.images else None

    def matrix(self, num_classes: int) -> Integers:
        """Returns the dense matrix [num_classes, num_classes]; rows are the true classes."""
        dense = np.zeros((num_classes, num_classes), np.int64)
        dense[self.target, self.predicted] = self.count
        return dense

    def per_class(self, classes: Sequence[str]) -> list[ClassResult]:
        """Sums up each class, in the order of `classes`, which holds the name of each number."""
        size = len(classes)
        hit = self.target == self.predicted
        images, predicted, correct = (
            np.bincount(numbers, self.count[chosen], minlength=size).astype(np.int64).tolist()
            for numbers, chosen in (
                (self.target, slice(None)), (self.predicted, slice(None)), (self.target[hit], hit),
            )
        )  # fmt: skip
        others: list[list[tuple[str, int]]] = [[] for _ in classes]
        for target, wrong, count in self._mistakes():
            others[target].append((classes[wrong], count))
        return [
            ClassResult(*row)
            for row in zip(classes, images, correct, predicted, others, strict=True)
        ]

    def most_confused(self, classes: Sequence[str], limit: int) -> list[tuple[str, str, int]]:
        """Returns the most frequent mistakes as (class, what it was taken for, images)."""
        return [
            (classes[target], classes[wrong], count)
            for target, wrong, count in self._mistakes()[:limit]
        ]

    def _mistakes(self) -> list[tuple[int, int, int]]:
        wrong = np.flatnonzero(self.target != self.predicted)
        order = wrong[np.argsort(-self.count[wrong], kind="stable")]
        columns = (self.target[order], self.predicted[order], self.count[order])
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def to_json(self) -> list[list[int]]:
        """Returns [target, predicted, count] for each pair."""
        return np.stack([self.target, self.predicted, self.count], axis=1).tolist()

    @classmethod
    def from_json(cls, entries: Any, num_classes: int) -> Confusion:
        """Reads what `to_json` returned.

        Args:
            entries: The list, from a file that may hold anything.
            num_classes: Number of classes.

        Raises:
            ValueError: It is something else, or names a class that there is not.
        """
        table = np.array(entries if entries != [] else np.empty((0, 3), np.int64))
        if table.shape[1:] != (3,) or table.dtype.kind != "i":
            raise ValueError("a confusion matrix is a list of [target, predicted, count]")
        target, predicted, count = np.asarray(table, np.int64).T
        classes = table[:, :2]
        if (classes < 0).any() or (classes >= num_classes).any():
            raise ValueError("a confusion matrix has classes that do not exist")
        if (count < 1).any() or (count > _LARGEST).any() or sum(count.tolist()) > _LARGEST:
            raise ValueError("a confusion matrix has counts that cannot be")
        if len(np.unique(classes, axis=0)) < len(classes):
            raise ValueError("a confusion matrix has a pair of classes twice")
        return cls(target, predicted, count)


def worst(results: Sequence[ClassResult], limit: int) -> list[ClassResult]:
    """Returns the classes with images that were recognised least, the worst first."""
    seen = [result for result in results if result.images]
    return sorted(seen, key=lambda result: result.recall or 0.0)[:limit]


def class_report(confusion: Confusion, classes: Sequence[str]) -> str:
    """Describes how each class fared, for the terminal.

    Args:
        confusion: Of a validation.
        classes: Name of each class.

    Returns:
        A table with images, recall, precision and F1 (%) of each class and their means, and, for
        up to MATRIX_CLASSES classes, the confusion matrix: a row for each true class.
    """
    results = confusion.per_class(classes)
    names = [printable(name, 24) for name in classes]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':<{width}}  {'images':>7}  {'recall':>7}  {'precision':>9}  {'F1':>7}"]
    columns: list[list[float]] = [[], [], []]
    for name, result in zip(names, results, strict=True):
        values = (result.recall, result.precision, result.f1)
        for column, value in zip(columns, values, strict=True):
            if result.images:
                column.append(value or 0.0)
        lines.append(f"{name:<{width}}  {result.images:>7}  " + _percents(*values))
    means = [sum(column) / max(len(column), 1) for column in columns]
    lines.append(f"{'mean':<{width}}  {confusion.images:>7}  " + _percents(*means))
    if len(names) <= MATRIX_CLASSES:
        dense = confusion.matrix(len(names))
        cell = max(len(str(dense.max(initial=0))), len(str(len(names)))) + 1
        numbers = range(1, len(names) + 1)
        corner = "true class, taken for number"
        width = max(width, len(corner) - 3)
        head = "".join(f"{number:>{cell}}" for number in numbers)
        lines += ["", f"{corner:<{width + 3}}{head}"]
        for number, name, row in zip(numbers, names, dense.tolist(), strict=True):
            lines.append(f"{number:>2} {name:<{width}}" + "".join(f"{n:>{cell}}" for n in row))
    return "\n".join(lines)


def _percents(recall: float | None, precision: float | None, f1: float | None) -> str:
    texts = ["-" if value is None else f"{value:.1f}" for value in (recall, precision, f1)]
    return f"{texts[0]:>7}  {texts[1]:>9}  {texts[2]:>7}"
