# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The device of this process: cuda, npu, mlu, xpu or cpu, chosen from one table.

A `Device` answers every question that depends on the hardware: which device this process uses,
precision, grad scaler, streams, memory, telemetry, seeds. PyTorch is imported by the functions
and not by the module, so that the table can be read without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from . import host_memory
from .cpu_features import cpu_name, has_fast_bfloat16
from .device_table import (
    DEVICE_TABLE,
    DEVICE_TYPES,
    OUT_OF_MEMORY,
    DeviceSpec,
    available_devices,
    choose_index,
    choose_spec,
    import_torch_or_explain,
)
from .device_telemetry import Telemetry
from .errors import UsageError

if TYPE_CHECKING:
    import torch

# The growth interval of the grad scaler in NVIDIA's ResNet-50 recipe (PyTorch's default: 2000).
_GROWTH_INTERVAL = 100
_INITIAL_SCALE = 65536.0
_CAVEAT = ", other rounding in each run (--deterministic: the same bits)"

__all__ = ["DEVICE_TABLE", "DEVICE_TYPES", "Device", "DeviceSpec", "MemoryUse",
           "available_devices", "import_torch_or_explain"]  # fmt: skip


class MemoryUse(NamedTuple):
    """Device memory of this process in bytes: now, the most so far, and what the device has."""

    allocated: int
    peak: int
    total: int


