# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The launcher: environment, logs, ports, exit codes. Real processes, no PyTorch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_run import MULTIPROC, PATIENCE, SLEEPER, Run, alive


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


REPORT = """
print(json.dumps({"argv": sys.argv[1:], "parent": os.getppid(), **os.environ}))
print("to stderr", file=sys.stderr)
"""


def test_environment_and_arguments(run: Run) -> None:
    arguments = ("DIR", "--workspace", "w s", "-h", "--nproc_per_node", "9", "--", "-x")
    launcher = run.start(REPORT, "--nproc_per_node", "3", arguments=arguments)
    code, stdout, stderr = run.finish(launcher)
    assert code == 0
    logs = [run.folder / "w s" / f"GPU_{rank}.log" for rank in (1, 2)]
    texts = [stdout, *(log.read_text().partition("\n")[2] for log in logs)]
    ports = set()
    for rank, text in enumerate(texts):
        seen = json.loads(text.splitlines()[0])
        assert seen["argv"] == list(arguments)
        assert seen["RANK"] == seen["LOCAL_RANK"] == str(rank)
        assert seen["WORLD_SIZE"] == seen["LOCAL_WORLD_SIZE"] == "3"
        assert seen["MASTER_ADDR"] == "127.0.0.1"
        assert seen["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 3))
        assert int(seen["IMAGE_CLASSIFICATION_LAUNCHER_PID"]) == seen["parent"] == launcher.pid
        ports.add(seen["MASTER_PORT"])
    assert len(ports) == 1
    assert "to stderr" in stderr  # rank 0 keeps the terminal
    assert all("to stderr" in text for text in texts[1:])


def test_second_node(run: Run) -> None:
    options = (
        "--nnodes",
        "2",
        "--node-rank",
        "1",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "10.0.0.9",
    )
    code, stdout, _ = run.finish(run.start(REPORT, *options, OMP_NUM_THREADS="7"))
    assert code == 0
    first = json.loads(stdout)
    assert (first["RANK"], first["LOCAL_RANK"], first["WORLD_SIZE"]) == ("2", "0", "4")
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == ("10.0.0.9", "29500")
    assert first["OMP_NUM_THREADS"] == "7"
    assert '"RANK": "3"' in (run.folder / "GPU_1.node1.log").read_text()


def test_logs_are_appended_below_models(run: Run) -> None:
    (run.folder / "models").mkdir()
    body = "print('line of', sys.argv[1])\nprint('error of', sys.argv[1], file=sys.stderr)\n"
    for name in ("first", "second"):
        launcher = run.start(body, "--nproc_per_node", "2", arguments=(name,))
        assert run.finish(launcher)[0] == 0
    lines = (run.folder / "models/GPU_1.log").read_text().splitlines()
    assert lines[1:3] == ["line of first", "error of first"]
    assert lines[4:] == ["line of second", "error of second"]
    assert lines[3].startswith("==== ") and "script.py second" in lines[3]


@pytest.mark.parametrize(
    ("options", "arguments", "folder"),
    [
        (("--log_dir", "logs/deep"), ("--workspace", "w"), "logs/deep"),
        ((), ("--workspace=w",), "w"),
        ((), ("--workspace", "a", "--workspace", "b"), "b"),
        ((), ("--workspace",), "."),
    ],
)
def test_log_folder(
    run: Run, options: tuple[str, ...], arguments: tuple[str, ...], folder: str
) -> None:
    launcher = run.start("print('here')", "--nproc_per_node", "2", *options, arguments=arguments)
    assert run.finish(launcher)[0] == 0
    assert (run.folder / folder / "GPU_1.log").read_text().endswith("here\n")


def test_first_failure_ends_the_run(run: Run) -> None:
    body = """
if RANK == 1:
    print("x" * 100_000)
    for line in range(30):
        print("line", line, file=sys.stderr)
    sys.exit(5)
ready()
time.sleep(60)
"""
    code, _, stderr = run.finish(run.start(body, "--nproc_per_node", "3"))
    assert code == 5
    assert (
        f"rank 1 on {socket.gethostname()} exited with code 5; its output is in GPU_1.log" in stderr
    )
    assert [line.strip() for line in stderr.splitlines() if line.strip().startswith("line")] == [
        f"line {line}" for line in range(10, 30)
    ]
    assert not any(alive(int(run.read(f"ready{rank}"))) for rank in (0, 2))


def test_log_of_an_earlier_run_is_not_quoted(run: Run) -> None:
    (run.folder / "GPU_1.log").write_text("old words\n")
    body = "if RANK: print('new words', end='\\r'); print('last'); sys.exit(1)\n" + SLEEPER
    code, _, stderr = run.finish(run.start(body, "--nproc_per_node", "2"))
    assert code == 1
    assert "last" in stderr
    assert "words" not in stderr


def test_an_error_of_all_ranks_is_told_once(run: Run) -> None:
    body = "time.sleep(0.3 * (RANK == 0))\nprint('no data at all', file=sys.stderr)\nsys.exit(3)\n"
    code, _, stderr = run.finish(run.start(body, "--nproc_per_node", "3"))
    assert code == 3
    assert stderr.count("no data at all") == 1


@pytest.mark.parametrize(("rank", "output"), [(0, "above"), (1, "in GPU_1.log")])
def test_killed_rank(run: Run, rank: int, output: str) -> None:
    launcher = run.start(SLEEPER, "--nproc_per_node", "2")
    pids = [int(run.read(f"ready{each}")) for each in range(2)]
    os.kill(pids[rank], signal.SIGKILL)
    code, _, stderr = run.finish(launcher)
    assert code == 137
    host = socket.gethostname()
    assert f"rank {rank} on {host} was killed by SIGKILL; its output is {output}\n" in stderr
    assert not alive(pids[1 - rank])


def test_launchers_at_once_have_their_own_ports_and_logs(run: Run) -> None:
    body = """
note(f"port{sys.argv[1]}-", os.environ["MASTER_PORT"])
print("run", sys.argv[1])
while not Path("go").exists(): time.sleep(0.02)
"""
    launchers = []
    for name in ("a", "b"):
        launchers.append(run.start(body, "--nproc_per_node", "2", arguments=(name,)))
        for rank in range(2):
            run.read(f"port{name}-{rank}")
    (run.folder / "go").touch()
    assert [run.finish(launcher)[0] for launcher in launchers] == [0, 0]
    assert run.read("porta-0") == run.read("porta-1") != run.read("portb-0")
    first, second = run.folder / "GPU_1.log", run.folder / f"GPU_1.pid{launchers[1].pid}.log"
    assert first.read_text().splitlines()[1:] == ["run a"]
    assert second.read_text().splitlines()[1:] == ["run b"]


def test_rank_0_can_listen_on_the_port(run: Run) -> None:
    body = """
import socket
with socket.socket(socket.AF_INET6) as store:  # as PyTorch's store does
    store.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    store.bind(("::", int(os.environ["MASTER_PORT"])))
    store.listen()
"""
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    assert run.finish(run.start(body))[0] == 0


def test_port_in_use(run: Run) -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = str(server.getsockname()[1])
        code, _, stderr = run.finish(run.start("", "--master_port", port))
    assert code == 2
    assert port in stderr and "in use" in stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nproc_per_node", "0", "script.py"], "--nproc_per_node 0"),
        (["--nproc_per_node", "two", "script.py"], "--nproc_per_node"),
        (["--nnodes", "0", "script.py"], "--nnodes 0"),
        (["--nnodes", "2", "--node_rank", "2", "script.py"], "--node_rank 2"),
        (["--node_rank", "-1", "script.py"], "--node_rank -1"),
        (["--nnodes", "2", "script.py"], "--master_addr"),
        (["--master_port", "70000", "script.py"], "--master_port 70000"),
        (["--grace", "-1", "script.py"], "--grace -1"),
        (["--hang_timeout", "-1", "script.py"], "--hang_timeout -1"),
        (["--max_restarts", "-1", "script.py"], "--max_restarts -1"),
        (["--max_restarts", "1", "script.py", "--resume", "x"], "needs --resume auto"),
        (["--max_restarts", "1", "--nnodes", "2", "--master_addr", "a", "script.py"], "one node"),
        (["--log_dir", "script.py", "script.py"], "--log_dir script.py"),
        (["missing.py"], "missing.py: not found"),
        (["--nproc", "2", "script.py"], "--nproc"),
        ([], "SCRIPT"),
    ],
)
def test_bad_usage_is_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "script.py").write_text("raise SystemExit(99)\n")
    result = subprocess.run(
        [sys.executable, str(MULTIPROC), *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1 and not result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_help() -> None:
    result = subprocess.run(
        [sys.executable, str(MULTIPROC), "-h"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0
    for option in (
        "nnodes",
        "node_rank",
        "nproc_per_node",
        "master_addr",
        "master_port",
        "log_dir",
    ):
        assert f"--{option}" in result.stdout
    assert "GPU_" in result.stdout and "--workspace" in result.stdout
