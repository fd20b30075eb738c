# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""prune.py as its users run it; a pruned network is a network like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, environment, nursery, write_images

import classify
import export
import main
import prune
from image_classification.augmentation import EvalPreset
from image_classification.errors import UsageError
from image_classification.trained_network import load_trained_network
from image_classification.weight_files import load_weight_file
from models import create_model
from models.resnet import ResNet, channels_of

WHOLE = [64, 64, 128, 256, 512, 256, 512, 1024, 2048]
OPTIONS = {"dropout": 0.2, "bn_epsilon": 1e-5}
HALF = [number // 2 for number in WHOLE]


def silence_half(model: ResNet) -> None:
    """Make every second channel of every layer do nothing: no weights in, none out, no bias."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data[1::2] = 0
            if name != "conv1":
                module.weight.data[:, 1::2] = 0
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            for values in (module.weight.data, module.bias.data, module.running_mean):
                values[1::2] = 0
    model.fc.weight.data.normal_()
    model.fc.weight.data[:, 1::2] = 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = create_model("resnet50", 3)
    silence_half(model)
    path = tmp_path_factory.mktemp("run") / "best.pth.tar"
    torch.save(
        {
            "arch": "resnet50", "classes": ["a", "b", "c"], "state_dict": model.state_dict(),
            "model_options": OPTIONS,
            "preprocessing": {"val": EvalPreset(32, 32).to_dict()},
        },
        path,
    )  # fmt: skip
    return path


def test_channels_that_do_nothing_go_and_the_answers_stay(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_pruning")
    assert prune.main(["--checkpoint", str(checkpoint), "--keep", "0.5"]) == 0
    output = checkpoint.with_name("best.pruned.pth.tar")
    assert "M of 23.51 M parameters" in capsys.readouterr().out

    before, after = load_trained_network(checkpoint), load_trained_network(output)
    assert after.options == {**OPTIONS, "channels": HALF} and after.classes == before.classes
    assert (after.arch, after.preset) == (before.arch, before.preset)
    read = [load_weight_file(path).channels for path in (checkpoint, output)]
    assert read == [None, HALF]
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, logits = before.model(images), after.model(images)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch's own, about TorchScript
def test_a_pruned_network_is_classified_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    channels = [8, 8, 16, 24, 32, 8, 24, 40, 48]
    model = create_model("resnet18_cifar", 2, channels=channels)
    assert channels_of(model) == channels
    path, photo = tmp_path / "narrow.pth.tar", tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(photo)
    torch.save({"arch": "resnet18_cifar", "classes": ["first", "second"],
                "model_options": {"channels": channels}, "state_dict": model.state_dict()},
               path)  # fmt: skip
    assert export.main(["--checkpoint", str(path), "--format", "torchscript"]) == 0
    assert "resnet18_cifar, torchscript, 0." in capsys.readouterr().out  # MB
    assert classify.main(["--cpu", "--checkpoint", str(path), str(photo)]) == 0
    assert "first: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "channels",
    [
        [65, *WHOLE[1:]],
        [0, *WHOLE[1:]],
        WHOLE[:-1],
        [*WHOLE, 8],
        [*WHOLE[:-1], 8.0],
        [*WHOLE[:-1], True],
    ],
)
def test_impossible_channels_are_refused(channels: list[Any]) -> None:
    with pytest.raises(UsageError, match="channels must be"):
        create_model("resnet50", 3, channels=channels)


def test_the_whole_network_is_not_changed_by_naming_its_channels() -> None:
    with torch.device("meta"):
        both = create_model("resnet50", 3), create_model("resnet50", 3, channels=WHOLE)
    plain, named = ({key: value.shape for key, value in one.state_dict().items()} for one in both)
    assert plain == named


def test_user_errors(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other = tmp_path / "efficientnet.pth"
    torch.save(create_model("efficientnet-b0", 2).state_dict(), other)
    for arguments, code, text in [
        (["--checkpoint", checkpoint, "--keep", "1.5"], 2, "above 0 and below 1"),
        (["--checkpoint", other, "--arch", "efficientnet-b0"], 2, "use a resnet without groups"),
        (["--checkpoint", checkpoint, "--keep", "0.1"], 2, "64 channels of the narrowest layers: "
         "give 0.125 or more"),
        (["--checkpoint", checkpoint, "--output", checkpoint], 2, "choose another name"),
        (["--checkpoint", tmp_path / "none.pth"], 4, "No such file"),
    ]:
        assert prune.main([str(word) for word in arguments]) == code
        assert text in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    assert prune.main(["--checkpoint", str(checkpoint)]) == 2
    assert "pip install torch-pruning" in capsys.readouterr().err


def test_the_script_prunes_trains_and_compares_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    model = create_model("resnet18_cifar", 3, channels=[16, 16, 16, 16, 16, 16, 16, 16, 16])
    whole, workspace = tmp_path / "whole" / "model_best.pth.tar", tmp_path / "run"
    whole.parent.mkdir()
    torch.save({"arch": "resnet18_cifar", "classes": ["class_0", "class_1", "class_2"],
                "model_options": {"channels": channels_of(model)},
                "preprocessing": {"val": EvalPreset(32, 32).to_dict()},
                "state_dict": model.state_dict()}, whole)  # fmt: skip
    data = write_images(tmp_path / "data", train=6, val=0, size=32) / "train"  # folders of classes
    env = environment(PYTHON=nursery().python, KEEP="0.5", DEVICE="cpu")
    command = ["bash", ROOT / "scripts/run_pruning.sh", whole, data, workspace, "-b", 4, "--arch",
               "resnet18_cifar", "-j", 1, "--val-split", 0.4, "--epochs"]  # fmt: skip
    for epochs in (1, 2):
        done = subprocess.run(
            [*map(str, command), str(epochs)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert ("going on with" in done.stdout) == (epochs == 2)
        saved = torch.load(workspace / "checkpoint.pth.tar", weights_only=True)
        assert saved["epoch"] == epochs and set(saved["model_options"]["channels"]) == {8}
    table = json.loads((workspace / "pruned.json").read_text())
    # Two files have the same name, which must not make one of them.
    assert [*table["work"]] == [
        "whole/model_best.pth.tar", "run/pruned.pth.tar", "run/model_best.pth.tar",
    ]  # fmt: skip
    assert len({row["name"] for row in table["contenders"]}) == len(table["contenders"]) >= 3


def test_a_pruned_network_is_trained_and_resumed(tmp_path: Path) -> None:
    channels = [8, 8, 16, 24, 32, 8, 24, 40, 48]
    model = create_model("resnet18_cifar", 3, channels=channels)
    weights, workspace = tmp_path / "narrow.pth.tar", tmp_path / "run"
    torch.save({"arch": "resnet18_cifar", "state_dict": model.state_dict(),
                "model_options": {"channels": channels}}, weights)  # fmt: skip
    common = ["--data-backend", "synthetic", "--num-classes", "3", "--device", "cpu", "--prof", "1",
              "-b", "2", "--workspace", str(workspace)]  # fmt: skip
    start = ["--arch", "resnet18_cifar", "--pretrained-weights", str(weights), "--epochs", "1"]
    for flags in (start, ["--resume", "auto", "--epochs", "2"]):
        assert main.main([*common, *flags]) == 0
        saved = torch.load(workspace / "checkpoint.pth.tar", weights_only=True)
        assert saved["model_options"]["channels"] == channels
        assert {name: value.shape for name, value in saved["state_dict"].items()} == {
            name: value.shape for name, value in model.state_dict().items()
        }
    assert saved["epoch"] == 2
