# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The parser of the programs: every problem in one go."""

from __future__ import annotations

import pytest

from image_classification.errors import UsageError
from image_classification.option_parser import OptionParser


def parser(intermixed: bool = False) -> OptionParser:
    made = OptionParser(prog="x.py")
    made.intermixed = intermixed
    made.add_argument("files", nargs="*")
    made.add_argument("--arch", choices=["a", "b"])
    made.add_argument("--batch-size", type=int, default=1)
    return made


def test_all_problems_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parser().parse_or_raise(["--arch", "c", "--batch-size", "x", "--bach", "--unheard"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "--batch-size: invalid int value: 'x'" in lines[1]
    assert lines[2] == "unknown argument '--bach'; did you mean --batch-size?"
    assert lines[3] == "unknown argument '--unheard'; see -h"


def test_options_between_files() -> None:
    args = parser(True).parse_or_raise(["one", "--arch", "a", "two"])
    assert args.files == ["one", "two"] and args.arch == "a"
    with pytest.raises(UsageError, match=r"--arch: invalid choice: 'z'"):
        parser(True).parse_or_raise(["one", "--arch", "z", "two"])
