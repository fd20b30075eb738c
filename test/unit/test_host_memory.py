# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with a process that computes on the CPU, until it is given back."""

from __future__ import annotations

import ctypes
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
    for _ in range(5):  # glibc needs some rounds to fit aligned blocks into freed ones
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(40 << 20, dtype=torch.uint8) for _ in range(2)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
by_default = faults()
device = Device.select("cpu")
kept, high = faults(), resident()
device.release_memory()
low = resident()
device.configure(tf32=None, deterministic=False)
host_memory.keep_freed(False)
print(json.dumps([by_default, kept, high - low, faults()]))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the setting")


@glibc
@pytest.mark.skipif(PAGE != 4096, reason="the pages of the figures below are 4 KiB")
def test_memory_that_is_freed_is_taken_again_without_new_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    by_default, kept, released, given_back = map(int, done.stdout.strip("[]\n").split(","))
    pages = (80 << 20) // PAGE
    huge = "[always]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert kept < pages // 100
    assert huge or by_default > pages // 2
    assert huge or given_back > pages // 2
    assert released > pages // 2


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not host_memory.keep_freed()
    host_memory.give_back()
