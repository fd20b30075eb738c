# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Has a nursery execute what Python would, see forked.py; the standard library only, started often.

As a program it is given as PYTHON to the scripts of the package: its arguments are the address of
the nursery, the name by which it was started, and a command line of Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from typing import Any

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def send(address: str, order: dict[str, Any], files: list[int]) -> tuple[socket.socket, int]:
    """Starts a run with these open files; returns the connection to it and its number."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    socket.send_fds(connection, [b"\n"], files)
    connection.sendall(json.dumps(order).encode() + b"\n")
    return connection, int(read_line(connection))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Returns what `send` has sent."""
    files = socket.recv_fds(connection, 1, 3)[1]
    return json.loads(read_line(connection)), files


def read_line(connection: socket.socket) -> str:
    """Returns the next line that comes, no more of it than there is."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (part := connection.recv(65536)):
            raise ConnectionError(f"the nursery is gone after {line!r}")
        line += part
    return line.decode()


def set_name(name: str) -> None:
    """Says what this process is to who looks at it (Linux, 15 characters)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)


def main(address: str, name: str, *command: str) -> int:
    """Starts the run, passes signals on to it and ends as it does; other options are Python's."""
    if not command or (command[0][:1] == "-" and command[0] not in ("-u", "-m", "-c")):
        os.execv(sys.executable, [sys.executable, *command])
    ignored = [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    order = {"command": command, "env": dict(os.environ), "cwd": os.getcwd(), "executable": name,
             "ignored": [int(number) for number in ignored]}  # fmt: skip
    connection, pid = send(address, order, [0, 1, 2])
    set_name(f"run {pid}")
    for number in {*PASSED_ON} - {*ignored}:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    code = int(read_line(connection))
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
