# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Starts the ranks of a node, watches them and ends them together; the standard library only."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HEARTBEAT = "IMAGE_CLASSIFICATION_HEARTBEAT"  # descriptor to which a rank writes after each step
LAUNCHER_PID = "IMAGE_CLASSIFICATION_LAUNCHER_PID"  # lets a rank check that its parent is alive
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PASSED_ON = (*STOP_SIGNALS, signal.SIGUSR1, signal.SIGUSR2)
STOP_FACTOR = 10  # ranks that were asked to stop may finish a checkpoint: this many graces
SETTLE = 1.0  # seconds in which the peers of a failed rank can end (and explain) on their own
LINGER = 2.0  # seconds that helper processes may outlive their rank
UNKILLABLE = 10.0  # seconds after SIGKILL before the launcher stops waiting
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STACKS = 3.0  # seconds that hanging ranks have to write their stacks
HUNG = 7  # exit code: a process hangs or is gone
STOPPED = 128 + signal.SIGTERM  # exit code of a rank that was asked to stop and has saved
FINAL = (0, 2, 3, 4, 5)  # exit codes after which a new start would end in the same way
NEVER = float("inf")
VMSTAT = Path("/proc/vmstat")
prctl = getattr(ctypes.CDLL(None), "prctl", lambda *request: -1)  # only Linux has it


def die_with_parent(parent: int) -> None:
    """Asks the kernel to end this process when the thread that started it ends (Linux).

    Args:
        parent: The process of that thread; this one ends at once if it is gone already.
    """
    prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def rank_environment(options: argparse.Namespace, local_rank: int) -> dict[str, str]:
    """Returns the environment of one rank."""
    local_size = options.nproc_per_node
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        # Ranks that share the cores with too many threads are slow; a value of the user's stays.
        "OMP_NUM_THREADS": str(max(1, (cpus or 1) // local_size)),
        **os.environ,
        "MASTER_ADDR": options.master_addr,
        "MASTER_PORT": str(options.master_port),
        "WORLD_SIZE": str(options.nnodes * local_size),
        "RANK": str(options.node_rank * local_size + local_rank),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        LAUNCHER_PID: str(os.getpid()),
    }


def open_log(path: Path, header: str) -> IO[bytes]:
    """Opens a log for appending (another one if a running launcher uses it); writes a header."""
    log = path.open("ab")
    with contextlib.suppress(OSError):  # some file systems have no locks
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the rank inherits file and lock
        except BlockingIOError:
            log.close()
            log = path.with_name(f"{path.stem}.pid{os.getpid()}{path.suffix}").open("ab")
    log.write(f"==== {header}\n".encode())
    log.flush()
    return log


def tail(path: Path, offset: int, lines: int = 20) -> list[str]:
    """Returns the last lines of a log that were written after `offset` bytes."""
    with path.open("rb") as log:
        log.seek(max(offset, log.seek(0, os.SEEK_END) - 65536))
        text = log.read().decode(errors="replace")
    # A progress bar rewrites its line: only what was left standing is of interest.
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line][-lines:]


def exit_code(status: int) -> int:
    """Maps a return code of subprocess to a shell's: 128 + n for signal n."""
    return 128 - status if status < 0 else status


def signal_name(signum: int) -> str:
    """Returns a name like SIGTERM; real-time signals have none."""
    with contextlib.suppress(ValueError):
        return signal.Signals(signum).name
    return f"signal {signum}"


def oom_kills() -> int:
    """Returns how many processes the kernel has ended for lack of memory so far (proc(5))."""
    with contextlib.suppress(OSError, ValueError):
        for line in VMSTAT.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def say(text: str) -> None:
    """Writes a line to the terminal, which may be gone."""
    with contextlib.suppress(OSError):
        os.write(2, f"multiproc: {text}\n".encode())


