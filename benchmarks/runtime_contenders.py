# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The contenders of runtimes.py: one network of random weights in every runtime, and its peers'."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.inference_contenders import Runner, require_installed
from benchmarks.measure import Contender, Unavailable
from benchmarks.peers import timm_loop, torchvision_loop
from image_classification import compiling, export_formats, quantization
from image_classification.device import Device
from image_classification.errors import UsageError
from image_classification.runtimes import Foreign, Runtime
from models import create_model

NUM_CLASSES = 1000


class Way(NamedTuple):
    """How a network is run.

    Attributes:
        title: As in the table.
        source: Whose network: "ours", "torchvision" or "timm".
        runtime: A name of `--runtime`; "int8" for the file that quantize.py makes.
        amp: Mixed precision, where the device is fast with it.
        layout: As --memory-format.
    """

    title: str
    source: str
    runtime: str
    amp: bool
    layout: str = "auto"


# Option -> what it is.
NAMES = {
    "torchvision": Way("torchvision eager fp32 nchw", "torchvision", "eager", False, "nchw"),
    "timm": Way("timm eager fp32 nhwc", "timm", "eager", False, "nhwc"),
    "timm-amp": Way("timm eager amp nhwc", "timm", "eager", True, "nhwc"),
    "timm-compile": Way("timm compiled fp32 nhwc", "timm", "compile", False, "nhwc"),
    "timm-compile-amp": Way("timm compiled amp nhwc", "timm", "compile", True, "nhwc"),
    "eager": Way("ours eager", "ours", "eager", False),
    "eager-amp": Way("ours eager --amp", "ours", "eager", True),
    "folded": Way("ours folded", "ours", "folded", False),
    "folded-amp": Way("ours folded --amp", "ours", "folded", True),
    "compile": Way("ours compile", "ours", "compile", False),
    "compile-amp": Way("ours compile --amp", "ours", "compile", True),
    "onnxruntime": Way("ours onnxruntime", "ours", "onnxruntime", False),
    "openvino": Way("ours openvino", "ours", "openvino", False),
    "openvino-amp": Way("ours openvino --amp", "ours", "openvino", True),
    "tensorrt-amp": Way("ours tensorrt --amp", "ours", "tensorrt", True),
    "int8-onnxruntime": Way("ours INT8 onnxruntime", "ours", "int8", False),
    "int8-openvino": Way("ours INT8 openvino", "ours", "int8", False),
}
BASELINE = NAMES["torchvision"].title


def list_contenders(
    names: Sequence[str], arch: str, device: Device, image_size: int, batch_size: int
) -> list[Contender]:
    """Describes the contenders.

    Args:
        names: Keys of `NAMES`.
        arch: Name of the network, as this package writes it.
        device: The device.
        image_size: Side of the images in pixels.
        batch_size: Images of the batch.
    """
    shape = batch_size, 3, image_size, image_size
    found = []
    for name in names:
        way = NAMES[name]
        build = partial(_build, name, way, arch, device.type, shape)
        found.append(Contender(way.title, way.layout, build, peer=way.source != "ours"))
    return found


def _build(
    name: str, way: Way, arch: str, device_type: str, shape: tuple[int, int, int, int]
) -> Runner:
    device, amp_dtype = Device.select(device_type), None
    if way.amp:
        amp_dtype, why = device.amp_dtype()
        if amp_dtype is None:
            raise Unavailable(why)
    layout = device.memory_format(way.layout, half=way.amp)
    torch.manual_seed(0)
    network = _network(way.source, arch).to(device.torch_device, memory_format=layout).eval()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device.torch_device, memory_format=layout)
    if way.source == "timm" and way.runtime == "compile":  # as timm's own benchmark does
        if (problem := compiling.obstacle(device)) is not None:
            raise Unavailable(problem)
        # Each batch size on its own, as if it were the only one of the process.
        return _runner(torch.compile(network, dynamic=False), images, device, amp_dtype)
    if way.runtime == "int8":
        return Runner(_int8(network, images, device, name.rpartition("-")[2]), images)
    said: list[str] = []
    try:
        with torch.inference_mode():
            ready = Runtime(way.runtime, network, device, amp_dtype, said.append).prepare(images)
    except UsageError as error:  # a package is missing, or it does not go with the device
        raise Unavailable(str(error)) from error
    if ready is network and way.runtime != "eager":
        raise Unavailable(said[0])
    return _runner(ready, images, device, amp_dtype)


def _runner(
    network: nn.Module, images: torch.Tensor, device: Device, amp_dtype: torch.dtype | None
) -> Runner:
    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        with device.autocast(amp_dtype):
            return network(images)

    return Runner(forward, images)


def _network(source: str, arch: str) -> nn.Module:
    if source == "torchvision":
        return torchvision_loop.create_model(arch)
    return timm_loop.create_model(arch) if source == "timm" else create_model(arch, NUM_CLASSES)


def _int8(network: nn.Module, images: torch.Tensor, device: Device, engine: str) -> nn.Module:
    """The network in 8 bits, its ranges from these images, run by that engine."""
    if device.is_accelerator:
        raise Unavailable("INT8 is made for CPUs")
    try:
        quantization.require_packages()
    except UsageError as error:
        raise Unavailable(str(error)) from error
    require_installed(engine)
    example = torch.zeros(2, *images.shape[1:])
    plain = network.to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        written, made = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        written.write_bytes(
            export_formats.write("onnx", plain, {}, export_formats.Example(example, any_batch=True))
        )
        bits, _ = quantization.choose_weight_bits()
        calibration = [images.contiguous()]
        quantization.quantize(written, made, calibration, {}, weight_bits=bits)
        content, threads = made.read_bytes(), torch.get_num_threads()
    if engine == "onnxruntime":
        return Foreign(export_formats.read_onnx(content, threads).forward)
    return Foreign(export_formats.run_openvino(content, threads))
