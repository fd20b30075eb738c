# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs without their start-up: forked from a process that has imported PyTorch already.

Hundreds of starts are many minutes of imports. Such a run is a process of its own, with its own
session, environment, output and exit code, and executes its script from the first line on; if that
is a launcher, its ranks are forked too. As a program this file forks a run for each order that
comes through a socket (see forked_client.py) and answers with its number and, later, its exit code.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import forked_client


class Run:
    """A run that was started, with what tests use of `subprocess.Popen`.

    Args:
        connection: To the nursery, which ends the run when it is closed.
        pid: Number of its process, which leads a group of its own.
        output: What it prints.
    """

    def __init__(self, connection: socket.socket, pid: int, output: IO[str] | None) -> None:
        self.pid, self.stdout = pid, output
        self.returncode: int | None = None
        self._connection = connection
        self._read: list[str] = []
        self._reader = threading.Thread(target=self._read_all, daemon=True)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end (s) and returns its exit code."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = int(forked_client.read_line(self._connection))
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Reads all that it prints and waits for its end; may be called again after a timeout."""
        if not self._reader.ident:
            self._reader.start()
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        self.wait(timeout)
        return self._read[0], None

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless its end has been seen."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def _read_all(self) -> None:
        assert self.stdout is not None
        self._read.append(self.stdout.read())


class Nursery:
    """Starts scripts; stays the parent of their processes."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self._address = str(Path(self._folder.name, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(64)
            # It ends when its input does, that is with this process at the latest.
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())], env=env,
                stdin=subprocess.PIPE, pass_fds=[listener.fileno()],
            )  # fmt: skip

    @property
    def python(self) -> str:
        """A program that takes Python's command line and has it executed here.

        It stands for its run: passes signals on, ends with its exit code, and takes it with it.
        """
        path = Path(self._folder.name, "python")
        if not path.exists():
            client = [sys.executable, "-I", "-S", forked_client.__file__, self._address]
            words = " ".join(f"'{word}'" for word in client)
            path.write_text(f'#!/bin/sh\nexec {words} "$0" "$@"\n')
            path.chmod(0o755)
        return str(path)

    def start(
        self, *command: Any, env: dict[str, str] | None = None, log: Path | None = None
    ) -> Run:
        """Starts a script with its arguments.

        Args:
            env: The whole environment, plug-ins of PyTorch on its PYTHONPATH included; by default
                that of this process.
            log: It adds its output to that file; by default `Run.stdout` reads it.
        """
        with contextlib.ExitStack() as files:
            null = files.enter_context(open(os.devnull, "rb"))
            if log is not None:
                target, output = files.enter_context(log.open("ab")).fileno(), None
            else:
                reader, target = os.pipe()
                files.callback(os.close, target)
                output = open(reader, errors="replace")
            return Run(*self._order(command, env, [null.fileno(), target, target]), output)

    def run(
        self, *command: Any, timeout: float, env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Runs a script with its arguments to its end, within `timeout` seconds; as `start`."""
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as err,
            open(os.devnull, "rb") as null,
        ):
            files = [null.fileno(), out.fileno(), err.fileno()]
            run = Run(*self._order(command, env, files, cwd), None)
            try:
                code = run.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                code = run.wait()
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess([*map(str, command)], code, out.read(), err.read())

    def _order(
        self, command: tuple[Any, ...], env: dict[str, str] | None, files: list[int],
        cwd: Path | None = None,
    ) -> tuple[socket.socket, int]:  # fmt: skip
        order = {
            "command": [*map(str, command)], "env": env or self._env, "cwd": str(cwd or Path.cwd()),
            "executable": sys.executable, "ignored": [],
        }  # fmt: skip
        return forked_client.send(self._address, order, files)


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

            def run() -> None:
                signal.set_wakeup_fd(-1)
                for number in signal.valid_signals():
                    if callable(signal.getsignal(number)):
                        signal.signal(number, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts
                os.setsid()
                preexec_fn()
                if stdout is not None:
                    assert (stdin, stderr) == (Forked.DEVNULL, Forked.STDOUT)
                    with open(os.devnull, "rb") as null:
                        redirect([null.fileno(), stdout.fileno(), stdout.fileno()])
                execute(command[1:], env)

            finish(run)  # the launcher's code, which has been forked too, must not go on


def finish(run: Callable[[], None]) -> NoReturn:
    """Runs, and ends this process as Python does, but for what has been forked with it."""
    code = 0
    try:
        run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def redirect(files: list[int]) -> None:
    """Makes input, output and errors those open files."""
    for number, file in enumerate(files):
        os.dup2(file, number)


def execute(command: list[str], env: dict[str, str]) -> None:
    """What `python [-u] SCRIPT|-m MODULE|-c CODE ARGUMENTS` does, from its first line on."""
    os.environ.clear()
    os.environ.update(env)
    if unbuffered := command[0] == "-u":
        command = command[1:]
    if unbuffered or env.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if "RANK" in env:  # to others, a forked process shows the environment of its parent
        forked_client.set_name(f"rank {env['RANK']}")
    if os.environ.get("TORCH_DEVICE_BACKEND_AUTOLOAD") != "0":
        # As `import torch` does from 2.5 on: plug-ins of this environment.
        getattr(torch, "_import_device_backends", lambda: None)()
    if command[0] in ("-m", "-c"):
        kind, what, *arguments = command
        sys.argv = [kind, *arguments]
        sys.path[0] = os.getcwd() if kind == "-m" else ""
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        return
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    if command[0].endswith("multiproc.py"):
        from image_classification import launcher

        launcher.subprocess = Forked  # type: ignore[assignment]
    runpy.run_path(command[0], run_name="__main__")


def become(order: dict[str, Any], files: list[int]) -> None:
    """Executes an order in this process, which has been forked for it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    redirect(files)
    for file in files:
        os.close(file)
    os.chdir(order["cwd"])
    sys.executable = order["executable"]
    if path := order["env"].get("PYTHONPATH"):
        sys.path[1:1] = path.split(os.pathsep)
    execute(order["command"], order["env"])


def end(pid: int) -> None:
    """Ends a run and its group, of which it may not be the leader yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


class Server:
    """Forks runs, one for each connection, until its own input ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._wakeup, writer = socket.socketpair()
        for one in (self._wakeup, writer):
            one.setblocking(False)
        self._writer = writer
        self._runs: dict[int, socket.socket] = {}
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Returns when there is nobody who could start a run."""
        while True:
            runs = {connection: pid for pid, connection in self._runs.items()}
            watched = [sys.stdin, self._listener, self._wakeup, *runs]
            ready = select.select(watched, [], [])[0]
            if sys.stdin in ready:
                for pid in self._runs:
                    end(pid)
                return
            for connection in ready:
                if connection in runs:  # who has started it is gone
                    end(runs[connection])
            if self._wakeup in ready:
                self._wakeup.recv(4096)
                self._reap()
            if self._listener in ready:
                self._fork(self._listener.accept()[0])

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self._runs.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
                connection.close()

    def _fork(self, connection: socket.socket) -> None:
        try:
            order, files = forked_client.receive(connection)
        except (ConnectionError, ValueError):  # its client was killed before it could say it all
            connection.close()
            return
        if not (pid := os.fork()):
            for one in (self._listener, self._wakeup, self._writer, connection):
                one.close()
            for one in self._runs.values():
                one.close()
            if not hasattr(torch, "_import_device_backends"):
                # Before 2.5, PyTorch waits in the end for threads that only the parent has.
                finish(functools.partial(become, order, files))
            become(order, files)
            sys.exit()
        for file in files:
            os.close(file)
        self._runs[pid] = connection
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % pid)


def silence() -> None:
    """The end of the interpreter is not told: PyTorch's modules, frozen, are leaks to nanobind."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    atexit.register(silence)  # is called last
    gc.disable()
    import torch._dynamo
    import torch._inductor

    gc.freeze()  # a run that looks for garbage, last at its end, would go through all of PyTorch
    gc.enable()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        Server(requests).serve()
