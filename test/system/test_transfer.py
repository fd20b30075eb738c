# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Transfer learning: the real command line on folders of images."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from runs import ROOT, checkpoint, environment, nursery, run_main, write_images

from image_classification.list_files import read_image_list
from models import create_model


def test_two_ranks_freeze_and_release_and_resume_bit_for_bit(tmp_path: Path) -> None:
    """The wrapper that adds up gradients is made anew; a frozen part keeps its statistics."""
    data = write_images(tmp_path / "data", size=32)
    torch.save(create_model("resnet18", 3).state_dict(), tmp_path / "weights.pth")
    flags = (data, "--arch", "resnet18", "--image-size", 32, "-b", 4, "--epochs", 3, "--seed", 1,
             "--device", "cpu", "-j", 1, "--lr", 0.05, "--freeze", "backbone", "--unfreeze-after",
             2, "--gather-checkpoints")  # fmt: skip
    run_main(*flags, "--pretrained-weights", tmp_path / "weights.pth", "--workspace",
             tmp_path / "whole", ranks=2)  # fmt: skip
    kept = [checkpoint(tmp_path / "whole" / f"checkpoint_{epoch:04}.pth.tar")["state_dict"]
            for epoch in range(3)]  # fmt: skip
    names = [name for name in kept[0] if not name.startswith("fc.")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in names)
    assert not torch.equal(kept[0]["fc.weight"], kept[1]["fc.weight"])
    changed = [name for name in names if not torch.equal(kept[1][name], kept[2][name])]
    assert {"conv1.weight", "bn1.running_mean", "layer4.1.conv2.weight"} <= set(changed)
    frozen = tmp_path / "whole" / "checkpoint_0000.pth.tar"
    run_main(*flags, "--workspace", tmp_path / "parts", "--resume", frozen, ranks=2)
    parts = checkpoint(tmp_path / "parts" / "checkpoint.pth.tar")["state_dict"]
    assert all(torch.equal(parts[name], kept[2][name]) for name in parts)


def test_one_command_on_a_folder_of_classes(tmp_path: Path) -> None:
    """No val/, no weights, no network: the script divides, says what it does, and goes on."""
    data = tmp_path / "pets"
    write_images(tmp_path / "made", train=10, size=32)
    shutil.copytree(tmp_path / "made" / "train", data)
    for image in sorted((data / "class_2").iterdir())[5:]:
        image.unlink()
    workspace = tmp_path / "run"
    flags = ["--arch", "resnet18", "--image-size", "32", "--epochs", "2", "-b", "8", "--seed", "1",
             "--device", "cpu", "-j", "1", "--workspace", workspace]  # fmt: skip
    script = ["bash", ROOT / "run_scripts" / "finetune.sh", data, *flags]
    nowhere = environment(https_proxy="http://127.0.0.1:9", PYTHON=sys.executable)
    scratch = [*script, "--weights-dir", tmp_path / "none"]
    done = subprocess.run([*map(str, scratch)], env=nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TRAINING FROM SCRATCH, without pretrained weights" in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    head = next(at for at, line in enumerate(lines) if line.startswith("class "))
    assert [line.split()[:2] for line in lines[head + 1 : head + 5]] == [
        ["class_0", "2"], ["class_1", "2"], ["class_2", "1"], ["mean", "5"],
    ]  # fmt: skip
    train, val = (read_image_list(workspace / f"{split}.txt", data, split).builder
                  for split in ("train", "val"))  # fmt: skip
    assert sorted([*train.relative_paths(), *val.relative_paths()]) == sorted(
        str(path.relative_to(data)).encode() for path in data.rglob("*.jpg")
    )
    state = checkpoint(workspace / "checkpoint.pth.tar")
    assert state["config"]["freeze"] == "none" and state["classes"][2] == "class_2"

    nowhere |= {"WEIGHTS": str(workspace / "model_best.pth.tar"), "PYTHON": nursery().python}
    done = subprocess.run([*map(str, script)], env=nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tuned = checkpoint(tmp_path / "run-2" / "checkpoint.pth.tar")
    assert tuned["config"]["freeze"] == "backbone"
    before, after = (one["state_dict"]["conv1.weight"] for one in (
        checkpoint(workspace / "model_best.pth.tar"), tuned))  # fmt: skip
    assert torch.equal(before, after), "two epochs, in which the backbone stays"

    image = next((data / "class_1").iterdir())
    best = tmp_path / "run-2" / "model_best.pth.tar"
    told = nursery().run(ROOT / "classify.py", "--checkpoint", best, image, timeout=200)
    assert told.returncode == 0 and "class_" in told.stdout, told.stderr
