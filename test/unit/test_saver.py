# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Saving in the background: what is saved, what a failure does, what is never saved."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import content

from image_classification import checkpoint
from image_classification.checkpoint_files import CheckpointFiles
from image_classification.errors import CheckpointError
from image_classification.saver import Saver

LAST = "checkpoint.pth.tar"


class SlowFiles(CheckpointFiles):
    """Files that are written when the test allows it, or not at all."""

    def __init__(self, folder: Path, failures: int = 0) -> None:
        super().__init__(folder)
        self.allowed = threading.Event()
        self.failures = failures
        self.attempts = 0

    def write(self, state: dict[str, Any], **options: bool) -> None:
        assert self.allowed.wait(30)
        self.attempts += 1
        if self.attempts <= self.failures:
            raise CheckpointError("could not write a checkpoint in ...: No space left on device")
        super().write(state, **options)


def make(tmp_path: Path, failures: int = 0) -> tuple[SlowFiles, Saver, list[str], list[float]]:
    files, lines, waits = SlowFiles(tmp_path, failures), list[str](), list[float]()
    return files, Saver(files, lines.append, waits.append), lines, waits


def test_training_goes_on_while_a_file_is_written(tmp_path: Path) -> None:
    files, saver, lines, _ = make(tmp_path)
    state = content(1)
    state["state_dict"] = {"w": torch.ones(4), "v": torch.ones(2)}
    saver.save(state, best=True)
    assert saver.busy and not (tmp_path / LAST).exists()
    state["state_dict"]["w"].zero_()  # the next step
    files.allowed.set()
    saver.close()
    assert not saver.busy and lines == []
    for name in (LAST, "model_best.pth.tar"):
        assert checkpoint.load(tmp_path / name)["state_dict"]["w"].equal(torch.ones(4))


def test_a_save_waits_for_the_one_before(tmp_path: Path) -> None:
    files, saver, _, _ = make(tmp_path)
    saver.save(content(1))
    threading.Timer(0.2, files.allowed.set).start()
    saver.save(content(2))
    saver.close()
    assert [checkpoint.load(path)["epoch"] for path in files.generations()] == [2, 1]


def test_a_failure_is_tried_again(tmp_path: Path) -> None:
    files, saver, lines, waits = make(tmp_path, failures=3)
    files.allowed.set()
    saver.save(content(1))
    saver.close()
    assert files.attempts == 4 and waits == [0.5, 2.0, 8.0] and lines == []
    assert checkpoint.load(tmp_path / LAST)["epoch"] == 1


def test_training_goes_on_after_a_failure_and_only_the_last_one_counts(tmp_path: Path) -> None:
    files, saver, lines, _ = make(tmp_path, failures=4)
    files.allowed.set()
    saver.save(content(1))
    saver.finish()
    assert lines == [
        "could not write a checkpoint in ...: No space left on device; the training goes on"
    ]
    saver.save(content(2))
    saver.close()
    assert checkpoint.load(tmp_path / LAST)["epoch"] == 2
    files.failures = 100
    saver.save(content(3))
    with pytest.raises(CheckpointError, match="No space left"):
        saver.close()
    assert checkpoint.load(tmp_path / LAST)["epoch"] == 2


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, bad: float) -> None:
    files, saver, lines, _ = make(tmp_path)
    files.allowed.set()
    saver.save(content(1))
    saver.finish()
    spoiled = content(2)
    spoiled["state_dict"] = {**spoiled["state_dict"], "v": torch.tensor([1.0, bad])}
    saver.save(spoiled, best=True)
    saver.close()
    assert saver.ruined
    assert lines == ["not saved: the weights are not finite; the checkpoints are from before"]
    assert checkpoint.load(tmp_path / LAST)["epoch"] == 1
    assert not (tmp_path / "model_best.pth.tar").exists()


def test_whoever_waits_shows_that_it_is_alive(tmp_path: Path) -> None:
    files = SlowFiles(tmp_path)
    beats: list[None] = []
    saver = Saver(files, print, alive=lambda: beats.append(None) or files.allowed.set())
    saver.save(content(1))
    saver.close()
    assert beats
