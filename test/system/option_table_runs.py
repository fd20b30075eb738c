# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for what to run, and for outputs, change."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from option_lab import SYNTHETIC, Lab, shows
from runs import rows, same

import main
from image_classification.doctor import examination
from image_classification.doctor.finding import fix, ok

LIGHT = ("--training-only", "--no-checkpoints")

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


@shows("--runtime", "what runs the network: the outputs are eager's but for rounding")
def runtime(lab: Lab) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    evaluate = ("--evaluate", "--resume", lab.base.workspace / "checkpoint.pth.tar")
    made = lab.run(*evaluate, "--runtime", "onnxruntime")
    assert "onnxruntime, ready after" in made.out and "eager" in made.out
    assert made.value("val.loss", "summary") == pytest.approx(lab.base.value("val.loss"), 1e-4)
    assert "add --evaluate" in lab.error("--runtime", "onnxruntime")
    with mock.patch("image_classification.device.has_fast_bfloat16", lambda: True):
        assert "no mixed precision" in lab.error(*evaluate, "--runtime", "onnxruntime", "--amp")
    assert "is for cuda" in lab.error(*evaluate, "--runtime", "tensorrt")
    text = lab.error(*evaluate, "--runtime", "onnxruntime", "--jit", "script")
    assert "does not go with --jit script" in text


@shows("--benchmark", "that an evaluation also times batches")
def benchmark(lab: Lab) -> None:
    evaluate = ("--evaluate", "--resume", lab.base.workspace / "checkpoint.pth.tar")
    made = lab.run(*evaluate, "--benchmark", "1,3")
    found = json.loads((made.workspace / "benchmark.json").read_text())
    assert [row["batch_size"] for row in found["batches"]] == [1, 3]
    for row in found["batches"]:
        assert 0 < row["latency"] <= row["latency_at100"] and row["latency_at95"] > 0
        assert row["images_per_second"] * row["latency"] == pytest.approx(row["batch_size"], 0.05)
    assert found["runtime"] == "eager" and found["amp_type"] == "FP32"
    assert "\n1 | " in made.out and "\n3 | " in made.out
    assert "--benchmark needs --evaluate" in lab.error("--benchmark", "1")
    assert "needs numbers from 1, received 0,2" in lab.error(*evaluate, "--benchmark", "0,2")


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
    assert {"template", "efficientnet-b0", "resnet50-dgxa100-amp,"} <= {*listed.out.split()}
    assert "--lr" not in listed.out
    one = lab.run("--list-recipes", "--recipe", "template", directory=None)
    assert one.out.startswith("template   [") and "--lr=0.1 " in one.out


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
