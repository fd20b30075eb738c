# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The Python half of the fake accelerator: what a vendor's plug-in adds to PyTorch.

The operators are in fakeacc.cpp. Switches are environment variables, see test/fakes/README.md.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_batch_norm
import torch

_COLLECTIVE = {"npu": "hccl", "mlu": "cncl"}
_MASK = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "mlu": "MLU_VISIBLE_DEVICES"}
_PRODUCT = {"npu": "Fake Ascend 910B", "mlu": "Fake MLU590"}
_FP16_PRODUCT = {"npu": "Fake Ascend 910A", "mlu": "Fake MLU370"}
_TOTAL_MEMORY = 1 << 34
_KEPT_ALIVE: list[Any] = []


def _switch(name: str) -> bool:
    return os.environ.get(f"FAKE_ACC_{name}", "") not in ("", "0")


def _number(name: str, default: int) -> int:
    return int(os.environ.get(f"FAKE_ACC_{name}") or default)


def install(kind: str) -> ModuleType:
    """Make the fake device known to PyTorch as `kind` ("npu" or "mlu").

    Returns:
        The module that becomes torch.npu or torch.mlu.

    Raises:
        ImportError: as a plug-in without its driver, when FAKE_ACC_BROKEN is set.
    """
    if _switch("BROKEN"):
        raise ImportError("libfakedriver.so.1: cannot open shared object file: No such file")
    library = os.environ.get("FAKE_ACC_LIBRARY")
    if not library:
        raise ImportError("FAKE_ACC_LIBRARY is not set; use fake_environment() of support.py")
    torch.utils.rename_privateuse1_backend(kind)
    torch.ops.load_library(library)
    mask = os.environ.get(_MASK[kind])
    count = _number("COUNT", 2)
    if mask is not None:
        count = min(count, len([entry for entry in mask.split(",") if entry.strip()]))
    torch.ops.fakeacc.configure(count, _switch("SATURATE"), _number("OOM_MB", 0) << 20)
    module = _device_module(kind)
    torch._register_device_module(kind, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    _register_collective(kind)
    _KEPT_ALIVE.append(fake_batch_norm.register())
    if os.environ.get("FAKE_ACC_STATS"):
        _record_statistics(library, os.environ["FAKE_ACC_STATS"])
    return module


# --- the device module ----------------------------------------------------------------------


def _device_module(kind: str) -> ModuleType:
    ops = torch.ops.fakeacc
    module = ModuleType(f"torch_{kind}.{kind}")
    reduced = _switch("NO_BF16") or _switch("SATURATE")
    members: dict[str, Any] = {
        "is_available": lambda: ops.device_count() > 0,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "device_count": ops.device_count,
        "current_device": ops.current_device,
        "set_device": lambda device: ops.set_device(_index(device)),
        "device": _device_context,
        "get_device_name": lambda device=None: (_FP16_PRODUCT if reduced else _PRODUCT)[kind],
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=_TOTAL_MEMORY),
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda: not reduced,
        "get_amp_supported_dtype": lambda: (
            [torch.float16] if reduced else [torch.float16, torch.bfloat16]
        ),
        "_is_in_bad_fork": lambda: False,
        # One generator for the host and the device: random numbers equal those of a CPU run.
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "OutOfMemoryError": torch._C.OutOfMemoryError,
        "synchronize": lambda device=None: ops.count_wait("synchronize"),
        "amp": SimpleNamespace(GradScaler=_scaler_class(kind)),
    }
    if not _switch("NO_MEMORY_STATS"):
        members |= {
            "memory_allocated": lambda device=None: ops.memory_allocated(),
            "max_memory_allocated": lambda device=None: ops.max_memory_allocated(),
            "reset_peak_memory_stats": lambda device=None: ops.reset_peak_memory(),
        }
    if kind == "npu":
        members |= {
            "utils": SimpleNamespace(is_support_inf_nan=lambda: not _switch("SATURATE")),
            "get_float_status": lambda status: status.fill_(float(ops.take_overflow())),
            "clear_float_status": lambda status: status.fill_(float(ops.take_overflow()) * 0.0),
        }
    members |= _streams(kind)
    for name, member in members.items():
        setattr(module, name, member)
    return module


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return torch.ops.fakeacc.current_device() if index is None else index


