# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Limits of containers and jobs, as the kernel tells them."""

from __future__ import annotations

from pathlib import Path

from doctor_helpers import GIB

from image_classification.control_group import ControlGroup, read_control_group


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("new/a/b/memory.max", "max\n")
    write("new/a/memory.max", f"{4 * GIB}\n")
    write("new/a/b/memory.current", "3000\n")
    write("new/a/b/memory.stat", "anon 1\ninactive_file 1000\n")
    write("new/a/b/cpu.max", "150000 100000\n")
    write("new/a/cpu.max", "max 100000\n")
    write("new/a/pids.max", "max\n")
    write("new/a/b/memory.events", "oom 5\noom_kill 2\n")
    new = read_control_group(tmp_path / "new", "0::/a/b\n")
    assert new == ControlGroup(4 * GIB, 2000, 1.5, None, 2)
    write("old/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    write("old/memory/memory.usage_in_bytes", "500\n")
    write("old/cpu/cpu.cfs_quota_us", "-1\n")
    write("old/cpu/cpu.cfs_period_us", "100000\n")
    write("old/pids/pids.max", "512\n")
    own = "5:pids:/docker/x\n4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"
    assert read_control_group(tmp_path / "old", own) == ControlGroup(2 * GIB, 500, None, 512, 0)
    write("old/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert read_control_group(tmp_path / "old", own).memory is None
