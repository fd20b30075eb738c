# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Steps without finite gradients: left out, counted, and an end where there are too many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import checkpoint, values, write_images
from test_trainer import Batches, make_batches, make_net, make_trainer, run_epoch

import main
from image_classification.divergence import LAG, LIMIT, LIMIT_WITH_SCALE, MOST_ROLLBACKS
from image_classification.errors import DivergedError
from image_classification.optimizers import create_optimizer
from image_classification.training import Trainer
from image_classification.validation import Validator

NAN = float("nan")


def spoil(batches: Batches, *numbers: int) -> Batches:
    """The same batches, some of them with an image that is not finite."""
    return Batches([
        (torch.full_like(images, NAN) if number in numbers else images, target)
        for number, (images, target) in enumerate(batches)
    ])  # fmt: skip


def a_trainer(kind: str, **options: Any) -> Trainer:
    net = make_net(norm=False)
    trainer = make_trainer(net, **options)
    trainer.optimizer = create_optimizer(
        "adamw" if kind == "adamw" else "sgd", net, lr=0.1, weight_decay=1e-3, fused=kind != "loop"
    )
    trainer.guard._optimizer = trainer.optimizer
    trainer.guard._fused = kind != "loop"
    return trainer


@pytest.mark.parametrize("kind", ["loop", "sgd", "adamw"])
@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_bad_step_changes_nothing(kind: str, bad: int, clip: float | None) -> None:
    batches = make_batches(6, 4)
    with_it, without = (a_trainer(kind, clip_grad_norm=clip) for _ in range(2))
    row = run_epoch(with_it, spoil(batches, bad))
    good = [batch for number, batch in enumerate(batches) if number != bad]
    expected = run_epoch(without, Batches(good))
    for mine, theirs in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert row["train.skipped_steps"] == 1 and expected["train.skipped_steps"] == 0
    # Its images count neither for the loss nor for the accuracy.
    assert row["train.loss"] == expected["train.loss"]
    assert row["train.top1"] == expected["train.top1"]
    assert with_it.step == 6  # attempted: the learning rate follows these


def test_one_bad_batch_of_a_group_spoils_its_step() -> None:
    trainer = make_trainer(make_net(norm=False), accumulation_steps=2)
    before = [one.detach().clone() for one in trainer.model.parameters()]
    run_epoch(trainer, spoil(make_batches(2, 4), 0))
    assert all(map(torch.equal, before, trainer.model.parameters()))


def test_the_host_looks_at_a_fixed_lag() -> None:
    trainer = make_trainer(make_net(norm=False), num_batches=99)
    end = 10 + LIMIT - 1
    batches = spoil(make_batches(30, 4), *range(10, end))
    known = []
    trainer._enter_train_mode()
    for images, target in batches:
        trainer.train_step(images, target)
        known.append([place.step for place in trainer.guard.bad_steps])
    for number, steps in enumerate(known):
        seen = number - LAG  # the last step whose flag was looked at
        row = list(range(10, seen + 1)) if 10 <= seen < end else []
        assert steps == row, number
    assert not trainer.guard.diverged


@pytest.mark.parametrize(("count", "diverged"), [(LIMIT - 1, False), (LIMIT, True)])
def test_so_many_in_a_row(count: int, diverged: bool) -> None:
    trainer = make_trainer(make_net(norm=False))
    run_epoch(trainer, spoil(make_batches(count, 4), *range(count)))
    assert trainer.guard.diverged == diverged
    assert trainer.sums.skipped_steps == count


def test_a_divergence_is_not_forgotten_for_good_steps_after_it() -> None:
    trainer = make_trainer(make_net(norm=False), num_batches=20)
    run_epoch(trainer, spoil(make_batches(20, 4), *range(3, 3 + LIMIT)))
    assert trainer.guard.diverged
    assert [place.step for place in trainer.guard.bad_steps] == [3, 4, 5, 6, 7]
    trainer.guard.forget()
    assert not trainer.guard.diverged


def test_a_loss_scale_may_fall_for_a_while() -> None:
    trainer = make_trainer(make_net(norm=False), scaler=torch.amp.GradScaler("cpu"))
    run_epoch(trainer, spoil(make_batches(24, 4), *range(24)))
    assert not trainer.guard.diverged and trainer.scale() == 65536 / 2**24
    run_epoch(trainer, spoil(make_batches(1, 4), 0))
    assert trainer.guard.diverged and LIMIT_WITH_SCALE == 25


def test_a_rate_without_bounds_ends_in_divergence() -> None:
    trainer = make_trainer(make_net(), lambda step: float("inf") if step == 3 else 0.05)
    run_epoch(trainer, make_batches(10, 6), print_freq=2)
    assert trainer.guard.diverged


# ---- the whole program

COMMON = ("--arch", "resnet18", "--image-size", "32", "-b", "4", "-j", "0", "--device", "cpu",
          "--lr", "0.01", "--lr-schedule", "cosine", "--seed", "1", "-p", "1",
          "--checkpoint-interval", "6")  # fmt: skip


