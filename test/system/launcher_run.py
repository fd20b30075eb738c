# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the launcher with small scripts in the place of main.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MULTIPROC = Path(__file__).resolve().parents[2] / "multiproc.py"
PATIENCE = 30.0  # seconds after which a test gives up waiting, not a measure of anything
PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
RANK = int(os.environ["RANK"])
def note(name, text):
    path = Path(f"{name}.{os.getpid()}")
    path.write_text(str(text))
    path.rename(f"{name}{RANK}")
def ready():
    note("ready", os.getpid())
"""
SLEEPER = "ready()\ntime.sleep(60)\n"


class Run:
    """One launcher in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.launchers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
            launcher.communicate()

    def start(
        self, body: str, *options: str, arguments: tuple[str, ...] = (), ignore: int = 0, **env: str
    ) -> subprocess.Popen[str]:
        script = self.folder / "script.py"
        script.write_text(PRELUDE + body)

        def ignoring() -> None:
            # A background job of a shell, or nohup, would hand down signals that are ignored.
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            if ignore:
                signal.signal(ignore, signal.SIG_IGN)

        environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        launcher = subprocess.Popen(
            [sys.executable, str(MULTIPROC), *options, "script.py", *arguments],
            cwd=self.folder,
            env={**environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ignoring,
        )
        self.launchers.append(launcher)
        return launcher

    def finish(self, launcher: subprocess.Popen[str]) -> tuple[int, str, str]:
        stdout, stderr = launcher.communicate(timeout=PATIENCE)
        return launcher.returncode, stdout, stderr

    def read(self, name: str) -> str:
        """Waits for a file that a rank writes."""
        wait_for((self.folder / name).exists)
        return (self.folder / name).read_text()

    def words(self, name: str, count: int) -> list[str]:
        """Waits until a file that a rank appends to has at least that many words."""
        wait_for(lambda: len(self.read(name).split()) >= count)
        return self.read(name).split()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
