# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""torch.compile around the network that is trained or run.

What is compiled is kept in the user's cache, so that the next start of the same network with the
same shapes finds most of it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from image_classification.errors import UsageError
from image_classification.user_cache import keep_compiled

if TYPE_CHECKING:
    from image_classification.device import Device

_MOST_SHAPES = 64
_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}


def obstacle(device: Device) -> str | None:
    """Tries out on a trivial function whether this machine can compile for the device.

    That needs more than PyTorch: a C++ compiler and Python's headers on a CPU, Triton on cuda.

    Returns:
        One line on what is in the way, None where nothing is.
    """
    try:
        _compile(_trivial)(torch.zeros(8, device=device.torch_device))
        device.synchronize()
    except Exception as error:  # of Dynamo, of Inductor, of the compilers: each has its own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "rror" in line), "".join(lines[:1]))
        return f"torch.compile does not work on {device} here ({reason[:200]})"
    finally:
        torch.compiler.reset()
    return None


def compiled(network: nn.Module, mode: str, *, graphs: bool = True) -> nn.Module:
    """Wraps a network so that its first call compiles it, for every shape of input anew.

    Args:
        network: The network or what wraps it for several ranks; it stays what it is.
        mode: Of torch.compile: "default", "reduce-overhead" (CUDA graphs) or "max-autotune" (tries
            several kernels for each operation).
        graphs: CUDA graphs where the mode has them. Not for steps of several passes: gradients
            that are added up lie in a graph's memory, which the next pass takes (pytorch#169545).
    """
    config: Any = torch._dynamo.config
    for limit in ("recompile_limit", "cache_size_limit"):  # the name before PyTorch 2.6
        if hasattr(config, limit):  # --progressive-resize can have more sizes than the default
            setattr(config, limit, max(getattr(config, limit), _MOST_SHAPES))
    mode = mode if graphs else _WITHOUT_GRAPHS.get(mode, mode)
    wrapped: nn.Module = _compile(network, mode=mode)
    return wrapped


def scripted(
    network: nn.Module, jit: str, device: Device, amp_dtype: torch.dtype | None
) -> nn.Module:
    """Makes the TorchScript of a network if `jit` is "script", else returns the network.

    Raises:
        UsageError: Mixed precision on a device for which TorchScript does not have it.
    """
    if jit != "script":
        return network
    if amp_dtype is not None and device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"--jit script has no mixed precision on {device.type}: leave it or --amp out"
        )
    script: nn.Module = torch.jit.script(network)
    return script


def compiled_for_inference(network: nn.Module) -> nn.Module:
    """Wraps a network in evaluation mode so that its first call compiles it.

    Weights become constants: BatchNorm goes into the convolutions, and they are laid out as the
    kernels want them. Only for calls without gradients.
    """
    wrapped: nn.Module = _compile(network, options={"freezing": True})
    return wrapped


def _compile(function: Callable[..., Any], **how: Any) -> Any:
    keep_compiled()
    return torch.compile(function, dynamic=False, **how)


def _trivial(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0
