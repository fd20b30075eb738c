# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The collectives of the fake accelerator: gloo on CPU aliases of the device tensors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def _alias(value: Any) -> Any:
    """Replace device tensors by CPU tensors over the same bytes; gloo knows only those."""
    if isinstance(value, torch.Tensor):
        return torch.ops.fakeacc.cpu_alias(value)
    return [_alias(item) for item in value] if isinstance(value, (list, tuple)) else value


class FakeBackend(torch._C._distributed_c10d.Backend):
    """A vendor's collectives under their name; like HCCL it cannot gather to one rank."""

    def __init__(self, name: str, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        wait = timeout if isinstance(timeout, timedelta) else timedelta(seconds=60)
        self._name = name
        self._gloo = dist.ProcessGroupGloo(store, rank, size, wait)

    def getBackendName(self) -> str:
        return self._name

    def _call(self, method: str, *arguments: Any) -> Any:
        given = [_alias(argument) for argument in arguments if argument is not None]
        return getattr(self._gloo, method)(*given)

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        return self._call("allreduce", tensors, opts)

    def allreduce_coalesced(self, tensors: Any, opts: Any = None) -> Any:
        return self._call("allreduce_coalesced", tensors, opts)

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:
        return self._call("broadcast", tensors, opts)

    def reduce(self, tensors: Any, opts: Any = None) -> Any:
        return self._call("reduce", tensors, opts)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        return self._call("allgather", outputs, inputs, opts)

    def all_gather_single(self, output: Any, source: Any, opts: Any = None) -> Any:
        # Flat: a vendor's library counts elements, gloo looks at the first dimension.
        return self._call("_allgather_base", output.view(-1), source.view(-1), opts)

    _allgather_base = all_gather_single  # the name before it became public

    def all_gather_single_coalesced(self, outputs: Any, sources: Any, opts: Any = None) -> Any:
        return self._call("all_gather_single_coalesced", outputs, sources, opts)

    def reduce_scatter_single(self, output: Any, source: Any, opts: Any = None) -> Any:
        return self._call("_reduce_scatter_base", output, source, opts)

    _reduce_scatter_base = reduce_scatter_single

    def gather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        raise NotImplementedError(f"{self._name} has no gather")

    def barrier(self, opts: Any = None) -> Any:
        return self._gloo.barrier()
