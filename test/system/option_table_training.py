# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for training, optimizer, what to run and outputs change."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from option_lab import STILL, SYNTHETIC, Lab, Outcome, approx, close, differ, shows
from runs import rows, same

import main
from image_classification.doctor import examination
from image_classification.doctor.finding import fix, ok

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
    assert both.files == {"seed_0", "seed_1"}
    runs = [Outcome(both.workspace / name) for name in ("seed_0", "seed_1")]
    assert [run.last["seed"] for run in runs] == [0, 1]
    assert not same(runs[0].weights, lab.base.weights)
    assert "top-1 over 2 seeds: " in both.out


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


@shows("--check", "only what is tried before a training")
def check(lab: Lab) -> None:
    checked = lab.run("--check")
    assert "check passed" in checked.out and not checked.workspace.exists()
    assert "finished" in lab.base.out and "check passed" not in lab.base.out
    assert "drop --evaluate" in lab.error("--check", "--evaluate", "--resume", "x")


@shows("--evaluate", "one validation and nothing else")
def evaluate(lab: Lab) -> None:
    file = lab.base.workspace / "checkpoint.pth.tar"
    made = lab.run("--evaluate", "--resume", file, "--epochs", 90)
    assert made.value("val.loss", "summary") == lab.base.value("val.loss")
    assert not made.batches and not rows(made.workspace, "epoch")
    assert made.files == {"experiment_raport.json", "metrics.jsonl", "confusion_evaluation.json"}
    assert "random weights" in lab.error("--evaluate")


@shows("--training-only", "no validation, no best model")
def training_only(lab: Lab) -> None:
    made = lab.run("--training-only")
    assert not made.values("val.top1") and "model_best.pth.tar" not in made.files
    assert lab.base.values("val.top1") and "model_best.pth.tar" in lab.base.files


@shows("--topk", "the second accuracy: val.top<k>")
def topk(lab: Lab) -> None:
    made = lab.run("--topk", 2, "--no-checkpoints")
    assert made.value("val.top2") >= made.value("val.top1") and not made.values("val.top5")
    assert lab.base.values("val.top5") and not lab.base.values("val.top2")


@shows("--prof", "iterations of training and validation")
def prof(lab: Lab) -> None:
    made = lab.run("--prof", 2, "--no-checkpoints")
    assert len(made.batches) == 2 and made.value("val.seen") == 8
    whole = lab.run("--no-checkpoints", drop=("--prof",))
    assert len(whole.batches) == 6 and whole.value("val.seen") == 12


@shows("--doctor", "findings about machine and software in the place of a run")
def doctor(lab: Lab) -> None:
    for finding, code in ((ok("torch", "2.15"), 0), (fix("torch", "2.15", "2.16"), 2)):
        with mock.patch.object(examination, "Examination") as examined:
            examined.return_value.findings.return_value = [finding]
            made = lab.run("--doctor", directory=None, code=code)
        assert made.out.startswith(str(finding)) and not made.workspace.exists()
    assert "DIR is missing" in lab.error(directory=None)


@shows("--recipe", "all options that the command line leaves open")
def recipe(lab: Lab) -> None:
    file = lab.folder / "own.yml"
    file.write_text("recipes: {mine: {options: {momentum: 0.5, label-smoothing: 0.2, lr: 7}}}\n")
    made = lab.run("--recipe", f"{file}:mine", "--label-smoothing", "0.25")
    config = made.last["config"]
    assert (config["momentum"], config["label_smoothing"]) == (0.5, 0.25)
    assert config["lr"] == 0.1  # of the command line
    assert "unknown recipe 'yours'" in lab.error("--recipe", f"{file}:yours")
    assert "did you mean 'template'" in lab.error("--recipe", "templat")


@shows("--list-recipes", "the names of all recipes in the place of a run")
def list_recipes(lab: Lab) -> None:
    listed = lab.run("--list-recipes", directory=None)
    assert not listed.workspace.exists()
    names = [line.split()[0] for line in listed.out.splitlines() if line[0] != " "]
    assert {"template", "efficientnet-b0", "resnet50-dgxa100-amp"} <= set(names)


@shows("--iters", "iterations of training, not of validation")
def iters(lab: Lab) -> None:
    made = lab.run("--iters", 2, "--no-checkpoints", drop=("--prof",))
    assert len(made.batches) == 2 and made.value("val.seen") == 12


# ---- checkpoints, logs and workspace ----

LOGS = {"experiment_raport.json", "metrics.jsonl"}
FILES = {name + end for name in ("checkpoint.pth.tar", "model_best.pth.tar")
         for end in ("", ".sha256")} | LOGS | {"confusion.json", "generations"}  # fmt: skip


@shows("--workspace", "the folder of the run; a used one is left alone")
def workspace(lab: Lab) -> None:
    wanted = lab.folder / "wanted"
    assert lab.run(workspace=wanted).files == FILES
    again = lab.run("--no-checkpoints", workspace=wanted)
    assert f"workspace {wanted}-2" in again.out and Path(f"{wanted}-2").is_dir()


