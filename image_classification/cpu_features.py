# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the host's processor is and can do."""

from __future__ import annotations

import platform
from pathlib import Path

# Those that decide how fast a network runs, as /proc/cpuinfo spells them: x86, then ARM.
_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8",
                 "amx_bf16", "asimd", "sve", "i8mm", "bf16")  # fmt: skip


def cpu_name() -> str:
    """Return the model name of the processor, else its architecture."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Return which of the vector instructions that networks profit from the processor has."""
    flags = f"{cpu_info('flags')} {cpu_info('Features')}".split()
    return [name for name in _INSTRUCTIONS if name in flags]


def cpu_info(field: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, "" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""


def has_fast_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    import torch

    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if all(hasattr(torch.cpu, probe) for probe in probes):
        return any(getattr(torch.cpu, probe)() for probe in probes)
    flags = set(cpu_info("flags").split())
    return "avx512_bf16" in flags or {"amx_tile", "amx_bf16"} <= flags


def multiplies_int8() -> bool:
    """Return whether the processor adds up products of 8-bit numbers without saturation.

    x86: VNNI or AMX. Other processors never add them in 16 bits.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(cpu_info("flags").split())
