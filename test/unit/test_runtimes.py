# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runtimes: the same logits as eager PyTorch, for any number of images."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from image_classification import compiling
from image_classification.device import Device
from image_classification.errors import DivergedError, UsageError
from image_classification.option_types import RUNTIMES
from image_classification.runtimes import PACKAGES, FixedBatch, Foreign, Runtime
from models import create_model

CPU = Device.select("cpu")
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def runtime(name: str, lines: list[str], amp_dtype: torch.dtype | None = None) -> Runtime:
    torch.manual_seed(0)
    return Runtime(name, create_model("resnet18_cifar", 5), CPU, amp_dtype, lines.append)


@pytest.mark.parametrize("name", ["folded", "compile", "onnxruntime", "openvino"])
def test_logits_are_those_of_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", *PACKAGES[name]) if PACKAGES[name] else ():
        pytest.importorskip(package)
    if name == "compile":  # the compiler itself works in test_compile.py
        monkeypatch.setattr(compiling, "obstacle", lambda device: None)
        aot_eager = functools.partial(torch.compile, backend="aot_eager", dynamic=False)
        monkeypatch.setattr(torch, "compile", lambda network, **of_inductor: aot_eager(network))
    lines: list[str] = []
    way = runtime(name, lines)
    before = {key: value.clone() for key, value in way.model.state_dict().items()}
    with torch.inference_mode():  # as classify.py has it
        ready = way.prepare(IMAGES)
        for count in (4, 1, 6):
            images = IMAGES[torch.arange(count) % 4]
            expected = way.model(images)
            assert torch.allclose(ready(images), expected, rtol=1e-3, atol=1e-3)
    assert len(lines) == 1 and "the same class for 4 of 4 images" in lines[0]
    assert all(torch.equal(value, before[key]) for key, value in way.model.state_dict().items())


def test_the_precision_of_the_caller_is_not_traced() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    lines: list[str] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):  # classify.py's default
        ready = runtime("onnxruntime", lines).prepare(IMAGES)
    assert ready(IMAGES).dtype is torch.float32 and len(lines) == 1


def test_the_options_offer_all_runtimes() -> None:
    assert tuple(PACKAGES) == RUNTIMES


def test_eager_is_the_network_itself() -> None:
    lines: list[str] = []
    way = runtime("eager", lines)
    assert way.prepare(IMAGES) is way.model and not way.model.training and lines == []


def test_a_network_that_cannot_be_compiled_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "obstacle", lambda device: "no compiler")
    lines: list[str] = []
    way = runtime("compile", lines)
    assert way.prepare(IMAGES) is way.model and lines == ["no compiler: eager instead"]


def test_what_does_not_go_together() -> None:
    with pytest.raises(UsageError, match="is for cuda, the device is cpu"):
        runtime("tensorrt", []).prepare(IMAGES)
    with pytest.raises(UsageError, match="no mixed precision"):
        runtime("onnxruntime", [], torch.bfloat16).prepare(IMAGES)
    half = runtime("openvino", [])
    half.model.half()
    with pytest.raises(UsageError, match="does not go with half-precision weights"):
        half.prepare(IMAGES)
    with (
        mock.patch("image_classification.export_formats.missing_packages", lambda names: names),
        pytest.raises(UsageError, match="openvino needs openvino: pip install openvino"),
    ):
        runtime("openvino", []).prepare(IMAGES)


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = mock.Mock(return_value=lambda images: torch.full((len(images), 5), torch.nan))
    with (
        mock.patch.dict("image_classification.runtimes._MAKERS", {"compile": broken}),
        pytest.raises(DivergedError, match="--runtime compile: logits are not finite"),
    ):
        runtime("compile", []).prepare(IMAGES)


def test_batches_of_one_size_for_any_number_of_images() -> None:
    sizes = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.mean((2, 3))

    images = torch.randn(7, 3, 2, 2)
    assert torch.equal(FixedBatch(forward, 3)(images), images.mean((2, 3)))
    assert sizes == [3, 3, 3]


def test_steps_of_several_passes_are_compiled_without_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes = []
    monkeypatch.setattr(torch, "compile", lambda network, mode, dynamic: modes.append(mode))
    for mode in ("default", "reduce-overhead", "max-autotune"):
        for graphs in (True, False):
            compiling.compiled(torch.nn.Identity(), mode, graphs=graphs)
    assert modes == ["default", "default", "reduce-overhead", "default", "max-autotune",
                     "max-autotune-no-cudagraphs"]  # fmt: skip


def test_every_size_of_growing_images_is_compiled() -> None:
    if compiling.obstacle(Device.select("cpu")) is not None:
        pytest.skip("no compiler")
    count = torch._dynamo.testing.CompileCounter()
    compiling.compiled(torch.nn.Identity(), "default")  # lifts the limit, which is 8
    network = torch.compile(lambda images: images + 1, backend=count, dynamic=False)
    for side in range(1, 21):
        network(torch.zeros(side))
    assert count.frame_count == 20
    torch.compiler.reset()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_last_batch_is_filled_up_in_its_memory_format(layout: torch.memory_format) -> None:
    """A compiled network is compiled anew for another one."""
    seen = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(images.shape), images.stride()))
        return images.flatten(1)[:, :2]

    images = torch.randn(7, 3, 8, 8).contiguous(memory_format=layout)
    logits = FixedBatch(forward, 4)(images)
    assert torch.equal(logits, images.flatten(1)[:, :2])
    assert len(seen) == 2 and len(set(seen)) == 1


class Operators(TorchDispatchMode):
    """Names of PyTorch's operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_foreign_runtime_gets_its_images_without_pytorchs_threads() -> None:
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    got: list[torch.Tensor] = []
    with Operators() as called:
        logits = Foreign(lambda images: got.append(images) or images)(images)
    assert logits is got[0] and torch.equal(logits, images) and logits.is_contiguous()
    assert not any("copy" in name or "clone" in name for name in called.names), called.names
    assert Foreign(lambda images: images)(images.bfloat16()).dtype is torch.float32
