# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""quantize.py as its users run it, on a network that knows three colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import classify
import quantize
from benchmarks import inference
from image_classification import cpu_features, exporter, quantization
from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalPreset
from image_classification.trained_network import load_trained_network
from models import create_model

COLOURS = {"blue": (20, 20, 250), "green": (20, 250, 20), "red": (250, 20, 20)}


def colour_network() -> dict[str, torch.Tensor]:
    """A ResNet-18 whose classifier is fitted to the features of plain images."""
    torch.manual_seed(0)
    model = create_model("resnet18_cifar", 3).eval()
    images = torch.tensor([*COLOURS.values()], dtype=torch.float32)[:, :, None, None]
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        features = model((images.expand(-1, -1, 16, 16) - mean) / std)  # [3, 512]
        weight = torch.linalg.lstsq(features, 4.0 * torch.eye(3)).solution.T
    return {**model.state_dict(), "fc.weight": weight.contiguous(), "fc.bias": torch.zeros(3)}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A checkpoint, and images with some noise."""
    torch.save(
        {
            "arch": "resnet18_cifar", "classes": [*COLOURS], "state_dict": colour_network(),
            "preprocessing": {"val": EvalPreset(16, 16).to_dict()},
        },
        tmp_path / "best.pth.tar",
    )  # fmt: skip
    noise = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(noise.normal(colour, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def weights_of(onnx: Any, path: Path) -> np.ndarray:
    """All weights of convolutions in an 8-bit file, end to end."""
    model = onnx.load(path)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    made_by = {node.output[0]: node for node in model.graph.node}
    kernels = [
        tensors[made_by[node.input[1]].input[0]]
        for node in model.graph.node if node.op_type == "Conv"
    ]  # fmt: skip
    assert len(kernels) == 20 and all(kernel.dtype == np.int8 for kernel in kernels)
    return np.concatenate([kernel.ravel() for kernel in kernels])


def test_the_8_bit_file_answers_alike_and_the_table_says_so(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    arguments = ["--checkpoint", str(run_folder / "best.pth.tar"), str(run_folder / "data"),
                 "--images", "12", "--weight-bits", "7", "-b", "4", "--rounds", "2",
                 "--threads", "1"]  # fmt: skip
    assert quantize.main(arguments) == 0
    printed = capsys.readouterr().out
    file = run_folder / "best.int8.onnx"
    assert "calibrated with 12 training images" in printed

    found = weights_of(onnx, file)
    assert -64 <= found.min() < -50 and 50 < found.max() <= 64  # 7 bits of the 8

    session, network = runtime.InferenceSession(file), load_trained_network(arguments[1])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [*COLOURS]
    for batch in (1, 5):
        images = torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network.model(images)
        logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        difference = (logits - expected).abs().max() / expected.abs().max()
        assert 1e-6 < difference < 0.2  # rounded, and no more than that

    photos = run_folder / "data/val"
    assert classify.main(["--checkpoint", str(file), "--topk", "1", str(photos)]) == 0
    for path, name in zip(*[iter(capsys.readouterr().out.splitlines())] * 2, strict=True):
        assert name.startswith(f"{Path(path).parent.name}: ")

    record = json.loads((run_folder / "best.int8.json").read_text())
    rows = {entry["name"]: entry for entry in record["contenders"]}
    plain, integer = rows["best.pth.tar pytorch fp32"], rows["best.int8.onnx onnxruntime"]
    assert record["validation_images"] == 12 and plain["top1"] == 100.0
    assert integer["top1"] == 100.0
    assert integer["file_bytes"] == file.stat().st_size < 0.3 * rows["fp32.onnx onnxruntime"][
        "file_bytes"]  # fmt: skip
    assert all(0 < row["latency_ms"]["median"] <= row["latency_ms"]["p90"] for row in rows.values())
    assert len(plain["rounds"]) == 2 and plain["rounds"][0]["images"] == 12
    assert "| best.int8.onnx onnxruntime | 100.00 % | +0.00 |" in printed
    assert record["environment"]["versions"]["onnxruntime"]


def test_class_folders_alone_are_divided_as_in_the_training(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    best, record, found = str(run_folder / "best.pth.tar"), run_folder / "found.json", []
    flat = str((run_folder / "data/train").rename(run_folder / "flat"))
    words = [best, "--data", flat, "-b", "2", "--rounds", "1", "--steps", "1",
             "--latency-rounds", "1", "--threads", "1", "--json", str(record)]  # fmt: skip
    assert inference.main([*words, "--val-split", "0.25"]) == 0
    assert json.loads(record.read_text())["validation_images"] == 3 * 2
    assert inference.main(words) == 3
    assert "--val-split 0.2" in capsys.readouterr().err

    monkeypatch.setattr(quantization, "require_packages", lambda: None)
    monkeypatch.setattr(exporter, "export", lambda *_: ["exported"])
    monkeypatch.setattr(quantize, "write_quantized", lambda *_: None)
    monkeypatch.setattr(quantize, "compare", lambda *words: found.append(words[2]))
    assert quantize.main(["--checkpoint", best, flat, "--val-split", "0.25"]) == 0
    assert (len(found[0].train), len(found[0].val)) == (3 * 6, 3 * 2)
    assert quantize.main(["--checkpoint", best, flat]) == 3
    assert "--val-split 0.2 divides them" in capsys.readouterr().err


def test_what_works_on_pooled_features_is_left_in_float() -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["images", "w"], ["features"], "stem"),
        make("ReduceMean", ["features", "axes"], ["means"], "squeeze"),
        make("Conv", ["means", "w"], ["raw"], "gate"),
        make("Sigmoid", ["raw"], ["gates"], "sigmoid"),
        make("Mul", ["features", "gates"], ["scaled"], "scale"),
        make("GlobalAveragePool", ["scaled"], ["pooled"], "pool"),
        make("Constant", [], ["shape"], "constant", value_ints=[1, -1]),
        make("Reshape", ["pooled", "shape"], ["flat"], "flatten"),
        make("Gemm", ["flat", "w"], ["logits"], "classifier"),
    ]
    constants = [onnx.helper.make_tensor(name, 1, [1], [1.0]) for name in ("w", "axes")]
    graph = onnx.helper.make_graph(nodes, "g", [], [], constants)
    assert quantization.nodes_after_pooling(graph) == ["gate", "sigmoid", "flatten", "classifier"]


@pytest.mark.parametrize(
    ("machine", "flags", "bits"),
    [
        ("x86_64", "fma avx2 avx512f", 7),
        ("x86_64", "avx2 avx_vnni", 8),
        ("x86_64", "avx512f avx512_vnni", 8),
        ("aarch64", "", 8),
    ],
)
def test_weights_have_7_bits_where_products_would_saturate(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, bits: int
) -> None:
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu_features, "cpu_info", lambda field: {"flags": flags}[field])
    assert quantization.choose_weight_bits()[0] == bits


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--checkpoint", "x.pth", "d", "--images", "0"], 2, "--images: must be at least 1"),
        (["--checkpoint", "x.pth", "d", "--output", "x.bin"], 2, "must end in .onnx"),
        (["--checkpoint", "x.pth", "d", "--weight-bits", "4"], 2, "--weight-bits"),
        (["--checkpoint", "BEST", "none"], 3, "none"),
        (["--checkpoint", "BEST", "sample:none"], 2, "sample:digits"),
    ],
)
def test_user_errors(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(quantization, "require_packages", lambda: None)
    best = str(run_folder / "best.pth.tar")
    assert quantize.main([best if word == "BEST" else word for word in arguments]) == code
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_missing_packages_name_their_command(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    best = str(run_folder / "best.pth.tar")
    assert quantize.main(["--checkpoint", best, str(run_folder / "data")]) == 2
    assert "pip install" in (error := capsys.readouterr().err) and "onnxruntime" in error
