# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Several nodes, all of them on this host: the result is that of one node.

Each "node" has its own launcher. Node 0 talks over the loopback interface, the other one over
another interface where there is one, and calls node 0 by another address.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT, checkpoint, environment, nursery, run_main, same, values, write_images

FLAGS = ("--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu", "-p", 1,
         "--lr", 0.01, "--seed", 7, "--epochs", 1, "--mixup", 0.2)  # fmt: skip
MULTIPROC, MAIN = ROOT / "multiproc.py", ROOT / "main.py"
TORCHRUN = Path(sys.executable).with_name("torchrun")
PATIENCE = 120.0

# Starts node or task k of 2: its command line and what its environment has besides.
Node = Callable[[int], tuple[list[Any], dict[str, str]]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_node(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes the run of so many processes under one launcher, once."""

    @functools.cache
    def make(ranks: int) -> Path:
        workspace = tmp_path_factory.mktemp("one node")
        run_main(images, *FLAGS, "-b", 8 // ranks, "--workspace", workspace, ranks=ranks)
        return workspace

    return make


def free_port() -> int:
    """A port that nobody uses, of those that Slurm's jobs get from us, below the ephemeral ones."""
    while True:
        port = random.randrange(20000, 32768)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("", port))
            return port


def interface(node: int) -> str:
    """Whose address a node's processes give to the others."""
    if node == 0 or not sys.platform.startswith("linux"):
        return "lo"
    found = [path.name for path in Path("/sys/class/net").iterdir()
             if path.name != "lo" and (path / "operstate").read_text().strip() == "up"]  # fmt: skip
    return sorted(found)[0] if found else "lo"


def run_both(describe: Node, folder: Path) -> tuple[str, str]:
    """Runs two nodes at once; returns what they printed."""
    log = folder / "node 1"
    words, variables = describe(1)
    other = nursery().start(*words, log=log, env=environment(**variables))
    words, variables = describe(0)
    done = nursery().run(*words, timeout=PATIENCE, env=environment(**variables))
    first = done.stdout + done.stderr
    if done.returncode:
        with contextlib.suppress(ProcessLookupError):  # the other node may wait for this one
            os.killpg(other.pid, signal.SIGKILL)
        pytest.fail(f"exit code {done.returncode}\n{first[-3000:]}\n{log.read_text()[-3000:]}")
    assert other.wait(PATIENCE) == 0, log.read_text()[-3000:]
    return first, log.read_text()


def assert_same(first: Path, second: Path) -> None:
    """All losses and the last checkpoint, bit for bit but for the options."""
    assert len(values(first, "train", "train.loss")) == 3
    for kind, metric in (("train", "train.loss"), ("epoch", "val.loss"), ("epoch", "val.seen")):
        assert values(first, kind, metric) == values(second, kind, metric), metric
    one, two = (checkpoint(folder / "checkpoint.pth.tar") for folder in (first, second))
    one.pop("config")
    two.pop("config")
    assert same(one, two) == []


def test_two_launchers(images: Path, one_node: Callable[[int], Path], tmp_path: Path) -> None:
    """As in docs/launching.md: two nodes with two processes each."""
    port, workspace = free_port(), tmp_path / "w"

    def node(number: int) -> tuple[list[Any], dict[str, str]]:
        master = ("127.0.0.1", "127.0.0.2")[number]
        launcher = [MULTIPROC, "--nnodes", 2, "--node_rank", number, "--master_addr", master,
                    "--master_port", port, "--nproc_per_node", 2]  # fmt: skip
        command = [MAIN, images, *FLAGS, "-b", 2, "--workspace", workspace, "--world-size", 2]
        return [*launcher, *command], {"GLOO_SOCKET_IFNAME": interface(number)}

    first, second = run_both(node, tmp_path)
    assert f"rank 0..1 of 4 on {socket.gethostname()}, master 127.0.0.1:{port}" in first
    assert f"rank 2..3 of 4 on {socket.gethostname()}, master 127.0.0.2:{port}" in second
    assert "exited with code" not in second and "Epoch" not in second
    logs = {path.name: path.read_text() for path in workspace.glob("GPU_*.log")}
    assert sorted(logs) == ["GPU_1.log", "GPU_1.node1.log"]
    assert " rank 1 on " in logs["GPU_1.log"] and " rank 3 on " in logs["GPU_1.node1.log"]
    assert_same(workspace, one_node(4))


def test_two_agents_of_torchrun(
    images: Path, one_node: Callable[[int], Path], tmp_path: Path
) -> None:
    """Where node 0 is known beforehand; a rendezvous and new starts: test/faults."""
    port, workspace = free_port(), tmp_path / "w"

    def node(number: int) -> tuple[list[Any], dict[str, str]]:
        launcher = [TORCHRUN, "--nnodes", 2, "--node-rank", number, "--master-addr", "127.0.0.1",
                    "--master-port", port, "--nproc-per-node", 1]  # fmt: skip
        command = [MAIN, images, *FLAGS, "-b", 4, "--workspace", workspace]
        return [*launcher, *command], {"GLOO_SOCKET_IFNAME": interface(number)}

    first, second = run_both(node, tmp_path)
    assert "2 x cpu " in first and "Epoch" not in second
    assert_same(workspace, one_node(2))


def test_two_tasks_of_slurm(
    images: Path, one_node: Callable[[int], Path], tmp_path: Path
) -> None:
    """With the variables that srun sets, and nothing else: the first node is the meeting point."""
    workspace, job = tmp_path / "w", free_port() - 20000  # which distributed.py adds

    def task(number: int) -> tuple[list[Any], dict[str, str]]:
        step = {
            "SLURM_JOB_ID": str(job), "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(number),
            "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "localhost,elsewhere",
            "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        }  # fmt: skip
        command = [MAIN, images, *FLAGS, "-b", 4, "--workspace", workspace, "--world-size", 2]
        return command, {"GLOO_SOCKET_IFNAME": interface(number), **step}

    first, second = run_both(task, tmp_path)
    assert "2 x cpu " in first and "Epoch" not in second
    assert_same(workspace, one_node(2))
