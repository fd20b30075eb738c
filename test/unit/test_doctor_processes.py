# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of the doctor: they may hang or crash, and nothing is left of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doctor_helpers import is_gone, only

from image_classification.doctor import devices
from image_classification.doctor.jobs import MARK, Answers, Job, Jobs, Outcome

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, timeout_s: float = 60) -> Job:
    return Job([sys.executable, "-c", code], os.environ, timeout_s)


def test_a_command_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; echo said; sleep 1000 & echo $! $$ > {pids}; wait; sleep 1000"
    outcome = Job(["sh", "-c", script], os.environ, 0.5).outcome()
    assert outcome == Outcome("said\n", "gave no answer within 0.5 s", hung=True)
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())
    finding = only(devices.tool_findings("npu-smi", outcome))
    assert finding.status == "FIX" and "no answer within" in finding.value


def test_how_other_ends_are_told() -> None:
    assert python("print(1)").outcome() == Outcome("1\n")
    assert python("import sys; sys.exit('bad')").outcome().trouble == "ended with code 1 (bad)"
    killed = python("import os; os.kill(os.getpid(), 11)").outcome()
    assert killed.trouble == "was killed by SIGSEGV"
    missing = Job(["/nowhere/cnmon"], os.environ, 1).outcome()
    assert missing.trouble == "cannot be started: No such file or directory"


def test_the_step_that_loses_the_process_is_known() -> None:
    lines = [f"{MARK}{json.dumps(line)}" for line in (["torch", None], ["torch", {"version": 1}])]
    begun = f"{MARK}{json.dumps(['cuda', None])}"
    given = Answers(Outcome("\n".join([*lines, "noise", begun]), "was killed by SIGSEGV"))
    assert given["torch"] == {"version": 1}
    assert given["cuda"] == {"error": "the process that tried it was killed by SIGSEGV"}
    assert "not examined" in given["auto"]["error"]
    assert "cuda" in given and "auto" not in given


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_jobs_end_with_the_doctor(number: int) -> None:
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from image_classification.doctor.jobs import Jobs
        with Jobs(Path.cwd(), os.environ) as jobs:
            job = jobs.command("sleep", "1000", timeout_s=1000)
            print(job._process.pid, flush=True)
            job.outcome()
    """
    doctor = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with doctor:
        assert doctor.stdout is not None
        pid = int(doctor.stdout.readline())
        doctor.send_signal(number)
    assert is_gone(pid)


def test_what_nobody_waited_for_ends_with_the_examination(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Jobs(ROOT, os.environ) as jobs:
        script = f"sleep 1000 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"
        jobs.command("sh", "-c", script, timeout_s=1000)
        while not pids.exists():
            time.sleep(0.02)
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


def test_the_doctor_itself_imports_no_torch() -> None:
    code = "import sys, image_classification.doctor.examination; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
