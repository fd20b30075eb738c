# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Two ranks train networks sharded and not, and compare: started by test_sharding.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from image_classification import distributed, sharding
from image_classification.checkpoint import snapshot
from image_classification.device import Device
from image_classification.ema import ModelEma
from image_classification.optimizers import create_optimizer
from image_classification.recomputing import recompute_blocks
from image_classification.rehearsal import step_times
from image_classification.training import Trainer
from models import create_model

CLASSES, SIDE, BATCH = 5, 32, 4
SMALL = {"channels": [6, 8, 8, 8, 8, 8, 12, 16, 9], "dropout": 0.2}
SCENARIOS: dict[str, dict[str, Any]] = {
    "sgd": {"clip_grad_norm": 0.5, "accumulation_steps": 2, "scale": 128.0},
    "adamw": {},
    "rmsprop-tf": {"recompute": True},
    "lars": {"lr": 2.0},
}


def make_trainer(
    optimizer: str, sharded: bool, *, arch: str = "resnet18_cifar", recompute: bool = False,
    options: dict[str, Any] | None = None, lr: float = 0.01, scale: float = 0.0, **settings: Any,
) -> Trainer:  # fmt: skip
    """A trainer of a small network, the same on both ranks."""
    torch.manual_seed(0)
    model = create_model(arch, CLASSES, **(SMALL if options is None else options))
    model = recompute_blocks(model) if recompute else model
    ema = ModelEma(model, 0.9)
    if sharded:
        sharding.shard([model, ema.model], "cpu", LAUNCH.world_size)
    trainer = Trainer(
        model, model, torch.nn.CrossEntropyLoss(),
        create_optimizer(optimizer, model, lr=lr, weight_decay=1e-4), lambda step: lr,
        device=DEVICE, num_batches=8, batch_images=BATCH * 2, ema=ema, rank=LAUNCH.rank,
        world_size=2, scaler=torch.amp.GradScaler("cpu", scale, enabled=scale > 0),
        **{"amp_dtype": None, **settings},
    )  # fmt: skip
    trainer.spread(lambda net: distributed.wrap(net, LAUNCH, DEVICE, static_graph=False))
    return trainer


def train(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Trains on batches that are other ones on each rank; returns the state as it is then."""
    trainer._enter_train_mode()
    generator = torch.Generator().manual_seed(100 * trainer.step + LAUNCH.rank)
    for _ in range(steps * trainer.accumulation_steps):
        images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
        trainer.train_step(images, torch.randint(CLASSES, (BATCH,), generator=generator))
    trainer.guard.read_all()
    trainer.sums.read()
    distributed.broadcast_buffers(trainer.model)
    return snapshot(trainer.state_dict())


def difference(one: Any, other: Any) -> float:
    """The largest one in nested structures, which hold the same tensors otherwise."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((difference(one[key], other[key]) for key in one), default=0.0)
    if not isinstance(one, torch.Tensor):
        return 0.0
    assert type(one) is type(other) is torch.Tensor and one.shape == other.shape
    return float((one.float() - other.float()).abs().max()) if one.numel() else 0.0


def compare(optimizer: str, scenario: dict[str, Any]) -> None:
    """Sharded or not: the same training, and either goes on from the other's checkpoint."""
    plain, sharded = (make_trainer(optimizer, way, **scenario) for way in (False, True))
    parts = [sharding.local(weight).numel() for weight in sharded.model.parameters()]
    whole = [weight.numel() for weight in plain.model.parameters()]
    assert sum(parts) < 0.51 * sum(whole) and list(sharded.model.state_dict()) == list(
        plain.model.state_dict()
    )
    first = [train(one, 2) for one in (plain, sharded)]
    tolerance = 1e-4
    assert difference(*first) < tolerance, difference(*first)
    before = snapshot(sharded.state_dict())
    step_times(sharded, SIDE, torch.contiguous_format)
    assert difference(before, snapshot(sharded.state_dict())) == 0.0
    plain.restore(first[1]), sharded.restore(first[0])
    assert difference(snapshot(plain.state_dict()), first[1]) == 0.0
    assert difference(snapshot(sharded.state_dict()), first[0]) == 0.0
    assert difference(*(train(one, 1) for one in (plain, sharded))) < 2 * tolerance
    # Every rank has all weights in between, and may have more batches than the others.
    images = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with sharding.gathered(sharded.model), torch.inference_mode():
        sharded.model.eval()
        logits = [sharded.model(images) for _ in range(2 + LAUNCH.rank)]
        stopped = snapshot(sharded.state_dict())  # as a signal does in a validation
    assert difference(stopped, snapshot(sharded.state_dict())) == 0.0
    plain.restore(snapshot(sharded.state_dict()))
    with torch.inference_mode():
        assert torch.allclose(logits[-1], plain.model.eval()(images), atol=1e-5)
    assert sum(sharding.local(one).numel() for one in sharded.model.parameters()) == sum(parts)
    train(sharded, 1)
    if optimizer == "lars":  # the norms of all tensors together, those of the classifier too
        with mock.patch("torch.distributed.all_reduce", wraps=dist.all_reduce) as summed:
            sharded.optimizer.step()
        assert summed.call_count == 1, summed.call_count


LAUNCH = distributed.read_launch()
DEVICE = Device.select("cpu")
distributed.init(LAUNCH, DEVICE, None)
torch.use_deterministic_algorithms(True)
ONCE = [make_trainer("sgd", way, arch="efficientnet-b0", options={}) for way in (False, True)]
assert difference(*(train(one, 1) for one in ONCE)) < 1e-4
for name, settings in SCENARIOS.items():
    compare(name, settings)
    if LAUNCH.primary:
        print(f"{name}: the same")
distributed.shutdown()
