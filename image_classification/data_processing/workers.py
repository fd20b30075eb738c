# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One function over many jobs on all cores, with the results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from image_classification.errors import DataError
from image_classification.launcher import die_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")

# So many jobs per process wait for their turn: a list of a million is never in flight at once.
_AHEAD = 4


def ordered_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], processes: int
) -> Iterator[Result]:
    """Apply a function to jobs in processes of their own; one process is this one.

    Args:
        function: Of a module, so that a new process finds it.
        jobs: What it is called with.
        processes: Number of processes, >= 1.

    Yields:
        The results in the order of the jobs.

    Raises:
        DataError: A process died, as when memory runs out.
        Exception: What the function raised.
    """
    if processes == 1:
        yield from map(function, jobs)
        return
    # A new process knows nothing of this one: a fork could copy locks that nobody opens again.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(os.getpid(),))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) >= _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"one of {processes} worker processes died, killed or out of memory; run it again "
            "with fewer (-j), what is finished is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Ctrl-C is the parent's to answer; its death is the end of this process too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
