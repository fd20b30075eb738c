# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""main.py with a fault in it: SABOTAGE="<rank> <step> <kind>" says where, when and which."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main


def strike(kind: str) -> None:
    """The fault itself."""
    if kind == "exit":
        os._exit(9)
    if kind == "forward":
        raise RuntimeError("sabotage in the forward pass")
    if kind == "memory":
        raise MemoryError("sabotage: no memory left")
    if kind == "deadlock":
        threading.Lock().acquire() and threading.Event().wait()
    raise ValueError(kind)


def spoil() -> None:
    """Puts the fault into the training step of one rank."""
    from image_classification.training import Trainer

    rank, step, kind = os.environ["SABOTAGE"].split()
    healthy = Trainer.train_step

    def train_step(self: Trainer, *batch: Any) -> None:
        if self.step == int(step) and os.environ.get("RANK", "0") == rank:
            strike(kind)
        healthy(self, *batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if "SABOTAGE" in os.environ:
        spoil()
    sys.exit(main.main(sys.argv[1:]))
