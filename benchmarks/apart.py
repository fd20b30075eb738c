# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A contender in a process of its own, which waits while others have their turn.

On a CPU it counts which process a network runs in: this package tells the C library to keep freed
memory (`host_memory.keep_freed`), and blocks that one contender has freed would serve the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, cast

import torch

from benchmarks.measure import Contender, Runner, Unavailable, start_here
from image_classification import host_memory
from image_classification.device import Device

# What every child needs, imported once: they are forked from a process that has done no more.
_PRELOADED = ["torch", "benchmarks.train_contenders", "benchmarks.runtime_contenders"]


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
        """Ends the process."""
        self._process.terminate()
        self._process.join()
        self._pipe.close()

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
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
    except EOFError:  # nobody asks any more
        return
    except Exception as error:
        pipe.send(error)
