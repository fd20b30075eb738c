# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Utilisation, power and clock: parsed, optional, and never waited for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from image_classification import device_telemetry

NPU_SMI = """
        NPU ID                         : 1
        Chip Count                     : 1
        Chip ID                        : 0
        HBM Usage Rate(%)              : 4
        Aicore Usage Rate(%)           : 57
        Aicore Freq(MHZ)               : 1800
        Aicore curFreq(MHZ)            : 1650
        NPU Real-time Power(W)         : 93.4

        Chip Name                      : mcu
        NPU Real-time Power(W)         : 45.2
"""
CNMON = """
Card 0
    Product Name                   : MLU370-X8
    Physical Memory Usage
        Total                      : 24576 MiB
        Used                       : 512 MiB
    Virtual Memory Usage
        Used                       : 7 MiB
    Utilization
        MLU Average                : 83 %
    Power
        Usage                      : 131 W
        Cap                        : 250 W
"""


def test_tool_output_is_parsed() -> None:
    parse = device_telemetry.parse_tool_output
    assert parse("npu-smi", NPU_SMI) == {
        "device.utilization": 57.0,
        "device.power": 93.4,
        "device.clock": 1650.0,
    }
    assert parse("cnmon", CNMON) == {"device.utilization": 83.0, "device.power": 131.0}
    assert parse("npu-smi", "usage: npu-smi ...") == {}


def test_tool_runs_in_the_background_and_not_again_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "npu-smi"
    calls = tmp_path / "calls"
    output = tmp_path / "output"
    output.write_text(NPU_SMI, encoding="utf-8")
    tool.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\ncat "{output}"\n', encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setitem(
        device_telemetry._COMMANDS, "npu-smi", (str(tool), "info", "-t", "common", "-i")
    )
    telemetry = device_telemetry.Telemetry("npu-smi", "4")
    assert telemetry.read() == {}
    deadline = time.monotonic() + 30
    while not telemetry.read() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert telemetry.read()["device.utilization"] == 57.0
    assert calls.read_text(encoding="utf-8").splitlines() == ["info -t common -i 4"]


def test_missing_tool_and_library_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device_telemetry._COMMANDS, "cnmon", ("/nonexistent/cnmon", "info", "-c"))
    tool = device_telemetry.Telemetry("cnmon", "0")
    assert tool.read() == {}
    assert tool._thread is not None
    tool._thread.join(30)
    assert tool.read() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_telemetry.Telemetry("pynvml", "0").read() == {}


def test_pynvml_figures_and_a_missing_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def no_sensor(handle: object) -> float:
        raise RuntimeError("not supported")

    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda text: asked.append(text) or "handle",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=97),
        nvmlDeviceGetPowerUsage=no_sensor,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    telemetry = device_telemetry.Telemetry("pynvml", "0", uuid="12ab")
    expected = {"device.utilization": 97.0, "device.clock": 1980.0}
    assert telemetry.read() == telemetry.read() == expected
    assert asked == ["GPU-12ab"]
