# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How a command line ends: a line and an exit code, or quietly."""

from __future__ import annotations

import subprocess
import sys

import pytest
from runs import ROOT, environment

from image_classification.errors import DataError, run_program


def stop(error: BaseException | None) -> None:
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (None, 0, ""),
        (DataError("no image\nno list"), 3, "x.py: error: no image\nx.py: error: no list\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_code_and_lines(
    error: BaseException | None, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("x.py", lambda: stop(error)) == code
    assert capsys.readouterr().err == told


def test_what_is_no_user_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_program("x.py", lambda: stop(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from image_classification.errors import *\n"
         "sys.exit(run_program('x', lambda: print('x' * 10**6)))", 141),
        ("import main; sys.exit(main.main(['--list-recipes']) or main.main(['--list-recipes']))",
         0),
    ],
)  # fmt: skip
def test_a_reader_that_has_seen_enough_is_told_nothing(code: str, expected: int) -> None:
    code = "import sys, time; time.sleep(0.5)\n" + code  # the reader has gone by then
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$0" -c "$1" | true', sys.executable, code],
        cwd=ROOT, env=environment(), capture_output=True, text=True)  # fmt: skip
    assert (done.returncode, done.stderr) == (expected, "")
