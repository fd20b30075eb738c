# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the device tests share: device modules and plug-ins that exist only in the test.

While a test runs, PyTorch's own torch.cuda is a double: such a test must not make PyTorch import
further parts of itself.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from image_classification import device_table
from image_classification.device import DEVICE_TABLE

MASKS = [
    name
    for spec in DEVICE_TABLE.values()
    for name in (spec.visible_devices, *spec.other_masks)
    if name
]


class FakeDeviceModule:
    """Stands for torch.cuda, torch.npu, ...: a number of devices and what they can do."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    amp = torch.cuda.amp  # torch.autocast of 2.4 asks it, whatever the device

    def __init__(self, count: int, bfloat16: bool = True, init_error: str = "") -> None:
        self.count = count
        self.bfloat16 = bfloat16
        self.init_error = init_error
        self.bound: list[int] = []
        self.seeds: list[int] = []

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def init(self) -> None:
        if self.init_error:
            raise RuntimeError(self.init_error)

    def set_device(self, index: int) -> None:
        self.bound.append(index)

    def get_device_name(self, index: int) -> str:
        return f"Fake {index}"

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return (8, 0) if self.bfloat16 else (7, 0)

    def is_bf16_supported(self) -> bool:
        return self.bfloat16

    def manual_seed(self, seed: int) -> None:
        self.seeds.append(seed)


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator, no mask, no plug-in, whatever the machine of the test has."""
    for name in MASKS:
        monkeypatch.delenv(name, raising=False)
    for name in ("npu", "mlu"):
        monkeypatch.delattr(torch, name, raising=False)
    for name in ("cuda", "xpu"):
        monkeypatch.setattr(torch, name, FakeDeviceModule(0), raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    report(monkeypatch, None)
    find_spec = device_table.importlib.util.find_spec
    hidden = ("torch_npu", "torch_mlu")
    monkeypatch.setattr(
        device_table.importlib.util,
        "find_spec",
        lambda name, *rest: None if name in hidden else find_spec(name, *rest),
    )


def report(monkeypatch: pytest.MonkeyPatch, device_type: str | None) -> None:
    """Let torch.accelerator report a device type as available."""
    device = None if device_type is None else SimpleNamespace(type=device_type)
    fake = SimpleNamespace(
        current_accelerator=lambda check_available=False: device,
        is_available=lambda: device is not None,
    )
    monkeypatch.setattr(torch, "accelerator", fake, raising=False)


def install(monkeypatch: pytest.MonkeyPatch, device_type: str, module: FakeDeviceModule) -> None:
    """Give PyTorch a device; the name of an unknown device type stands for privateuseone."""
    monkeypatch.setattr(torch, device_type, module, raising=False)
    kind = torch.device
    known = {"npu": "privateuseone", "mlu": "privateuseone"}

    def make(name: str) -> torch.device:
        base, _, index = name.partition(":")
        return kind(":".join(filter(None, (known.get(base, base), index))))

    monkeypatch.setattr(torch, "device", make)


def add_plugin(
    monkeypatch: pytest.MonkeyPatch, device_type: str, outcome: FakeDeviceModule | Exception
) -> None:
    """Install a package that is not loaded; importing it gives the device, or raises."""
    package = f"torch_{device_type}"
    find_spec = device_table.importlib.util.find_spec
    import_module = device_table.importlib.import_module
    monkeypatch.setattr(
        device_table.importlib.util,
        "find_spec",
        lambda name, *rest: object() if name == package else find_spec(name, *rest),
    )

    def load(name: str, *rest: Any) -> Any:
        if name != package:
            return import_module(name, *rest)
        if isinstance(outcome, Exception):
            raise outcome
        install(monkeypatch, device_type, outcome)
        return ModuleType(package)

    monkeypatch.setattr(device_table.importlib, "import_module", load)
