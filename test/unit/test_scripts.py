# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes and env.sh: what they run, seen by a stand-in for Python."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT
from script_helpers import run

import main

SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.sh", "run_scripts/*.sh", "scripts/*.sh", "test/*.sh")
    for path in ROOT.glob(pattern)
)
RECIPES = [
    ("NGC_ResNet50v15_AMP_90E_4MLUS_Train", "mlu", 4, True),
    ("NGC_ResNet50v15_FP32_90E_4MLUS_Train", "mlu", 4, False),
    ("NGC_ResNet50v15_AMP_90E_8GPUS_Train", "cuda", 8, True),
    ("NGC_ResNet50v15_FP32_90E_8GPUS_Train", "cuda", 8, False),
    ("NGC_ResNet50v15_AMP_90E_8NPUS_Train", "npu", 8, True),
    ("NGC_ResNet50v15_FP32_90E_8NPUS_Train", "npu", 8, False),
]
AMP_4MLUS = RECIPES[0][0]
CIFAR100, CIFAR10 = "CIFAR100_ResNet50_AMP_200E_Train", "CIFAR10_ResNet50_AMP_30E_Train"
INFER = "NGC_ResNet50v15_Infer"


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """A program that prints its process id and arguments as JSON."""
    path = tmp_path / "bin with space" / "python"
    path.parent.mkdir()
    body = "import json, os, sys\nprint(json.dumps([os.getpid(), *sys.argv[1:]]))\n"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of what the recipes need, with a models/ folder of its own."""
    folder = tmp_path / "package"
    shutil.copytree(ROOT / "run_scripts", folder / "run_scripts")
    (folder / "models").mkdir()
    return folder


def recipe(
    name: str, *arguments: str, cwd: Path, package: Path = ROOT, **env: str
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Runs a recipe; returns the command line of the stand-in and the finished process."""
    env = {"IMAGENET_TRAIN_DATASET": "/data/image net", **env}
    result = run(["bash", str(package / "run_scripts" / f"{name}.sh"), *arguments], cwd, **env)
    argv = json.loads(result.stdout)[1:] if result.returncode == 0 else []
    return argv, result


def options_of(argv: list[str]) -> argparse.Namespace:
    """Parses the part after main.py with its real parser."""
    position = next(i for i, word in enumerate(argv) if word.endswith("main.py"))
    options, problems = main.build_parser().parse_all(argv[position + 1 :])
    assert not problems
    return options


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script: str) -> None:
    assert run(["bash", "-n", script], ROOT).stderr == ""


def test_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    result = run(["shellcheck", "-e", "SC1091", *SCRIPTS], ROOT)
    assert result.returncode == 0, result.stdout


def test_every_recipe_is_listed_here() -> None:
    names = {path.stem for path in (ROOT / "run_scripts").glob("[A-Z]*.sh")}
    assert names == {name for name, *_ in RECIPES} | {INFER, CIFAR100, CIFAR10}


@pytest.mark.parametrize(("name", "device", "nproc", "amp"), RECIPES)
def test_recipe(
    tmp_path: Path, fake_python: str, name: str, device: str, nproc: int, amp: bool
) -> None:
    argv, _ = recipe(name, cwd=tmp_path, PYTHON=fake_python)
    assert argv[:4] == [
        str(ROOT / "multiproc.py"), "--nproc_per_node", str(nproc), str(ROOT / "main.py")
    ]  # fmt: skip
    options = vars(options_of(argv))
    expected = {
        "directory": "/data/image net", "device": device, "amp": amp, "arch": "resnet50",
        "model_config": "fanin", "epochs": 90, "batch_size": 128, "optimizer_batch_size": 2048,
        "lr": 2.048, "lr_schedule": "cosine", "warmup": 8, "momentum": 0.875,
        "weight_decay": 3.0517578125e-05, "label_smoothing": 0.1, "workers": 4, "print_freq": 100,
        "raport_file": "raport.json", "run_name": name, "workspace": None, "training_only": False,
        "dist_backend": None,
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "dataset", "epochs", "batch", "rate"),
    [(CIFAR100, "cifar100", 200, 128, 0.1), (CIFAR10, "cifar10", 30, 512, 0.4)],
)
def test_cifar_recipe(
    tmp_path: Path, fake_python: str, name: str, dataset: str, epochs: int, batch: int, rate: float
) -> None:
    argv, _ = recipe(name, cwd=tmp_path, PYTHON=fake_python)
    options = vars(options_of(argv))
    expected = {
        "directory": None, "dataset": dataset, "device": "auto", "amp": True, "lr": rate,
        "arch": "resnet50_cifar", "epochs": epochs, "batch_size": batch, "run_name": name,
        "optimizer_batch_size": batch, "lr_schedule": "cosine", "warmup": 5, "nesterov": True,
        "weight_decay": 5e-4, "label_smoothing": 0.1, "cutout": 8, "raport_file": "raport.json",
    }  # fmt: skip
    assert {key: options[key] for key in expected} == expected
    settings = {"CIFAR_DATASET": "/data/my cifar", "NPROC": "4"}
    argv, _ = recipe(name, "out", "--epochs", "1", cwd=tmp_path, PYTHON=fake_python, **settings)
    options = vars(options_of(argv))
    assert argv[2] == "4" and options["batch_size"] == batch // 4
    assert (options["directory"], options["workspace"]) == ("/data/my cifar", "out")
    assert (options["epochs"], options["optimizer_batch_size"]) == (1, batch)


def test_device_and_nproc_from_the_environment(tmp_path: Path, fake_python: str) -> None:
    argv, _ = recipe(AMP_4MLUS, cwd=tmp_path, PYTHON=fake_python, DEVICE="cpu", NPROC="2")
    assert argv[1:3] == ["--nproc_per_node", "2"]
    assert options_of(argv).device == "cpu"


@pytest.mark.parametrize(
    ("arguments", "workspace", "epochs"),
    [
        (["out dir"], "out dir", 90),
        (["out", "--epochs", "1"], "out", 1),
        (["--epochs", "1"], None, 1),
        (["", "--epochs", "2"], None, 2),
        (["--workspace", "mine"], "mine", 90),
    ],
)
def test_workspace_and_further_flags(
    tmp_path: Path, fake_python: str, arguments: list[str], workspace: str | None, epochs: int
) -> None:
    argv, _ = recipe(AMP_4MLUS, *arguments, cwd=tmp_path, PYTHON=fake_python)
    options = options_of(argv)
    assert (options.workspace, options.epochs) == (workspace, epochs)
    assert workspace is not None or options.run_name == AMP_4MLUS


@pytest.mark.parametrize("name", [AMP_4MLUS, INFER])
@pytest.mark.parametrize("env", [{}, {"IMAGENET_TRAIN_DATASET": ""}])
def test_missing_data_set(tmp_path: Path, fake_python: str, name: str, env: dict[str, str]) -> None:
    result = run(
        ["bash", str(ROOT / f"run_scripts/{name}.sh")], tmp_path, PYTHON=fake_python, **env
    )
    assert result.returncode == 3
    original, cure = result.stderr.splitlines()
    assert original == "please set environment variable IMAGENET_TRAIN_DATASET."
    assert "source env.sh" in cure
    assert result.stdout == ""


@pytest.mark.parametrize("name", [AMP_4MLUS, INFER, CIFAR10])
def test_usage(tmp_path: Path, fake_python: str, name: str) -> None:
    result = run(["bash", str(ROOT / f"run_scripts/{name}.sh"), "-h"], tmp_path, PYTHON=fake_python)
    assert result.returncode == 0
    assert f"usage: bash run_scripts/{name}.sh [WORKSPACE" in result.stdout
    dataset = "CIFAR_DATASET" if name == CIFAR10 else "IMAGENET_TRAIN_DATASET"
    assert f"(env.sh explains them): {dataset}," in result.stdout


@pytest.mark.parametrize("arguments", [[AMP_4MLUS], [INFER, "weights.pth.tar"]])
def test_scripts_become_the_program(tmp_path: Path, fake_python: str, arguments: list[str]) -> None:
    (tmp_path / "weights.pth.tar").touch()
    process = subprocess.Popen(
        ["bash", str(ROOT / f"run_scripts/{arguments[0]}.sh"), *arguments[1:]],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": fake_python, "IMAGENET_TRAIN_DATASET": "/data"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    stdout, _ = process.communicate(timeout=60)
    # The same process id: a signal to the script is a signal to the launcher.
    assert json.loads(stdout)[0] == process.pid


def test_python_of_the_environment_is_preferred(
    tmp_path: Path, package: Path, fake_python: str
) -> None:
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    (tmp_path / "bin").mkdir()
    shutil.copy(fake_python, tmp_path / "bin" / "python3")
    argv, result = recipe(AMP_4MLUS, cwd=tmp_path, package=package, PATH=path)
    assert argv and "venv" not in result.stdout  # python3 of the PATH
    (package / ".venv/bin").mkdir(parents=True)
    (package / ".venv/bin/python").write_text("#!/bin/sh\necho '[0, \"from venv\"]'\n")
    (package / ".venv/bin/python").chmod(0o755)
    argv, _ = recipe(AMP_4MLUS, cwd=tmp_path, package=package, PATH=path)
    assert argv == ["from venv"]
    argv, _ = recipe(AMP_4MLUS, cwd=tmp_path, package=package, PATH=path, PYTHON=fake_python)
    assert argv[0].endswith("multiproc.py")


def add_run(folder: Path, name: str, *files: str, age: int = 0) -> Path:
    run_folder = folder / "models" / name
    run_folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (run_folder / file).touch()
        os.utime(run_folder / file, (1_700_000_000 - age,) * 2)
    return run_folder


BEST, LAST = "model_best.pth.tar", "checkpoint.pth.tar"


def test_inference_takes_the_newest_best_model(
    tmp_path: Path, package: Path, fake_python: str
) -> None:
    add_run(package, "a", BEST, age=100)
    newest = add_run(package, "b run", BEST, LAST, age=50) / BEST
    add_run(package, "c", BEST, age=70)
    add_run(package, "d", LAST)
    argv, result = recipe(INFER, cwd=tmp_path, package=package, PYTHON=fake_python)
    assert argv[0] == str(package / "main.py")
    options = options_of(argv)
    assert options.evaluate and not (options.fp16 or options.amp)
    assert options.resume == str(newest)
    assert options.workspace == str(newest.parent)
    assert options.raport_file == "raport.json" and options.device == "auto"
    assert f"evaluating {newest}" in result.stderr


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("models/both", f"models/both/{BEST}"), ("models/last", f"models/last/{LAST}"),
     (f"models/both/{LAST}", f"models/both/{LAST}")],
)  # fmt: skip
def test_inference_takes_what_is_named(
    package: Path, fake_python: str, argument: str, expected: str
) -> None:
    add_run(package, "both", BEST, LAST)
    add_run(package, "last", LAST)
    argv, result = recipe(
        INFER, argument, "-b", "7", cwd=package, package=package, PYTHON=fake_python, DEVICE="cpu"
    )
    options = options_of(argv)
    assert options.resume == expected and f"evaluating {expected}\n" == result.stderr
    assert (options.batch_size, options.device) == (7, "cpu")


def test_inference_finds_the_runs_of_seeds(package: Path, fake_python: str) -> None:
    add_run(package, "a", BEST, age=20)
    add_run(package, "seeds/seed_0", BEST, age=5)
    newest = add_run(package, "seeds/seed_1", BEST, age=1) / BEST
    add_run(package, "last/seed_7", LAST, age=0)
    settings = {"cwd": package, "package": package, "PYTHON": fake_python}
    expected = {
        "": str(newest), "models/seeds": f"models/seeds/seed_1/{BEST}",
        "models/seeds/seed_0": f"models/seeds/seed_0/{BEST}",
        "models/last": f"models/last/seed_7/{LAST}",
    }  # fmt: skip
    for named, path in expected.items():
        argv, _ = recipe(INFER, *filter(None, [named]), **settings)
        assert options_of(argv).resume == path
    own = add_run(package, "seeds", BEST) / BEST  # newer than those of the seeds
    argv, _ = recipe(INFER, str(own.parent), **settings)
    assert options_of(argv).resume == str(own)


@pytest.mark.parametrize(("precision", "flag"), [("FP16", "fp16"), ("AMP", "amp")])
def test_inference_precision(package: Path, fake_python: str, precision: str, flag: str) -> None:
    add_run(package, "run", BEST)
    argv, _ = recipe(
        INFER, "-p", "1", cwd=package, package=package, PYTHON=fake_python, PRECISION=precision
    )
    options = options_of(argv)
    assert getattr(options, flag) and options.print_freq == 1
    _, result = recipe(INFER, cwd=package, package=package, PYTHON=fake_python, PRECISION="INT8")
    assert result.returncode == 2 and "PRECISION=INT8" in result.stderr


@pytest.mark.parametrize("argument", [[], ["models"], ["nowhere"]])
def test_inference_without_a_checkpoint(
    package: Path, fake_python: str, argument: list[str]
) -> None:
    add_run(package, "unfinished", "raport.json")
    _, result = recipe(INFER, *argument, cwd=package, package=package, PYTHON=fake_python)
    assert result.returncode == 4
    assert "no checkpoint" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh"])
def test_env_keeps_what_is_set(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, "-euc", '. "$0"; printenv IMAGENET_TRAIN_DATASET', str(ROOT / "env.sh")]
    assert run(command, tmp_path).stdout == "/data/pytorch/datasets/imagenet_training/\n"
    mine = run(command, tmp_path, IMAGENET_TRAIN_DATASET="/my images")
    assert mine.stdout == "/my images\n" and mine.stderr == ""
