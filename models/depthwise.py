# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution whose gradients are fast in bfloat16 on a CPU.

There oneDNN has no kernel of its own for two of them, and they take ten to a hundred times as long
as their neighbours: the gradient of the input at a stride above 1, and that of the weights where
the kernel is larger than 3x3. Both are put together from those that are fast; the products that
are added up stay the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

# The largest side of a kernel whose weight gradient is fast.
_WINDOW = 3


class DepthwiseConv2d(nn.Conv2d):
    """One square kernel for each channel, no bias: nn.Conv2d, but for the time its gradients take.

    Args:
        channels: channels of input and output.
        kernel: side of the kernel, odd.
        stride: in both directions.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)]."""
        if not torch.jit.is_scripting():
            if self._has_slow_gradients(x):
                return depthwise(x.bfloat16(), self.weight.bfloat16(), self.stride[0])
        return self._conv_forward(x, self.weight, self.bias)

    @torch.jit.unused
    def _has_slow_gradients(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or self.bias is not None:  # a bias: BatchNorm was folded into it
            return False
        dtypes = {x.dtype, self.weight.dtype}
        if x.dim() != 4 or torch.float64 in dtypes:  # which autocast leaves alone
            return False
        if self.stride[0] == 1 and self.kernel_size[0] <= _WINDOW:
            return False
        if not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)):
            return False
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu") is torch.bfloat16
        return dtypes == {torch.bfloat16}


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return functional.conv2d with a group for each channel and a padding of K // 2.

    Args:
        x: [N, C, H, W].
        weight: [C, 1, K, K], K odd.
        stride: in both directions.
    """
    out: Tensor = _Depthwise.apply(x, weight, stride)
    return out


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _convolution(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        of_input, of_weight, _ = ctx.needs_input_grad
        return (
            _input_gradient(gradient, x, weight, ctx.stride) if of_input else None,
            _weight_gradient(gradient, x, weight, ctx.stride) if of_weight else None,
            None,
        )


def _convolution(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    padding = weight.shape[-1] // 2
    return functional.conv2d(x, weight, None, stride, padding, groups=len(weight))


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Spreads the gradient, zeros in between, and convolves it with the turned kernels."""
    if stride > 1:
        spread = torch.zeros_like(x)
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return _convolution(gradient, weight.flip(2, 3))


def _weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Joins the gradients of windows of the kernel, each of a part of the padded input.

    So are those of kernels that are larger than the image: rows of them that meet nothing but
    padding come from oneDNN as whatever was in memory (PyTorch 2.15, bfloat16, stride 2, 1x1).
    """
    kernel, channels = weight.shape[-1], len(weight)
    if kernel <= min(_WINDOW, *x.shape[2:]):
        padding = kernel // 2
        return conv2d_weight(x, weight.shape, gradient, stride, padding, groups=channels)
    padded = functional.pad(x, [kernel // 2] * 4)
    height, width = (stride * (side - 1) + _WINDOW for side in gradient.shape[2:])
    window = (channels, 1, _WINDOW, _WINDOW)
    whole = torch.empty_like(weight)
    starts = [*range(0, kernel - _WINDOW, _WINDOW), kernel - _WINDOW]
    for top in starts:
        for left in starts:
            part = padded[:, :, top : top + height, left : left + width]
            whole[:, :, top : top + _WINDOW, left : left + _WINDOW] = conv2d_weight(
                part, window, gradient, stride, groups=channels
            )
    return whole
