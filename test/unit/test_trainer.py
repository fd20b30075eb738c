# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The training step: against a plain loop, accumulation, EMA, host waits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from image_classification import optimizers
from image_classification.device import Device
from image_classification.ema import ModelEma
from image_classification.logger import Logger
from image_classification.mixup import draw_cut, draw_weight, partner
from image_classification.training import _STREAM_CUTMIX, _STREAM_MIXUP, Trainer

CLASSES = 5


class Batches:
    """A loader of prepared batches."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_position(self, epoch: int, samples: int) -> None:
        """The trainer says where it goes on."""

    def explain_waiting(self, row: dict[str, Any]) -> str | None:
        return None


class RowKeeper(Logger):
    """A logger that keeps its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Any, dict[str, Any]]] = []

    def log(self, step: Any, data: Any, verbosity: int = 0) -> None:
        self.rows.append((step, dict(data)))


def make_batches(count: int, size: int, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return Batches([
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ])  # fmt: skip


def make_net(*, norm: bool = True, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=not norm),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(72, CLASSES),
    )


def make_trainer(
    net: nn.Module, lr: Callable[[int], float] = lambda step: 0.05, **options: Any
) -> Trainer:
    device = Device.select("cpu")
    decay = options.pop("weight_decay", 1e-3)
    optimizer = optimizers.create_optimizer("sgd", net, lr=0.1, weight_decay=decay)
    settings: dict[str, Any] = {
        "device": device, "num_batches": 50, "batch_images": 6, "amp_dtype": None,
        "scaler": device.grad_scaler(None, None, True),
    }  # fmt: skip
    settings |= options
    return Trainer(net, net, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, lr, **settings)


def run_epoch(trainer: Trainer, batches: Batches, print_freq: int = 100) -> dict[str, Any]:
    trainer.num_batches = len(batches)
    row = trainer.train_epoch(batches, 0, epochs=1, print_freq=print_freq, logger=Logger())
    trainer.finish_epoch()
    return row


