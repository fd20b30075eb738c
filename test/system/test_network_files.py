# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What files of networks tell of themselves, and what options say instead, in the entry scripts."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import ROOT

import checkpoint2model
import classify
import export
from image_classification.augmentation import EvalPreset
from image_classification.errors import CheckpointError, UsageError
from image_classification.trained_network import load_trained_network
from models import create_model

CLASSES = ["ant", "bee"]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def call(script: Any, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = script.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "arch": "resnet18_cifar", "classes": CLASSES, "best_prec1": 50,
        "state_dict": create_model("resnet18_cifar", len(CLASSES)).state_dict(),
        "preprocessing": {"val": EvalPreset(32, 36, "bicubic").to_dict()},
    }  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, tmp_path / "c.pth.tar")
    return tmp_path / "c.pth.tar"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.effect_noise((90, 70), 80).convert("RGB").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# ---- preprocessing ----


@pytest.mark.parametrize("script", [classify, export], ids=lambda script: script.__name__)
def test_sizes_beyond_reason_are_refused_at_once(
    script: Any, call: Call, checkpoint: Path, photo: Path
) -> None:
    images = [photo] if script is classify else ["--images", photo]
    for flag, value in (("--image-size", "1000000"), ("--val-resize", "16385"),
                        ("--image-size", "0")):  # fmt: skip
        code, _, text = call(script, "--checkpoint", checkpoint, *images, flag, value)
        assert (code, len(text.splitlines())) == (2, 1), text
        assert f"{flag}: must be between 1 and 16384, received {value}" in text
    for sizes in ({"image_size": 16385}, {"image_size": 16384}, {"val_resize": 99999}):
        with pytest.raises(UsageError, match=r"must be a whole number 1 \.\. 16384"):
            load_trained_network(checkpoint, **sizes)


@pytest.mark.parametrize("script", [classify, export], ids=lambda script: script.__name__)
def test_val_resize_below_the_input_is_one_line(
    script: Any, call: Call, checkpoint: Path, photo: Path
) -> None:
    images = [photo] if script is classify else ["--images", photo]
    for flags, size in ((["--val-resize", 20], 32), (["--val-resize", 40, "--image-size", 48], 48)):
        code, _, text = call(script, "--checkpoint", checkpoint, *images, *flags)
        assert (code, len(text.splitlines())) == (2, 1), text
        assert f"--val-resize {flags[1]} is below the input size of {size} pixels" in text


