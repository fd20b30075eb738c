# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with a process that computes on the CPU, until it is given back."""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification import host_memory

ROOT = Path(__file__).resolve().parents[2]
PAGE = resource.getpagesize()
PROGRAM = """
import json, resource, sys
from pathlib import Path
import torch
from image_classification import host_memory
from image_classification.device import Device

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

def faults():
    rounds = []
    for _ in range(8):  # glibc needs some to fit an aligned block into a freed one
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(80 << 20, dtype=torch.uint8)
        rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(rounds)

torch.set_num_threads(1)
device = Device.select("cpu")
if sys.argv[1] == "leave":
    host_memory.keep_freed(False)
found, high = faults(), resident()
device.release_memory()
print(json.dumps([found, high - resident()]))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the setting")


@glibc
@pytest.mark.skipif(PAGE != 4096, reason="the pages of the figures below are 4 KiB")
@pytest.mark.parametrize("way", ["keep", "leave"])
def test_memory_that_is_freed_is_taken_again_without_new_pages(way: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], cwd=ROOT, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    faults, released = json.loads(done.stdout)
    pages = (80 << 20) // PAGE
    if way == "keep":
        assert faults < pages // 100 and released > pages // 2
    elif "[always]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        assert faults > pages // 2


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed()
    host_memory.give_back()
