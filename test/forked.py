# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs without their start-up: forked from a process that has imported PyTorch already.

Hundreds of starts are many minutes of imports. Such a run is a process of its own, with its own
session, environment, output and exit code, and executes its script from the first line on. As a
program this file reads an order per line and answers each with a number.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Nursery:
    """Starts scripts; stays the parent of their processes."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, *command: Any, log: Path, **env: str) -> int:
        """Starts a script with its arguments; it adds its output to a file.

        Returns:
            The number of its process.
        """
        return self._order(command, env, [str(log)] * 2)

    def run(self, *command: Any, timeout: float) -> subprocess.CompletedProcess[str]:
        """Runs a script with its arguments to its end, within `timeout` seconds."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            pid = self._order(command, {}, [*map(str, files)], wait=True)
            assert self._process.stdout is not None
            if not select.select([self._process.stdout], [], [], timeout)[0]:
                os.killpg(pid, signal.SIGKILL)
            code = int(self._process.stdout.readline())
            out, err = (file.read_text(errors="replace") for file in files)
        return subprocess.CompletedProcess([*map(str, command)], code, out, err)

    def _order(
        self, command: tuple[Any, ...], env: dict[str, str], files: list[str], wait: bool = False
    ) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"command": [*map(str, command)], "env": env, "files": files, "wait": wait}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def become(order: dict[str, Any]) -> None:
    """The forked process: what `python SCRIPT ARGUMENTS` does, from its first line on."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A shell that runs the tests in the background makes them ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.environ.update(order["env"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in enumerate(order["files"], 1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    sys.argv = order["command"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    import torch._dynamo
    import torch._inductor  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        # Nobody waits for most of them.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if order["wait"] else signal.SIG_IGN)
        if not (pid := os.fork()):
            become(order)
            sys.exit()
        print(pid, flush=True)
        if order["wait"]:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
