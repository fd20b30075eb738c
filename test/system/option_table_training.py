# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for training and optimizer change."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from option_lab import STILL, SYNTHETIC, Lab, Outcome, approx, close, differ, shows
from runs import same

import main

LIGHT = ("--training-only", "--no-checkpoints")

# ---- training ----


@shows("--epochs", "epochs in all: rows, and where the checkpoint goes on")
def epochs(lab: Lab) -> None:
    assert len(lab.base.values("train.loss")) == lab.base.last["epoch"] == 1
    longer = lab.run("--epochs", 3)
    assert len(longer.values("train.loss")) == longer.last["epoch"] == 3


@shows("--run-epochs", "epochs of this start; the schedule stays that of --epochs")
def run_epochs(lab: Lab) -> None:
    part = lab.run("--epochs", 4, "--run-epochs", 2)
    assert part.last["epoch"] == 2
    assert part.values("train.lr") == [approx(0.1), approx(0.1 * 2 / 3)]


@shows("--batch-size", "images per step")
def batch_size(lab: Lab) -> None:
    made = lab.run("-b", 6, "--no-checkpoints")
    assert [len(images) for images in made.batches] == [6] and made.value("val.seen") == 6
    assert [len(images) for images in lab.base.batches] == [4] and lab.base.value("val.seen") == 4
    fitting = lab.run("-b", "auto", "--no-checkpoints")
    assert [len(images) for images in fitting.batches] == [16]  # of the 24 training images
    assert "give a number" in lab.error("-b", "auto", "--evaluate", "--resume", "x")


@shows("--optimizer-batch-size", "batches per optimizer step")
def optimizer_batch_size(lab: Lab) -> None:
    made = lab.run("--optimizer-batch-size", 8, "--prof", 4)
    assert len(made.batches) == 4 and made.last["counters"]["step"] == 2
    text = lab.error("--optimizer-batch-size", 6)
    assert "not a multiple of 4" in text


@shows("--label-smoothing", "the training loss, not that of validation")
def label_smoothing(lab: Lab) -> None:
    smooth = lab.run(*STILL, "--label-smoothing", 0.2)
    assert smooth.value("train.loss") != lab.still.value("train.loss")
    assert smooth.value("val.loss") == lab.still.value("val.loss")


@shows("--use-ema", "averaged weights: val_ema.* and state_dict_ema")
def use_ema(lab: Lab) -> None:
    averaged = lab.run("--use-ema", 0.5)
    assert averaged.value("val_ema.top1") == averaged.last["best_prec1"]
    assert averaged.value("val_ema.loss") != averaged.value("val.loss")
    # The decay of the first update is (1 + 0) / (10 + 0).
    ema, now = averaged.last["state_dict_ema"]["fc.weight"], averaged.weights["fc.weight"]
    assert close(ema, 0.1 * lab.still.weights["fc.weight"] + 0.9 * now)
    assert lab.base.last["state_dict_ema"] is None and not lab.base.values("val_ema.top1")


@shows("--on-divergence", "whether a training whose loss is not finite ends or goes back")
def on_divergence(lab: Lab) -> None:
    flags = (*SYNTHETIC, "--lr", "1e20", "--prof", 12)
    stopped = lab.run(*flags, directory=None, code=5)
    assert "in 5 optimizer steps in a row" in stopped.err and "rollback" not in stopped.out
    flags = (*flags, "--checkpoint-interval", 1, "--on-divergence", "rollback")
    back = lab.run(*flags, directory=None, code=5)
    assert "rollback 3 of 3: back at optimizer step " in back.out
    assert "--no-checkpoints" in lab.error("--on-divergence", "rollback", "--no-checkpoints")


@shows("--early-stopping-patience", "the epochs that are run")
def early_stopping_patience(lab: Lab) -> None:
    flags = (*STILL, "--freeze-bn", "--epochs", 4, "--no-checkpoints")  # top-1 never changes
    stopped = lab.run(*flags, "--early-stopping-patience", 2)
    assert len(stopped.values("val.top1")) == 3 and "early stop" in stopped.out
    assert len(lab.run(*flags).values("val.top1")) == 4


@shows("--seed", "initial weights and images; the checkpoint")
def seed(lab: Lab) -> None:
    again, other = lab.run(), lab.run("--seed", 1)
    assert not same(again.weights, lab.base.weights)
    assert differ(other.weights["conv1.weight"], lab.base.weights["conv1.weight"])
    assert differ(other.batches[0], lab.base.batches[0])
    assert other.last["seed"] == 1


@shows("--seeds", "one run per seed, in folders of their own")
def seeds(lab: Lab) -> None:
    both = lab.run("--seeds", "0,1", drop=("--seed",))
    assert both.files == {"seed_0", "seed_1", "seeds.json"}
    runs = [Outcome(both.workspace / name) for name in ("seed_0", "seed_1")]
    assert [run.last["seed"] for run in runs] == [0, 1]
    assert not same(runs[0].weights, lab.base.weights)
    assert "top-1 over 2 seeds: " in both.out
    record = json.loads((both.workspace / "seeds.json").read_text())
    best = [max(run.values("val.top1")) for run in runs]
    assert record["top1"] == {"0": approx(best[0]), "1": approx(best[1])}
    assert record["mean"] == approx(sum(best) / 2) and record["std"] is not None


