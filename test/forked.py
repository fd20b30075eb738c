# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs without their start-up: forked from a process that has imported PyTorch already.

Many hundred starts are many minutes of imports. Such a run is a process of its own like any other;
as a program this file reads one per line and answers with the process number.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Nursery:
    """Starts runs of saboteur.py, whose process it remains the parent of."""

    def __init__(self, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, *arguments: Any, log: Path, **env: str) -> int:
        """Starts a run that writes to a file; returns its process number."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"arguments": [*map(str, arguments)], "env": env, "log": str(log)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def become(order: dict[str, Any]) -> int:
    """The forked process: what `python saboteur.py` does, from its first line on."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.environ.update(order["env"])
    with open(order["log"], "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import saboteur

    saboteur.arm()
    return saboteur.main.main(order["arguments"])


if __name__ == "__main__":
    import torch._dynamo
    import torch._inductor  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        if not (pid := os.fork()):
            sys.exit(become(json.loads(line)))
        print(pid, flush=True)
