# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The contenders of inference.py: one network in several files, formats and engines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from benchmarks.measure import Contender, Unavailable
from image_classification.device import Device
from image_classification.export_formats import Forward, missing_packages, read_onnx, run_openvino


class Engine(NamedTuple):
    """A way to run a network on the CPU.

    Attributes:
        name: As in the table.
        settings: One line for the JSON file.
        path: The file that it runs.
        load: Returns what maps float32 [N, 3, H, W] to logits; raises Unavailable.
    """

    name: str
    settings: str
    path: Path
    load: Callable[[], Forward]


class Runner:
    """Classifies the same batch again and again."""

    def __init__(self, forward: Forward, images: torch.Tensor) -> None:
        self._forward, self._images = forward, images

    def run(self, steps: int) -> int:
        """Does the steps; returns their images."""
        for _ in range(steps):
            self._forward(self._images)
        return steps * len(self._images)

    def facts(self) -> dict[str, float]:
        """There is nothing to read but the time."""
        return {}


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Names of files that tell them apart: the ends of their paths, as short as possible."""
    whole, parts, names = {path: path.absolute().parts for path in paths}, 0, [""]
    while len({*names}) < len({*whole.values()}):
        parts += 1
        names = ["/".join(each[-parts:]) for each in whole.values()]
    return dict(zip(whole, names, strict=True))


def torch_engines(path: Path, name: str, model: nn.Module) -> list[Engine]:
    """A checkpoint in PyTorch's eager mode: FP32, and bfloat16 where the CPU has it."""
    return [
        Engine(
            f"{name} pytorch fp32", "eager, nhwc", path, cache(partial(_torch, model, "fp32"))
        ),
        Engine(
            f"{name} pytorch bf16", "eager, bfloat16 weights, nhwc", path,
            cache(partial(_torch, model, "bf16")),
        ),
    ]  # fmt: skip


def onnx_engines(path: Path, name: str, threads: int) -> list[Engine]:
    """An ONNX file in onnxruntime and OpenVINO."""
    return [
        Engine(
            f"{name} onnxruntime", f"{threads} threads", path,
            cache(partial(_onnxruntime, path, threads)),
        ),
        Engine(
            f"{name} openvino", f"{threads} threads", path,
            cache(partial(_openvino, path, threads)),
        ),
    ]  # fmt: skip


def contenders(engines: Sequence[Engine], images: torch.Tensor) -> list[Contender]:
    """What `measure.compare` takes, for one batch: float32 [N, 3, H, W]."""

    def build(engine: Engine) -> Runner:
        return Runner(engine.load(), images)

    return [Contender(each.name, each.settings, partial(build, each)) for each in engines]


def _torch(model: nn.Module, precision: str) -> Forward:
    dtype = torch.float32
    if precision == "bf16":
        fast, reason = Device.select("cpu").amp_dtype("auto")
        if fast is not torch.bfloat16:
            raise Unavailable(reason)
        dtype = fast
    layout = torch.channels_last  # as inference has it by default on a CPU
    own = copy.deepcopy(model).to(dtype, memory_format=layout)

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        return own(images.to(dtype, memory_format=layout)).float()

    return forward


def _onnxruntime(path: Path, threads: int) -> Forward:
    require_installed("onnxruntime")
    return read_onnx(path, threads).forward


def _openvino(path: Path, threads: int) -> Forward:
    require_installed("openvino")
    return run_openvino(path, threads)


def require_installed(package: str) -> None:
    """Raises Unavailable, which names the cure, where a package is missing."""
    if missing_packages((package,)):
        raise Unavailable(f"{package} is not installed; pip install {package}")