# ---- optimizer and learning rate ----


@shows("--optimizer", "the optimizer's state")
def optimizer(lab: Lab) -> None:
    assert set(lab.base.last["optimizer"]["fc.weight"]) == {"momentum_buffer"}
    adamw = lab.run("--optimizer", "adamw").last["optimizer"]["fc.weight"]
    assert set(adamw) == {"step", "exp_avg", "exp_avg_sq"}
    assert "square_avg" in lab.run("--optimizer", "rmsprop").last["optimizer"]["fc.weight"]


@shows("--lr", "train.lr; without it 0.256 per 256 images")
def lr(lab: Lab) -> None:
    assert lab.base.value("train.lr") == 0.1
    assert lab.run("--lr", 0.02, "--no-checkpoints").value("train.lr") == 0.02
    default = lab.run("--no-checkpoints", drop=("--lr",))
    assert default.value("train.lr") == approx(0.256 * 4 / 256)


def rates(lab: Lab, *flags: object) -> list[float]:
    """The learning rate of four steps, with the default schedule."""
    made = lab.run("--prof", 4, "-p", 1, *LIGHT, *flags, drop=("--lr-schedule",))
    return made.values("train.lr", "train")


@shows("--lr-schedule", "train.lr from step to step")
def lr_schedule(lab: Lab) -> None:
    # Divided by 10 at 1/3, 2/3 and 8/9 of four steps: before the second and the fourth.
    assert rates(lab) == approx([0.1, 0.01, 0.01, 0.001])
    assert rates(lab, "--lr-schedule", "linear") == approx([0.1, 0.2 / 3, 0.1 / 3, 0])
    assert rates(lab, "--lr-schedule", "cosine") == approx([0.1, 0.075, 0.025, 0])


@shows("--warmup", "train.lr of the first steps")
def warmup(lab: Lab) -> None:
    made = lab.run("--prof", 2, "-p", 1, *LIGHT, "--epochs", 2, "--warmup", 1)
    assert made.values("train.lr", "train")[:2] == approx([0.05, 0.1])
    too_long = lab.run("--warmup", 4, *LIGHT)
    assert too_long.value("train.lr") == approx(0.025)
    assert "--warmup 4 is longer than --epochs 1: the learning rate does not" in too_long.out


@shows("--lr-milestones", "train.lr falls after these epochs")
def lr_milestones(lab: Lab) -> None:
    flags = ("--epochs", 3, "--lr-milestones", "1,2", "-p", 1, "--prof", 1, *LIGHT)
    made = lab.run(*flags, drop=("--lr-schedule",))
    assert made.values("train.lr", "train") == approx([0.1, 0.01, 0.001])
    assert "are for --lr-schedule step" in lab.error("--lr-milestones", "1")


@shows("--lr-gamma", "the factor by which train.lr falls")
def lr_gamma(lab: Lab) -> None:
    flags = ("--epochs", 2, "--lr-milestones", "1", "--lr-gamma", 0.5, "-p", 1, "--prof", 1, *LIGHT)
    made = lab.run(*flags, drop=("--lr-schedule",))
    assert made.values("train.lr", "train") == approx([0.1, 0.05])


@shows("--end-lr", "train.lr of the last step")
def end_lr(lab: Lab) -> None:
    assert rates(lab, "--lr-schedule", "cosine", "--end-lr", 0.02)[-1] == 0.02
    assert "--end-lr is for" in lab.error("--end-lr", 0.02, drop=("--lr-schedule",))


@shows("--momentum", "the optimizer's buffer: what is left of the first gradient")
def momentum(lab: Lab) -> None:
    # The learning rate is 0, so that both runs see the same gradients: 0.5 g1 + g2, 0.25 g1 + g2.
    flags = (*STILL, "--prof", 2)
    half, quarter = (lab.run(*flags, "--momentum", value) for value in (0.5, 0.25))
    first = lab.still.momentum("fc.weight")
    assert close(half.momentum("fc.weight") - quarter.momentum("fc.weight"), 0.25 * first)
    assert "at least 0 and below 1" in lab.error("--momentum", 2)


@shows("--weight-decay", "what the gradient gets from the weights")
def weight_decay(lab: Lab) -> None:
    decayed = lab.shared(*STILL, "--weight-decay", "0.5")
    added = decayed.momentum("fc.weight") - lab.still.momentum("fc.weight")
    assert close(added, 0.5 * lab.still.weights["fc.weight"])
    for plain in ("bn1.weight", "fc.bias"):
        assert not differ(decayed.momentum(plain), lab.still.momentum(plain))


@shows("--bn-weight-decay", "weight decay of BatchNorm parameters and biases")
def bn_weight_decay(lab: Lab) -> None:
    decayed = lab.run(*STILL, "--weight-decay", 0.5, "--bn-weight-decay")
    added = decayed.momentum("bn1.weight") - lab.still.momentum("bn1.weight")
    assert close(added, 0.5 * lab.still.weights["bn1.weight"])


