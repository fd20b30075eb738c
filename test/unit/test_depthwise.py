# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution: nn.Conv2d's outputs and gradients, by another way in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models import create_model, depthwise
from models.depthwise import DepthwiseConv2d

BF16 = torch.bfloat16


def leave_nans_in_freed_memory() -> None:
    sizes = [1 << power for power in range(3, 13)] * 50
    del [torch.full((size,), torch.nan, dtype=BF16) for size in sizes][:]


def gradients(conv: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients of images and weights for a fixed gradient of the output."""
    images = images.clone().requires_grad_()
    out = conv(images)
    wanted = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    leave_nans_in_freed_memory()
    out.backward(wanted.to(BF16).to(out.dtype))
    (weight,) = conv.parameters()
    return out.detach().double(), images.grad.double(), weight.grad.double()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (11, 8), (2, 2), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_the_gradients_are_those_of_a_convolution(
    kernel: int, stride: int, height: int, width: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(6, kernel, stride).to(BF16, memory_format=layout)
    exact = nn.Conv2d(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    exact.load_state_dict(conv.state_dict())
    images = torch.randn(3, 6, height, width).to(BF16).to(memory_format=layout)
    for found, expected in zip(
        gradients(conv, images), gradients(exact, images.double()), strict=True
    ):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=2**-7, atol=2**-7 * expected.abs().max())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Strides of the calls that went the other way."""
    seen: list[int] = []
    own = depthwise.depthwise

    def spy(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        assert x.dtype is weight.dtype is BF16
        seen.append(stride)
        return own(x, weight, stride)

    monkeypatch.setattr(depthwise, "depthwise", spy)
    return seen


def test_a_training_step_in_mixed_precision_takes_the_other_way(calls: list[int]) -> None:
    network = create_model("efficientnet-b0", 4)
    with torch.autocast("cpu", BF16):
        network(torch.randn(2, 3, 32, 32)).sum().backward()
    strides = [m.stride[0] for m in network.modules() if isinstance(m, DepthwiseConv2d)
               if m.kernel_size[0] > 3 or m.stride[0] > 1]  # fmt: skip
    assert calls == strides and len(strides) == 11
    assert all(one.grad.dtype is torch.float32 for one in network.parameters())


def test_nothing_else_does(calls: list[int]) -> None:
    conv, images = DepthwiseConv2d(6, 5, 2), torch.randn(2, 6, 8, 8)
    conv(images)  # FP32
    with pytest.raises(RuntimeError, match="same"):
        conv(images.to(BF16))
    with torch.autocast("cpu", torch.float16):
        conv(images)
    with torch.autocast("cpu", BF16):
        DepthwiseConv2d(6, 3)(images)  # its gradients are fast as they are
        conv(images[0])  # no batch
        assert DepthwiseConv2d(6, 5, 2).double()(images.double()).dtype is torch.float64
        with torch.no_grad():
            conv(images)
        conv.requires_grad_(False)(images)
    assert not calls


def test_frozen_weights_hand_the_gradient_on(calls: list[int]) -> None:
    conv, images = DepthwiseConv2d(6, 5, 2).requires_grad_(False), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", BF16):
        conv(images.requires_grad_()).sum().backward()
    assert calls == [2] and conv.weight.grad is None and images.grad.abs().sum() > 0


def test_torchscript_and_the_compiler_take_it() -> None:
    torch.manual_seed(0)
    conv, images = DepthwiseConv2d(6, 5, 2), torch.randn(2, 6, 8, 8)
    assert torch.equal(torch.jit.script(conv)(images), conv(images))
    found = []
    for network in (conv, torch.compile(conv, backend="aot_eager", fullgraph=True)):
        conv.zero_grad()
        with torch.autocast("cpu", BF16):
            network(images).square().sum().backward()
        found.append(conv.weight.grad.clone())
    assert torch.equal(*found)
