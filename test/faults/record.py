# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the fault tests saw, for the table of docs/reliability.md."""

from __future__ import annotations

import json
import os


def record(
    fault: str,
    phase: str,
    *,
    tries: int = 1,
    lost_steps: int | None = None,
    leftover: int | None = None,
    exit_code: int | None = None,
    seconds: float | None = None,
) -> None:
    """Append a line to the file that FAULTS_RECORD names; nothing without one.

    Args:
        fault: What was done to the run; rows of one fault and phase are added up.
        phase: Where it hit.
        tries: How often.
        lost_steps: Steps that were trained and not saved, or done again.
        leftover: Processes of the run that were there 10 s after its end.
        exit_code: Of the run that was hit.
        seconds: From the fault to the end of the run.
    """
    if path := os.environ.get("FAULTS_RECORD"):
        line = json.dumps({
            "fault": fault, "phase": phase, "tries": tries, "lost_steps": lost_steps,
            "leftover": leftover, "exit_code": exit_code, "seconds": seconds,
        })  # fmt: skip
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
