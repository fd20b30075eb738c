# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The table of faults: how it is added up, and that the page shows its result file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matrix
import pytest
from record import record
from runs import nursery

ENVIRONMENT = {"cpu": "A CPU", "cores_usable": 2, "date": "2026-01-02T03:04:05+00:00",
               "versions": {"torch": "2.15.0"}}  # fmt: skip


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result file of four faults of two kinds, as the tests record them."""
    monkeypatch.setenv("FAULTS_RECORD", str(tmp_path / "records"))
    record("SIGTERM", "step", lost_steps=0, leftover=0, exit_code=143, seconds=1.0)
    record("SIGTERM", "step", lost_steps=2, leftover=1, exit_code=7, seconds=4.0)
    record("SIGTERM", "step", exit_code=143, seconds=2.0)
    record("bit flip", "load", tries=5)
    lines = (tmp_path / "records").read_text().splitlines()
    rows = matrix.add_up([json.loads(line) for line in lines])
    path = tmp_path / "some-result.json"
    path.write_text(json.dumps({"environment": ENVIRONMENT, "faults": rows}))
    return path


def test_records_are_added_up(result: Path) -> None:
    header, _, *rows = matrix.table(json.loads(result.read_text())).splitlines()
    assert header.count(" | ") == rows[0].count(" | ") == 6
    assert rows == [
        "SIGTERM | step | 3 | 2 | 1 | 7, 143 | 2.0, 4.0",
        "bit flip | load | 5 | - | - | - | -",
    ]


def test_a_result_replaces_the_table_of_the_page(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix.BEGIN.format('old.json')}\nold\n{matrix.END}\nafter\n")
    monkeypatch.setattr(matrix, "PAGE", page)
    matrix.put_into_page(result)
    matrix.put_into_page(result)  # again changes nothing
    assert page.read_text() == f"before\n{matrix.block(result)}\nafter\n"
    assert "8 faults on 2 cores of an A CPU, torch 2.15.0, 2026-01-02" in page.read_text()
    assert matrix.PATTERN.search(page.read_text())[1] == result.name  # type: ignore[index]
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="markers"):
        matrix.put_into_page(result)


def test_the_page_shows_its_result_file() -> None:
    shown = matrix.PATTERN.search(matrix.PAGE.read_text("utf-8"))
    assert shown is not None
    path = matrix.ROOT / "benchmarks" / "results" / shown[1]
    if shown[1] == "no result yet":
        assert shown[0] == f"{matrix.BEGIN.format(shown[1])}\n{matrix.END}"
    else:
        assert shown[0] == matrix.block(path)
        assert str(matrix.ROOT) not in path.read_text("utf-8")


def test_a_part_is_run_and_only_printed(tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(
        "import os\nfrom record import record\n"
        "def test_it():\n    record('probe', os.environ['FAULTS'], tries=3, seconds=0.5)\n"
    )
    (tmp_path / "conftest.py").write_text(f"import sys\nsys.path.append({str(matrix.HERE)!r})\n")
    before = matrix.PAGE.read_bytes()
    done = nursery().run(
        matrix.HERE / "matrix.py", probe, "-p", "no:cacheprovider", timeout=250,
        env={**os.environ, "FAULTS_RECORD": "unused"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "probe | all | 3 | - | - | - | 0.5, 0.5" in done.stdout
    assert "written" not in done.stdout and matrix.PAGE.read_bytes() == before
    table = subprocess.run(
        [sys.executable, matrix.HERE / "matrix.py", "--table", tmp_path / "missing"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert table.returncode != 0
