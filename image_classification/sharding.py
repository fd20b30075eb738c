# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded data parallel: every rank keeps a part of weights, gradients and optimizer state.

Zhao et al. 2023, arXiv:2304.11277, as torch.distributed.fsdp.fully_shard has it. The ranks bring
the weights of a block together right before it computes. Checkpoints hold whole tensors, so that
they do not depend on how a run spreads them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from image_classification.errors import UsageError
from image_classification.recomputing import block_rows


def require_engine() -> None:
    """Looks whether this PyTorch has the engine.

    Raises:
        UsageError: It is too old.
    """
    import torch.distributed.fsdp

    if not hasattr(torch.distributed.fsdp, "fully_shard"):
        raise UsageError(
            f"--parallel fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}; use "
            "--parallel ddp"
        )


def shard(networks: Iterable[nn.Module], device_type: str, world_size: int) -> str:
    """Spreads the weights of networks of this package over all ranks; all of them call it.

    Each block becomes a unit of its own; so does all that is in no block. The weights become
    contiguous: the engine knows no other memory format. Buffers stay whole on every rank.

    Args:
        networks: Alike on every rank, on the device.
        device_type: Of that device.
        world_size: Number of ranks; a single one keeps everything.

    Returns:
        What was done, in a line.
    """
    if world_size == 1:
        return "--parallel fsdp: a single process keeps all of the weights"
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device_type, (world_size,))
    size = own = 0
    for network in networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        size += sum(map(_size, network.parameters()))
        for unit in (*(block for row in block_rows(network) for block in row), network):
            fully_shard(unit, mesh=mesh)
        own += sum(_size(local(parameter)) for parameter in network.parameters())
    share = f"{own / 2**20:.1f} of {size / 2**20:.1f} MiB"
    return f"weights are spread over {world_size} processes: {share} on this one"


def is_sharded(network: nn.Module) -> bool:
    """Whether `shard` has spread the weights of this network."""
    return hasattr(network, "set_requires_gradient_sync")


@contextlib.contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """A context in which every rank has all weights: it may compute while the others do not.

    All ranks enter it together; nothing happens to a network that is not sharded.
    """
    units: list[Any] = [module for module in network.modules() if is_sharded(module)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not network, recurse=False)


def is_spread(value: Any) -> bool:
    """Whether it is a tensor of which every rank has a part."""
    return hasattr(value, "full_tensor")


def whole(state: Any) -> Any:
    """Brings the parts of all ranks together in nested dicts; all ranks call it.

    Returns:
        The same with tensors of the ranks' parts replaced by whole ones on the CPU; what else there
        is stays as it is.
    """
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    return state.full_tensor().cpu() if is_spread(state) else state


def total(value: torch.Tensor) -> torch.Tensor:
    """Completes what an operation over spread tensors has returned; all ranks call it."""
    completed: torch.Tensor = value.full_tensor() if is_spread(value) else value  # type: ignore[attr-defined]
    return completed


def norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of each tensor, of which all or none are spread; all ranks call it.

    Args:
        tensors: At least one, all on one device.

    Returns:
        Float [number of tensors] on that device: of the whole tensors, from a single sum over the
        ranks.
    """
    found = torch.stack(torch._foreach_norm([local(one) for one in tensors]))
    if not is_spread(tensors[0]):
        return found
    import torch.distributed as dist

    squares = found.square()
    mesh: Any = tensors[0].device_mesh  # type: ignore[attr-defined]
    dist.all_reduce(squares, group=mesh.get_group())
    return squares.sqrt()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of this rank, which shares the tensor's memory; else the tensor itself."""
    part: torch.Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return part


def spread_like(model: Any, value: Any) -> Any:
    """Takes this rank's part of a whole tensor.

    Args:
        model: A tensor whose parts the ranks have, or any other one.
        value: What has a value for all of it.

    Returns:
        `value`, spread as the model is if that is spread and of the same shape.
    """
    if not is_spread(model) or getattr(value, "shape", None) != model.shape:
        return value
    from torch.distributed.tensor import DTensor

    # Without communication: not every device's library has the one of distribute_tensor.
    (placement,), mesh = model.placements, model.device_mesh
    value = value.contiguous()
    parts, rank = value.chunk(mesh.size(), dim=placement.dim), mesh.get_local_rank()
    part = parts[rank] if rank < len(parts) else value.narrow(placement.dim, 0, 0)
    return DTensor.from_local(
        part.to(local(model).device, copy=True), mesh, model.placements, run_check=False,
        shape=value.shape, stride=value.stride(),
    )  # fmt: skip


def load_state_dict(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Gives a network, sharded or not, the weights of a state dict of whole tensors."""
    spread = network.state_dict()
    network.load_state_dict(
        {name: spread_like(spread.get(name), value) for name, value in state.items()}
    )


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
