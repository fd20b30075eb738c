# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes, env.sh and the docker scripts: what they run, seen by a stand-in for Python."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main

ROOT = Path(__file__).resolve().parents[2]
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
SETTINGS = {
    *("DEVICE", "NPROC", "PYTHON", "PRECISION", "IMAGENET_TRAIN_DATASET", "IMAGE_NAME"),
    "CIFAR_DATASET",
    *("SHM_SIZE", "DOCKER_FLAGS", "HOST_ROOT", "CUDA_VISIBLE_DEVICES", "MLU_VISIBLE_DEVICES"),
    "ASCEND_RT_VISIBLE_DEVICES",
}


def run(command: list[str], cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environ = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return subprocess.run(
        command, cwd=cwd, env={**environ, **env}, capture_output=True, text=True, timeout=60
    )


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


def docker(host: Path, *arguments: str, **env: str) -> tuple[list[str], str]:
    """Returns the words of the docker command of a host whose root folder is `host`."""
    command = ["bash", str(ROOT / "run_docker.sh"), "--dry-run", *arguments]
    result = run(command, host, HOST_ROOT=str(host), **env)
    assert result.returncode == 0, result.stderr
    words = shlex.split(result.stdout)
    assert words[:2] == ["docker", "run"] and "--privileged" not in words
    return words, result.stderr


def add_files(host: Path, *names: str) -> None:
    for name in names:
        path = host / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pairs(words: list[str], flag: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_docker_without_accelerator(tmp_path: Path) -> None:
    data, model = tmp_path / "my data", tmp_path / "model"
    data.mkdir()
    model.mkdir()
    words, stderr = docker(tmp_path, "image:1", "my data", "model", "ls", "-l")
    assert words[-3:] == ["image:1", "ls", "-l"]
    assert pairs(words, "-v") == [f"{data}:{data}", f"{model}:{model}"]
    assert pairs(words, "-w") == [str(model)]
    assert pairs(words, "-e") == [f"IMAGENET_TRAIN_DATASET={data}"]
    assert "--ipc=host" in words and "--device" not in words and "--gpus" not in words
    assert "DEVICE=cpu" in stderr
    words, _ = docker(tmp_path, "image", "model", SHM_SIZE="9g", DOCKER_FLAGS="--network=host -u 7")
    assert pairs(words, "--shm-size") == ["9g"] and "--ipc=host" not in words
    assert "--network=host" in words and pairs(words, "-u") == ["7"]
    assert pairs(words, "-w") == [str(ROOT)]


def test_docker_nvidia(tmp_path: Path) -> None:
    add_files(tmp_path, "/dev/nvidia0", "/dev/nvidiactl")
    for words, _ in (
        docker(tmp_path, "image", ".", CUDA_VISIBLE_DEVICES="1"),
        docker(tmp_path, "image", ".", DEVICE="gpu", CUDA_VISIBLE_DEVICES="1"),
    ):
        assert pairs(words, "--gpus") == ["all"]
        assert "CUDA_VISIBLE_DEVICES" in pairs(words, "-e")
    words, _ = docker(tmp_path, "image", ".", DEVICE="cpu")
    assert "--gpus" not in words


def test_docker_ascend(tmp_path: Path) -> None:
    nodes = [
        "/dev/davinci0",
        "/dev/davinci1",
        "/dev/davinci_manager",
        "/dev/devmm_svm",
        "/dev/hisi_hdc",
    ]
    driver = ["/usr/local/Ascend/driver", "/usr/local/bin/npu-smi"]
    add_files(tmp_path, *nodes, *driver)
    words, _ = docker(tmp_path, "image", ".")
    assert pairs(words, "--device") == nodes
    assert pairs(words, "-v")[:2] == [f"{path}:{path}:ro" for path in driver]


def test_docker_cambricon(tmp_path: Path) -> None:
    nodes = ["/dev/cambricon_dev0", "/dev/cambricon_ctl", "/dev/cambricon_ipcm0"]
    add_files(tmp_path, *nodes, "/usr/bin/cnmon", "/dev/nvidia0")
    words, _ = docker(tmp_path, "image", ".")
    assert pairs(words, "--device") == nodes
    assert pairs(words, "-v")[0] == "/usr/bin/cnmon:/usr/bin/cnmon:ro"


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (["image", "nowhere"], {}, 3, "data_dir nowhere"),
        (["image", ".", "nowhere"], {}, 2, "model_dir nowhere"),
        (["image", "."], {"DEVICE": "npu"}, 2, "/dev/davinci"),
        (["image", "."], {"DEVICE": "tpu"}, 2, "DEVICE=tpu"),
        (["--privileged"], {}, 2, "--privileged"),
    ],
)
def test_docker_errors(
    tmp_path: Path, arguments: list[str], env: dict[str, str], code: int, words: str
) -> None:
    command = ["bash", str(ROOT / "run_docker.sh"), *arguments]
    result = run(command, tmp_path, HOST_ROOT=str(tmp_path), **env)
    assert result.returncode == code
    assert words in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("place", ["data", "model", "above"])
def test_docker_refuses_a_folder_with_a_colon(tmp_path: Path, place: str) -> None:
    good, bad = tmp_path / "good", tmp_path / "a:b"
    good.mkdir()
    bad.mkdir()
    folders = {"data": [bad, good], "model": [good, bad], "above": ["."]}[place]
    command = ["bash", str(ROOT / "run_docker.sh"), "--dry-run", "image", *map(str, folders)]
    result = run(command, bad, HOST_ROOT=str(tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "':' cannot be given to docker -v" in line and str(bad) in line
    (tmp_path / "link").symlink_to(bad)
    words, _ = docker(tmp_path, "image", "link", "good")
    assert pairs(words, "-v")[0] == f"{tmp_path}/link:{tmp_path}/link"


@pytest.mark.parametrize(
    ("device", "host_files", "expected"),
    [
        ("cpu", [], []),
        ("cuda", ["/dev/nvidia0"], ["--gpus", "all"]),
        ("npu", ["/dev/davinci0", "/dev/davinci_manager"], ["/dev/davinci_manager"]),
        ("mlu", ["/dev/cambricon_dev0", "/dev/cambricon_ctl"], ["/dev/cambricon_ctl"]),
        ("xpu", ["/dev/dri/renderD128", "/dev/dri/by-path/pci-0000-render"],
         ["/dev/dri/renderD128", "/dev/dri/by-path:/dev/dri/by-path:ro"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", [True, False])
def test_docker_start_runs_docker(
    tmp_path: Path, device: str, host_files: list[str], expected: list[str], named: bool
) -> None:
    """[docker_image] [data_dir] [model_dir], as the Ascend document has it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin/docker").chmod(0o755)
    data, model = tmp_path / "my data", tmp_path / "my scripts"
    data.mkdir()
    model.mkdir()
    add_files(tmp_path, *host_files)
    command = ["bash", str(ROOT / "scripts/docker_start.sh"), "image:1", str(data), str(model)]
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOST_ROOT": str(tmp_path)}
    if named or device == "xpu":  # which is not looked for: many a CPU has graphics from Intel
        env["DEVICE"] = device
    result = run(command if named else [*command[:3], str(data)], tmp_path, **env)
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    assert words[0] == "run" and words[-1] == "image:1" and set(expected) <= set(words)
    folder = str(model if named else ROOT)
    assert {f"{data}:{data}", f"{folder}:{folder}"} <= set(pairs(words, "-v"))
    assert pairs(words, "-w") == [folder] and "--privileged" not in words
    assert f"IMAGENET_TRAIN_DATASET={data}" in words