def signal_group(group: int, signum: int) -> bool:
    """Sends a signal to a process group; False when there is no such process any more."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)
        return True
    return False


def children() -> set[int]:
    """Returns the pids of this process's children (Linux)."""
    with contextlib.suppress(OSError):
        pid = os.getpid()
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return set()


@dataclass
class Rank:
    """One rank and the process group of its helpers (loader workers)."""

    number: int  # among all nodes
    process: subprocess.Popen[bytes]  # leads a session and process group of its own
    log: Path | None  # None: the terminal
    log_offset: int  # bytes of earlier runs
    heartbeat: int  # descriptor from which its steps are read, a byte for each
    ended_at: float = NEVER
    group_alive: bool = True
    steps: int = 0  # of training and validation, so far
    stepped_at: float = NEVER

    @property
    def status(self) -> int | None:
        """Return code as in subprocess; None while the process runs."""
        return self.process.returncode

    def send(self, signum: int) -> None:
        """Sends a signal to the rank itself: its workers would not know what to do with it."""
        if self.status is None:
            os.kill(self.process.pid, signum)

    def count_steps(self) -> None:
        """Notes the progress it has told."""
        with contextlib.suppress(BlockingIOError):
            while told := os.read(self.heartbeat, 65536):
                self.steps += len(told)
                self.stepped_at = time.monotonic()

    def is_suspended(self) -> bool:
        """Whether somebody has stopped the process (SIGSTOP, a debugger)."""
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
            return text.rpartition(")")[2].split()[0] in "Tt"
        return False

    def check_group(self) -> None:
        """Ends helpers that outlive their rank; notes when none is left."""
        if self.status is not None and self.group_alive:
            age = time.monotonic() - self.ended_at
            alive = signal_group(self.process.pid, signal.SIGKILL if age > LINGER else 0)
            self.group_alive = alive and age < UNKILLABLE


def start_rank(options: argparse.Namespace, local_rank: int) -> Rank:
    """Starts one rank of this node."""
    environment = rank_environment(options, local_rank)
    command = [sys.executable, "-u", options.script, *options.arguments]
    launcher = os.getpid()

    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    environment[HEARTBEAT] = str(writer)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, writer)
        log: IO[bytes] | None = None
        if local_rank:
            node = f".node{options.node_rank}" if options.node_rank else ""
            header = (
                f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {environment['RANK']} on "
                f"{socket.gethostname()}, launcher {launcher}: {shlex.join(command)}"
            )
            log = open_log(options.log_dir / f"GPU_{local_rank}{node}.log", header)
            stack.enter_context(log)
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL if log else None,
            stdout=log,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(launcher),
            pass_fds=[writer],
        )
        path = Path(log.name) if log else None
        return Rank(int(environment["RANK"]), process, path, log.tell() if log else 0, reader)


def start_guardian(groups: list[int]) -> None:
    """Forks a process that kills the groups when the launcher dies without a word.

    The parent-death signal reaches the ranks alone, not their loader workers.
    """
    reader, writer = os.pipe()  # reading ends with the launcher, the only writer
    if os.fork():
        return
    os.setsid()
    signal.set_wakeup_fd(-1)
    for signum in PASSED_ON:
        signal.signal(signum, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2, writer):
        os.dup2(null, descriptor)
    os.read(reader, 1)
    for group in groups:
        signal_group(group, signal.SIGKILL)
    os._exit(0)