class Device:
    """The device of this process; made by `Device.select`.

    Attributes:
        type: "cuda", "npu", "mlu", "xpu" or "cpu".
        index: index among the visible devices of that type.
        torch_device: the same as a torch.device (without an index for cpu).
        spec: the row of the device table.
        caveat: what is not the same in each run, for the log; set by `configure`.
    """

    def __init__(self, spec: DeviceSpec, index: int) -> None:
        import torch

        self.type = spec.type
        self.index = index
        self.spec = spec
        self.torch_device = torch.device("cpu" if spec.type == "cpu" else f"{spec.type}:{index}")
        self._module = _module_of(spec)
        self.caveat = ""

    @classmethod
    def select(cls, wanted: str = "auto", local_rank: int = 0, index: int | None = None) -> Device:
        """Choose the device and bind this process to it; on the CPU, keep memory that is freed.

        Args:
            wanted: "auto", "gpu" (= cuda) or a type of the table.
            local_rank: number of this process on its node; the index unless `index` is given.
            index: index of the device, for runs without a launcher.

        Returns:
            The device. An absent one is never replaced by another.

        Raises:
            UsageError: not in the table, not available, or no device for this process.
        """
        spec = choose_spec(wanted)
        count = 1 if spec.type == "cpu" else int(_module_of(spec).device_count())
        device = cls(spec, choose_index(spec, count, local_rank, index))
        if device.is_accelerator:
            device._module.set_device(device.index)
        else:
            host_memory.keep_freed()
        return device

    def __str__(self) -> str:
        return f"{self.torch_device} ({self.name})"

    # --- what it is ---

    @functools.cached_property
    def name(self) -> str:
        """Product name, for cpu the model name of the processor."""
        if not self.is_accelerator:
            return cpu_name()
        try:
            return str(self._module.get_device_name(self.index))
        except Exception:  # a name is never worth a failure
            return self.spec.label

    @property
    def count(self) -> int:
        """Number of visible devices of this type (cpu: 1)."""
        return int(self._module.device_count()) if self.is_accelerator else 1

    @property
    def is_accelerator(self) -> bool:
        """True for everything but the cpu."""
        return self.type != "cpu"

    @property
    def collective(self) -> str:
        """Process group backend: nccl, hccl, cncl, xccl or gloo."""
        return self.spec.collective

    @property
    def identity(self) -> str:
        """Text that differs between the devices of one node, to find two ranks on one device."""
        return f"{self.type}:{self.spec.physical_index(self.index)}"

    def prefers_fused_optimizers(self, amp_dtype: torch.dtype | None) -> bool:
        """Return whether SGD and AdamW run as one kernel for all parameters.

        The CPU's kernel rounds otherwise than the operators that devices without such a kernel
        run. In FP32 all of them agree to the bit, so there it is left out.
        """
        return self.type == "cuda" or (self.type == "cpu" and amp_dtype is not None)

    def process_group_device(self) -> torch.device | None:
        """Return the value for init_process_group(device_id=): known to work on cuda only."""
        return self.torch_device if self.type == "cuda" else None

    def ddp_device_ids(self) -> list[int] | None:
        """Return the value for DistributedDataParallel(device_ids=): None off cuda."""
        return [self.index] if self.type == "cuda" else None

    # --- setting up ---

    def seed(self, seed: int) -> None:
        """Seed PyTorch's generators of the cpu and of this device, without waiting for it.

        Args:
            seed: any integer of 64 bits.
        """
        import torch

        # Not torch.manual_seed: it costs 100 times as much, and this is called in every step.
        torch.default_generator.manual_seed(seed)
        if self.is_accelerator:
            self._module.manual_seed(seed)

    def configure(self, tf32: bool | None, deterministic: bool) -> None:
        """Set the switches that apply to the whole process; call before the first operator.

        Args:
            tf32: TensorFloat-32 in convolutions and matrix products; None leaves PyTorch's
                default.
            deterministic: only operators that give the same result in every run; PyTorch raises
                an error where there is none.

        Raises:
            UsageError: TF32 wanted on a device that has no such switch.
        """
        import torch

        if tf32 and self.type != "cuda":
            raise UsageError(f"--tf32 is a switch of NVIDIA GPUs; the device here is {self}")
        if self.type == "cuda":
            if tf32 is not None:
                torch.backends.cuda.matmul.allow_tf32 = tf32
                torch.backends.cudnn.allow_tf32 = tf32
            torch.backends.cudnn.benchmark = not deterministic
            torch.backends.cudnn.deterministic = deterministic
        if deterministic:
            for name, value in self.spec.deterministic_environment:
                os.environ.setdefault(name, value)
        torch.use_deterministic_algorithms(deterministic)
        self.caveat = "" if deterministic or not self.is_accelerator else _CAVEAT

    # --- precision ---

    @functools.cached_property
    def _bfloat16(self) -> bool:
        import torch

        if not self.is_accelerator:
            return has_fast_bfloat16()
        if self.type == "cuda" and not torch.version.hip:
            # is_bf16_supported() of PyTorch also says yes where bfloat16 is only emulated.
            return bool(self._module.get_device_capability(self.index)[0] >= 8)
        supported = getattr(self._module, "is_bf16_supported", None)
        if supported is not None:
            return bool(supported())
        try:
            ones = torch.ones(2, 2, dtype=torch.bfloat16, device=self.torch_device)
            return bool((ones @ ones).float().sum().item() == 8.0)
        except Exception:  # no kernel for the type
            return False

    def supports_bfloat16(self) -> bool:
        """Return whether bfloat16 is fast here; on a cpu with AVX512-BF16 or AMX only."""
        return self._bfloat16

    def amp_dtype(self, wanted: str = "auto") -> tuple[torch.dtype | None, str]:
        """Choose the low precision of mixed precision training.

        Args:
            wanted: "auto", "bfloat16" or "float16".

        Returns:
            The dtype, None for FP32, and one line that says what was chosen and why.

        Raises:
            UsageError: an explicit wish that the device cannot meet.
        """
        import torch

        if wanted == "float16" and not self.is_accelerator:
            raise UsageError("--amp-dtype float16 needs an accelerator; on a CPU use bfloat16")
        if wanted == "float16":
            return torch.float16, "mixed precision in float16 with a grad scaler, as asked for"
        if wanted == "bfloat16":
            if self.is_accelerator and not self.supports_bfloat16():
                raise UsageError(f"--amp-dtype bfloat16 is not supported by {self}; use float16")
            return torch.bfloat16, "mixed precision in bfloat16, as asked for"
        if wanted != "auto":
            raise UsageError(f"--amp-dtype {wanted} is unknown; use auto, bfloat16 or float16")
        if self.supports_bfloat16():
            return torch.bfloat16, f"mixed precision in bfloat16, which {self.name} supports"
        if self.is_accelerator:
            return torch.float16, (
                f"mixed precision in float16 with a grad scaler: {self.name} has no bfloat16"
            )
        return None, f"FP32 instead of mixed precision: {self.name} has neither AVX512-BF16 nor AMX"

    def memory_format(self, wanted: str, half: bool) -> torch.memory_format:
        """Resolve `--memory-format`.

        Args:
            wanted: "nchw", "nhwc", or "auto": channels last on cpu, and with `half` on cuda.
            half: float16 or bfloat16 is used.
        """
        import torch

        faster = self.type == "cpu" or (half and self.type == "cuda")
        nhwc = wanted == "nhwc" or (wanted == "auto" and faster)
        return torch.channels_last if nhwc else torch.contiguous_format

    def autocast(self, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context for `dtype`, one that does nothing for None (FP32)."""
        import torch

        if dtype is None:
            return contextlib.nullcontext()
        return torch.amp.autocast(device_type=self.type, dtype=dtype)

    def saturates_on_overflow(self) -> bool:
        """Return whether float16 overflows to 65504 instead of infinity (Ascend 910A)."""
        probe = getattr(getattr(self._module, "utils", None), "is_support_inf_nan", None)
        return self.is_accelerator and probe is not None and not probe()

    def grad_scaler(
        self, dtype: torch.dtype | None, init_scale: float | None = None, dynamic: bool = True
    ) -> Any:
        """Create the loss scaler: it does something for float16 only.

        Args:
            dtype: dtype of `amp_dtype`.
            init_scale: first scale, or the constant one; None: 65536.
            dynamic: adapt the scale to overflows; otherwise it is constant.

        Returns:
            An object with the methods of torch.amp.GradScaler.
        """
        import torch

        scale = _INITIAL_SCALE if init_scale is None else float(init_scale)
        enabled = dtype is torch.float16
        if enabled and self.saturates_on_overflow():
            # PyTorch's scaler looks for infinities, which such a device never produces.
            return self._module.amp.GradScaler(
                init_scale=scale, growth_interval=_GROWTH_INTERVAL, dynamic=dynamic
            )
        kind = torch.amp.GradScaler if dynamic else _static_scaler_class(scale)
        return kind(self.type, init_scale=scale, growth_interval=_GROWTH_INTERVAL, enabled=enabled)

    # --- streams and memory ---

    def synchronize(self) -> None:
        """Wait until the device has done everything; nothing to do on a cpu."""
        if self.is_accelerator:
            self._module.synchronize()

    def side_stream(self) -> Any | None:
        """Return a new stream for copies beside the computation, None where there are none."""
        if not self.is_accelerator or not hasattr(self._module, "Stream"):
            return None
        return self._module.Stream(device=self.torch_device)

    def stream_context(self, stream: Any | None) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which `stream` is the current one (None: nothing changes)."""
        return contextlib.nullcontext() if stream is None else self._module.stream(stream)

    def wait_stream(self, stream: Any | None) -> None:
        """Let the current stream wait for `stream`; the host does not wait."""
        if stream is not None:
            self._module.current_stream().wait_stream(stream)

    def record_event(self, stream: Any | None) -> Any | None:
        """Mark the end of what is queued on `stream` (None: the current one).

        Returns:
            An object whose `synchronize()` waits for that mark, None on a cpu.
        """
        if not self.is_accelerator or not hasattr(self._module, "current_stream"):
            return None
        stream = self._module.current_stream() if stream is None else stream
        if not hasattr(self._module, "Event"):
            return stream
        event = self._module.Event()
        event.record(stream)
        return event

    def record_stream(self, tensor: torch.Tensor) -> None:
        """Tell the allocator that the current stream uses `tensor`, made on another stream."""
        if self.is_accelerator and hasattr(self._module, "current_stream"):
            tensor.record_stream(self._module.current_stream())

    @functools.cached_property
    def can_pin_memory(self) -> bool:
        """Whether host memory can be pinned for this device."""
        import torch

        try:
            return self.is_accelerator and bool(self.pin_memory(torch.empty(1)).is_pinned())
        except Exception:  # not implemented by the plug-in
            return False

    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy of a host tensor in pinned memory; only where `can_pin_memory`."""
        import torch

        if hasattr(torch, "accelerator"):
            return tensor.pin_memory()
        return tensor.pin_memory(self.type)  # before PyTorch 2.6 the default is cuda

    def memory(self) -> MemoryUse | None:
        """Return the memory use in bytes, None on a cpu and where the plug-in does not tell."""
        if not self.is_accelerator:
            return None
        try:
            properties = self._module.get_device_properties(self.index)
            return MemoryUse(
                int(self._module.memory_allocated(self.index)),
                int(self._module.max_memory_allocated(self.index)),
                int(getattr(properties, "total_memory", 0)),
            )
        except Exception:  # a figure for the log is never worth a failure
            return None

    def reset_peak_memory(self) -> None:
        """Start a new measurement of the peak of `memory`."""
        reset = getattr(self._module, "reset_peak_memory_stats", None)
        if self.is_accelerator and reset is not None:
            with contextlib.suppress(Exception):
                reset(self.index)

    def release_memory(self) -> None:
        """Give memory back that PyTorch keeps for later, say after too large a batch."""
        if not self.is_accelerator:
            host_memory.give_back()
        elif hasattr(self._module, "empty_cache"):
            self._module.empty_cache()

    def telemetry(self) -> dict[str, float]:
        """Return device.utilization (%), device.power (W), device.clock (MHz) as far as known.

        Never raises and does not wait: the vendors' commands run in the background, at most every
        30 seconds, and their last answer is returned.
        """
        return self._telemetry.read()

    @functools.cached_property
    def _telemetry(self) -> Telemetry:
        uuid = None
        if self.type == "cuda":  # the only name that no mask changes
            uuid = getattr(self._module.get_device_properties(self.index), "uuid", None)
        return Telemetry(self.spec.telemetry, self.spec.physical_index(self.index), uuid)

    def out_of_memory_errors(self) -> tuple[type[BaseException], ...]:
        """Return the exception types that mean: out of memory on the device or the host."""
        import torch

        found: list[type[BaseException]] = [MemoryError]
        for owner in (torch, self._module, torch.cuda):
            kind = getattr(owner, "OutOfMemoryError", None)
            if isinstance(kind, type) and kind not in found:
                found.append(kind)
        return tuple(found)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Return whether `error` means out of memory; not every allocator has a type for it."""
        return isinstance(error, self.out_of_memory_errors()) or (
            isinstance(error, RuntimeError) and any(said in str(error) for said in OUT_OF_MEMORY)
        )

    def explain_out_of_memory(self, error: BaseException, batch_size: int) -> str:
        """Return one line with the peak, the batch and what to try."""
        memory = self.memory()
        peak = memory.peak if memory else host_memory.peak()
        batch, half = (batch_size, max(1, batch_size // 2)) if batch_size > 0 else ("auto", "8")
        return (
            f"{self} is out of memory with --batch-size {batch}, peak {peak / 2**30:.1f} GiB; "
            f"try --batch-size {half} (auto finds what fits; with --optimizer-batch-size "
            "the effective batch stays), --amp or a smaller --image-size "
            f"({' '.join(str(error).split())[:160]})"
        )


def _module_of(spec: DeviceSpec) -> Any:
    """Return torch.cuda, torch.npu, ... for a row of the table."""
    import torch

    return getattr(torch, spec.type)


def _static_scaler_class(scale: float) -> Any:
    """Return a grad scaler class that skips bad steps but never changes its scale."""
    import torch

    class StaticGradScaler(torch.amp.GradScaler):
        def update(self, new_scale: Any = None) -> None:
            super().update(scale if new_scale is None else new_scale)

    return StaticGradScaler
