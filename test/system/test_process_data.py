# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""scripts/run_process_data.sh as a user runs it, kills it and starts it again."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imagenet_archives as imagenet
import pytest
from imagenet_archives import jpeg, tar
from runs import ROOT, environment, run_main, values, write_images

from image_classification.datasets import load_splits

SCRIPT = ROOT / "scripts/run_process_data.sh"


def start(*words: object, cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *map(str, words)], cwd=cwd,
        env=environment(**{"PYTHON": sys.executable, **env}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(*words: object, cwd: Path, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    process = start(*words, cwd=cwd, **env)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == expect, stdout + stderr
    return subprocess.CompletedProcess(words, expect, stdout, stderr)


def test_from_archives_to_training(tmp_path: Path) -> None:
    source = tmp_path / "my archives"
    source.mkdir()
    imagenet.write_train(source)
    imagenet.write_devkit(source, imagenet.write_val(source))
    # A module of the caller's folder, say of a data set, is never imported.
    (tmp_path / "argparse.py").write_text("raise SystemExit('imported')")
    done = run("my archives", "data set", "-j", "2", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == (
        f"done; give this folder to main.py as DIR: {tmp_path}/data set"
    )
    run_main(
        tmp_path / "data set", "--arch", "resnet18", "--image-size", "32", "-b", "4",
        "--epochs", "1", "--device", "cpu", "--lr", "0.01",
        "--workspace", tmp_path / "run", "--no-checkpoints",
    )  # fmt: skip
    assert len(values(tmp_path / "run", "epoch", "val.top1")) == 1


def test_the_folder_of_env_sh_is_the_default(tmp_path: Path) -> None:
    write_images(tmp_path / "images", train=4, val=2)
    env = {"IMAGENET_TRAIN_DATASET": str(tmp_path / "images")}
    assert "no two files are equal" in run(cwd=tmp_path, **env).stdout
    assert (tmp_path / "images/train.txt").is_file()
    run("--similar", "-j", "1", cwd=tmp_path, **env)
    assert '"similar_in_train_and_val": [' in (tmp_path / "images/data_report.json").read_text()
    error = run(cwd=tmp_path, expect=3, IMAGENET_TRAIN_DATASET=str(tmp_path / "no")).stderr
    assert error == (
        f"dataset_tools: error: SOURCE {tmp_path}/no does not exist; give the folder of archives "
        "or images\n"
    )


def test_usage(tmp_path: Path) -> None:
    text = run("-h", cwd=tmp_path).stdout
    assert text.startswith("Makes a data set that main.py trains on")
    for word in ("run_process_data.sh [SOURCE] [TARGET]", "--val-share", "--synsets", "--pack DST"):
        assert word in text
    assert "PYTHON=/no/python cannot be run" in run(
        "x", cwd=tmp_path, expect=2, PYTHON="/no/python"
    ).stderr  # fmt: skip
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without installed packages
    bare.chmod(0o755)
    assert run("x", cwd=tmp_path, expect=2, PYTHON=str(bare)).stderr == (
        f"run_process_data: {bare} lacks NumPy or Pillow: bash scripts/setup_env.sh\n"
    )


def children(process: int) -> list[int]:
    """All processes below one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


def wait_for(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_while_unpacking(tmp_path: Path, number: signal.Signals, code: int) -> None:
    classes, images = 400, [jpeg(seed) for seed in range(3)]
    inner = tar((f"{i}.JPEG", content) for i, content in enumerate(images))
    outer = tar((f"n{i:08d}.tar", inner) for i in range(classes))
    (tmp_path / imagenet.TRAIN).write_bytes(outer)
    train = tmp_path / "target/train"
    process = start(tmp_path, "target", "-j", "2", cwd=tmp_path)
    wait_for(lambda: len(list(train.glob("n*"))) >= 10, "no class was unpacked")
    below = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=100)
    assert process.returncode == code
    assert len(below) >= 2
    wait_for(lambda: not any(map(is_alive, below)), "workers outlive their parent")
    finished = {path: path.stat().st_mtime_ns for path in train.glob("n*")}
    assert 10 <= len(finished) < classes
    for folder in finished:
        assert [(folder / f"{i}.JPEG").read_bytes() for i in range(3)] == images
    assert not (tmp_path / "target/train.txt").exists()
    out = run(tmp_path, "target", "-j", "2", cwd=tmp_path).stdout
    kept = int(re.search(r"train: \d+ classes made from .*, (\d+) were there", out)[1])
    assert kept == len(finished)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    splits = load_splits(tmp_path / "target", train=True, val=True)
    assert splits.train is not None and splits.val is not None
    assert len(splits.train) + len(splits.val) == 3 * classes == len(list(train.rglob("*.JPEG")))
    assert not list(train.glob(".*"))


def test_killed_while_examining(tmp_path: Path) -> None:
    folder = tmp_path / "images/one"
    folder.mkdir(parents=True)
    content = jpeg(0, size=300)
    for number in range(9000):
        (folder / f"{number:04d}.jpg").write_bytes(content)
    (tmp_path / "images/two").mkdir()
    for number in range(2):
        (tmp_path / f"images/two/{number}.jpg").write_bytes(jpeg(number))
    notes = tmp_path / "images/.process_data/examined"
    process = start("images", "-j", "2", cwd=tmp_path)
    wait_for(lambda: any(notes.glob("*.npz")), "nothing was examined")
    process.kill()
    process.communicate(timeout=100)
    assert not (tmp_path / "images/train.txt").exists()
    kept = {path: path.stat().st_mtime_ns for path in notes.glob("*.npz")}
    run("images", "-j", "2", cwd=tmp_path)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert len(list(notes.glob("*.npz"))) == 3
    listed = [(tmp_path / f"images/{name}.txt").read_text().count("\n") - 1
              for name in ("train", "val")]  # fmt: skip
    assert sum(listed) == 9002
