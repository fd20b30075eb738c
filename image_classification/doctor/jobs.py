# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that may hang or crash in the place of the doctor.

Each leads a process group of its own, which ends with it, after its time at the latest, and with
the doctor, however that one ends. What it writes goes to memory: nothing is left on a disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from image_classification.launcher import die_with_parent, signal_group, signal_name

# Starts the line of a probe that holds an answer; vendors' libraries print what they like.
MARK = "doctor's probe: "
_PROBES = (
    # The path of modules is that of main.py, without the current folder.
    "import sys; sys.path = [sys.argv.pop(1), *filter(None, sys.path)]; "
    "from image_classification.doctor.probes import main; main(sys.argv[1:])"
)
_UNKILLABLE_S = 5.0  # after SIGKILL; a process in a driver's call may never end
_POLL_S = 0.02


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        output: What it wrote to standard output, until then.
        trouble: One line that says why it did not end with exit code 0; empty if it did.
        hung: It had to be killed, or could not even be.
    """

    output: str
    trouble: str = ""
    hung: bool = False


class Answers:
    """The answers of a probe, step by step.

    Args:
        outcome: How the probe ended.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._steps: dict[str, dict[str, Any] | None] = {}
        self._trouble = outcome.trouble or "it ended early"
        for line in outcome.output.splitlines():
            if line.startswith(MARK):
                with contextlib.suppress(ValueError):  # cut off by the end of the process
                    step, answer = json.loads(line.removeprefix(MARK))
                    self._steps[step] = answer

    def __contains__(self, step: str) -> bool:
        """Return whether the step was begun."""
        return step in self._steps

    def __getitem__(self, step: str) -> dict[str, Any]:
        """Return the answer; {"error": one line} where the step failed, or was never reached."""
        if step not in self._steps:
            return {"error": f"not examined, the process before it failed: {self._trouble}"}
        return self._steps[step] or {"error": f"the process that tried it {self._trouble}"}


class Job:
    """A process that was started, or could not be.

    Args:
        command: The program and its arguments.
        env: Its environment.
        timeout_s: Seconds, from now on, after which it is killed.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._outcome: Outcome | None = None
        doctor = os.getpid()
        try:
            self._files = [_memory_file(), _memory_file()]
            self._process = subprocess.Popen(
                list(command),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=self._files[0],
                stderr=self._files[1],
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(doctor),
            )
        except OSError as error:
            self._outcome = Outcome("", f"cannot be started: {error.strerror or error}")

    def outcome(self) -> Outcome:
        """Wait for the end, or bring it about when the time is over."""
        if self._outcome is None:
            hung = not self._ends_before(self._deadline)
            self.close()
            self._outcome = Outcome(self._text(0), self._trouble(hung), hung)
        return self._outcome

    def answers(self) -> Answers:
        """Return what a probe has answered; waits as `outcome`."""
        return Answers(self.outcome())

    def close(self) -> None:
        """End the process and all that it has started; safe to call twice."""
        if self._outcome is None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._ends_before(time.monotonic() + _UNKILLABLE_S)

    def _ends_before(self, deadline: float) -> bool:
        # Not Popen.wait(timeout): it sleeps up to half a second at a time.
        while self._process.poll() is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _text(self, stream: int) -> str:
        self._files[stream].seek(0)
        return self._files[stream].read().decode(errors="replace")

    def _trouble(self, hung: bool) -> str:
        code = self._process.returncode
        if hung:
            immortal = " and cannot even be killed: a driver hangs" if code is None else ""
            return f"gave no answer within {self._timeout_s:g} s{immortal}"
        if not code:
            return ""
        lines = [line.strip() for line in self._text(1).splitlines() if line.strip()]
        last = f" ({lines[-1]})" if lines else ""
        ended = f"was killed by {signal_name(-code)}" if code < 0 else f"ended with code {code}"
        return ended + last


class Jobs:
    """Starts jobs in the environment of the doctor and ends those that are left.

    Args:
        root: The folder of main.py.
        environ: The environment.
    """

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self._root = root
        self._environ = environ
        self._jobs: list[Job] = []

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, *error: object) -> None:
        for job in self._jobs:
            job.close()

    def command(self, *words: str, timeout_s: float, **variables: str) -> Job:
        """Start a program; `variables` are added to its environment."""
        self._jobs.append(Job(words, {**self._environ, **variables}, timeout_s))
        return self._jobs[-1]

    def probe(self, name: str, *words: str, timeout_s: float, **variables: str) -> Job:
        """Start a function of `probes`."""
        variables = {"OMP_NUM_THREADS": "1", **variables}  # several run side by side
        python = (sys.executable, "-c", _PROBES, str(self._root))
        return self.command(*python, name, *words, timeout_s=timeout_s, **variables)


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # a disk may be full
        return os.fdopen(os.memfd_create("doctor"), "w+b")
    return tempfile.TemporaryFile()
