# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The docker scripts: what they start, seen by a stand-in for docker."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from runs import ROOT
from script_helpers import run


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
