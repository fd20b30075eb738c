# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Trainings by the real command line, and what their folders tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT


def train(data: Path | str, workspace: Path, *flags: str) -> str:
    """Runs main.py and returns its output; where it fails, the program ends as it did."""
    command = [sys.executable, str(ROOT / "main.py"), str(data), "--workspace", str(workspace)]
    done = subprocess.run([*command, *flags], capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    return done.stdout


def epochs(workspace: Path) -> list[dict[str, Any]]:
    """The figures of a run's epochs, by the names that they have in metrics.jsonl."""
    rows = map(json.loads, (workspace / "metrics.jsonl").read_text("utf-8").splitlines())
    return [row["data"] for row in rows if row["type"] == "epoch"]
