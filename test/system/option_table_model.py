# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for the network change."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from option_lab import STILL, Lab, differ, shows
from runs import same
from torch.utils._python_dispatch import TorchDispatchMode

import main
from image_classification import published_weights
from image_classification.published_weights import PublishedWeights
from image_classification.recomputing import Recomputed
from models import create_model


@shows("--arch", "the network")
def arch(lab: Lab) -> None:
    deeper = lab.run("--arch", "resnet34")
    assert deeper.last["arch"] == "resnet34" and lab.base.last["arch"] == "resnet18"
    assert set(deeper.weights) > set(lab.base.weights)


@shows("--model-config", "the scale of initial convolution weights")
def model_config(lab: Lab) -> None:
    # 64 channels in, 128 out: the variances are 2 / (9 * 64) and 2 / (9 * 128)
    fan_in, fan_out = lab.shared(*STILL, "-c", "fanin"), lab.still
    scales = [run.weights["layer4.0.conv1.weight"].std() for run in (fan_in, fan_out)]
    assert float(scales[0] / scales[1]) == pytest.approx(2**0.5, rel=0.05)
    assert float(scales[0]) == pytest.approx((2 / 576) ** 0.5, rel=0.05)


@shows("--conv_init", "the same as --model-config")
def conv_init(lab: Lab) -> None:
    named = lab.run(*STILL, "--conv_init", "fan_in")
    assert not same(named.weights, lab.shared(*STILL, "-c", "fanin").weights)
    assert "contradicts" in lab.error("--conv_init", "fan_in", "-c", "classic")


@shows("--zero-init-last-bn", "initial scale of the last BatchNorm of each block")
def zero_init_last_bn(lab: Lab) -> None:
    zeroed = lab.run(*STILL, "--zero-init-last-bn")
    assert not zeroed.weights["layer1.0.bn2.weight"].any()
    assert lab.still.weights["layer1.0.bn2.weight"].all()
    assert zeroed.weights["layer1.0.bn1.weight"].all()


def se_resnext(*flags: str) -> torch.nn.Module:
    """The network that these flags ask for, without memory for its weights."""
    argv = ["--arch", "se-resnext101-32x4d", "--data-backend", "synthetic", *flags]
    args, _ = main.parse_args(argv)
    with torch.device("meta"):
        return create_model(args.arch, 10, **main.model_options(args))


@shows("--trt", "squeeze-and-excitation as convolutions: shapes of its weights")
def trt(lab: Lab) -> None:
    shapes = [
        tuple(se_resnext(*flags).state_dict()["layer1.0.se.squeeze.weight"].shape)
        for flags in ((), ("--trt",), ("--trt", "True"), ("--trt", "False"))
    ]
    assert shapes == [(16, 256), (16, 256, 1, 1), (16, 256, 1, 1), (16, 256)]