class Poison:
    """Makes the loss of some steps of a training NaN, at most so often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: range, times: int) -> None:
        healthy = Trainer._forward_loss

        def forward_loss(trainer: Trainer, *batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
            loss, logits = healthy(trainer, *batch)
            if trainer.step in steps and self.left > 0:
                self.left -= 1
                loss = loss * NAN
            return loss, logits

        self.left = times
        monkeypatch.setattr(Trainer, "_forward_loss", forward_loss)


def train(images: Path, workspace: Path, *flags: str) -> int:
    """Runs the program; returns its exit code."""
    return main.main([str(images), *COMMON, "--epochs", "1", "--workspace", str(workspace), *flags])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=24)


def test_the_end_names_step_rate_scale_and_samples(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Poison(monkeypatch, range(5, 99), 99)
    code = train(images, tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code == 5
    assert "in 5 optimizer steps in a row (5 to 9, epoch 1; lr 0.00" in line, line
    assert "loss scale 1, samples " in line and "checkpoints are from before" in line
    found = json.loads((tmp_path / "divergence.json").read_text())
    assert list(found["rates"]) == list(found["samples"]) == list("56789")
    paths = [path for step in found["samples"].values() for path in step]
    assert len(set(paths)) == 5 * 4 and all(Path(path).is_file() for path in paths)
    saved = checkpoint(tmp_path / "checkpoint.pth.tar")
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert values(tmp_path, "train", "train.skipped_steps")[-1] >= 5


def test_back_to_a_checkpoint_with_half_the_rate(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Poison(monkeypatch, range(7, 12), 5)
    code = train(images, tmp_path, "--on-divergence", "rollback")
    assert code == 0
    # Saved after 6 and 12 steps; the second one has seen the row of bad ones, 7 to 11.
    assert "rollback 1 of 3: back at optimizer step 6" in capsys.readouterr().out
    rates = values(tmp_path, "train", "train.lr")
    assert len(rates) == (11 + 1 + LAG) + (18 - 6)  # up to when the host knows, and from step 6
    assert rates[16:26] == pytest.approx([rate / 2 for rate in rates[6:16]])
    saved = checkpoint(tmp_path / "checkpoint.pth.tar")
    assert saved["counters"]["rollbacks"] == 1 and saved["counters"]["step"] == 18
    assert (saved["epoch"], saved["counters"]["skipped_steps"]) == (1, 0)


def test_statistics_that_are_not_finite_end_the_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Gradients can be finite again when BatchNorm's running statistics never will be."""
    healthy = Trainer.train_step

    def train_step(trainer: Trainer, batch: torch.Tensor, target: torch.Tensor) -> None:
        healthy(trainer, batch * NAN if trainer.step == 8 else batch, target)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert train(images, tmp_path) == 5
    assert "weights or BatchNorm statistics are not finite" in capsys.readouterr().err
    assert checkpoint(tmp_path / "checkpoint.pth.tar")["counters"]["step"] == 6
    assert train(images, tmp_path, "--resume", "auto", "--on-divergence", "rollback") == 5
    monkeypatch.setattr(Trainer, "train_step", healthy)
    assert train(images, tmp_path, "--resume", "auto") == 0


def test_a_validation_that_diverges_goes_back_to_before_its_epoch(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    healthy, calls = Validator._result, []

    def result(*parts: Any) -> Any:
        calls.append(parts)
        if len(calls) == 2:
            raise DivergedError("the validation loss is nan")
        return healthy(*parts)

    monkeypatch.setattr(Validator, "_result", result)
    # No save within the epoch is newer than the end of the one before; one at its end is.
    flags = ("--epochs", "2", "--checkpoint-interval", "18", "--on-divergence", "rollback")
    assert train(images, tmp_path, *flags) == 0
    assert "rollback 1 of 3: back at optimizer step 18" in capsys.readouterr().out
    assert checkpoint(tmp_path / "checkpoint.pth.tar")["counters"]["step"] == 36


def test_statistics_that_are_ruined_in_the_last_step(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    healthy, left = Trainer.train_step, [1]

    def train_step(trainer: Trainer, batch: torch.Tensor, target: torch.Tensor) -> None:
        spoiled = trainer.step == 17 and left[0] > 0
        left[0] -= spoiled
        healthy(trainer, batch * NAN if spoiled else batch, target)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    code = train(images, tmp_path, "--training-only", "--on-divergence", "rollback")
    assert code == 0
    assert "rollback 1 of 3: back at optimizer step 12" in capsys.readouterr().out
    saved = checkpoint(tmp_path / "checkpoint.pth.tar")
    assert (saved["epoch"], saved["counters"]["step"]) == (1, 18)


def test_rollbacks_come_to_an_end(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Poison(monkeypatch, range(13, 99), 999)
    code = train(images, tmp_path, "--on-divergence", "rollback")
    printed = capsys.readouterr()
    assert code == 5 and printed.err.count("error") == 1
    assert printed.out.count("back at optimizer step 12") == MOST_ROLLBACKS


def test_no_checkpoint_to_go_back_to(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Poison(monkeypatch, range(99), 999)
    code = train(
        images, tmp_path, "--on-divergence", "rollback", "--checkpoint-interval", "0"
    )
    assert code == 5
    assert "no checkpoint from before to go back to" in capsys.readouterr().err
