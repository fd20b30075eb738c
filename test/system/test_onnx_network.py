# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""classify.py with ONNX files of export.py: the answers of the checkpoint, or one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import classify
from image_classification import export_formats, model_card
from image_classification.augmentation import EvalPreset
from image_classification.inference import load_classifier
from models import create_model

for package in ("onnx", "onnxruntime", *export_formats.FORMATS["onnx"].packages):
    pytest.importorskip(package)

CLASSES = ["ant", "b\u00f6", "cat", "dog"]
OPTIONS = {"channels": [16] * 9}
PRESET = EvalPreset(32, 40, "bicubic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, the same network for any number of images and for three, and five photos."""
    place = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    model = create_model("resnet18_cifar", len(CLASSES), **OPTIONS).eval()
    with torch.no_grad():  # a classifier that tells images from each other
        head, model.fc = model.fc, torch.nn.Identity()
        features = model(torch.randn(16, 3, 1, 1).expand(-1, -1, 32, 32))
        head.weight.copy_(torch.randn(len(CLASSES), 16) / features.std(0).mean())
        head.bias.copy_(-head.weight @ features.mean(0))
        model.fc = head
    torch.save({"arch": "resnet18_cifar", "classes": CLASSES, "model_options": OPTIONS,
                "state_dict": model.state_dict(), "preprocessing": {"val": PRESET.to_dict()}},
               place / "best.pth.tar")  # fmt: skip
    card = model_card.describe("resnet18_cifar", OPTIONS, CLASSES, PRESET)
    for name, batch in (("any", 2), ("three", 3)):
        example = export_formats.Example(torch.zeros(batch, 3, 32, 32), any_batch=name == "any")
        content = export_formats.write("onnx", model, card, example)
        (place / f"{name}.onnx").write_bytes(content)
    bare = export_formats.write("onnx", model, {}, example)
    (place / "bare.onnx").write_bytes(bare)
    (place / "damaged.onnx").write_bytes(content[: len(content) // 2])
    (place / "photos").mkdir()
    for number in range(5):
        colour = np.random.default_rng(number).integers(0, 256, 3).tolist()
        Image.new("RGB", (90, 60), tuple(colour)).save(place / f"photos/{number}.png")
    return place


@pytest.mark.parametrize(
    ("name", "engine"),
    [("any", "eager"), ("three", "onnxruntime"), ("any", "openvino"), ("three", "openvino")],
)
def test_it_answers_as_the_checkpoint_does(folder: Path, name: str, engine: str) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    photos = [*map(str, sorted((folder / "photos").iterdir()))]
    expected = load_classifier(folder / "best.pth.tar", "cpu").predict(photos, batch_size=4)
    classifier = load_classifier(folder / f"{name}.onnx", runtime=engine)
    found = classifier.predict(photos, batch_size=4)
    assert len({round(prediction.probabilities[0], 2) for prediction in expected}) > 2
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.path, mine.classes) == (theirs.path, theirs.classes)
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-4)
    assert f"runs in {engine.replace('eager', 'onnxruntime')} on the CPU" in classifier.notes[0]


@pytest.mark.parametrize(
    ("name", "flags", "code", "text"),
    [
        ("none.onnx", "", 4, "cannot read"),
        ("damaged.onnx", "", 4, "is no ONNX file, or damaged"),
        ("bare.onnx", "", 4, "does not say how images are prepared: take a file of export.py"),
        ("any.onnx", "--runtime compile", 2, "not with --runtime compile"),
        ("any.onnx", "--image-size 40", 2, "takes images of 32 pixels, --image-size is 40"),
        ("any.onnx", "--precision FP16", 2, "holds that itself: leave out --precision FP16"),
        ("any.onnx", "--no-ema --arch resnet18", 2, "leave out --arch and --ema"),
        ("any.onnx", "--device npu", 2, "runs on the CPU, not on npu: leave --device out"),
        ("any.onnx", "--class-names NAMES", 4, "has 4 outputs, but there are 2 class names"),
    ],
)
def test_what_it_cannot_do_is_told_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, flags: str, code: int, text: str
) -> None:
    (folder / "names.txt").write_text("one\ntwo\n")
    words = [str(folder / "names.txt") if word == "NAMES" else word for word in flags.split()]
    words = ["--checkpoint", str(folder / name), str(folder / "photos"), *words]
    assert classify.main(words) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_missing_packages_name_their_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy: Callable[..., list[str]] = export_formats.missing_packages

    def missing(names: tuple[str, ...]) -> list[str]:
        return [*names] if "openvino" in names else healthy(names)

    monkeypatch.setattr(export_formats, "missing_packages", missing)
    words = ["--checkpoint", str(folder / "any.onnx"), "--runtime", "openvino", str(folder)]
    assert classify.main(words) == 2
    assert "pip install onnxruntime openvino" in capsys.readouterr().err


def altered(folder: Path, path: Path, change: Callable[[Any], None]) -> list[str]:
    """Words for classify.py with a file that was changed by hand."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(folder / "any.onnx")
    change(model)
    path.write_bytes(model.SerializeToString())
    return ["--checkpoint", str(path), str(folder / "photos")]


def test_it_reads_no_other_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Weights may lie beside an ONNX file; a hostile one would name any file of the folder."""
    onnx = pytest.importorskip("onnx")

    def change(model: Any) -> None:
        weight = next(one for one in model.graph.initializer if len(one.dims) == 4)
        onnx.external_data_helper.set_external_data(weight, "secret", length=len(weight.raw_data))
        (tmp_path / "secret").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL

    words = altered(folder, tmp_path / "hostile.onnx", change)
    monkeypatch.chdir(tmp_path)
    assert classify.main(words) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "is no ONNX file, or damaged" in line


def test_outputs_that_are_no_classes_are_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    helper = pytest.importorskip("onnx").helper

    def first_image_only(model: Any) -> None:
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.output[0] = "all"
        start, end = (
            helper.make_tensor(name, 7, [1], [value]) for name, value in (("s", 0), ("e", 1))
        )
        model.graph.initializer.extend([start, end])
        model.graph.node.append(helper.make_node("Slice", ["all", "s", "e"], ["logits"]))

    words = altered(folder, tmp_path / "one.onnx", first_image_only)
    assert classify.main(words) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "makes [1, 4] of 2 images: it does not classify" in line
