# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Tells the launcher that this process makes progress; see `launcher.Launcher`."""

from __future__ import annotations

import contextlib
import os


class Heartbeat:
    """Writes one byte per step.

    Args:
        descriptor: A pipe, None where nobody listens.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.set_blocking(descriptor, False)
                os.set_inheritable(descriptor, False)

    def beat(self) -> None:
        """Call it after each step; a full pipe or a launcher that is gone do not matter."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, b".")