class Launcher:
    """Starts the ranks of this node, watches them and ends them together."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._signals: list[int] = []
        self._stopped_by = 0
        self._begin()

    def _begin(self) -> None:
        self._ranks: list[Rank] = []
        self._failed: Rank | None = None
        self._oom_kills = oom_kills()
        self._hung = self._reported = False
        self._pass_on_at = self._terminate_at = self._kill_at = self._give_up_at = NEVER

    def run(self) -> int:
        """Runs until every rank has ended, with new starts; returns the exit code of the run."""
        self._strangers = children()  # of a shell that has called exec
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # we become the parent of the ranks' orphans
        wakeup = self._catch_signals()
        restarts = self._options.max_restarts
        for restart in range(restarts + 1):
            self._begin()
            code = self._run_once(wakeup)
            if code in FINAL or self._stopped_by or self._signals or restart == restarts:
                return code
            say(f"starting all ranks anew from the last checkpoint ({restart + 1} of {restarts})")
        raise AssertionError("unreachable")

    def _run_once(self, wakeup: int) -> int:
        try:
            for local_rank in range(self._options.nproc_per_node):
                self._ranks.append(start_rank(self._options, local_rank))
            start_guardian([rank.process.pid for rank in self._ranks])
            self._announce()
            while any(rank.group_alive for rank in self._ranks):
                if time.monotonic() > self._give_up_at:
                    break
                if select.select([wakeup], [], [], 0.1)[0]:
                    os.read(wakeup, 4096)
                self._pass_signals_on()
                self._reap()
                self._check_progress()
                self._escalate()
        finally:
            for rank in self._ranks:
                os.close(rank.heartbeat)
                if rank.group_alive:
                    signal_group(rank.process.pid, signal.SIGKILL)
            self._end_orphans()
        self._report()
        if self._hung:
            return HUNG
        if self._failed is not None and self._failed.status:
            return exit_code(self._failed.status)
        return 128 + signal.SIGKILL if self._give_up_at < NEVER else 0

    def _announce(self) -> None:
        options, logs = self._options, [str(rank.log) for rank in self._ranks if rank.log]
        text = f"rank {self._ranks[0].number}" + (f"..{self._ranks[-1].number}" if logs else "")
        text += f" of {options.nnodes * options.nproc_per_node} on {socket.gethostname()}, "
        text += f"master {options.master_addr}:{options.master_port}"
        say(text + (f", logs {logs[0]}" if logs else "") + (" ..." if logs[1:] else ""))

    def _catch_signals(self) -> int:
        """Installs the handlers; returns a descriptor that becomes readable on each signal."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in PASSED_ON:
            # nohup, and a shell that starts us in the background, ignore signals on purpose.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, lambda number, frame: self._signals.append(number))
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        return reader

    def _pass_signals_on(self) -> None:
        while self._signals:
            signum = self._signals.pop(0)
            running = [rank for rank in self._ranks if rank.status is None]
            for rank in running:
                rank.send(signum)
            text = f"{signal_name(signum)} passed on to {len(running)} ranks"
            if signum in STOP_SIGNALS:
                factor = 1 if self._stopped_by or self._failed else STOP_FACTOR
                deadline = time.monotonic() + factor * self._options.grace
                self._kill_at = min(self._kill_at, deadline)
                self._stopped_by = self._stopped_by or signum
                text += f", SIGKILL in {self._kill_at - time.monotonic():.0f} s"
            say(text)

    def _reap(self) -> None:
        """Collects ended processes: ranks, and orphans of theirs."""
        by_pid = {rank.process.pid: rank for rank in self._ranks}
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if rank := by_pid.get(ended[0]):
                    rank.process.returncode = os.waitstatus_to_exitcode(ended[1])
                    rank.ended_at = time.monotonic()
                    self._note_end(rank)
        for rank in self._ranks:
            rank.check_group()

    def _note_end(self, rank: Rank) -> None:
        if not rank.status or self._failed is not None:
            return
        self._failed = rank
        if exit_code(rank.status) == STOPPED and not self._stopped_by:
            # Somebody asked this rank to stop; the others have agreed, and saved, or do not know
            # yet, because they wait for this one to join them.
            self._stopped_by = signal.SIGTERM
            self._pass_on_at = time.monotonic() + SETTLE
            self._kill_at = time.monotonic() + STOP_FACTOR * self._options.grace
        elif not self._stopped_by:
            self._terminate_at = time.monotonic() + SETTLE
        elif exit_code(rank.status) not in [128 + signum for signum in STOP_SIGNALS]:
            # Its peers would wait in vain for one that fails while stopping.
            self._kill_at = min(self._kill_at, time.monotonic() + self._options.grace)

    def _check_progress(self) -> None:
        """Ends a run that makes no steps any more: one rank that hangs lets all others wait."""
        timeout, now = self._options.hang_timeout, time.monotonic()
        for rank in self._ranks:
            rank.count_steps()
        running = [rank for rank in self._ranks if rank.status is None and rank.steps]
        silent = max((now - rank.stepped_at for rank in running), default=0.0)
        if not timeout or silent < timeout or self._stopped_by or self._failed or self._hung:
            return
        self._hung = True
        slowest = min(rank.steps for rank in running)
        behind = [rank for rank in running if rank.is_suspended()] or [
            rank for rank in running if rank.steps == slowest
        ]
        why = "is suspended" if behind[0].is_suspended() else "hangs"
        if len(behind) == len(running) > 1:
            why = "hang, all of them"
        numbers = ", ".join(str(rank.number) for rank in behind)
        say(
            f"rank {numbers} on {socket.gethostname()} {why}: no step for {silent:.0f} s "
            f"(--hang_timeout {timeout:g}); ending the run, the stacks are in the logs"
        )
        for rank in running:
            rank.send(signal.SIGUSR2)
        self._kill_at = min(self._kill_at, now + STACKS)

    def _escalate(self) -> None:
        running = [rank for rank in self._ranks if rank.status is None]
        now = time.monotonic()
        if now >= self._pass_on_at:
            self._pass_on_at = NEVER
            for rank in running:
                rank.send(signal.SIGTERM)
        if now >= self._terminate_at:
            self._terminate_at = NEVER
            self._report()
            if not self._stopped_by:  # a second stop signal could interrupt the saving
                for rank in running:
                    rank.send(signal.SIGTERM)
            self._kill_at = min(self._kill_at, now + self._options.grace)
        if now >= self._kill_at and running and self._give_up_at == NEVER:
            self._give_up_at = now + UNKILLABLE
            say(f"rank {', '.join(str(rank.number) for rank in running)} did not end: SIGKILL")
            for rank in running:
                signal_group(rank.process.pid, signal.SIGKILL)

    def _report(self) -> None:
        """Prints once why the run ends; quotes the log unless rank 0 has said the same."""
        rank, host = self._failed, socket.gethostname()
        stuck = [str(rank.process.pid) for rank in self._ranks if rank.status is None]
        if stuck and time.monotonic() > self._give_up_at:
            say(f"on {host} process {', '.join(stuck)} hangs in the kernel (ps: state D)")
        if self._reported or rank is None or rank.status is None:
            return
        self._reported = True
        killed = rank.status < 0 and f"was killed by {signal_name(-rank.status)}"
        text = f"rank {rank.number} on {host} {killed or f'exited with code {rank.status}'}"
        if rank.status == -signal.SIGKILL and oom_kills() > self._oom_kills:
            text += " (the host ran out of memory: fewer workers, -j, or a smaller --batch-size)"
        if rank.log is None:
            return say(f"{text}; its output is above")
        lines: list[str] = []
        expected = self._stopped_by and exit_code(rank.status) == 128 + self._stopped_by
        if not expected and rank.status != self._ranks[0].status:
            with contextlib.suppress(OSError):
                lines = tail(rank.log, rank.log_offset)
        lines = [f"{text}; its output is in {rank.log}" + (":" if lines else ""), *lines]
        return say("\n    ".join(lines))

    def _end_orphans(self) -> None:
        """Ends our last children: the guardian, and what ranks have put into own sessions."""
        deadline = time.monotonic() + LINGER
        while (pids := children() - self._strangers) and time.monotonic() < deadline:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)
