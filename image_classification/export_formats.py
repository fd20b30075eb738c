# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The files in which a trained network leaves the package: how each is written and read again."""

from __future__ import annotations

import importlib
import inspect
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from image_classification import model_card
from image_classification.errors import UsageError
from image_classification.trained_network import load_trained_network

INPUT, OUTPUT = "images", "logits"
_EXTRA = "metadata.json"  # of the formats that carry files

Forward = Callable[[Tensor], Tensor]
Card = Mapping[str, Any]


class Example(NamedTuple):
    """What a network is traced with.

    Attributes:
        images: float32 [N, 3, H, W].
        any_batch: the file shall take any number of images, not N alone.
    """

    images: Tensor
    any_batch: bool


class Written(NamedTuple):
    """A file that was read again.

    Attributes:
        forward: maps float32 [N, 3, H, W] to logits [N, num_classes], both on the CPU.
        card: the description in the file, as `model_card.to_strings` makes it.
        batch_size: the only one that the file takes; None: any.
    """

    forward: Forward
    card: dict[str, str]
    batch_size: int | None = None


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        packages: what has to be installed to write it.
        readers: what has to be installed to read it again.
        write: makes the content of the file from network, description and example.
        read: reads a file.
    """

    packages: tuple[str, ...]
    readers: tuple[str, ...]
    write: Callable[[nn.Module, Card, Example], bytes]
    read: Callable[[Path], Written]


def missing_packages(packages: tuple[str, ...]) -> list[str]:
    """Return those packages that cannot be imported."""

    def is_missing(name: str) -> bool:
        try:
            importlib.import_module(name)
        except ImportError:
            return True
        return False

    return [name for name in packages if is_missing(name)]


def write(name: str, model: nn.Module, card: Card, example: Example) -> bytes:
    """Make the content of a file.

    Args:
        name: one of `FORMATS`.
        model: float32, on the CPU, in evaluation mode.
        card: what `model_card.describe` returned.
        example: what to trace the network with.

    Raises:
        UsageError: a package is missing; the message names the command.
    """
    kind = FORMATS[name]
    if missing := missing_packages(kind.packages):
        raise UsageError(
            f"--format {name} needs {', '.join(missing)}; pip install {' '.join(missing)}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what torch will remove some day
        return kind.write(model, card, example)


def read(name: str, path: Path) -> Written:
    """Read a file of the format `name` again; its readers must be installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FORMATS[name].read(path)


# ---- ONNX


def _write_onnx(model: nn.Module, card: Card, example: Example) -> bytes:
    onnx = importlib.import_module("onnx")
    shapes: dict[str, Any] = {}
    if exporter_is_dynamo():
        shapes = {"external_data": False, "dynamic_shapes": _dynamic_shapes(example)}
    elif example.any_batch:
        shapes = {"dynamic_axes": {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}}
    buffer = io.BytesIO()
    torch.onnx.export(
        model, (example.images,), buffer, input_names=[INPUT], output_names=[OUTPUT],
        verbose=False, **shapes,
    )  # fmt: skip
    written = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(written, model_card.to_strings(card))
    onnx.checker.check_model(written, full_check=True)
    content: bytes = written.SerializeToString()
    return content


def exporter_is_dynamo() -> bool:
    """Whether torch.onnx follows torch.export, as it does by itself from torch 2.9 on.

    Older versions take their older exporter, which is the better one there.
    """
    parameter = inspect.signature(torch.onnx.export).parameters.get("dynamo")
    return parameter is not None and parameter.default is True


def read_onnx(source: Path | bytes, threads: int = 0) -> Written:
    """Read an ONNX file, or its content, with onnxruntime.

    Args:
        source: the file; or its content, which then may not refer to other files.
        threads: of the CPU; 0 for all cores.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails raises
    with tempfile.TemporaryDirectory() as nothing:
        if isinstance(source, bytes):  # else weights could be any file of the current folder
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", nothing
            )
        session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    first = session.get_inputs()[0].shape[0]
    batch_size = first if isinstance(first, int) else None
    return Written(forward, session.get_modelmeta().custom_metadata_map, batch_size)


def run_openvino(source: Path | bytes, threads: int, precision: str | None = None) -> Forward:
    """Read an ONNX file, or its content, with OpenVINO.

    Args:
        source: the file or its content.
        threads: of the CPU.
        precision: "f32" or "bf16"; None: what OpenVINO takes to be the best on this CPU.
    """
    core = importlib.import_module("openvino").Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled: Any = core.compile_model(core.read_model(source), "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


# ---- TorchScript


def _write_torchscript(model: nn.Module, card: Card, example: Example) -> bytes:
    buffer = io.BytesIO()
    with torch.no_grad():
        traced = torch.jit.trace(model, example.images)
    torch.jit.save(traced, buffer, _extra_files={_EXTRA: json.dumps(card)})
    return buffer.getvalue()


def _read_torchscript(path: Path) -> Written:
    extra = {_EXTRA: ""}
    module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return Written(module, model_card.to_strings(json.loads(extra[_EXTRA])))


# ---- torch.export


def _dynamic_shapes(example: Example) -> tuple[dict[int, Any]] | None:
    return ({0: torch.export.Dim("batch")},) if example.any_batch else None


def _write_exported_program(model: nn.Module, card: Card, example: Example) -> bytes:
    buffer = io.BytesIO()
    program = torch.export.export(model, (example.images,), dynamic_shapes=_dynamic_shapes(example))
    torch.export.save(program, buffer, extra_files={_EXTRA: json.dumps(card)})
    return buffer.getvalue()


def _read_exported_program(path: Path) -> Written:
    extra = {_EXTRA: ""}
    program = torch.export.load(path, extra_files=extra)
    return Written(program.module(), model_card.to_strings(json.loads(extra[_EXTRA])))


# ---- safetensors: weights and description without a graph; classify.py reads it


def _write_safetensors(model: nn.Module, card: Card, example: Example) -> bytes:
    safetensors = importlib.import_module("safetensors.torch")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    content: bytes = safetensors.save(weights, metadata=model_card.to_strings(card))
    return content


def _read_safetensors(path: Path) -> Written:
    network = load_trained_network(path)
    card = model_card.describe(network.arch, network.options, network.classes, network.preset)
    return Written(network.model, model_card.to_strings(card))


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ("onnx", "onnxscript") if exporter_is_dynamo() else ("onnx",), ("onnxruntime",),
        _write_onnx, read_onnx,
    ),
    "torchscript": Format((), (), _write_torchscript, _read_torchscript),
    "safetensors": Format(
        ("safetensors",), ("safetensors",), _write_safetensors, _read_safetensors
    ),
    "exported_program": Format((), (), _write_exported_program, _read_exported_program),
}  # fmt: skip
