# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Confusion matrices against scikit-learn's, and what is read from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from image_classification.confusion import MATRIX_CLASSES, Confusion, class_report, worst

NAMES = ["ant", "bee", "cat"]
#        ant: 1 of 3 right (twice a bee); bee: 2 of 2; cat: none of 1 (a bee)
TARGET = [0, 0, 0, 1, 1, 2]
PREDICTED = [0, 1, 1, 1, 1, 1]


@pytest.fixture
def confusion() -> Confusion:
    return Confusion.of(TARGET, PREDICTED)


def test_the_matrix_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 7, (2, 500))
    found = Confusion.of(target, predicted)
    expected = metrics.confusion_matrix(target, predicted, labels=range(9))
    assert (found.matrix(9) == expected).all()
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(target, predicted))
    precision, recall, _, support = metrics.precision_recall_fscore_support(
        target, predicted, labels=range(7)
    )
    results = found.per_class([str(label) for label in range(7)])
    assert [result.images for result in results] == support.tolist()
    assert [result.recall for result in results] == pytest.approx(100 * recall)
    assert [result.precision for result in results] == pytest.approx(100 * precision)


def test_classes_and_mistakes(confusion: Confusion) -> None:
    assert (confusion.images, confusion.top1) == (6, 50.0)
    ant, bee, cat = confusion.per_class(NAMES)
    assert ant == ("ant", 3, 1, 1, [("bee", 2)])
    assert bee == ("bee", 2, 2, 5, [])
    assert cat == ("cat", 1, 0, 0, [("bee", 1)])
    assert (cat.recall, cat.precision) == (0.0, None)
    assert confusion.most_confused(NAMES, 1) == [("ant", "bee", 2)]
    assert confusion.most_confused(NAMES, 9) == [("ant", "bee", 2), ("cat", "bee", 1)]
    assert [result.name for result in worst([ant, bee, cat], 2)] == ["cat", "ant"]


def test_classes_without_images_are_not_the_worst(confusion: Confusion) -> None:
    results = confusion.per_class([*NAMES, "dog"])
    assert results[3] == ("dog", 0, 0, 0, []) and results[3].recall is None
    assert "dog" not in [result.name for result in worst(results, 9)]


def test_no_images_at_all() -> None:
    empty = Confusion.of([], [])
    assert (empty.images, empty.top1, empty.most_confused(NAMES, 3)) == (0, None, [])
    assert empty.matrix(3).sum() == 0
    assert worst(empty.per_class(NAMES), 3) == []


def test_through_json_and_back(confusion: Confusion) -> None:
    for one in (confusion, Confusion.of([], [])):
        again = Confusion.from_json(json.loads(json.dumps(one.to_json())), 3)
        assert (again.matrix(3) == one.matrix(3)).all()


@pytest.mark.parametrize(
    "entries",
    [None, {}, 5, "text", [[0, 1]], [[0, 3, 1]], [[-1, 0, 1]], [[0, 0, 0]], [[0, 0, 1.5]],
     [[0, 0, 10**30]], [[0, 0, 2**53 + 1]], [[0, 0, 2**53], [0, 1, 1]], [[0, 0, 5], [0, 0, 5]],
     [[0, 0, 1], [0]], [["a", "b", "c"]]],
)  # fmt: skip
def test_foreign_content_is_refused(entries: Any) -> None:
    with pytest.raises(ValueError):
        Confusion.from_json(entries, 3)


def test_the_table_for_the_terminal() -> None:
    target, predicted = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    text = class_report(Confusion.of(target, predicted), ["cat", "dog", "\x1b[31mcow", "yak"])
    lines = text.splitlines()
    assert lines[1].split() == ["cat", "3", "66.7", "66.7", "66.7"]
    assert lines[2].split() == ["dog", "2", "50.0", "50.0", "50.0"]
    assert lines[3].split() == ["?[31mcow", "1", "100.0", "100.0", "100.0"]
    assert lines[4].split() == ["yak", "0", "-", "-", "-"]
    assert lines[5].split() == ["mean", "6", "72.2", "72.2", "72.2"]  # of the classes with images
    assert lines[7].split()[-4:] == ["1", "2", "3", "4"]
    assert [line.split()[-4:] for line in lines[8:10]] == [[*"2100"], [*"1100"]]
    assert len({len(line) for line in lines[7:]}) == 1


def test_a_class_that_is_never_recognised_counts_as_nothing() -> None:
    text = class_report(Confusion.of([0, 1], [0, 0]), ["a", "b"])
    assert text.splitlines()[2].split() == ["b", "1", "0.0", "-", "0.0"]
    assert text.splitlines()[3].split() == ["mean", "2", "50.0", "25.0", "33.3"]


def test_many_classes_have_no_matrix() -> None:
    names = [f"c{number}" for number in range(MATRIX_CLASSES + 1)]
    assert len(class_report(Confusion.of([0], [0]), names).splitlines()) == len(names) + 2