@shows("--run-name", "the name of the default workspace")
def run_name(lab: Lab) -> None:
    with mock.patch.object(main, "PACKAGE_ROOT", lab.folder):
        lab.run("--run-name", "mine", "--no-checkpoints", drop=("--workspace",))
        lab.run("--no-checkpoints", drop=("--workspace",))
    assert {path.name for path in (lab.folder / "models").iterdir()} == {"mine", "resnet18"}


@shows("--resume", "where the training goes on")
def resume(lab: Lab) -> None:
    first = lab.run("--run-epochs", 1, "--epochs", 2)
    there = lab.run("--epochs", 2, "--resume", first.workspace / "checkpoint.pth.tar")
    automatic = lab.run("--epochs", 2, "--resume", "auto", workspace=first.workspace)
    for run in (there, automatic):
        assert rows(run.workspace, "epoch")[-1]["epoch"] == 1 and run.last["counters"]["step"] == 2
    assert not same(there.weights, automatic.weights)
    assert "No such file" in lab.error("--resume", lab.folder / "none", code=4)
    assert lab.run("--resume", "auto").last["counters"]["step"] == 1


@shows("--no-checkpoints", "whether checkpoints are written")
def no_checkpoints(lab: Lab) -> None:
    assert lab.run("--no-checkpoints").files == {*LOGS, "confusion.json"}


@shows("--checkpoint-filename", "the name of the last checkpoint")
def checkpoint_filename(lab: Lab) -> None:
    made = lab.run("--checkpoint-filename", "mine.pth.tar")
    assert made.files == {name.replace("checkpoint.", "mine.") for name in FILES}
    resumed = lab.run("--checkpoint-filename", "mine.pth.tar", "--resume", "auto",
                      workspace=made.workspace)  # fmt: skip
    assert "nothing left to do" in resumed.out


@shows("--gather-checkpoints", "numbered checkpoints: the last N, all without a number")
def gather_checkpoints(lab: Lab) -> None:
    kept = {}
    for flags in (("--gather-checkpoints", 2), ("--gather-checkpoints",)):
        made = lab.run("--epochs", 3, "--training-only", *flags)
        kept[len(flags)] = {name for name in made.files if re.fullmatch(r"checkpoint_.*tar", name)}
    assert kept[2] == {"checkpoint_0001.pth.tar", "checkpoint_0002.pth.tar"}
    assert kept[1] == kept[2] | {"checkpoint_0000.pth.tar"}


@shows("--checkpoint-interval", "saves within epochs, after so many steps or so much time")
def checkpoint_interval(lab: Lab) -> None:
    numbers = {}
    for interval in ("0", "1", "0.001s"):
        made = lab.run("--prof", 3, "--training-only", "--checkpoint-interval", interval)
        numbers[interval] = max(path.name for path in made.workspace.glob("generations/*.tar"))
    assert numbers["0"] == "000001.pth.tar" and numbers["1"] == "000004.pth.tar"
    assert numbers["0.001s"] > "000001.pth.tar"  # as many as there was time to write


@shows("--raport-file", "the name of the DLLL report")
def raport_file(lab: Lab) -> None:
    made = lab.run("--raport-file", "raport.json", "--no-checkpoints")
    assert made.files == {"raport.json", "metrics.jsonl", "confusion.json"}
    lines = (made.workspace / "raport.json").read_text().splitlines()
    assert lines and all(line.startswith("DLLL {") for line in lines)


@shows("--print-freq", "rows of training and validation iterations")
def print_freq(lab: Lab) -> None:
    made = lab.run("-p", 2, "--prof", 3, "--no-checkpoints")
    assert [row["iteration"] for row in rows(made.workspace, "train")] == [2]
    assert len(rows(made.workspace, "validation")) == 1
    assert not rows(lab.base.workspace, "train")


@shows("--tensorboard", "event files; without the package an error")
def tensorboard(lab: Lab) -> None:
    written: list[str] = []

    def writer(log_dir: str) -> Any:
        written.append(log_dir)
        add_scalar = mock.Mock(side_effect=lambda name, *_: written.append(name))
        return mock.Mock(add_scalar=add_scalar)

    flags = ("--tensorboard", "--no-checkpoints")
    with mock.patch.dict(
        sys.modules, {"torch.utils.tensorboard": SimpleNamespace(SummaryWriter=writer)}
    ):
        made = lab.run(*flags)
    assert written[0] == str(made.workspace / "tensorboard") and "epoch/val.top1" in written
    with mock.patch.dict(sys.modules, {"torch.utils.tensorboard": None}):
        assert "pip install tensorboard" in lab.error(*flags)


@shows("--help", "a text in the place of a run")
def help_text(lab: Lab) -> None:
    with pytest.raises(SystemExit) as stop:
        lab.run(*SYNTHETIC, "-h")
    assert stop.value.code == 0
