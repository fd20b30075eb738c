# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The launcher: signals reach all ranks and no process is left. Real processes, no PyTorch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_run import MULTIPROC, PATIENCE, SLEEPER, Run, alive, wait_for


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path) as run:
        yield run


RECORDER = """
def record(signum, frame):
    with open(f"got{RANK}", "a") as log:
        log.write(signal.Signals(signum).name + " ")
    if signum == signal.SIGTERM:
        sys.exit(143)
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(signum, record)
ready()
while True:
    time.sleep(1)
"""


def test_signals_reach_every_rank(run: Run) -> None:
    launcher = run.start(RECORDER, "--nproc_per_node", "3")
    pids = [int(run.read(f"ready{rank}")) for rank in range(3)]
    names = ("SIGUSR1", "SIGUSR2", "SIGUSR1", "SIGINT", "SIGHUP", "SIGINT", "SIGTERM")
    for count, name in enumerate(names, 1):
        launcher.send_signal(getattr(signal, name))
        for rank in range(3):
            assert run.words(f"got{rank}", count)[-1] == name
    code, _, stderr = run.finish(launcher)
    assert code == 143
    assert "SIGTERM passed on to 3 ranks" in stderr
    assert not any(alive(pid) for pid in pids)


def test_keyboard_interrupt(run: Run) -> None:
    body = "try:\n    ready()\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    launcher = run.start(body, "--nproc_per_node", "2")
    pids = [int(run.read(f"ready{rank}")) for rank in range(2)]
    launcher.send_signal(signal.SIGINT)
    code, _, stderr = run.finish(launcher)
    assert code == 130
    assert "Traceback" not in stderr
    assert not any(alive(pid) for pid in pids)


def test_nohup_is_respected(run: Run) -> None:
    body = "ready()\nwhile not Path('go').exists(): time.sleep(0.02)\n"
    launcher = run.start(body, "--nproc_per_node", "2", ignore=signal.SIGHUP)
    for rank in range(2):
        run.read(f"ready{rank}")
    launcher.send_signal(signal.SIGHUP)
    (run.folder / "go").touch()
    code, _, stderr = run.finish(launcher)
    assert code == 0
    assert "SIGHUP" not in stderr


def test_a_rank_may_save_while_others_have_stopped(run: Run) -> None:
    body = """
stops = []
signal.signal(signal.SIGTERM, lambda *ignored: stops.append(1))
ready()
while not stops:
    time.sleep(0.01)
if RANK == 0:
    time.sleep(2)
    note("saved", len(stops))
sys.exit(143)
"""
    launcher = run.start(body, "--nproc_per_node", "2", "--grace", "0.5")
    for rank in range(2):
        run.read(f"ready{rank}")
    launcher.send_signal(signal.SIGTERM)
    code, _, stderr = run.finish(launcher)
    assert code == 143
    assert (run.folder / "saved0").read_text() == "1"  # neither killed nor asked twice
    assert "did not end" not in stderr


STUBBORN = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
"""


def test_deaf_ranks_are_killed_after_the_grace(run: Run) -> None:
    body = f"{STUBBORN}if RANK == 1:\n    while not Path('ready0').exists(): time.sleep(0.02)\n"
    body += "    sys.exit(6)\n" + SLEEPER
    launcher = run.start(body, "--nproc_per_node", "2", "--grace", "0.5")
    code, _, stderr = run.finish(launcher)
    assert code == 6
    assert "rank 0 did not end: SIGKILL" in stderr
    assert not alive(int(run.read("ready0")))


def test_deaf_ranks_do_not_keep_a_stopped_launcher(run: Run) -> None:
    launcher = run.start(STUBBORN + SLEEPER, "--nproc_per_node", "2", "--grace", "0.1")
    pids = [int(run.read(f"ready{rank}")) for rank in range(2)]
    launcher.send_signal(signal.SIGTERM)
    code, _, stderr = run.finish(launcher)
    assert code == 137
    assert "rank 0, 1 did not end: SIGKILL" in stderr
    assert not any(alive(pid) for pid in pids)


def test_a_failure_while_stopping_shortens_the_wait(run: Run) -> None:
    body = """
