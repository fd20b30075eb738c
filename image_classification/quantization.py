# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""8-bit integers for CPUs: onnxruntime's static quantisation of an exported network.

Weights get one scale for each output channel, activations one for each tensor, from the smallest
and the largest value that calibration images show (arXiv:1712.05877). The file keeps float
operations between quantise and dequantise nodes ("QDQ"); the engine that runs it fuses them into
integer ones.

What works on pooled features stays in float: the classifier, and the gates of squeeze-and-
excitation. They take hardly any time, and their error would reach all positions at once.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from image_classification import model_card
from image_classification.atomic_file import atomic_file
from image_classification.cpu_features import multiplies_int8
from image_classification.errors import UsageError
from image_classification.export_formats import FORMATS, INPUT, Card, missing_packages

_POOLING = ("ReduceMean", "GlobalAveragePool")


def require_packages() -> None:
    """Check that all is installed.

    Raises:
        UsageError: a package is missing; the message names the command.
    """
    if missing := missing_packages((*FORMATS["onnx"].packages, *FORMATS["onnx"].readers)):
        raise UsageError(
            f"quantisation needs {' and '.join(missing)}; pip install {' '.join(missing)}"
        )


def choose_weight_bits() -> tuple[int, str]:
    """Choose 7 or 8 bits for weights on this machine; returns the bits and a line that says why.

    Without such instructions, x86 adds two products of 8-bit numbers in 16 bits, which saturate.
    """
    if multiplies_int8():
        return 8, "weights of 8 bits: this CPU multiplies them without saturation"
    return 7, (
        "weights of 7 bits: this CPU has no VNNI instructions, and its 8-bit products would "
        "saturate; --weight-bits 8 makes the file for another one"
    )


class _Images:
    """What onnxruntime asks for calibration images."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None after the last."""
        images = next(self._batches, None)
        return None if images is None else {INPUT: images.numpy()}


def quantize(
    source: Path, output: Path, batches: Iterable[Tensor], card: Card, *, weight_bits: int
) -> None:
    """Write the 8-bit form of an ONNX file.

    Args:
        source: what `exporter.export` wrote as "onnx".
        output: file to write; appears complete or not at all.
        batches: calibration images, float32 [N, 3, S, S], as validation prepares them.
        card: what `model_card.describe` returned.
        weight_bits: 8, or 7 for x86 processors without VNNI.

    Raises:
        UsageError: the file cannot be written.
    """
    onnx = importlib.import_module("onnx")
    tools = importlib.import_module("onnxruntime.quantization")
    preparation = importlib.import_module("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        # The shapes alone: torch's exporters have folded BatchNorm into the convolutions already.
        preparation.quant_pre_process(
            source, prepared, skip_optimization=True, skip_symbolic_shape=True
        )
        tools.quantize_static(
            prepared, quantized, _Images(batches),
            quant_format=tools.QuantFormat.QDQ, per_channel=True, reduce_range=weight_bits == 7,
            activation_type=tools.QuantType.QUInt8, weight_type=tools.QuantType.QInt8,
            nodes_to_exclude=nodes_after_pooling(onnx.load(prepared).graph),
            calibrate_method=tools.CalibrationMethod.MinMax,
        )  # fmt: skip
        written = onnx.load(quantized)
    description = {**card, "quantisation": f"int8, weights of {weight_bits} bits per channel"}
    onnx.helper.set_model_props(written, model_card.to_strings(description))
    try:
        with atomic_file(output) as file:
            file.write(written.SerializeToString())
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error


def nodes_after_pooling(graph: Any) -> list[str]:
    """Name the nodes of an ONNX graph whose inputs are all pooled features.

    Args:
        graph: onnx.GraphProto, its nodes in the order in which they run.

    Returns:
        The names; a node that joins pooled features with others is not among them.
    """
    constants = {tensor.name for tensor in graph.initializer}
    pooled: set[str] = set()
    names = []
    for node in graph.node:
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type == "Constant" or not inputs:
            constants.update(node.output)
        elif node.op_type in _POOLING:
            pooled.update(node.output)
        elif pooled.issuperset(inputs):
            pooled.update(node.output)
            names.append(node.name)
    return names
