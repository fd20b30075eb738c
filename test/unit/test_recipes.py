# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: what the file says is what main.py gets, and NVIDIA's settings are as published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import launch
import main
from image_classification import recipes
from image_classification.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
BOOK = recipes.read(ROOT / "recipes.yml")

# batch per device, images per optimizer step, rate, decay, epochs: NVIDIA's configs.yml
NVIDIA = {
    "resnet50-dgx1v-amp": (256, 2048, 2.048, 3.0517578125e-05, 250),
    "resnet50-dgx1v-32g-fp32": (112, 896, 0.896, 6.103515625e-05, 250),
    "resnet50-dgx2v-fp32": (256, 4096, 4.096, 3.0517578125e-05, 250),
    "resnet50-dgxa100-tf32": (256, 2048, 2.048, 3.0517578125e-05, 250),
    "resnet50-t4-fp32": (128, 2048, 2.048, 3.0517578125e-05, 250),
    "resnext101-32x4d-dgx1v-16g-fp32": (64, 1024, 1.024, 6.103515625e-05, 250),
    "se-resnext101-32x4d-dgx1v-amp": (112, 896, 0.896, 6.103515625e-05, 250),
    "se-resnext101-32x4d-dgxa100-amp": (128, 1024, 1.024, 6.103515625e-05, 250),
    "efficientnet-b0-dgxa100-amp": (256, 4096, 0.08, 1e-05, 400),
    "efficientnet-widese-b0-t4-fp32": (64, 4096, 0.08, 1e-05, 400),
    "efficientnet-b4-dgx1v-32g-amp": (64, 4096, 0.16, 5e-06, 400),
    "efficientnet-widese-b4-dgxa100-tf32": (64, 4096, 0.16, 5e-06, 400),
}


def write(folder: Path, text: str) -> Path:
    file = folder / "own.yml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", BOOK.recipes)
def test_every_recipe_is_a_command_line_without_problems(name: str) -> None:
    args, notes = main.parse_args(["DIR", "--recipe", name])
    assert not notes
    options = BOOK.find(name).options
    assert args.arch == options["arch"] and name.startswith(("template", "finetune", args.arch))
    assert args.lr == float(options["lr"]) > 0
    if name == "resnet50-250":
        assert (args.lr, args.optimizer_batch_size, args.image_size) == (2.048, 2048, 192)
    amp = name.endswith("-amp") or args.val_size == 256  # those by budget have one precision
    assert args.amp == amp and bool(args.tf32) == name.endswith("-tf32")


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidias_settings(name: str) -> None:
    args, _ = main.parse_args(["DIR", "--recipe", name])
    assert NVIDIA[name] == (
        args.batch_size, args.optimizer_batch_size, args.lr, args.weight_decay, args.epochs,
    )  # fmt: skip
    assert (args.label_smoothing, args.mixup, args.lr_schedule) == (0.1, 0.2, "cosine")
    assert args.conv_init == "fan_in"
    if name.startswith("efficientnet"):
        assert (args.optimizer, args.rmsprop_alpha, args.rmsprop_eps) == ("rmsprop", 0.9, 0.01)
        assert (args.momentum, args.warmup, args.interpolation) == (0.9, 16, "bicubic")
        assert args.image_size == {"0": 224, "4": 380}[args.arch[-1]]
    else:
        assert (args.optimizer, args.momentum, args.warmup) == ("sgd", 0.875, 8)


def test_the_template_is_the_deliverables_defaults() -> None:
    args, _ = main.parse_args(["DIR", "--recipe", "template"])
    assert (args.batch_size, args.momentum, args.lr, args.weight_decay) == (256, 0.9, 0.1, 1e-4)
    assert (args.lr_schedule, args.label_smoothing, args.epochs) == ("cosine", 0.1, 90)
    assert (args.image_size, args.val_resize, args.zero_init_last_bn) == (224, 256, True)
    assert args.conv_init == "fan_out"


def test_the_command_line_wins_over_the_recipe() -> None:
    args, _ = main.parse_args(["--epochs", "3", "DIR", "--recipe", "template", "--lr", "0.5"])
    assert (args.epochs, args.lr, args.momentum) == (3, 0.5, 0.9)


