# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a `Device` answers: precision, grad scaler, memory, seeds, switches of the process."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from device_doubles import FakeDeviceModule, bare_machine, install

from image_classification import cpu_features
from image_classification import device as device_module
from image_classification.device import Device
from image_classification.errors import UsageError

__all__ = ["bare_machine"]  # the fixture

pytestmark = pytest.mark.usefixtures("bare_machine")


# --- precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cuda", "npu", "mlu", "xpu"])
def test_amp_dtype_of_accelerators(monkeypatch: pytest.MonkeyPatch, device_type: str) -> None:
    install(monkeypatch, device_type, FakeDeviceModule(1))
    able = Device.select(device_type)
    assert able.amp_dtype("auto")[0] is torch.bfloat16
    assert able.amp_dtype("float16")[0] is torch.float16
    install(monkeypatch, device_type, FakeDeviceModule(1, bfloat16=False))
    unable = Device.select(device_type)
    dtype, text = unable.amp_dtype("auto")
    assert dtype is torch.float16
    assert "Fake 0 has no bfloat16" in text
    with pytest.raises(UsageError, match=r"bfloat16 is not supported by .*use float16"):
        unable.amp_dtype("bfloat16")


@pytest.mark.parametrize("fast", [True, False])
def test_amp_dtype_of_the_cpu(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(device_module, "has_fast_bfloat16", lambda: fast)
    device = Device.select("cpu")
    dtype, text = device.amp_dtype("auto")
    assert dtype is (torch.bfloat16 if fast else None)
    assert ("FP32 instead" in text) is not fast
    assert device.amp_dtype("bfloat16")[0] is torch.bfloat16
    with pytest.raises(UsageError, match="float16 needs an accelerator"):
        device.amp_dtype("float16")
    with pytest.raises(UsageError, match="use auto, bfloat16 or float16"):
        device.amp_dtype("int8")


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("sse avx512f avx512_bf16", True),
        ("avx2 amx_tile amx_bf16", True),
        ("avx512f amx_tile", False),
    ],
)
def test_cpu_flags_where_torch_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.setattr(cpu_features, "cpu_info", lambda field: flags)
    assert cpu_features.has_fast_bfloat16() is fast


def test_saturating_device_gets_the_vendors_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = FakeDeviceModule(1, bfloat16=False)
    module.utils = SimpleNamespace(is_support_inf_nan=lambda: False)
    module.amp = SimpleNamespace(GradScaler=lambda **options: ("vendor", options))
    install(monkeypatch, "npu", module)
    kind, options = Device.select("npu").grad_scaler(torch.float16, 128.0, dynamic=False)
    assert kind == "vendor"
    assert (options["init_scale"], options["dynamic"]) == (128.0, False)
    module.utils.is_support_inf_nan = lambda: True
    assert isinstance(Device.select("npu").grad_scaler(torch.float16), torch.amp.GradScaler)


class HalfStep:
    """An optimizer with learning rate 0.5."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.param_groups = [{"params": [weight]}]

    def step(self) -> None:
        weight = self.param_groups[0]["params"][0]
        assert weight.grad is not None
        with torch.no_grad():
            weight -= 0.5 * weight.grad


def test_static_scale_skips_bad_steps_and_stays() -> None:
    scaler_class = device_module._static_scaler_class(64.0)
    scaler = scaler_class("cpu", init_scale=64.0, enabled=True)
    weight = torch.ones(2, requires_grad=True)
    optimizer: Any = HalfStep(weight)
    for factor, expected in ((1.0, 0.5), (float("inf"), 0.5), (1.0, 0.0)):
        weight.grad = None
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weight.tolist() == [expected, expected]
        assert scaler.get_scale() == 64.0


def test_scaler_is_off_without_float16() -> None:
    device = Device.select("cpu")
    assert not device.grad_scaler(None).is_enabled()
    assert not device.grad_scaler(torch.bfloat16, 128.0, dynamic=False).is_enabled()


# --- the rest ------------------------------------------------------------------------------


def test_cpu_has_neutral_answers() -> None:
    device = Device.select("cpu")
    assert device.side_stream() is None
    with device.stream_context(None), device.autocast(None):
        device.wait_stream(None)
        device.record_stream(torch.ones(1))
    assert device.memory() is None
    assert device.telemetry() == {}
    assert not device.can_pin_memory
    device.synchronize()
    device.reset_peak_memory()
    with device.autocast(torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_seed_covers_the_host_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeDeviceModule(1)
    install(monkeypatch, "npu", module)
    device = Device.select("npu")
    device.seed(11)
    first = torch.rand(4)
    device.seed(11)
    assert torch.equal(first, torch.rand(4))
    assert module.seeds == [11, 11]


def test_memory_without_statistics_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = FakeDeviceModule(1)
    install(monkeypatch, "mlu", module)
    device = Device.select("mlu")
    assert device.memory() is None
    device.reset_peak_memory()
    module.get_device_properties = lambda index: SimpleNamespace(total_memory=100)
    module.memory_allocated = lambda index: 10
    module.max_memory_allocated = lambda index: 20
    assert device.memory() == (10, 20, 100)


def test_out_of_memory_is_recognised() -> None:
    device = Device.select("cpu")
    kind = FakeDeviceModule.OutOfMemoryError
    assert kind in device.out_of_memory_errors()
    assert device.is_out_of_memory(kind("device"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)
    for text in ("NPU out of memory. Tried to allocate 2.00 GiB", "CUDA error: out of memory",
                 "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"):  # fmt: skip
        assert device.is_out_of_memory(RuntimeError(text))
    assert not device.is_out_of_memory(RuntimeError("shape mismatch"))
    assert not device.is_out_of_memory(ValueError("NPU out of memory"))


def test_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", switched.append)
    monkeypatch.setenv("HCCL_DETERMINISTIC", "")
    monkeypatch.delenv("HCCL_DETERMINISTIC")
    install(monkeypatch, "npu", FakeDeviceModule(1))
    device = Device.select("npu")
    device.configure(tf32=None, deterministic=False)
    assert "HCCL_DETERMINISTIC" not in os.environ
    device.configure(tf32=None, deterministic=True)
    assert os.environ["HCCL_DETERMINISTIC"] == "true"
    assert switched == [False, True]


def test_tf32_needs_an_nvidia_gpu() -> None:
    with pytest.raises(UsageError, match="--tf32 is a switch of NVIDIA GPUs"):
        Device.select("cpu").configure(tf32=True, deterministic=False)


def test_configure_cuda_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda", FakeDeviceModule(1))
    backends = SimpleNamespace(
        cuda=SimpleNamespace(matmul=SimpleNamespace(allow_tf32=None)),
        cudnn=SimpleNamespace(allow_tf32=None, benchmark=None, deterministic=None),
    )
    monkeypatch.setattr(torch, "backends", backends)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    Device.select("cuda").configure(tf32=None, deterministic=False)
    assert backends.cudnn.allow_tf32 is None
    assert (backends.cudnn.benchmark, backends.cudnn.deterministic) == (True, False)
    Device.select("cuda").configure(tf32=False, deterministic=False)
    assert (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32) == (False, False)
