# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A stopped run goes on with the same images, with another number of ranks as well."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from runs import checkpoint, run_main, values
from victims import STATEFUL, Victim, on_request


@on_request
def test_another_number_of_ranks_goes_on_with_the_same_samples(
    images: Path, tmp_path: Path
) -> None:
    """From two ranks to one within an epoch; frozen BatchNorm makes the losses comparable."""
    flags = (*STATEFUL, "--freeze-bn", "--zero-init-last-bn", "-p", 2)
    flags = (*flags, "--dropout", 0, "--mixup", 0)  # of a rank, and within the batch of a rank
    run_main(images, *flags, "-b", 4, "--workspace", tmp_path / "straight")
    victim = Victim(images, *flags, "--workspace", tmp_path / "changed", ranks=2)
    victim.read_until("Epoch: 0 Iteration: 6")
    victim.process.send_signal(signal.SIGTERM)
    assert victim.wait() == 143, victim.output
    assert 0 < checkpoint(tmp_path / "changed/checkpoint.pth.tar")["samples_done"] < 48
    run_main(images, *flags, "-b", 4, "--workspace", tmp_path / "changed", "--resume", "auto")
    losses = [values(tmp_path / name, "train", "train.loss") for name in ("straight", "changed")]
    assert len(losses[0]) == len(losses[1]) == 12
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
