# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded data parallel: the training of DistributedDataParallel, with parts of the weights."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from runs import (
    ROOT,
    checkpoint,
    nursery,
    run_main,
    values,
    write_images,
    write_narrow_weights,
)

from image_classification import sharding
from image_classification.errors import UsageError

COMMON = ("--arch", "resnet18", "--image-size", 32, "-b", 4, "-j", 0, "--device", "cpu", "-p", 1,
          "--lr", 0.01, "--seed", 7, "--use-ema", 0.9, "--optimizer-batch-size", 16, "--epochs", 2,
          "--clip-grad-norm", 1)  # fmt: skip

pytestmark = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < (2, 6), reason="needs PyTorch 2.6"
)


def test_every_optimizer_takes_the_same_steps(tmp_path: Path) -> None:
    script = ROOT / "test" / "system" / "sharded_ranks.py"
    done = nursery().run(ROOT / "multiproc.py", "--nproc_per_node", 2, "--log_dir", tmp_path,
                         script, timeout=280)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "GPU_1.log").read_text()
    assert re.findall(r"^([a-z-]+): the same$", done.stdout, re.MULTILINE) == [
        "sgd", "adamw", "rmsprop-tf", "lars"
    ]  # fmt: skip


def test_a_training_goes_on_either_way(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", train=6, val=3)  # ranks with 2 and 1 batches of val

    def run(name: str, *flags: object) -> str:
        return run_main(images, *COMMON, *flags, "--workspace", tmp_path / name, ranks=2).stdout

    run("straight")
    said = run("mixed", "--run-epochs", 1, "--parallel", "fsdp")
    assert re.search(r"weights are spread over 2 processes: 42\.\d of 85\.\d MiB on this one", said)
    run("mixed", "--resume", "auto")
    for metric in ("train.loss", "train.grad_norm", "val.loss", "val_ema.loss"):
        found, wanted = (values(tmp_path / name, "epoch", metric) for name in ("mixed", "straight"))
        assert found == pytest.approx(wanted, rel=1e-3), metric
    made, expected = (
        checkpoint(tmp_path / name / "checkpoint.pth.tar") for name in ("mixed", "straight")
    )
    for part in ("state_dict", "state_dict_ema"):
        assert all(type(entry) is torch.Tensor for entry in made[part].values())
        for key, entry in expected[part].items():
            assert torch.allclose(made[part][key], entry, atol=1e-4), key


def test_a_divergence_goes_back(tmp_path: Path) -> None:
    """To the last checkpoint, of which each rank takes its part, three times."""
    images = write_images(tmp_path / "images", train=8, val=3)
    narrow = write_narrow_weights(tmp_path / "narrow.pth", "resnet18")
    done = run_main(images, *COMMON, *narrow, "--parallel", "fsdp", "--epochs", 9,
                    "--lr", 1e20, "--warmup", 1, "--lr-schedule", "linear",
                    "--on-divergence", "rollback", "--checkpoint-interval", 1,
                    "--workspace", tmp_path / "w", ranks=2, expect=5)  # fmt: skip
    assert "rollback 3 of 3: back at optimizer step " in done.stdout
    assert all(
        torch.isfinite(weight).all()
        for weight in checkpoint(tmp_path / "w/checkpoint.pth.tar")["state_dict"].values()
    )


def test_an_older_pytorch_is_refused() -> None:
    sharding.require_engine()
    with mock.patch.object(torch.distributed.fsdp, "fully_shard"):
        del torch.distributed.fsdp.fully_shard
        with pytest.raises(UsageError, match=r"needs PyTorch 2\.6 or newer, .*--parallel ddp"):
            sharding.require_engine()
