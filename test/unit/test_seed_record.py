# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The record of several seeds: it grows, survives damage, and forgets no seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from image_classification.seed_record import record_seed


def read(folder: Path) -> dict[str, object]:
    return json.loads((folder / "seeds.json").read_text())


def test_it_grows_with_each_seed(tmp_path: Path) -> None:
    line = record_seed(tmp_path, 3, 71.0, "resnet50")
    assert line == f"top-1 over 1 seeds: 71.00 %, in {tmp_path / 'seeds.json'}"
    assert read(tmp_path) == {"recipe": "resnet50", "top1": {"3": 71.0}, "mean": 71.0, "std": None}
    record_seed(tmp_path, 1, 72.0, "resnet50")
    assert "73.00 +/- 1.41 %" in record_seed(tmp_path, 3, 74.0, "resnet50")  # trained again
    assert read(tmp_path)["top1"] == {"1": 72.0, "3": 74.0}
    assert read(tmp_path)["std"] == pytest.approx(2**0.5)


def test_a_record_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "seeds.json").mkdir()
    line = record_seed(tmp_path, 0, 50.0, None)
    assert line.startswith("top-1 over 1 seeds: 50.00 %; ")
    assert line.endswith("seeds.json cannot be written: Is a directory")


@pytest.mark.parametrize("content", ["", "[]", '{"top1": 5}', '{"top1": {"x": 1}}', "\0"])
def test_a_damaged_record_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "seeds.json").write_text(content)
    record_seed(tmp_path, 0, 50.0, None)
    assert read(tmp_path)["top1"] == {"0": 50.0}
