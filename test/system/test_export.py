# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""export.py as its users run it; its files as other programs read them."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import classify
import export
from image_classification import export_formats
from image_classification.augmentation import EvalPreset
from image_classification.trained_network import load_trained_network
from models import create_model

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["b\u00f6", "with, comma", "c"]
NETWORKS = {"onnx": "resnet18_cifar", "torchscript": "efficientnet-b0",
            "safetensors": "efficientnet-b0", "exported_program": "resnet18_cifar"}  # fmt: skip
OPTIONS = {"dropout": 0.3, "conv_init": "fan_in", "bn_epsilon": 1e-3}


def save_checkpoint(path: Path, arch: str) -> None:
    """Weights whose BatchNorm has statistics; the average differs from them in the classifier."""
    torch.manual_seed(0)
    model = create_model(arch, len(CLASSES), **OPTIONS)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    weights = model.state_dict()
    head = [name for name in weights if name.endswith("weight")][-1]
    torch.save(
        {
            "arch": arch, "num_classes": len(CLASSES), "classes": CLASSES, "model_options": OPTIONS,
            "state_dict": weights, "state_dict_ema": {**weights, head: weights[head].flip(0)},
            "preprocessing": {"val": EvalPreset(32, 40, "bicubic").to_dict()},
        },
        path,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    paths = {arch: folder / f"{arch}.pth.tar" for arch in set(NETWORKS.values())}
    for arch, path in paths.items():
        save_checkpoint(path, arch)
    return paths


@pytest.fixture(scope="module")
def exported(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str]]:
    """Export in a format, once for all tests; returns the file and what was printed."""
    folder = tmp_path_factory.mktemp("exported")
    photo = folder / "photo.png"
    Image.new("RGB", (60, 50), (250, 120, 3)).save(photo)

    @functools.cache
    def export_as(name: str) -> tuple[Path, str]:
        for package in export_formats.FORMATS[name].packages + export_formats.FORMATS[name].readers:
            pytest.importorskip(package)
        output, printed = folder / name, io.StringIO()
        arguments = ["--checkpoint", str(checkpoints[NETWORKS[name]]), "--format", name,
                     "--output", str(output), "--images", str(photo)]  # fmt: skip
        with contextlib.redirect_stdout(printed):
            assert export.main(arguments) == 0
        return output, printed.getvalue()

    return export_as


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run export.py without a process of its own; returns exit code and all that it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        code = export.main([str(argument) for argument in arguments])
        return code, "".join(capsys.readouterr())

    return call


def read_foreign(name: str, path: Path) -> tuple[Callable[[torch.Tensor], Any], dict[str, Any]]:
    """Forward and metadata by the format's own library alone."""
    extra = {"metadata.json": ""}
    if name == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(path)
        assert session.get_inputs()[0].shape == ["batch", 3, 32, 32]
        strings = session.get_modelmeta().custom_metadata_map
        return lambda images: session.run(None, {"images": images.numpy()})[0], decoded(strings)
    if name == "torchscript":
        module = torch.jit.load(path, _extra_files=extra)
        return module, json.loads(extra["metadata.json"])
    if name == "exported_program":
        program = torch.export.load(path, extra_files=extra)
        return program.module(), json.loads(extra["metadata.json"])
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(path, "pt") as file:
        strings = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}
    model = create_model(strings["arch"], 3, **json.loads(strings["model_options"])).eval()
    model.load_state_dict(weights)
    return model, decoded(strings)


def decoded(strings: dict[str, str]) -> dict[str, Any]:
    texts = ("arch", "interpolation", "colour_order", "normalisation")
    return {key: text if key in texts else json.loads(text) for key, text in strings.items()}


