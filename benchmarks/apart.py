# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A contender in a process of its own, which waits while others have their turn.

On a CPU it counts which process a network runs in: this package tells the C library to keep freed
memory (`host_memory.keep_freed`), and blocks that one contender has freed would serve the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from benchmarks.measure import Contender, Runner, Unavailable, start_here
from image_classification import host_memory
from image_classification.device import Device
from image_classification.errors import UserError

# What every child needs, imported once: they are forked from a process that has done no more.
_PRELOADED = ["torch", "benchmarks.train_contenders", "benchmarks.runtime_contenders"]

_PATIENCE = 10.0  # seconds, for a step that is under way


@contextlib.contextmanager
def starter(device: Device, *, together: bool) -> Iterator[Callable[[Contender], Runner]]:
    """Chooses where contenders run: on a CPU apart, unless they are to be together.

    Args:
        device: Theirs.
        together: All in this process.

    Yields:
        What `measure.compare` starts them with; their processes end with the block.
    """
    if together or device.is_accelerator:
        yield start_here
        return
    with contextlib.ExitStack() as processes:
        yield lambda contender: processes.enter_context(contextlib.closing(Apart(contender)))


class Apart:
    """A runner whose work is done by another process.

    Args:
        contender: Its `build` must be picklable.

    Raises:
        Unavailable: It cannot run, or its process died.
    """

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._pipe, theirs = context.Pipe()
        work = (theirs, contender.build, contender.peer, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, steps: int) -> int:
        """Does the steps; returns their images."""
        return int(self._ask("run", steps))

    def facts(self) -> dict[str, float]:
        """Reads what the last run gave; its turn is over then."""
        return cast("dict[str, float]", self._ask("facts"))

    def close(self) -> None:
        """Ends the process: nobody asks any more."""
        self._pipe.close()
        self._process.join(_PATIENCE)
        self._process.terminate()
        self._process.join()

    def _ask(self, *question: Any) -> Any:
        with contextlib.suppress(OSError):  # it has died: there is no answer, then
            self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Unavailable(
                f"its process ended with exit code {self._process.exitcode}"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, build: Callable[[], Runner], peer: bool, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that waits for it
    torch.set_num_threads(threads)
    with contextlib.suppress(EOFError, ConnectionError):  # nobody asks any more
        try:
            runner = build()
            if peer:  # which has not selected a device of this package's
                host_memory.keep_freed(False)
            pipe.send(None)
            while True:
                name, *values = pipe.recv()
                pipe.send(getattr(runner, name)(*values))
                if name == "facts":  # until its next turn, which starts with untimed steps
                    host_memory.give_back()
        except (EOFError, ConnectionError):
            raise
        except BaseException as error:
            if not isinstance(error, (UserError, Unavailable)):
                traceback.print_exc()
            pipe.send(_portable(error))


def _portable(error: BaseException) -> Exception:
    """The error, or what it says where it cannot go to another process."""
    try:
        if isinstance(pickle.loads(pickle.dumps(error)), Exception):
            return error
    except Exception:  # whatever its class does there
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