stops = []
signal.signal(signal.SIGTERM, lambda *ignored: stops.append(1))
ready()
while not stops:
    time.sleep(0.01)
if RANK == 1:
    sys.exit(9)
time.sleep(6)  # waits for rank 1
note("saved", "")
"""
    launcher = run.start(body, "--nproc_per_node", "2", "--grace", "1")
    for rank in range(2):
        run.read(f"ready{rank}")
    launcher.send_signal(signal.SIGTERM)
    code, _, stderr = run.finish(launcher)
    assert code == 9
    assert "rank 0 did not end: SIGKILL" in stderr
    assert not (run.folder / "saved0").exists()


def test_a_second_signal_shortens_the_wait(run: Run) -> None:
    launcher = run.start(STUBBORN + SLEEPER, "--grace", "2")
    run.read("ready0")
    launcher.send_signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGHUP)  # two equal ones might arrive as one
    code, _, stderr = run.finish(launcher)
    assert code == 137
    assert "SIGKILL in 20 s" in stderr and "SIGKILL in 2 s" in stderr


HELPERS = """
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
helpers = [subprocess.Popen([sys.executable, "-c", deaf], start_new_session=own) for own in OWN]
note("helpers", json.dumps([helper.pid for helper in helpers]))
ready()
"""


def helpers_of(run: Run, ranks: int) -> list[int]:
    return [pid for rank in range(ranks) for pid in json.loads(run.read(f"helpers{rank}"))]


@pytest.mark.parametrize("end", [0, 9])
def test_helpers_do_not_outlive_the_run(run: Run, end: int) -> None:
    body = "OWN = (False, True)\n" + HELPERS + f"sys.exit({end})"
    launcher = run.start(body, "--nproc_per_node", "2")
    pids = helpers_of(run, 2)
    code, _, _ = run.finish(launcher)
    assert code == end
    assert len(pids) == 4
    assert not any(alive(pid) for pid in pids)


def test_nothing_is_left_when_the_launcher_is_killed(run: Run) -> None:
    body = "OWN = (False,)\n" + STUBBORN + HELPERS + "time.sleep(60)\n"
    launcher = run.start(body, "--nproc_per_node", "2")
    pids = helpers_of(run, 2) + [int(run.read(f"ready{rank}")) for rank in range(2)]
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    pids += [int(pid) for pid in children.read_text().split()]
    launcher.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert launcher.wait(PATIENCE) == -signal.SIGKILL


def test_children_of_the_calling_shell_are_left_alone(run: Run) -> None:
    (run.folder / "script.py").write_text("pass\n")
    command = f'sleep 60 & echo $!; exec "{sys.executable}" "{MULTIPROC}" script.py'
    shell = subprocess.Popen(
        ["bash", "-c", command], cwd=run.folder, stdout=subprocess.PIPE, text=True
    )
    assert shell.stdout is not None
    monitor = int(shell.stdout.readline())
    try:
        assert shell.wait(PATIENCE) == 0
        assert alive(monitor)
    finally:
        os.kill(monitor, signal.SIGKILL)
        shell.stdout.close()


def test_a_rank_that_the_kernel_ended_for_lack_of_memory(run: Run) -> None:
    """The kernel counts such ends; whether the rank's was one of them is likely, not certain."""
    (run.folder / "vmstat").write_text("nr_free_pages 7\noom_kill 4\n")
    wrapper = run.folder / "wrapper.py"
    wrapper.write_text(
        f"import sys; sys.path.insert(0, {str(MULTIPROC.parent)!r})\n"
        "from pathlib import Path\nimport multiproc\nfrom image_classification import launcher\n"
        "launcher.VMSTAT = Path('vmstat')\nsys.exit(multiproc.main())\n"
    )
    script = run.folder / "script.py"
    for count, word in ((5, True), (5, False)):
        script.write_text(
            f"import os, signal\nopen('vmstat', 'w').write('oom_kill {count}')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run(
            [sys.executable, "wrapper.py", "script.py"], cwd=run.folder, capture_output=True,
            text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 137 and "was killed by SIGKILL" in done.stderr
        assert ("ran out of memory" in done.stderr) == word
