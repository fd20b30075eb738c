# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Trained networks from the ONNX files of export.py and quantize.py: FP32 or 8 bits, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from image_classification import export_formats, model_card
from image_classification.errors import CheckpointError, UsageError, printable
from image_classification.runtimes import FixedBatch, Foreign
from image_classification.trained_network import TrainedNetwork, choose_classes, choose_preset

ENDING = ".onnx"
#: Word of --runtime -> what runs the file.
ENGINES = {"eager": "onnxruntime", "onnxruntime": "onnxruntime", "openvino": "openvino"}


def refuse(path: str, others: Sequence[object], device: str, precision: str) -> None:
    """Raises a UsageError where the file does not go with what else is wanted.

    Args:
        path: the file.
        others: of which it needs none: network, averaged weights, BatchNorm's epsilon.
        device, precision: as for `inference.load_classifier`.
    """
    names = ("--arch", "--ema", "--bn-epsilon")
    given = [name for name, other in zip(names, others, strict=True) if other is not None]
    given += ["--precision FP16"] if precision.lower() == "fp16" else []
    if given:
        raise UsageError(f"{path} holds that itself: leave out {' and '.join(given)}")
    if device not in ("auto", "cpu"):
        raise UsageError(f"{path} runs on the CPU, not on {device}: leave --device out")


def load_onnx_network(
    path: str,
    runtime: str = "eager",
    *,
    exact: bool = False,
    image_size: int | None = None,
    val_resize: int | None = None,
    interpolation: str | None = None,
    class_names: Sequence[str] | None = None,
) -> TrainedNetwork:
    """Reads a file and tries it out.

    Args:
        path: an ONNX file that says what it is.
        runtime: a key of `ENGINES`: what a checkpoint runs in by default means onnxruntime.
        exact: OpenVINO computes in the precision of the file, too, as onnxruntime does; else in
            what it takes to be the best on this CPU.
        image_size, val_resize, interpolation, class_names: as for `load_trained_network`; the file
            settles the size of its images.

    Returns:
        A network that takes any number of images on the CPU.

    Raises:
        CheckpointError: no such file, damaged, or without a description.
        UsageError: a package is missing, the runtime is another one, or a size does not fit.
    """
    if runtime not in ENGINES:
        raise UsageError(f"{path} runs in onnxruntime or openvino, not with --runtime {runtime}")
    engine = ENGINES[runtime]
    if missing := export_formats.missing_packages(tuple({"onnxruntime": 0, engine: 0})):
        raise UsageError(f"{path} needs {', '.join(missing)}; pip install {' '.join(missing)}")
    threads = torch.get_num_threads()
    content, written, card = _read(path, threads)
    preset, _ = choose_preset(card, card["arch"], path, image_size, val_resize, interpolation)
    side = card["preprocessing"]["val"]["image_size"]
    if preset.image_size != side:
        raise UsageError(
            f"{path} takes images of {side} pixels, --image-size is {preset.image_size}; leave it "
            "out, or export the network with that size"
        )
    images = torch.zeros(written.batch_size or 2, 3, side, side)
    try:
        forward = written.forward
        if engine == "openvino":
            forward = export_formats.run_openvino(content, threads, "f32" if exact else None)
        shape = list(forward(images).shape)
    except Exception as error:
        raise CheckpointError(f"{path} does not run in {engine}: {_reason(error)}") from error
    if len(shape) != 2 or shape[0] != len(images) or not shape[1]:
        raise CheckpointError(f"{path} makes {shape} of {len(images)} images: it does not classify")
    network = Foreign(forward)
    return TrainedNetwork(
        model=FixedBatch(network, written.batch_size) if written.batch_size else network,
        arch=card["arch"],
        options={},
        classes=choose_classes(card["classes"], class_names, shape[1], path),
        preset=preset,
        notes=[f"{path} runs in {engine} on the CPU"],
    )


def _read(path: str, threads: int) -> tuple[bytes, export_formats.Written, dict[str, Any]]:
    """The content of a file, what onnxruntime makes of it, and its description."""
    try:
        content = Path(path).read_bytes()
        written = export_formats.read_onnx(content, threads)
        card = model_card.from_strings(written.card)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # onnxruntime has classes of its own, which share no base
        raise CheckpointError(
            f"{path} is no ONNX file, or damaged: export it again ({_reason(error)})"
        ) from error
    if not card:
        raise CheckpointError(
            f"{path} does not say how images are prepared: take a file of export.py or quantize.py"
        )
    return content, written, card


def _reason(error: Exception) -> str:
    """The last line of what an engine says: OpenVINO names its own files before it."""
    lines = str(error).strip().splitlines()
    return printable(lines[-1].strip() if lines else type(error).__name__, 200)