@shows("--nesterov", "the first step: longer by the momentum")
def nesterov(lab: Lab) -> None:
    start = lab.still.weights["fc.weight"]
    plain = lab.base.weights["fc.weight"] - start
    ahead = lab.run("--nesterov").weights["fc.weight"] - start
    assert plain.any() and close(ahead, 1.9 * plain)
    args, _ = main.parse_args(["sample:digits", "--optimizer", "lars", "--no-nesterov"])
    assert not args.nesterov and main.parse_args(["sample:digits"])[0].nesterov


@shows("--rmsprop-alpha", "the optimizer's mean square: its share of the first gradient")
def rmsprop_alpha(lab: Lab) -> None:
    flags = ("--optimizer", "rmsprop", *STILL)
    default, half = lab.run(*flags), lab.run(*flags, "--rmsprop-alpha", 0.5)
    squares = [run.last["optimizer"]["fc.weight"]["square_avg"] for run in (default, half)]
    assert squares[0].any() and close(squares[1], 5 * squares[0])


@shows("--rmsprop-eps", "the length of a step of rmsprop")
def rmsprop_eps(lab: Lab) -> None:
    flags = ("--optimizer", "rmsprop", "--lr", 0.01)
    default, damped = lab.run(*flags), lab.run(*flags, "--rmsprop-eps", 10)
    start = lab.still.weights["fc.weight"]
    steps = [(run.weights["fc.weight"] - start).norm() for run in (default, damped)]
    assert 0 < steps[1] < steps[0] / 10


@shows("--lars-eta", "the length of a step of lars as a share of the weights")
def lars_eta(lab: Lab) -> None:
    flags = ("--optimizer", "lars", "--weight-decay", 0)
    default, double = lab.run(*flags), lab.run(*flags, "--lars-eta", 0.002)
    for made, eta in ((default, 0.001), (double, 0.002)):
        step = made.momentum("conv1.weight").norm() / lab.still.weights["conv1.weight"].norm()
        assert float(step) == pytest.approx(0.1 * eta, rel=1e-3)
    assert not differ(default.momentum("bn1.weight"), double.momentum("bn1.weight"))
    assert lab.error("--lars-eta", 0.002) == "--lars-eta is for --optimizer lars"


@shows("--clip-grad-norm", "the length of the gradient; train.grad_norm")
def clip_grad_norm(lab: Lab) -> None:
    clipped = lab.run(*STILL, "--clip-grad-norm", 0.01)
    before, after = (
        float(torch.stack([run.momentum(name).norm() for name in run.last["optimizer"]]).norm())
        for run in (lab.still, clipped)
    )
    assert after == pytest.approx(0.01, rel=1e-3)
    assert clipped.value("train.grad_norm") == pytest.approx(before, rel=1e-3)
    assert not lab.still.values("train.grad_norm")


@shows("--head-lr", "the step of the classifier alone")
def head_lr(lab: Lab) -> None:
    start, plain = lab.still.weights, lab.base.weights
    made = lab.run("--head-lr", 0.3).weights
    assert torch.equal(made["conv1.weight"], plain["conv1.weight"])
    assert close(made["fc.weight"] - start["fc.weight"],
                 3 * (plain["fc.weight"] - start["fc.weight"]))  # fmt: skip
    assert "not with 0" in lab.error("--head-lr", 1, "--lr", 0)


@shows("--class-weights", "the loss of unbalanced classes")
def class_weights(lab: Lab) -> None:
    few = lab.folder / "few"
    shutil.copytree(lab.images, few)
    for image in sorted((few / "train" / "class_0").iterdir())[1:]:
        image.unlink()
    plain, even = (
        lab.run(*STILL, *flags, directory=few) for flags in ((), ("--class-weights", "balanced"))
    )
    assert plain.value("train.loss") != even.value("train.loss")
    assert plain.value("val.loss") == even.value("val.loss")
    balanced = lab.run(*STILL, "--class-weights", "balanced")
    assert balanced.value("train.loss") == pytest.approx(lab.still.value("train.loss"))
    assert "can be counted" in lab.error(*SYNTHETIC, "--class-weights", "balanced", directory=None)


# ---- what to run ----


@shows("--class-report", "a table with recall, precision and F1 of each class")
def class_report(lab: Lab) -> None:
    made = lab.run("--class-report", drop=("--prof",))
    lines = made.out.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("class "))
    assert lines[head].split() == ["class", "images", "recall", "precision", "F1"]
    assert [line.split()[:2] for line in lines[head + 1 : head + 5]] == [
        ["class_0", "4"], ["class_1", "4"], ["class_2", "4"], ["mean", "12"],
    ]  # fmt: skip
    assert "precision" not in lab.base.out
    file = made.workspace / "checkpoint.pth.tar"
    assert lines[head] in lab.run("--evaluate", "--resume", file, "--class-report").out
