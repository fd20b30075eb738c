# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""main.py --doctor as a command: on this machine, and with a fake accelerator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fakes.support import fake_environment, skip_reason
from runs import ROOT, environment

TOPICS = {
    "Python", "system", "processor", "cores", "memory", "open files", "processes and threads",
    "locked memory", "numpy", "pillow", "matplotlib", "folder models", "folder data",
    "host name", "C++ compiler", "fast loader", "shared memory", "device plug-ins", "torch",
    "torchvision", "--device auto", "gloo",
}  # fmt: skip


def examine(folder: Path, env: dict[str, str], before: str = "") -> tuple[int, dict[str, str]]:
    """The exit code and the findings by topic; the current folder stays empty."""
    command = f'{before} exec "{sys.executable}" "{ROOT / "main.py"}" --doctor'
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=280
    )
    assert not done.stderr
    assert not list(folder.iterdir())
    lines = [line for line in done.stdout.splitlines()[:-1] if not line.startswith("      -> ")]
    return done.returncode, {line[6:].split("  ")[0]: line for line in lines}


def test_a_line_for_each_topic_on_the_cpu(tmp_path: Path) -> None:
    code, found = examine(tmp_path, environment(CUDA_VISIBLE_DEVICES=""))
    assert not TOPICS - set(found)
    assert {"cuda", "npu", "mlu", "xpu"} <= {topic.split(":")[0] for topic in found}
    assert code == (2 if any(line.startswith("FIX") for line in found.values()) else 0)
    for topic in ("torch", "numpy", "pillow", "cpu", "gloo"):
        assert found[topic].startswith("ok "), found[topic]


@pytest.mark.fake_accelerator
@pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
def test_an_accelerator_and_a_limit_that_is_too_low(tmp_path: Path) -> None:
    code, found = examine(tmp_path, fake_environment("npu"), "ulimit -n 200;")
    assert code == 2
    assert found["open files"].startswith("FIX ")
    for topic in ("npu:0", "npu:1", "gloo", "hccl", "device plug-ins"):
        assert found[topic].startswith("ok "), found[topic]
    assert "takes npu" in found["--device auto"] and "Fake Ascend 910B" in found["npu:1"]


def test_nobody_need_read_it(tmp_path: Path) -> None:
    command = f'"{sys.executable}" "{ROOT / "main.py"}" --doctor | head -n 1'
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1
