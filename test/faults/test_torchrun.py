# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Under torchrun: a new start after a crash, requests to stop, an agent that is killed."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record import record
from runs import checkpoint, nursery
from victims import ALL, STATEFUL, Victim, differences, kill, members, on_request, value_of, whole

FLAGS = (*STATEFUL, "--checkpoint-interval", 2, "--resume", "auto")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
            "--max-restarts", 1)  # fmt: skip


def start(
    images: Path, tmp_path: Path, *flags: Any, pause: str = "step 2",
    env: dict[str, str] | None = None,
) -> Victim:  # fmt: skip
    victim = Victim(images, *FLAGS, *flags, "--workspace", tmp_path / "w", ranks=2,
                    launcher=TORCHRUN, pause=pause, notes=tmp_path / "notes", env=env)  # fmt: skip
    victim.reach()
    return victim


@pytest.mark.parametrize("number", [signal.SIGKILL, *whole(signal.SIGTERM)])
def test_a_rank_that_ends_is_started_anew(
    images: Path, straight: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    """All ranks go on from the last checkpoint and end as if nothing had been."""
    # Its ranks are forked, see forked.py; not where they must notice the end of the agent.
    victim = start(images, tmp_path, env={"PYTHON_EXEC": nursery().python})
    victim.strike(1, number)
    done = victim.steps()
    end = victim.end(within=200)
    record(f"{number.name} of a rank, torchrun", victim.phase, **end._asdict())
    assert (end.exit_code, end.leftover) == (0, 0), victim.output[-3000:]
    assert victim.output.count("2 x cpu ") == 2 and 0 < done < victim.steps()
    if ALL:
        assert differences(tmp_path / "w", straight(2, *STATEFUL)) == []


@on_request
def test_two_nodes_start_anew_together(
    images: Path, straight: Callable[..., Path], tmp_path: Path
) -> None:
    """Both on this host, with the commands of docs/reliability.md."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = (*TORCHRUN[:3], "--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 1,
                "--rdzv-id", "run", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1")  # fmt: skip
    nodes = [
        Victim(images, *FLAGS, "--workspace", tmp_path / "w", ranks=2, launcher=launcher,
               pause="step 2", notes=tmp_path / "notes",
               env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        for _ in range(2)
    ]  # fmt: skip
    nodes[0].reach()
    (rank,) = [pid for pid in members(nodes[1].process.pid) if value_of(pid, "RANK")]
    nodes[1].watch()
    kill(rank, signal.SIGKILL)
    end = nodes[1].end(within=250)
    record("SIGKILL of a rank, torchrun on two nodes", nodes[1].phase, **end._asdict())
    assert (end.exit_code, end.leftover) == (0, 0), nodes[1].output[-3000:]
    assert nodes[0].wait() == 0, nodes[0].output[-3000:]
    outputs = nodes[0].output + nodes[1].output
    assert outputs.count("2 x cpu ") == 2 and "TORCH_DISABLE_SHARE" not in outputs
    assert differences(tmp_path / "w", straight(2, *STATEFUL)) == []


@on_request
def test_a_request_to_the_agent_saves(
    images: Path, straight: Callable[..., Path], tmp_path: Path
) -> None:
    """The ranks leave with 143; torchrun's own exit code is 1 whatever the signal."""
    victim = start(images, tmp_path)
    victim.strike("launcher", signal.SIGTERM)
    end = victim.end(within=90)
    saved = checkpoint(tmp_path / "w/checkpoint.pth.tar")["counters"]["step"]
    record("SIGTERM to torchrun", victim.phase, lost_steps=victim.steps() - saved, **end._asdict())
    assert (end.exit_code, end.leftover) == (1, 0), victim.output[-3000:]
    assert "stopped by a signal; saved in epoch 1" in victim.output
    assert saved == victim.steps() == victim.steps(1)
    victim = Victim(images, *FLAGS, "--workspace", tmp_path / "w", ranks=2, launcher=TORCHRUN)
    assert victim.wait() == 0, victim.output[-3000:]
    assert differences(tmp_path / "w", straight(2, *STATEFUL)) == []


@on_request
def test_nothing_outlives_a_killed_agent(images: Path, tmp_path: Path) -> None:
    victim = start(images, tmp_path, "--data-backend", "pytorch", "-j", 2)
    victim.strike("launcher", signal.SIGKILL)
    end = victim.end(within=30)
    record("SIGKILL of torchrun", victim.phase, **end._asdict())
    assert len(victim.processes) >= 5  # the agent, ranks, their loader processes
    assert (end.exit_code, end.leftover) == (137, 0)
