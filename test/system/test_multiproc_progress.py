# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The launcher and ranks that hang, crash and start anew, or were asked to stop one by one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_run import Run, alive, wait_for

TWO = ("--nproc_per_node", "2", "--grace", "1")
STEPS = """
beat = int(os.environ["IMAGE_CLASSIFICATION_HEARTBEAT"])
def steps(count):
    for _ in range(count):
        os.write(beat, b".")
        time.sleep(0.02)
"""
STOPS = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\nready()\ntime.sleep(60)\n"
RESUMES = ("--resume", "auto")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


def test_a_rank_without_steps_ends_the_run(run: Run) -> None:
    body = (
        STEPS
        + """
import faulthandler
faulthandler.register(signal.SIGUSR2, all_threads=True)
def stuck_place():
    time.sleep(60)
steps(5 if RANK else 20)
note("pid", os.getpid())
stuck_place()
"""
    )
    launcher = run.start(body, *TWO, "--hang_timeout", "1")
    code, _, stderr = run.finish(launcher)
    assert code == 7
    assert "rank 1 on " in stderr and "hangs: no step for 1 s (--hang_timeout 1)" in stderr
    assert "stuck_place" in stderr  # rank 0's stack
    (log,) = run.folder.glob("GPU_1.log")
    assert "stuck_place" in log.read_text()
    assert not any(alive(int(run.read(f"pid{rank}"))) for rank in range(2))


def test_a_suspended_rank_is_named(run: Run) -> None:
    body = STEPS + "steps(3)\nready()\nsteps(3000)"
    launcher = run.start(body, *TWO, "--hang_timeout", "1")
    pid = int(run.read("ready1"))
    os.kill(pid, signal.SIGSTOP)
    code, _, stderr = run.finish(launcher)
    assert code == 7 and "is suspended: no step for 1 s" in stderr
    assert not alive(pid)


@pytest.mark.parametrize("timeout", ["0", "1"])
def test_nothing_is_expected_of_a_script_that_tells_no_steps(run: Run, timeout: str) -> None:
    body = (STEPS if timeout == "0" else "def steps(n): pass\n") + "steps(1)\ntime.sleep(2.5)"
    code, _, stderr = run.finish(run.start(body, "--hang_timeout", timeout))
    assert code == 0 and "hang" not in stderr


CRASH_ONCE = """
with open(f"starts{RANK}", "a") as file:
    file.write("start ")
if RANK == 1 and len(Path("starts1").read_text().split()) <= CRASHES:
    CRASH
ready()
"""


def crash(times: int, how: str) -> str:
    return CRASH_ONCE.replace("CRASHES", str(times)).replace("CRASH", how)


@pytest.mark.parametrize("how", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)", "1 / 0"])
def test_crashed_ranks_start_anew_together(run: Run, how: str) -> None:
    launcher = run.start(crash(2, how), *TWO, "--max_restarts", "2", arguments=RESUMES)
    code, _, stderr = run.finish(launcher)
    assert code == 0
    assert [len(run.read(f"starts{rank}").split()) for rank in range(2)] == [3, 3]
    assert "starting all ranks anew from the last checkpoint (2 of 2)" in stderr


def test_restarts_come_to_an_end(run: Run) -> None:
    launcher = run.start(crash(9, "os._exit(9)"), *TWO, "--max_restarts=1", arguments=RESUMES)
    code, _, stderr = run.finish(launcher)
    assert code == 9 and len(run.read("starts1").split()) == 2
    assert stderr.count("rank 1 on ") == 2


@pytest.mark.parametrize("code", [2, 3, 4, 5])
def test_some_ends_are_final(run: Run, code: int) -> None:
    launcher = run.start(
        crash(1, f"os._exit({code})"), *TWO, "--max_restarts", "3", arguments=RESUMES
    )
    assert run.finish(launcher)[0] == code
    assert len(run.read("starts1").split()) == 1


def test_a_stop_request_is_final(run: Run) -> None:
    launcher = run.start(STOPS, *TWO, "--max_restarts", "3", arguments=RESUMES)
    for rank in range(2):
        run.read(f"ready{rank}")
    launcher.send_signal(signal.SIGTERM)
    code, _, stderr = run.finish(launcher)
    assert code == 143 and "anew" not in stderr


def test_a_rank_that_was_asked_to_stop_leaves_time_to_save(run: Run) -> None:
    """The others may not know of it: they are asked, too, once, and have ten times the grace."""
    body = """
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
ready()
while RANK == 1 and not got:
    time.sleep(0.01)
if RANK == 0:
    wait = time.monotonic() + 4
    while time.monotonic() < wait:
        time.sleep(0.05)
    note("saved", len(got))
sys.exit(143)
"""
    launcher = run.start(body, *TWO)
    pid = int(run.read("ready1"))
    run.read("ready0")
    os.kill(pid, signal.SIGTERM)
    code, _, _ = run.finish(launcher)
    assert code == 143 and run.read("saved0") == "1"
    wait_for(lambda: not alive(pid))


def test_ranks_that_wait_for_one_that_was_asked_to_stop_leave_with_it(run: Run) -> None:
    launcher = run.start(STOPS, "--nproc_per_node", "3")
    pid = int(run.read("ready1"))
    for rank in (0, 2):
        run.read(f"ready{rank}")
    os.kill(pid, signal.SIGTERM)
    code, _, stderr = run.finish(launcher)
    assert code == 143
    assert "rank 1 on" in stderr and "did not end" not in stderr
