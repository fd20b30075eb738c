# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Utilisation, power and clock of a device, read through the vendors' tools.

Optional in every respect: what is missing or fails is left out. This module is part of `device`.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

_PERIOD = 30.0  # seconds between two calls of a vendor's command
_TIMEOUT = 10.0  # seconds

_COMMANDS = {
    "npu-smi": ("npu-smi", "info", "-t", "common", "-i"),
    "cnmon": ("cnmon", "info", "-c"),
}
# Command -> figure -> pattern. The first match counts: npu-smi lists the chip before the
# management controller. In cnmon's output a heading names the section of a line.
_PATTERNS = {
    "npu-smi": {
        "device.utilization": r"Aicore Usage Rate\(%\)\s*:\s*([\d.]+)",
        "device.power": r"NPU Real-time Power\(W\)\s*:\s*([\d.]+)",
        "device.clock": r"Aicore curFreq\(MHZ\)\s*:\s*([\d.]+)",
    },
    "cnmon": {
        "device.utilization": r"MLU Average\s*:\s*([\d.]+)\s*%",
        "device.power": r"\n\s*Power\s*\n(?:.*\n)*?\s*Usage\s*:\s*([\d.]+)\s*W",
    },
}


def parse_tool_output(tool: str, text: str) -> dict[str, float]:
    """Read the figures out of the output of `npu-smi info -t common` or `cnmon info`.

    Args:
        tool: "npu-smi" or "cnmon".
        text: what the command printed.

    Returns:
        device.utilization (%), device.power (W), device.clock (MHz) as far as they are there.
    """
    figures = {}
    for name, pattern in _PATTERNS[tool].items():
        match = re.search(pattern, text)
        if match:
            figures[name] = float(match.group(1))
    return figures


class Telemetry:
    """Reads the figures of one device.

    Args:
        source: "pynvml", "npu-smi", "cnmon" or None (nothing to read).
        device_id: what the tool calls the device: its number without regard to masks, or its
            identifier.
        uuid: NVIDIA's identifier, which wins over `device_id`.
    """

    def __init__(self, source: str | None, device_id: str, uuid: Any | None = None) -> None:
        self._source = source
        self._device_id = device_id
        self._uuid = uuid
        self._handle: Any = None
        self._failed = source is None
        self._figures: dict[str, float] = {}
        self._next_call = 0.0
        self._thread: threading.Thread | None = None

    def read(self) -> dict[str, float]:
        """Return device.utilization (%), device.power (W), device.clock (MHz) as far as known.

        Never raises and does not wait for a command: it runs in the background, and its last
        answer is returned.
        """
        if self._failed:
            return {}
        if self._source == "pynvml":
            try:
                return self._read_pynvml()
            except Exception:  # no library, no driver, no permission
                self._failed = True
                return {}
        if time.monotonic() >= self._next_call and not (self._thread and self._thread.is_alive()):
            self._next_call = time.monotonic() + _PERIOD
            self._thread = threading.Thread(target=self._run_tool, daemon=True)
            self._thread.start()
        return dict(self._figures)

    def _read_pynvml(self) -> dict[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old package of that name announces its end
            nvml = importlib.import_module("pynvml")
        if self._handle is None:
            nvml.nvmlInit()
            self._handle = self._nvml_handle(nvml)
        handle = self._handle
        queries: dict[str, Callable[[], float]] = {
            "device.utilization": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "device.power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000.0,
            "device.clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        }
        figures = {}
        for name, query in queries.items():
            with contextlib.suppress(Exception):  # not every product has every sensor
                figures[name] = float(query())
        return figures

    def _nvml_handle(self, nvml: Any) -> Any:
        if self._uuid is not None:
            text = str(self._uuid)
            text = text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"
            return nvml.nvmlDeviceGetHandleByUUID(text)
        if self._device_id.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(self._device_id))
        return nvml.nvmlDeviceGetHandleByUUID(self._device_id)

    def _run_tool(self) -> None:
        source = str(self._source)
        try:
            result = subprocess.run(
                [*_COMMANDS[source], self._device_id],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
            self._figures = parse_tool_output(source, result.stdout)
        except (OSError, subprocess.SubprocessError):  # not installed, or it hangs
            self._failed = True
            self._figures = {}
