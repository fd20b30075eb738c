# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The signals that ask a run to stop, answered where nothing is lost.

A scheduler sends SIGTERM or SIGUSR1 before it takes the machine away, a person presses Ctrl-C
(SIGINT). All three mean the same: save the last finished step and leave with exit code 143.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_CODE = 128 + signal.SIGTERM
# A launcher and a scheduler may both pass on the same request.
_SAME_REQUEST_S = 1.0
# The main thread may be waiting in C++: after so long the process ends without it.
_ANSWER_S = 3.0


class Stopped(BaseException):
    """The run was asked to stop; `saved` says in a few words what is left of it."""

    def __init__(self, saved: str = "nothing was trained that could be lost") -> None:
        super().__init__(saved)
        self.saved = saved


class Interruption:
    """Takes the stop signals over while its context lasts.

    Until `held` is entered the first one raises `Stopped` at once: there is nothing to save. Within
    `held` it is noted, and whoever trains asks for `requested` between two steps; an exception at
    any place could be lost in a callback from C++, or leave a step half done. A second request is
    noted too, a third one ends the process without saving. Signals within one second are one.

    Python's handlers run in the main thread only, not while it waits in C++ for the other ranks to
    join (up to 600 s). So another thread sees the requests, too, until `held` is entered.

    Attributes:
        requested: Whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.requested = False
        self._count = 0
        self._last = float("-inf")
        self._holding = False
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._unwatched = threading.Event()

    def __enter__(self) -> Interruption:
        """Take the signals over, except those that are ignored on purpose (nohup, `&`).

        SIGUSR2, which the launcher sends to a run that hangs, writes the stacks of all threads.
        """
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
            with contextlib.suppress(OSError, ValueError):  # standard error is no file
                faulthandler.register(signal.SIGUSR2, all_threads=True)
            self._begin_watch()
        return self

    def __exit__(self, *error: object) -> None:
        """Give them back."""
        self._end_watch()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this context lasts requests are noted only.

        Raises:
            Stopped: On entry, if a stop was asked for before.
        """
        self.check()
        self._holding = True
        self._end_watch()
        try:
            yield
        finally:
            self._holding = False

    def check(self) -> None:
        """Call it where it is safe to stop and nothing needs saving.

        Raises:
            Stopped: A stop was asked for.
        """
        if self.requested:
            raise Stopped

    def _begin_watch(self) -> None:
        reader, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        # The signals of a forked process are none of this one's.
        os.register_at_fork(after_in_child=self._end_watch)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _end_watch(self) -> None:
        self._unwatched.set()
        if self._wakeup >= 0:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            self._wakeup = -1

    def _watch(self, reader: int) -> None:
        """Ends the process if the main thread does not answer, while there is nothing to save."""
        with open(reader, "rb", buffering=0) as signals:
            while told := signals.read(64):
                if set(told).isdisjoint(STOP_SIGNALS) or self._unwatched.wait(_ANSWER_S):
                    continue
                if not self.requested:
                    _say(f"main.py: stopped by a signal; {Stopped().saved}")
                    os._exit(EXIT_CODE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < _SAME_REQUEST_S:
            return
        self._last = now
        self._count += 1
        self.requested = True
        name = signal.Signals(number).name
        if self._count >= 3:
            _say(f"{name} for the third time: ending without saving")
            os._exit(EXIT_CODE)
        elif self._count == 2:
            _say(f"{name} again: still stopping, a third signal ends at once without saving")
        elif self._holding:
            _say(f"{name}: stopping after this step")
        else:
            raise Stopped


def _say(text: str) -> None:
    # Not through sys.stderr, which the main thread may be writing to.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