def test_values_become_words() -> None:
    options = {"amp": True, "tf32": False, "lr": "1e-05", "crop_scale": [0.2, 1], "prof": -1}
    assert recipes.to_words(options) == ["--amp", "--lr=1e-05", "--crop-scale", "0.2", "1",
                                         "--prof=-1"]  # fmt: skip


def test_an_unknown_option_in_a_recipe_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "recipes: {mine: {options: {learning_speed: 1, epochs: many}}}")
    with pytest.raises(UsageError) as caught:
        main.parse_args(["DIR", "--recipe", f"{file}:mine"])
    text = str(caught.value)
    assert "unknown argument '--learning-speed=1'" in text
    assert "--epochs: expected a whole number, received 'many'" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipes: [1", "is no YAML"),
        ("recipes: [1]", "needs names and values, holds [1]"),
        ("recipes: {1: {}}", "needs names and values"),
        ("recipes: {a: {option: {}}}", "unknown 'option'; known: options, platforms, record"),
        ("recipes: {a: {options: {lr: {}}}}", "lr: needs a text, a number"),
        ("recipes: {a: {options: {lr: [[1]]}}}", "lr: needs a text, a number"),
        ("recipes: {a: {platforms: {b-c: {}}}}", "'b-c' is no <platform>-<precision>"),
        ("recipes: {a: {options: {lr: !!python/object/apply:os.system ['true']}}}", "is no YAML"),
        ("a: " + "[" * 3000, "is no YAML"),
        ("#" * (1 << 20) + "#", "more than 1048576 bytes"),
        ("a: \x00", "is no YAML"),
    ],
)
def test_another_form_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipes.read(write(tmp_path, text))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown recipe ''"):
        main.parse_args(["DIR", "--recipe", ""])
    with pytest.raises(UsageError, match=r"cannot read recipes.*No such file"):
        recipes.read(tmp_path / "none.yml")


# ---- launch.py


def line(*words: str) -> list[str]:
    return launch.command(["--model", "resnet50", "--platform", "DGXA100", *words])


def test_launch_adds_the_mode_and_what_is_left() -> None:
    made = line("--precision", "AMP", "--mode", "benchmark_training_short", "/data", "--prof", "7")
    args, _ = main.parse_args(made[1:])
    assert (args.batch_size, args.workers, args.prefetch, args.amp) == (256, 10, 4, True)
    assert (args.data_backend, args.prof, args.epochs) == ("synthetic", 7, 1)
    assert args.training_only and not args.save_checkpoints and args.data == "/data"
    assert args.static_loss_scale == 128


@pytest.mark.parametrize("mode", BOOK.modes)
def test_every_mode_is_a_command_line(mode: str) -> None:
    args, _ = main.parse_args(
        line("--precision", "TF32", "--mode", mode, "/data", "--pretrained-weights", "x")[1:]
    )
    assert args.evaluate == (mode in ("benchmark_inference", "evaluate"))
    assert args.print_freq == (20 if mode in ("convergence", "evaluate") else 1)


def test_what_launch_does_not_know_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"'resnet50-dgxa100-fp32'.*did you mean 'resnet50-dgx"):
        line("--precision", "FP32", "--mode", "convergence")
    with pytest.raises(UsageError, match="unknown mode 'train'; known: benchmark_training"):
        line("--precision", "AMP", "--mode", "train")
    with pytest.raises(UsageError, match="--mode: expected one argument"):
        line("--precision", "AMP", "--mode")


def test_launch_becomes_main() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", "--model", "resnet50", "--mode", "convergence",
         "--precision", "AMP", "--platform", "T4", "--epochs", "0", "DIR"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.startswith("launch.py: python main.py --amp --static-loss-scale=128")
    assert done.stderr == "main.py: error: --epochs: must be at least 1, received 0\n"
    done = subprocess.run([sys.executable, ROOT / "launch.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "--model" in done.stderr
    assert done.stderr.startswith("launch.py: error: ") and len(done.stderr.splitlines()) == 1
