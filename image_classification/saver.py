# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints in the background: training waits for the copy to host memory only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from image_classification.checkpoint import is_finite, snapshot
from image_classification.checkpoint_files import CheckpointFiles
from image_classification.errors import CheckpointError

# Seconds before another try after a save that failed.
_PATIENCE = (0.5, 2.0, 8.0)


class Saver:
    """Writes one checkpoint at a time, in a thread of its own.

    A save that fails is tried again and, if it fails for good, told: the training goes on, the
    earlier checkpoints are intact. Weights that are not finite are never saved.

    Args:
        files: Where checkpoints go.
        say: Told a line for each save that failed.
        wait: Waits for so many seconds.
        alive: Called about once per second while somebody waits for a file.

    Attributes:
        ruined: Whether a checkpoint was left out since its weights were not finite.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        say: Callable[[str], None],
        wait: Callable[[float], None] = time.sleep,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._say = say
        self._wait = wait
        self._alive = alive
        self._writer: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self.ruined = False

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer is not None and self._writer.is_alive()

    def save(self, state: dict[str, Any], *, best: bool = False, numbered: bool = False) -> None:
        """Copies a checkpoint and lets it be written; waits for the one before.

        Args:
            state: See checkpoint.py; tensors on any device.
            best: It is also the best one.
            numbered: See `CheckpointFiles.write`.
        """
        self.finish()
        copied = snapshot(state)
        # Not a daemon: an interpreter that ends waits for the file.
        self._writer = threading.Thread(
            target=self._write, args=(copied, best, numbered), name="checkpoint writer"
        )
        self._writer.start()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is there."""
        while self._writer is not None and self._writer.is_alive():
            self._writer.join(1.0)
            self._alive()
        self._writer = None

    def close(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            CheckpointError: The last one could not be written.
        """
        self.finish()
        if self._failure is not None:
            raise self._failure

    def _write(self, state: dict[str, Any], best: bool, numbered: bool) -> None:
        if not is_finite(state):
            self._failure, self.ruined = None, True
            self._say("not saved: the weights are not finite; the checkpoints are from before")
            return
        for seconds in (*_PATIENCE, None):
            try:
                self._files.write(state, best=best, numbered=numbered)
                self._failure = None
                return
            except CheckpointError as error:
                self._failure = error
                if seconds is None:
                    self._say(f"{error}; the training goes on")
                else:
                    self._wait(seconds)
