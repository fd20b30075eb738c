# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Inference with fewer operations: BatchNorm becomes part of the convolution before it."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Returns a copy whose convolutions do what their BatchNorm did with its running statistics.

    Args:
        network: One of this package, in evaluation mode; it stays as it is.

    Returns:
        A network of the same outputs, up to rounding; what was BatchNorm passes its input on.
    """
    folded = copy.deepcopy(network)
    modules = dict(folded.named_modules())
    with torch.no_grad():
        for node in _Tracer().trace(folded).nodes:
            before = node.all_input_nodes[0] if node.all_input_nodes else node
            conv, norm = (modules.get(str(each.target)) for each in (before, node))
            pair = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
            if pair and len(before.users) == 1:
                _replace(folded, str(before.target), fuse_conv_bn_eval(conv, norm))
                _replace(folded, str(node.target), nn.Identity())
    return folded


class _Tracer(fx.Tracer):
    """Looks into no convolution, be it of this package."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
