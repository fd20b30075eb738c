# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs without their start-up: forked from a process that has imported PyTorch already.

Hundreds of starts are many minutes of imports. Such a run is a process of its own, with its own
session, environment, output and exit code, and executes its script from the first line on; if that
is a launcher, its ranks are forked too. As a program this file reads an order per line and answers
each with a number.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


class Nursery:
    """Starts scripts; stays the parent of their processes."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
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
        return self._order(command, {**self._env, **env}, [str(log)] * 2)

    def run(
        self, *command: Any, timeout: float, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script with its arguments to its end, within `timeout` seconds.

        Args:
            env: The whole environment, plug-ins of PyTorch on its PYTHONPATH included; by default
                that of this process.
        """
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("out", "err")]
            pid = self._order(command, env or self._env, [*map(str, files)], wait=True)
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


class Forked:
    """What the launcher uses of the module subprocess: a rank is what `python -u SCRIPT` is."""

    DEVNULL, STDOUT = subprocess.DEVNULL, subprocess.STDOUT

    class Popen:
        """A rank; the launcher fills in its return code."""

        def __init__(
            self, command: list[str], *, env: dict[str, str], stdin: int | None,
            stdout: IO[bytes] | None, stderr: int | None, start_new_session: bool,
            preexec_fn: Callable[[], None], pass_fds: list[int],
        ) -> None:  # fmt: skip
            self.returncode: int | None = None
            assert command[:2] == [sys.executable, "-u"] and start_new_session and pass_fds
            self.pid = os.fork()
            if self.pid:
                return
            try:
                signal.set_wakeup_fd(-1)
                for number in signal.valid_signals():
                    if callable(signal.getsignal(number)):
                        signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts
                preexec_fn()
                if stdout is not None:
                    assert (stdin, stderr) == (Forked.DEVNULL, Forked.STDOUT)
                    redirect([os.devnull, stdout.fileno(), stdout.fileno()])
                execute(command[2:], env)
            except SystemExit as end:
                self.returncode = end.code if isinstance(end.code, int) else bool(end.code)
            except BaseException:
                traceback.print_exc()
                self.returncode = 1
            finally:  # the launcher's code, which has been forked too, must not go on
                atexit._run_exitfuncs()
                sys.stdout.flush()
                os._exit(self.returncode or 0)


def redirect(files: list[str | int]) -> None:
    """Makes input, output and errors those files (paths, or open ones)."""
    for number, file in enumerate(files):
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        os.dup2(file if isinstance(file, int) else os.open(file, flags, 0o644), number)


def execute(command: list[str], env: dict[str, str]) -> None:
    """What `python SCRIPT ARGUMENTS` does, from its first line on."""
    os.environ.clear()
    os.environ.update(env)
    os.setsid()
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") != "0":
        torch._import_device_backends()  # as `import torch` does: plug-ins of this environment
    if command[0].endswith("multiproc.py"):
        from image_classification import launcher

        launcher.subprocess = Forked  # type: ignore[assignment]
    runpy.run_path(command[0], run_name="__main__")


def become(order: dict[str, Any]) -> None:
    """Executes an order in this process, which has been forked for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    redirect([os.devnull, *order["files"]])
    if path := order["env"].get("PYTHONPATH"):
        sys.path[1:1] = path.split(os.pathsep)
    execute(order["command"], order["env"])


if __name__ == "__main__":
    import torch._dynamo
    import torch._inductor

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