def test_50_steps_equal_a_plain_loop() -> None:
    batches = make_batches(50, 6)
    lr = optimizers.lr_policy("cosine", 0.2, total_steps=50, warmup_steps=5)
    trainer = make_trainer(make_net(), lr)
    keeper = RowKeeper()
    trainer.train_epoch(batches, 0, epochs=1, print_freq=1, logger=keeper)

    net = make_net()
    decayed = [net[0].weight, net[5].weight]
    rest = [net[1].weight, net[1].bias, net[5].bias]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-3}, {"params": rest, "weight_decay": 0.0}],
        lr=0.2, momentum=0.9,
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    net.train()
    for step, (images, target) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        loss = criterion(net(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        _, row = keeper.rows[step]
        assert row["train.loss"] == pytest.approx(loss.item(), rel=1e-6)
        assert row["train.lr"] == lr(step)
    for key, value in net.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[key]), key


def test_accumulated_small_batches_equal_one_big_batch() -> None:
    (images, target), = make_batches(1, 12).batches
    whole = make_trainer(make_net(norm=False))
    row = run_epoch(whole, Batches([(images, target)]))
    parts = make_trainer(make_net(norm=False), accumulation_steps=3)
    part_row = run_epoch(parts, Batches(list(zip(images.split(4), target.split(4), strict=True))))
    assert whole.step == parts.step == 1
    # The logged loss is the mean over the images, whatever the accumulation.
    assert part_row["train.loss"] == pytest.approx(row["train.loss"], rel=1e-6)
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_an_unfinished_group_does_not_leak_into_the_next_epoch() -> None:
    batches = make_batches(3, 4)
    trainer = make_trainer(make_net(norm=False), accumulation_steps=2)
    trainer.train_step(*batches.batches[2])
    run_epoch(trainer, Batches(batches.batches[:2]))
    clean = make_trainer(make_net(norm=False), accumulation_steps=2)
    run_epoch(clean, Batches(batches.batches[:2]))
    assert trainer.step == clean.step == 1
    for mine, theirs in zip(trainer.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_dropout_and_mixup_are_functions_of_seed_and_step() -> None:
    def weights(seed: int, noise: int, rank: int = 0) -> torch.Tensor:
        trainer = make_trainer(make_net(dropout=0.5), mixup_alpha=0.2, seed=seed, rank=rank)
        torch.manual_seed(noise)  # what came before must not matter
        run_epoch(trainer, make_batches(3, 6))
        return trainer.model[5].weight.detach()

    assert torch.equal(weights(1, 10), weights(1, 11))
    assert not torch.equal(weights(1, 10), weights(2, 10))
    assert not torch.equal(weights(1, 10), weights(1, 10, rank=1))


def test_mixup_loss_is_that_of_soft_targets() -> None:
    trainer = make_trainer(make_net(norm=False), mixup_alpha=0.4)
    (images, target), = make_batches(1, 6).batches
    loss, logits = trainer._forward_loss(images, target)
    weight = draw_weight(0.4, trainer._draw_key(_STREAM_MIXUP))
    one_hot = nn.functional.one_hot(target, CLASSES).float()
    soft = weight * one_hot + (1 - weight) * partner(one_hot)
    assert loss.item() == pytest.approx(trainer.criterion(logits, soft).item(), rel=1e-5)


def test_cutmix_loss_is_that_of_soft_targets_by_area() -> None:
    trainer = make_trainer(make_net(norm=False), cutmix_alpha=1.0, seed=2)
    (images, target), = make_batches(1, 6).batches
    loss, logits = trainer._forward_loss(images, target)
    cut = draw_cut(1.0, trainer._draw_key(_STREAM_CUTMIX), 8, 8)
    assert cut.box is not None and 0 < cut.weight < 1
    top, left, bottom, right = cut.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partner(images)[..., top:bottom, left:right]
    assert torch.equal(trainer.forward(mixed), logits)
    one_hot = nn.functional.one_hot(target, CLASSES).float()
    share = (bottom - top) * (right - left) / 64
    soft = (1 - share) * one_hot + share * partner(one_hot)
    assert loss.item() == pytest.approx(trainer.criterion(logits, soft).item(), rel=1e-5)


def test_of_mixup_and_cutmix_each_step_draws_one() -> None:
    trainer = make_trainer(make_net(), mixup_alpha=0.2, cutmix_alpha=1.0, seed=5)
    mixup = make_trainer(make_net(), mixup_alpha=0.2, seed=5)
    cutmix = make_trainer(make_net(), cutmix_alpha=1.0, seed=5)
    other_rank = make_trainer(make_net(), mixup_alpha=0.2, cutmix_alpha=1.0, seed=5, rank=3)
    cuts = 0
    for step in range(1000):
        for one in (trainer, mixup, cutmix, other_rank):
            one.step = step
        drawn = trainer._draw_mix(8, 8)
        assert drawn is not None and drawn == other_rank._draw_mix(8, 8)
        cuts += drawn.box is not None
        assert drawn == (mixup if drawn.box is None else cutmix)._draw_mix(8, 8)
    assert abs(cuts - 500) < 4 * (1000 / 4) ** 0.5
    assert make_trainer(make_net())._draw_mix(8, 8) is None


@pytest.mark.parametrize("alphas", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixtures_are_the_same_for_any_division_of_the_global_batch(alphas) -> None:
    def trainer(**options: Any) -> Trainer:
        mixup, cutmix = alphas
        return make_trainer(
            make_net(norm=False), mixup_alpha=mixup, cutmix_alpha=cutmix, seed=4, **options
        )

    whole, parts = trainer(), trainer(accumulation_steps=3)
    for images, target in make_batches(3, 24):
        # Two ranks: the gradients' mean is that of the whole batch if the losses' mean is.
        ranks = [trainer(rank=rank, world_size=2) for rank in range(2)]
        halves = []
        for rank, image, label in zip(ranks, images.split(12), target.split(12), strict=True):
            rank.model.load_state_dict(whole.model.state_dict())
            rank.step = whole.step
            halves.append(rank._forward_loss(image, label)[0].item())
        loss = run_epoch(whole, Batches([(images, target)]))["train.loss"]
        small = Batches(list(zip(images.split(8), target.split(8), strict=True)))
        assert run_epoch(parts, small)["train.loss"] == pytest.approx(loss, rel=1e-5)
        assert sum(halves) / 2 == pytest.approx(loss, rel=1e-5)
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_clipping_limits_the_update() -> None:
    trainer = make_trainer(make_net(), clip_grad_norm=1e-3, weight_decay=0.0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    row = run_epoch(trainer, make_batches(1, 6))
    moved = [p.detach() - old for p, old in zip(trainer.model.parameters(), before, strict=True)]
    norm = torch.cat([delta.flatten() for delta in moved]).norm().item()
    assert norm == pytest.approx(0.05 * 1e-3, rel=1e-3)
    assert row["train.grad_norm"] > 1e-3


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    trainer = make_trainer(make_net(), freeze_bn=True)
    run_epoch(trainer, make_batches(2, 6))
    assert torch.equal(trainer.model[1].running_mean, torch.zeros(8))
    assert trainer.model[1].num_batches_tracked == 0


def test_ema_warms_up_and_follows() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    ema = ModelEma(net, decay=0.9)
    nn.init.ones_(net.weight)
    expected = 0.0
    for updates in range(200):
        decay = min(0.9, (1 + updates) / (10 + updates))
        expected = expected * decay + (1 - decay)
        ema.update()
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.updates == 200 and expected > 0.99


def test_ema_updates_once_per_optimizer_step() -> None:
    net = make_net()
    ema = ModelEma(net, 0.9)
    run_epoch(make_trainer(net, accumulation_steps=3, ema=ema), make_batches(6, 4))
    assert ema.updates == 2
    assert ema.model[1].num_batches_tracked == 6  # integer buffers are copied


@pytest.mark.filterwarnings("error")
def test_no_host_wait_between_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: Any, _original: Any = original, _name: str = name):
            reads.append((os.path.basename(sys._getframe(1).f_code.co_filename), _name))
            return _original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    ema_net = make_net(dropout=0.1)
    trainer = make_trainer(
        ema_net, ema=ModelEma(ema_net, 0.9), mixup_alpha=0.2, cutmix_alpha=1.0, clip_grad_norm=1.0,
        accumulation_steps=2, num_batches=40,
    )  # fmt: skip
    keeper = RowKeeper()
    trainer.train_epoch(
        make_batches(40, 4), 0, epochs=1, print_freq=20, logger=keeper
    )
    assert len(keeper.rows) == 2
    # The sums, once per log line. On the CPU the guard's flags are the host's own.
    assert [read for read in reads if read[0] != "divergence.py"] == [
        ("running_sums.py", "tolist")
    ] * 2


def test_what_the_loader_says_about_waiting_is_told_at_log_lines() -> None:
    class SlowBatches(Batches):
        def explain_waiting(self, row: dict[str, Any]) -> str:
            return f"waited, loss {row['train.loss']:.5f}"

    keeper, warnings = RowKeeper(), []
    keeper.warning = warnings.append
    batches = SlowBatches(make_batches(6, 4).batches)
    make_trainer(make_net()).train_epoch(batches, 0, epochs=1, print_freq=2, logger=keeper)
    assert warnings == [f"waited, loss {row['train.loss']:.5f}" for _, row in keeper.rows]
    assert len(warnings) == 3


def test_state_restores_counters_and_names_what_is_missing() -> None:
    net = make_net()
    trainer = make_trainer(net, ema=ModelEma(net, 0.9))
    run_epoch(trainer, make_batches(3, 6))
    saved = trainer.state_dict()
    assert saved["counters"] == {
        "step": 3, "skipped_steps": 0, "ema_updates": 3, "rollbacks": 0,
    }  # fmt: skip
    again_net = make_net()
    again = make_trainer(again_net, ema=ModelEma(again_net, 0.9))
    assert again.load_state_dict(saved) == []
    assert again.step == 3 and again.ema is not None and again.ema.updates == 3
    (line,) = again.load_state_dict(saved | {"state_dict_ema": None})
    assert "no EMA weights" in line