class FusedCount(TorchDispatchMode):
    """Counts multiplications that are fused with an addition."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.number += "addcmul" in str(function)
        return function(*args, **(kwargs or {}))


@shows("--fused_se", "operations of squeeze-and-excitation: one addcmul per block")
def fused_se(lab: Lab) -> None:
    numbers = []
    for flags in ((), ("--fused_se", "True"), ("--fused_se", "False")):
        model = se_resnext(*flags).eval()
        with torch.no_grad(), FusedCount() as count:
            model(torch.empty(1, 3, 32, 32, device="meta"))
        numbers.append(count.number)
    assert numbers == [33, 33, 0]


@shows("--dropout", "the training loss, not that of validation")
def dropout(lab: Lab) -> None:
    dropped = lab.run(*STILL, "--dropout", 0.5)
    assert dropped.value("train.loss") != lab.still.value("train.loss")
    assert dropped.value("val.loss") == lab.still.value("val.loss")
    assert dropped.last["model_options"]["dropout"] == 0.5


def built(*flags: str) -> torch.nn.Module:
    """The network that these flags ask for."""
    args, _ = main.parse_args(["--data-backend", "synthetic", *flags])
    return create_model(args.arch, 3, **main.model_options(args))


@shows("--survival-prob", "how often the blocks of EfficientNet act in training")
def survival_prob(lab: Lab) -> None:
    model = built("--arch", "efficientnet-b0", "--survival-prob", "0.5")
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.classifier[0].p = 0.0
    assert not torch.equal(model(images), model(images))
    model = built("--arch", "efficientnet-b0")
    model.classifier[0].p = 0.0
    assert torch.equal(model(images), model(images))
    assert "is for EfficientNet" in lab.error("--survival-prob", "0.5")


@shows("--bn-momentum", "how much of a batch goes into BatchNorm's statistics")
def bn_momentum(lab: Lab) -> None:
    mean = "bn1.running_mean"
    slow = lab.run(*STILL, "--bn-momentum", "0.01")
    torch.testing.assert_close(slow.weights[mean] * 10, lab.still.weights[mean])
    assert slow.last["model_options"]["bn_momentum"] == 0.01


@shows("--bn-epsilon", "the logits, through BatchNorm's division")
def bn_epsilon(lab: Lab) -> None:
    damped = lab.run(*STILL, "--bn-epsilon", "1")
    assert damped.value("train.loss") != lab.still.value("train.loss")
    assert damped.last["model_options"]["bn_epsilon"] == 1


@shows("--freeze-bn", "BatchNorm statistics: unchanged by training")
def freeze_bn(lab: Lab) -> None:
    frozen = lab.run("--freeze-bn").weights
    assert not frozen["bn1.running_mean"].any() and not frozen["bn1.num_batches_tracked"]
    assert lab.base.weights["bn1.running_mean"].any()
    assert lab.base.weights["bn1.num_batches_tracked"] == 1


@shows("--freeze", "weights and statistics of the first parts: unchanged by training")
def freeze(lab: Lab) -> None:
    start = lab.still.weights
    made = lab.run("--freeze", "stage2", "--pretrained-weights", lab.initial).weights
    changed = {name.split(".")[0] for name in made if name.endswith(("weight", "bias"))
               and not torch.equal(made[name], start[name])}  # fmt: skip
    assert changed == {"layer3", "layer4", "fc"}
    for name, moves in (("layer2.0.bn1.running_mean", False), ("layer3.0.bn1.running_mean", True)):
        assert torch.equal(made[name], start[name]) != moves
    without = lab.run("--freeze", "stage2")
    assert without.last["config"]["freeze"] == "none"  # random numbers are not worth keeping
    assert "would keep random numbers" in without.out + without.err
    assert "--jit script" in lab.error("--freeze", "stage2", "--jit", "script")


@shows("--unfreeze-after", "frozen parts: trained in the later epochs")
def unfreeze_after(lab: Lab) -> None:
    flags = ("--freeze", "backbone", "--epochs", 2, "--lr-schedule", "step",
             "--pretrained-weights", lab.initial)  # fmt: skip
    for more, moves in (((), False), (("--unfreeze-after", 1), True)):
        made = lab.run(*flags, *more).weights
        assert torch.equal(made["conv1.weight"], lab.still.weights["conv1.weight"]) != moves
    made = lab.run(*flags, "--freeze", "none", "--unfreeze-after", 1).weights  # as with a recipe
    assert not torch.equal(made["conv1.weight"], lab.still.weights["conv1.weight"])


@shows("--sync-bn", "BatchNorm over all devices; on a CPU an error")
def sync_bn(lab: Lab) -> None:
    assert "--sync-bn needs an accelerator" in lab.error("--sync-bn")


@shows("--pretrained-weights", "the weights at the start")
def pretrained_weights(lab: Lab) -> None:
    file = lab.base.workspace / "checkpoint.pth.tar"
    flags = (*STILL, "--pretrained-weights", file, "--freeze-bn")
    loaded = lab.run(*flags, "--seed", 5)
    assert not same(loaded.weights, lab.base.weights)
    fresh = lab.run(*flags, "--data-backend", "synthetic", "--num-classes", 7)
    assert "replaced by a fresh one of 7" in fresh.out
    assert not differ(fresh.weights["conv1.weight"], lab.base.weights["conv1.weight"])


@contextlib.contextmanager
def publishing(lab: Lab, *versions: str) -> Iterator[Path]:
    """A folder with weights that count as published, the last version's the base run's."""
    folder, rows = lab.folder / "published", []
    folder.mkdir(exist_ok=True)
    for number, version in enumerate(versions, 1 - len(versions)):
        torch.save({**lab.base.weights, "fc.bias": torch.full((3,), float(number))}, folder / "w")
        digits = hashlib.sha256((folder / "w").read_bytes()).hexdigest()[:8]
        (folder / "w").rename(folder / f"resnet18-{digits}.pth")
        url = f"http://127.0.0.1:9/resnet18-{digits}.pth"
        rows.append(PublishedWeights("resnet18", version, url, 70.0, 32, 32))
    with mock.patch.object(published_weights, "PUBLISHED", tuple(rows)):
        yield folder


@shows("--pretrained", "the weights at the start: published ones")
def pretrained(lab: Lab) -> None:
    with publishing(lab, "v1") as folder:
        flags = (*STILL, "--freeze-bn", "--pretrained")
        made = lab.run(*flags, "--weights-dir", folder)
        assert same(made.weights, lab.base.weights) == ["/fc.bias"]
        text = lab.error(*flags, "--weights-dir", lab.folder / "empty", code=4)
        assert "resnet18-" in text and str(lab.folder / "empty") in text
    assert "exclude each other" in lab.error("--pretrained", "--pretrained-weights", "x")
    assert "publishes no weights" in lab.error("--pretrained", "--arch", "resnet18_cifar")


@shows("--pretrained-optional", "published weights, or a warning and random ones")
def pretrained_optional(lab: Lab) -> None:
    with publishing(lab, "v1") as folder:
        flags = (*STILL, "--freeze-bn", "--freeze", "backbone", "--pretrained-optional")
        made = lab.run(*flags, "--weights-dir", folder)
        assert same(made.weights, lab.base.weights) == ["/fc.bias"]
        assert "FROM SCRATCH" not in made.out + made.err
        without = lab.run(*flags, "--weights-dir", lab.folder / "empty")
    assert "TRAINING FROM SCRATCH" in without.out + without.err
    assert without.last["config"]["freeze"] == "none"  # nothing worth keeping


@shows("--weights-dir", "where published weights are looked for")
def weights_dir(lab: Lab) -> None:
    with publishing(lab, "v1") as folder:
        start = lab.run(*STILL, "--pretrained", "--weights-dir", folder)
        assert torch.equal(start.weights["conv1.weight"], lab.base.weights["conv1.weight"])
        empty = lab.folder / "none"
        assert str(empty) in lab.error("--pretrained", "--weights-dir", empty, code=4)
    assert "belong to --pretrained" in lab.error("--weights-dir", "x")


@shows("--weights-version", "which of the published weights")
def weights_version(lab: Lab) -> None:
    with publishing(lab, "v1", "v2") as folder:
        flags = (*STILL, "--freeze-bn", "--pretrained", "--weights-dir", folder)
        biases = [lab.run(*flags, *more).weights["fc.bias"][0]
                  for more in ((), ("--weights-version", "v1"))]  # fmt: skip
    assert biases == [0.0, -1.0]


@shows("--min-matched", "weights that fit in part: refused or loaded")
def min_matched(lab: Lab) -> None:
    file = lab.folder / "part.pth"
    torch.save({k: v for k, v in lab.base.weights.items() if "layer4" not in k}, file)
    flags = (*STILL, "--freeze-bn", "--pretrained-weights", file)
    assert "does not fit the model" in lab.error(*flags, code=4)
    made = lab.run(*flags, "--min-matched", 0.3)
    assert torch.equal(made.weights["conv1.weight"], lab.base.weights["conv1.weight"])


@shows("--jit", "the model that is trained: TorchScript")
def jit(lab: Lab) -> None:
    scripted = lab.run("--jit", "script")
    assert isinstance(scripted.models[0], torch.jit.ScriptModule)
    assert not isinstance(lab.base.models[0], torch.jit.ScriptModule)
    assert set(scripted.weights) == set(lab.base.weights)


@shows("--grad-checkpointing", "what the blocks keep for the gradients; the result is the same")
def grad_checkpointing(lab: Lab) -> None:
    again = lab.run("--grad-checkpointing")
    assert isinstance(again.models[0].layer1, Recomputed)
    assert not isinstance(lab.base.models[0].layer1, Recomputed)
    assert same(again.last["optimizer"], lab.base.last["optimizer"]) == []
    assert same(again.weights, lab.base.weights) == []
    assert "goes neither with --compile" in lab.error("--grad-checkpointing", "--compile")
