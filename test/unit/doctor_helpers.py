# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the doctor share."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image_classification.doctor.finding import Finding
from image_classification.doctor.jobs import MARK, Answers, Outcome

GIB = 2**30


def answers(**steps: Any) -> Answers:
    lines = [f"{MARK}{json.dumps([step, answer])}" for step, answer in steps.items()]
    return Answers(Outcome("\n".join(lines)))


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def shown(findings: Iterator[Finding]) -> dict[str, str]:
    """Statuses by topic."""
    return {finding.what: finding.status for finding in findings}


def is_gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has waited for yet counts as ended."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                time.sleep(0.02)
                continue
        return True
    return False
