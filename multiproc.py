# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Starts one process per device: `python multiproc.py --nproc_per_node 8 main.py DIR ...`.

Rank 0 keeps the terminal; every further local rank writes to GPU_<local rank>.log. Signals are
passed on to all ranks, the first failure (or a rank that makes no progress) ends the run with that
rank's exit code, and no process outlives the launcher, not even when the launcher itself is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from image_classification.launcher import Launcher


class Parser(argparse.ArgumentParser):
    """Reports bad usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see `python {self.prog} -h`)\n")


def build_parser() -> Parser:
    """Returns the parser of the launcher's own options; the script's stay untouched."""
    parser = Parser(
        prog="multiproc.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Starts one process per device and runs SCRIPT in each of them.",
        epilog="Example: python multiproc.py --nproc_per_node 8 main.py /imagenet --amp\n"
        "Exit code: 0, or that of the first rank that failed (128 + n for signal n).\n"
        "SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to every rank.",
    )
    add = parser.add_argument
    add("--nnodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    add("--node_rank", "--node-rank", type=int, default=0, metavar="K", help="0..N-1 (default: 0)")
    add("--nproc_per_node", "--nproc-per-node", type=int, default=1, metavar="N",
        help="processes to start on this node, usually one per device (default: 1)")  # fmt: skip
    add("--master_addr", "--master-addr", metavar="HOST",
        help="address of node 0 (default: 127.0.0.1; needed with several nodes)")  # fmt: skip
    add("--master_port", "--master-port", type=int, metavar="PORT",
        help="port of rank 0 (default: a free one; 29500 with several nodes)")  # fmt: skip
    add("--log_dir", "--log-dir", type=Path, metavar="DIR",
        help="folder of the logs GPU_<local rank>.log, which are appended to (default: the "
        "script's --workspace, else models/ beside the script, else .)")  # fmt: skip
    add("--grace", type=float, default=30.0, metavar="SECONDS",
        help="after a rank has failed the others get SIGTERM and, this much later, SIGKILL "
        "(default: 30); a stop signal to the launcher leaves them ten times as long to save, "
        "a second one shortens that to the grace")  # fmt: skip
    add("--hang_timeout", "--hang-timeout", type=float, default=300.0, metavar="SECONDS",
        help="end the run when a rank that has trained makes no step for so long, with exit code 7 "
        "and the stacks of all ranks in their logs (default: 300; 0: never)")  # fmt: skip
    add("--max_restarts", "--max-restarts", type=int, default=0, metavar="N",
        help="after a crash start all ranks anew, up to N times (default: 0; one node; the script "
        "needs --resume auto; never after exit codes 2 to 5 or a stop signal)")  # fmt: skip
    add("script", metavar="SCRIPT", help="Python script to run")
    add("arguments", metavar="...", nargs=argparse.REMAINDER, help="arguments of the script")
    return parser


def parse_args(argv: list[str]) -> tuple[argparse.Namespace, socket.socket | None]:
    """Checks the command line, chooses port and log folder; also returns the port's socket."""
    parser = build_parser()
    options = parser.parse_args(argv)
    nnodes, port = options.nnodes, options.master_port
    nproc, node = options.nproc_per_node, options.node_rank
    for wrong, message in (
        (nproc < 1, f"--nproc_per_node {nproc}: at least 1"),
        (nnodes < 1, f"--nnodes {nnodes}: at least 1"),
        (not 0 <= node < nnodes, f"--node_rank {node}: outside 0..{nnodes - 1}, see --nnodes"),
        (nnodes > 1 and not options.master_addr,
         f"--nnodes {nnodes} needs --master_addr, the address of node 0"),
        (port is not None and not 0 < port < 65536, f"--master_port {port}: outside 1..65535"),
        (not options.grace >= 0, f"--grace {options.grace}: seconds, 0 or more"),
        (not options.hang_timeout >= 0, f"--hang_timeout {options.hang_timeout}: 0 or more"),
        (options.max_restarts < 0, f"--max_restarts {options.max_restarts}: 0 or more"),
        (options.max_restarts > 0 and nnodes > 1,
         "--max_restarts is for one node; several: torchrun --max-restarts"),
        (options.max_restarts > 0 and not resumes_by_itself(options.arguments),
         "--max_restarts needs --resume auto in the script's arguments: a new start would train "
         "from the beginning"),
        (not Path(options.script).is_file(), f"script {options.script}: not found"),
    ):  # fmt: skip
        if wrong:
            parser.error(message)
    options.master_addr = options.master_addr or "127.0.0.1"
    options.master_port = port or (29500 if nnodes > 1 else 0)
    options.log_dir = options.log_dir or default_log_dir(Path(options.script), options.arguments)
    with contextlib.suppress(OSError):
        options.log_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(options.log_dir, os.W_OK) or not options.log_dir.is_dir():
        parser.error(f"--log_dir {options.log_dir}: no folder that can be written to")
    if node:
        return options, None
    try:
        reservation = reserve_port(options.master_port)
    except OSError as error:
        parser.error(f"--master_port {options.master_port}: {error.strerror}; choose another one")
    options.master_port = reservation.getsockname()[1]
    return options, reservation


def resumes_by_itself(arguments: list[str]) -> bool:
    """Whether the script goes on with its last checkpoint each time it is started."""
    pairs = itertools.pairwise(arguments)
    return "--resume=auto" in arguments or ("--resume", "auto") in pairs


def reserve_port(port: int) -> socket.socket:
    """Binds a TCP port (0: a free one) without listening, to be kept for the whole run.

    Raises:
        OSError: The port is in use or not allowed.
    """
    reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # With SO_REUSEADDR on both sides rank 0 may listen, but the kernel gives the port to nobody.
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("", port))
    return reservation


def default_log_dir(script: Path, arguments: list[str]) -> Path:
    """Returns the script's --workspace, else models/ beside the script, else the current folder."""
    workspace = ""
    for position, argument in enumerate(arguments):
        if argument == "--workspace":
            workspace = "".join(arguments[position + 1 : position + 2])
        elif argument.startswith("--workspace="):
            workspace = argument.partition("=")[2]
    models = script.parent / "models"
    return Path(workspace or (models if models.is_dir() else "."))


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    options, reservation = parse_args(sys.argv[1:] if argv is None else argv)
    with contextlib.closing(reservation) if reservation else contextlib.nullcontext():
        return Launcher(options).run()


if __name__ == "__main__":
    sys.exit(main())