def test_images_too_large_for_the_memory_are_one_line(checkpoint: Path) -> None:
    def limit() -> None:  # 3 random images of 16000 pixels take 9 GB
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    command = [sys.executable, str(ROOT / "export.py"), "--checkpoint", str(checkpoint),
               "--format", "torchscript", "--image-size", "16000"]  # fmt: skip
    done = subprocess.run(
        command, preexec_fn=limit, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.endswith("out of memory with images of 16000 pixels; use a smaller --image-size")


@pytest.mark.filterwarnings("ignore:.*torch.jit:Warning")
def test_both_scripts_take_the_whole_preprocessing(
    call: Call, checkpoint: Path, photo: Path
) -> None:
    def answer(*flags: object) -> str:
        code, _, errors = call(classify, photo, "--checkpoint", checkpoint, "--output",
                                  photo.with_suffix(".jsonl"), "--cpu", *flags)  # fmt: skip
        assert code == 0, errors
        return photo.with_suffix(".jsonl").read_text()

    flags = ["--image-size", 40, "--val-resize", 48, "--interpolation", "bilinear"]
    answers = {answer(), answer("--interpolation", "bilinear"), answer(*flags)}
    assert len(answers) == 3
    output = photo.with_suffix(".torchscript")
    code, _, errors = call(export, "--checkpoint", checkpoint, "--format", "torchscript",
                           "--output", output, *flags)  # fmt: skip
    assert code == 0, errors
    extra = {"metadata.json": ""}
    torch.jit.load(output, _extra_files=extra)
    card = json.loads(extra["metadata.json"])
    assert [card[key] for key in ("image_size", "resize_size", "interpolation")] == [
        40, 48, "bilinear"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("efficientnet_b1_rwightman-bac287d4.pth", (240, 256, "bicubic"),
         "as torchvision does for efficientnet_b1_rwightman-bac287d4.pth, with --image-size 240 "),
        ("my-c27df63c.pth", (240, 255, "bilinear"), "as torchvision does for efficientnet_b1-c27d"),
        ("resnet18-f37072fd.pth", (240, 272, "bilinear"), "the usual way, with --image-size 240 "),
        ("b1.pth", (240, 272, "bilinear"), "--val-resize 272 --interpolation bilinear"),
    ],
)  # fmt: skip
def test_published_files_bring_their_preprocessing(
    name: str, wanted: tuple[int, int, str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    torch.save(create_model("efficientnet-b1", 2).state_dict(), path)
    network = load_trained_network(path, arch="efficientnet-b1")
    assert network.preset == EvalPreset(*wanted)
    (line,) = [line for line in network.notes if "how images are prepared" in line]
    assert said in line
    other = load_trained_network(path, arch="efficientnet-b1", image_size=96, val_resize=100)
    assert other.preset == EvalPreset(96, 100, wanted[2])


# ---- class names ----


@pytest.mark.parametrize(
    "text", ["ant\nbee\n\n \n", '["ant", "bee"]', "ant\r\nbee", '{"0": "ant", "1": "bee"}\n\n']
)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_empty_lines_are_no_class_names(mark: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes((mark + text).encode())
    assert classify.read_class_names(str(path)) == CLASSES


# ---- checkpoint2model.py ----


def test_odd_entries_of_a_checkpoint_do_no_harm(
    call: Call, content: dict[str, Any], tmp_path: Path
) -> None:
    source, target = tmp_path / "c.pth", tmp_path / "w.pth"
    usual = "classify.py --weights"
    for change, first, command in (
        ({"preprocessing": ["x"]}, "Loaded resnet18_cifar, acc : 50", False),
        ({"preprocessing": None, "arch": ()}, "Loaded model, acc : 50", False),
        ({"arch": ("resnet50", "fanin", 10)}, "Loaded resnet50, acc : 50", True),
        ({"arch": 5, "best_prec1": [50]}, "Loaded model, acc : unknown", True),
        ({"arch": "\x1b[31mred", "best_prec1": "\x1b]0;"}, "Loaded ?[31mred, acc : unknown", True),
        ({"arch": [7], "best_prec1": 10**400}, "Loaded model, acc : unknown", True),
        ({"best_prec1": float("nan")}, "Loaded resnet18_cifar, acc : unknown", True),
    ):
        torch.save({**content, **change}, source)
        code, text, errors = call(checkpoint2model, "--checkpoint-path", source, "--weight-path",
                                  target)  # fmt: skip
        assert (code, errors) == (0, "")
        lines = text.splitlines()
        assert (lines[0], len(lines) == 2 and lines[1].startswith(usual)) == (first, command)
        target.unlink()
    torch.save({**content, "preprocessing": {"val": {"image_size": "x"}}}, source)
    with pytest.raises(CheckpointError, match="image_size must be a whole number"):
        checkpoint2model.convert(str(source), str(target), ema=False)
    assert not target.exists()


def test_averaged_weights_alone_become_weights(
    call: Call, content: dict[str, Any], tmp_path: Path
) -> None:
    source, target = tmp_path / "c.pth", tmp_path / "w.pth"
    torch.save({"model_ema": content["state_dict"]}, source)
    code, text, _ = call(checkpoint2model, "--checkpoint-path", source, "--weight-path", target)
    assert (code, text) == (0, "Loaded model, averaged weights (EMA), acc : unknown\n")
    torch.testing.assert_close(torch.load(target, weights_only=True), dict(content["state_dict"]))