@contextlib.contextmanager
def _device_context(device: Any) -> Iterator[None]:
    before = torch.ops.fakeacc.current_device()
    torch.ops.fakeacc.set_device(_index(device))
    try:
        yield
    finally:
        torch.ops.fakeacc.set_device(before)


def _streams(kind: str) -> dict[str, Any]:
    """Streams and events that keep the vendors' interface; work is done in order anyway."""

    class Stream(torch.Stream):
        def __new__(cls, device: Any = None, priority: int = 0, **rest: Any) -> Stream:
            index = torch.ops.fakeacc.current_device() if device is None else _index(device)
            return super().__new__(cls, device=torch.device(kind, index))

    class Event(torch.Event):
        def __new__(cls, enable_timing: bool = False, **rest: Any) -> Event:
            return super().__new__(cls, device=kind, enable_timing=enable_timing)

    @contextlib.contextmanager
    def stream(selected: Stream | None) -> Iterator[None]:
        yield

    return {
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": lambda device=None: Stream(device),
        "default_stream": lambda device=None: Stream(device),
    }


def _scaler_class(kind: str) -> type[torch.amp.GradScaler]:
    class GradScaler(torch.amp.GradScaler):
        """The vendors' scaler: on a saturating device overflow is a flag, not a value."""

        def __init__(self, *args: Any, dynamic: bool = True, **kwargs: Any) -> None:
            super().__init__(kind, *args, **kwargs)
            self._dynamic = dynamic

        def scale(self, outputs: Any) -> Any:
            if self.is_enabled():
                torch.ops.fakeacc.take_overflow()
            return super().scale(outputs)

        def _unscale_grads_(self, *args: Any) -> dict[torch.device, torch.Tensor]:
            found = super()._unscale_grads_(*args)
            flag = torch.tensor([float(torch.ops.fakeacc.take_overflow())], device=kind)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(flag)
            if flag.item() and self._dynamic:
                for value in found.values():
                    value.fill_(1.0)
            return found

        def update(self, new_scale: Any = None) -> None:
            if self.is_enabled() and not self._dynamic and new_scale is None:
                new_scale = self.get_scale()
            super().update(new_scale)

    return GradScaler


# --- collectives ----------------------------------------------------------------------------


def _register_collective(kind: str) -> None:
    import torch.distributed as dist

    if not dist.is_available():
        return
    from fake_collective import FakeBackend

    name = _COLLECTIVE[kind]

    def create(store: Any, rank: int, size: int, timeout: Any) -> FakeBackend:
        return FakeBackend(name, store, rank, size, timeout)

    dist.Backend.register_backend(name, create, devices=[kind])


# --- statistics -----------------------------------------------------------------------------


def _record_statistics(library: str, path: str) -> None:
    """Write at exit what the device did: operators, copies, and who made the host wait."""
    sites: Counter[str] = Counter()

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p)
    def note(kind: bytes) -> None:
        frame = sys._getframe().f_back
        while frame is not None and _is_internal(frame.f_code.co_filename):
            frame = frame.f_back
        place = "unknown"
        if frame is not None:
            name = os.path.basename(frame.f_code.co_filename)
            place = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        sites[f"{place} {kind.decode()}"] += 1

    ctypes.CDLL(library).fakeacc_set_wait_hook(note)
    rank = os.environ.get("RANK", "0")
    process = os.getpid()

    def write() -> None:
        operators = dict(torch.ops.fakeacc.counters("operators"))
        if os.getpid() != process or not operators:
            return  # a helper process that never touched the device
        waits = dict(torch.ops.fakeacc.counters("waits"))
        copies = dict(torch.ops.fakeacc.counters("copies"))
        report = {
            "host_waits": sum(waits.values()),
            "waits": waits,
            "wait_sites": dict(sites),
            "device_to_host_copies": copies.get("device_to_host", 0),
            "copies": copies,
            "operators": operators,
        }
        target = path if rank == "0" else f"{path}.rank{rank}"
        with open(target, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1, sort_keys=True)
        ctypes.CDLL(library).fakeacc_set_wait_hook(None)

    _KEPT_ALIVE.append(note)  # the library holds a bare pointer
    atexit.register(write)


def _is_internal(filename: str) -> bool:
    torch_folder = os.path.dirname(torch.__file__)
    return filename.startswith((torch_folder, os.path.dirname(__file__), "<"))