@pytest.mark.filterwarnings("ignore")  # torch's own, about TorchScript
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_works_without_this_package(
    exported: Callable[[str], tuple[Path, str]], checkpoints: dict[str, Path], name: str
) -> None:
    output, text = exported(name)
    assert "3 random and 1 real images in batches of 1 and 3: logits are off by up to" in text
    assert "averaged (EMA) weights" in text
    arch, checkpoint = NETWORKS[name], checkpoints[NETWORKS[name]]
    forward, card = read_foreign(name, output)
    assert card == {
        "arch": arch, "model_options": OPTIONS, "classes": CLASSES,
        "image_size": 32, "resize_size": 40, "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "colour_order": "RGB", "normalisation": "(pixels / 255 - mean) / std",
    }  # fmt: skip
    model = create_model(arch, 3, **card["model_options"]).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict_ema"])
    for batch in (1, 3):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            logits, expected = torch.as_tensor(forward(images)), model(images)
        assert expected.abs().max() > 0.1  # else the comparison would say nothing
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_the_example_of_the_docs_names_the_class(
    exported: Callable[[str], tuple[Path, str]], checkpoints: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copy(exported("onnx")[0], tmp_path / "model_best.onnx")
    page = (ROOT / "docs" / "export.md").read_text("utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((90, 60)).save(tmp_path / "cat.jpg")
    checkpoint = checkpoints[NETWORKS["onnx"]]
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert classify.main(["--cpu", "--checkpoint", str(checkpoint), str(tmp_path / "cat.jpg")]) == 0
    best = capsys.readouterr().out.splitlines()[1].split(":")[0]
    assert done.stdout.strip() == best, done.stderr


@pytest.mark.filterwarnings("ignore")
def test_batch_fixes_the_shape_and_no_ema_is_heard(
    call: Callable[..., tuple[int, str]], checkpoints: dict[str, Path]
) -> None:
    checkpoint = checkpoints["resnet18_cifar"]
    code, text = call("--checkpoint", checkpoint, "--format", "exported_program", "--batch", 2,
                      "--no-ema", "--image-size", 40)  # fmt: skip
    assert code == 0, text
    assert "averaged" not in text
    program = torch.export.load(checkpoint.with_name("resnet18_cifar.pt2"))
    (shape,) = [
        node.meta["val"].shape for node in program.graph.nodes
        if node.name in program.graph_signature.user_inputs
    ]  # fmt: skip
    assert list(shape) == [2, 3, 40, 40]
    network = load_trained_network(checkpoint, ema=False)
    images = torch.ones(2, 3, 40, 40)
    torch.testing.assert_close(program.module()(images), network.model(images))


def test_safetensors_are_classified_like_their_checkpoint(
    exported: Callable[[str], tuple[Path, str]], checkpoints: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint, file = checkpoints[NETWORKS["safetensors"]], tmp_path / "network.safetensors"
    shutil.copy(exported("safetensors")[0], file)
    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo)
    printed = []
    for path in (checkpoint, file):
        assert classify.main(["--cpu", "--checkpoint", str(path), str(photo)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]

    content = file.read_bytes()
    file.write_bytes(content.replace(b'"image_size":"32"', b'"image_size":"[]"'))
    assert file.read_bytes() != content
    assert classify.main(["--cpu", "--checkpoint", str(file), str(photo)]) == 4


def test_a_file_that_computes_something_else_is_not_kept(
    call: Callable[..., tuple[int, str]], checkpoints: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kind, output = export_formats.FORMATS["torchscript"], tmp_path / "network.torchscript"
    output.write_text("from an earlier export")

    def write_wrong(model: torch.nn.Module, *rest: Any) -> bytes:
        with torch.no_grad():
            bias = list(model.parameters())[-1]
            bias += 0.01
            content = kind.write(model, *rest)
            bias -= 0.01
        return content

    monkeypatch.setitem(export_formats.FORMATS, "torchscript", kind._replace(write=write_wrong))
    code, text = call("--checkpoint", checkpoints["resnet18_cifar"], "--format", "torchscript",
                      "--output", output)  # fmt: skip
    assert code == 4, text
    assert "computes other logits than the network" in text and "1.0e-02" in text
    assert output.read_text() == "from an earlier export"
    assert os.listdir(tmp_path) == [output.name]


def test_missing_packages_name_their_command(
    call: Callable[..., tuple[int, str]], checkpoints: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ("--checkpoint", checkpoints["resnet18_cifar"], "--output", tmp_path / "out")
    for name, package in (("onnx", "onnx"), ("safetensors", "safetensors")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            code, text = call(*arguments, "--format", name)
        assert code == 2
        assert f"--format {name} needs {package}" in text and "pip install " in text
    assert not (tmp_path / "out").exists()


def test_onnx_without_onnxruntime_says_that_it_was_not_compared(
    call: Callable[..., tuple[int, str]], checkpoints: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kind, output = export_formats.FORMATS["onnx"], tmp_path / "network.onnx"
    quick = kind._replace(packages=(), write=lambda *_: b"graph")
    monkeypatch.setitem(export_formats.FORMATS, "onnx", quick)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, text = call("--checkpoint", checkpoints["resnet18_cifar"], "--output", output)
    assert code == 0, text
    assert "not compared: onnxruntime is not installed; pip install onnxruntime" in text
    assert output.read_bytes() == b"graph"


def test_wrong_options_are_all_reported_and_need_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "export.py"), *arguments], capture_output=True, text=True,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=120,
        )  # fmt: skip

    done = run("-h")
    assert done.returncode == 0 and "exit codes" in done.stdout, done.stderr
    done = run("--checkpoint", "a.pth", "--arch", "resnet5", "--output", "no/x")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2, done.stderr
    for text in ("did you mean", "there is no folder no"):
        assert text in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--checkpoint", "none.pth"], 4, "No such file"),
        (["--checkpoint", "CHECKPOINT", "--arch", "resnet50"], 4, "drop --arch"),
        (["--checkpoint", "CHECKPOINT", "--images", "none.png"], 3, "none.png"),
        (["--checkpoint", "CHECKPOINT", "--output", "CHECKPOINT"], 2, "choose another name"),
        (["--checkpoint", "CHECKPOINT", "--output", "/dev/null/x"], 2, "there is no folder"),
    ],
)
def test_user_errors_are_one_line(
    call: Callable[..., tuple[int, str]], checkpoints: dict[str, Path], arguments: list[str],
    code: int, text: str,
) -> None:  # fmt: skip
    path = str(checkpoints["resnet18_cifar"])
    found, printed = call(*(path if word == "CHECKPOINT" else word for word in arguments))
    assert found == code
    assert text in printed.splitlines()[-1]
