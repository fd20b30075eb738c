# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Runs all fault tests, adds up what they saw, and shows it in docs/reliability.md.

python test/faults/matrix.py [--write] [pytest's arguments]   # with any: a part, and only printed
python test/faults/matrix.py --table FILE                     # prints the table of a result file
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

PAGE = ROOT / "docs" / "reliability.md"
BEGIN = "<!-- faults: begin. test/faults/matrix.py writes this from: {} -->"
END = "<!-- faults: end -->"
#: The part of the page between the markers, and the name of the result file.
PATTERN = re.compile(re.escape(BEGIN).replace(r"\{\}", "(.*?)") + ".*" + re.escape(END), re.DOTALL)
HEADER = ("Fault", "Where", "Tries", "Steps lost, at most", "Processes left", "Exit code",
          "Seconds to the end: median, longest")  # fmt: skip


def run_tests(arguments: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """Runs pytest; returns its exit code and what the tests have recorded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "faults.jsonl")
        path.touch()
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
        if not any(Path(argument.partition("::")[0]).exists() for argument in arguments):
            command.append(str(HERE))
        env = {**os.environ, "FAULTS": "all", "FAULTS_RECORD": str(path)}
        code = subprocess.run([*command, *arguments], cwd=ROOT, env=env, check=False).returncode
        return code, [json.loads(line) for line in path.read_text().splitlines()]


def add_up(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each fault and phase: see `record.record` for what it is made of."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for entry in records:
        groups[entry["fault"], entry["phase"]].append(entry)
    rows = []
    for (fault, phase), entries in sorted(groups.items()):
        told = {
            name: [entry[name] for entry in entries if entry[name] is not None]
            for name in ("lost_steps", "leftover", "exit_code", "seconds")
        }
        rows.append({
            "fault": fault,
            "phase": phase,
            "tries": sum(entry["tries"] for entry in entries),
            "lost_steps": max(told["lost_steps"], default=None),
            "leftover": sum(told["leftover"]) if told["leftover"] else None,
            "exit_codes": sorted(set(told["exit_code"])),
            "seconds_median": statistics.median(told["seconds"]) if told["seconds"] else None,
            "seconds_max": max(told["seconds"], default=None),
        })  # fmt: skip
    return rows


def table(result: dict[str, Any]) -> str:
    """The rows of a result as a table; "-" for what does not apply."""
    lines = [" | ".join(HEADER), " | ".join(["-----"] * len(HEADER))]
    for row in result["faults"]:
        seconds = "-"
        if row["seconds_max"] is not None:
            seconds = f"{row['seconds_median']:.1f}, {row['seconds_max']:.1f}"
        cells = [row["fault"], row["phase"], row["tries"], row["lost_steps"], row["leftover"],
                 ", ".join(map(str, row["exit_codes"])) or None, seconds]  # fmt: skip
        lines.append(" | ".join("-" if cell is None else str(cell) for cell in cells))
    return "\n".join(lines)


def block(path: Path) -> str:
    """What stands in the page between the two markers, with them."""
    result = json.loads(path.read_text("utf-8"))
    about = result["environment"]
    name = path.name
    text = (
        f"{sum(row['tries'] for row in result['faults'])} faults on {about['cores_usable']} cores "
        f"of an {about['cpu']}, torch {about['versions']['torch']}, {about['date'][:10]} "
        f"([figures](../benchmarks/results/{name})):"
    )
    return "\n".join([BEGIN.format(name), text, "", table(result), END])


def put_into_page(path: Path) -> None:
    """Replaces the table of the page by that of a result file."""
    text = PAGE.read_text("utf-8")
    changed, count = PATTERN.subn(lambda match: block(path), text)
    if count != 1:
        raise SystemExit(f"{PAGE}: the two markers of the table are not there")
    PAGE.write_text(changed, "utf-8")


def main() -> int:
    """Runs the command line; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--table", type=Path, metavar="FILE", help="print its table, run nothing")
    parser.add_argument("--write", action="store_true", help="write although only a part is run")
    options, arguments = parser.parse_known_args()
    if options.table:
        print(table(json.loads(options.table.read_text("utf-8"))))
        return 0
    from benchmarks import environment, measure
    from image_classification.device import Device

    about = environment.capture(device := Device.select("cpu"))
    code, records = run_tests(arguments)
    result = {"benchmark": "faults", "schema": 1, "environment": about, "faults": add_up(records)}
    print(table(result))
    if code == 0 and (options.write or not arguments):
        path = measure.result_path("faults", about["date"][:10], device)
        measure.write_json(path, result)
        put_into_page(path)
        print(f"written: {path.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
