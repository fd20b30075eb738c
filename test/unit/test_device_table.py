# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The device table, the choice of the device, and what is said when one is absent."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from device_doubles import FakeDeviceModule, add_plugin, bare_machine, install, report

import multiproc
from image_classification import device_table, distributed
from image_classification.device import (
    DEVICE_TABLE,
    DEVICE_TYPES,
    Device,
    available_devices,
    import_torch_or_explain,
)
from image_classification.errors import UsageError

__all__ = ["bare_machine"]  # the fixture

pytestmark = pytest.mark.usefixtures("bare_machine")


# --- table ---------------------------------------------------------------------------------


def test_table_has_every_type_once_with_its_collective() -> None:
    assert tuple(DEVICE_TABLE) == DEVICE_TYPES == ("cuda", "npu", "mlu", "xpu", "cpu")
    collectives = {name: spec.collective for name, spec in DEVICE_TABLE.items()}
    assert collectives == {
        "cuda": "nccl", "npu": "hccl", "mlu": "cncl", "xpu": "xccl", "cpu": "gloo",
    }  # fmt: skip
    assert {name for name, spec in DEVICE_TABLE.items() if spec.plugin} == {"npu", "mlu"}
    assert DEVICE_TABLE["npu"].visible_devices == "ASCEND_RT_VISIBLE_DEVICES"
    assert DEVICE_TABLE["mlu"].visible_devices == "MLU_VISIBLE_DEVICES"


@pytest.fixture
def no_collective_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in DEVICE_TABLE.values():
        for name in (*spec.collective_waits, *spec.collective_ends):
            monkeypatch.setenv(name, "")  # first, so that what the code sets is undone afterwards
            monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_collective_variables")
@pytest.mark.parametrize("device_type", DEVICE_TYPES)
def test_collectives_give_up_between_the_launcher_and_the_process_group(device_type: str) -> None:
    spec = DEVICE_TABLE[device_type]
    hang_timeout = multiproc.build_parser().get_default("hang_timeout")
    group_timeout = inspect.signature(distributed.init).parameters["timeout_s"].default
    assert spec.limit_collectives(group_timeout) == []
    for name in spec.collective_waits:
        effective = int(os.environ[name]) // 68 * 68
        assert hang_timeout < effective and int(os.environ[name]) + 20 < group_timeout, name
    for name in spec.collective_ends[:1]:
        assert os.environ[name] in ("1", "3")
    assert bool(spec.collective_waits) == (device_type == "npu")
    assert bool(spec.collective_ends) == (device_type in ("cuda", "mlu"))


@pytest.mark.usefixtures("no_collective_variables")
@pytest.mark.parametrize(
    ("device_type", "name", "value", "contradicts"),
    [
        ("npu", "HCCL_EXEC_TIMEOUT", "1800", True),
        ("npu", "HCCL_EXEC_TIMEOUT", "0", True),  # never
        ("npu", "HCCL_CONNECT_TIMEOUT", "ten", True),
        ("npu", "HCCL_CONNECT_TIMEOUT", "120", False),
        ("mlu", "NCCL_ASYNC_ERROR_HANDLING", "0", True),
        ("mlu", "TORCH_CNCL_ASYNC_ERROR_HANDLING", "1", False),
        ("cuda", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", True),
    ],
)
def test_a_limit_of_the_users_stays_and_is_judged(
    monkeypatch: pytest.MonkeyPatch, device_type: str, name: str, value: str, contradicts: bool
) -> None:
    monkeypatch.setenv(name, value)
    spec = DEVICE_TABLE[device_type]
    problems = spec.limit_collectives(600)
    assert os.environ[name] == value
    assert [line.startswith(f"{name}={value}") for line in problems] == [True] * contradicts
    # Another name of the same variable is not set beside it.
    given = [other for other in spec.collective_ends if other in os.environ]
    assert given == [name] * bool(spec.collective_ends)


def test_table_can_be_read_without_importing_torch() -> None:
    code = (
        "import sys; from image_classification.device import DEVICE_TYPES; "
        "assert 'torch' not in sys.modules, 'torch was imported'; print(DEVICE_TYPES[0])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout.strip()) == (0, "cuda"), result.stderr


# --- choice --------------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["cuda", "npu", "mlu", "xpu"])
@pytest.mark.parametrize("wanted", ["auto", "by name"])
def test_each_row_is_selected_and_bound(
    monkeypatch: pytest.MonkeyPatch, device_type: str, wanted: str
) -> None:
    module = FakeDeviceModule(4)
    install(monkeypatch, device_type, module)
    report(monkeypatch, device_type)
    device = Device.select(device_type if wanted == "by name" else wanted, local_rank=2)
    assert (device.type, device.index, device.count) == (device_type, 2, 4)
    assert device.name == "Fake 2"
    assert device.is_accelerator
    assert device.collective == DEVICE_TABLE[device_type].collective
    assert module.bound == [2]
    assert device.ddp_device_ids() == ([2] if device_type == "cuda" else None)
    expected = device.torch_device if device_type == "cuda" else None
    assert device.process_group_device() == expected


def test_gpu_is_another_name_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda", FakeDeviceModule(1))
    assert Device.select("gpu").type == "cuda"


def test_auto_without_any_accelerator_is_the_cpu() -> None:
    device = Device.select("auto", local_rank=3)
    assert (device.type, device.index, device.collective) == ("cpu", 0, "gloo")
    assert not device.is_accelerator


def test_auto_ignores_an_accelerator_that_is_not_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report(monkeypatch, "mps")
    assert Device.select("auto").type == "cpu"


def test_auto_without_torch_accelerator_never_asks_cuda_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch, "accelerator")
    install(monkeypatch, "npu", FakeDeviceModule(1))
    patched = FakeDeviceModule(1)  # as after transfer_to_npu: answers for the NPU
    monkeypatch.setattr(torch, "cuda", patched)
    assert Device.select("auto").type == "npu"
    monkeypatch.delattr(torch, "npu")
    assert Device.select("auto").type == "cuda"


def test_auto_with_an_accelerator_module_that_cannot_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "xpu", FakeDeviceModule(1))
    fake = SimpleNamespace(
        current_accelerator=lambda: SimpleNamespace(type="xpu"), is_available=lambda: True
    )
    monkeypatch.setattr(torch, "accelerator", fake)
    assert Device.select("auto").type == "xpu"
    fake.is_available = lambda: False
    assert Device.select("auto").type == "cpu"


