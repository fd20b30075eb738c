# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C as a request that is answered between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interruption:
    """Within it the first SIGINT is noted and answered by `check`; a second one acts at once.

    An exception at any place could be lost in a callback from C++, or be taken there for something
    else: while a checkpoint is written, for a full disk.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        """Take the signal over, where the process would have been interrupted by it."""
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if default and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signal back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = True

    def check(self) -> None:
        """Call it where it is safe to stop.

        Raises:
            KeyboardInterrupt: SIGINT has come.
        """
        if self._received:
            raise KeyboardInterrupt