@pytest.mark.parametrize("device_type", ["npu", "mlu"])
def test_auto_loads_an_installed_plug_in(monkeypatch: pytest.MonkeyPatch, device_type: str) -> None:
    add_plugin(monkeypatch, device_type, FakeDeviceModule(2))
    assert Device.select("auto").type == device_type


def test_auto_reports_an_installed_but_unusable_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    add_plugin(monkeypatch, "mlu", ImportError("libcnrt.so.5:\n  cannot open"))
    with pytest.raises(UsageError) as caught:
        Device.select("auto")
    text = str(caught.value)
    assert "torch_mlu" in text
    assert "ImportError: libcnrt.so.5: cannot open" in text
    assert "--device cpu" in text
    assert "\n" not in text
    assert Device.select("cpu").type == "cpu"


def test_auto_reports_a_plug_in_without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    add_plugin(monkeypatch, "npu", FakeDeviceModule(0, init_error="drvGetDevNum failed"))
    with pytest.raises(UsageError, match="no usable Ascend NPU: RuntimeError: drvGetDevNum failed"):
        Device.select("auto")


# --- absent devices ------------------------------------------------------------------------


@pytest.mark.parametrize("device_type", ["npu", "mlu"])
def test_missing_package_is_named(device_type: str) -> None:
    with pytest.raises(UsageError, match=f"torch_{device_type} is not installed"):
        Device.select(device_type)


def test_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"--device tpu is unknown.*cuda, npu, mlu, xpu, cpu"):
        Device.select("tpu")


def test_drivers_own_message_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", FakeDeviceModule(0, init_error="driver is too old"))
    with pytest.raises(UsageError, match="no usable GPU: RuntimeError: driver is too old"):
        Device.select("cuda")


def test_empty_mask_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES='' is empty"):
        Device.select("cuda")


def test_pytorch_without_cuda_is_named_even_when_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch, "cuda", FakeDeviceModule(1))
    with pytest.raises(UsageError, match="built without CUDA"):
        Device.select("cuda")


def test_device_type_that_this_pytorch_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "xpu")
    with pytest.raises(UsageError, match="does not know this device type"):
        Device.select("xpu")


# --- index ---------------------------------------------------------------------------------


def test_rank_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda", FakeDeviceModule(2))
    with pytest.raises(UsageError) as caught:
        Device.select("cuda", local_rank=2)
    for word in ("LOCAL_RANK=2", "2 GPU(s) visible", "is not set", "--nproc_per_node 2"):
        assert word in str(caught.value)


def test_single_device_is_shared_only_behind_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda", FakeDeviceModule(1))
    with pytest.raises(UsageError, match="LOCAL_RANK=3"):
        Device.select("cuda", local_rank=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    device = Device.select("cuda", local_rank=3)
    assert (device.index, device.identity) == (0, "cuda:3")


def test_explicit_index(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "cuda", FakeDeviceModule(4))
    assert Device.select("cuda", index=3).index == 3
    with pytest.raises(UsageError, match=r"device index 4 does not exist.*use 0 to 3"):
        Device.select("cuda", index=4)
    with pytest.raises(UsageError, match="use 0 to 0"):
        Device.select("cpu", index=1)


# --- import of torch -----------------------------------------------------------------------


def test_broken_plug_in_of_torch_itself_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise RuntimeError("Failed to load the backend extension") from ImportError("no libhccl")

    entry = importlib.metadata.EntryPoint("torch_npu", "torch_npu:_autoload", "torch.backends")
    monkeypatch.setattr(device_table.importlib, "import_module", fail)
    monkeypatch.setattr(device_table, "plugin_entry_points", lambda: [entry])
    monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
    with pytest.raises(UsageError, match=r"torch_npu:_autoload.*ImportError: no libhccl.*cpu"):
        import_torch_or_explain("npu")


@pytest.mark.parametrize("ready", [False, True])
def test_missing_torch_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ready: bool
) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(device_table.importlib, "import_module", fail)
    monkeypatch.setattr(device_table, "_PACKAGE_ROOT", tmp_path)
    if ready:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/activate").touch()
    cure = r"source .*/.venv/bin/activate" if ready else r"pip install -r requirements-torch.txt"
    with pytest.raises(UsageError, match=cure):
        import_torch_or_explain()


def test_available_devices_answers_for_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "xpu", FakeDeviceModule(3))
    answers = available_devices()
    assert tuple(answers) == DEVICE_TYPES
    assert answers["cpu"] == "ok, 1 device"
    assert answers["xpu"] == "ok, 3 devices"
    assert "torch_npu is not installed" in answers["npu"]
    assert available_devices(["xpu"]) == {"xpu": "ok, 3 devices"}
