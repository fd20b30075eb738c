# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the runs of a file share: their images, and the runs that nothing happens to."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import run_main, write_images
from victims import BATCH, SMALL, run_here


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=16)


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes the run without a break of so many ranks with these flags, once.

    It saves within epochs too, at other steps than its rivals.
    """

    @functools.cache
    def make(ranks: int, *flags: Any) -> Path:
        workspace = tmp_path_factory.mktemp("straight")
        run_main(images, *flags, "-b", 4 // ranks, "--checkpoint-interval", 5,
                 "--workspace", workspace, ranks=ranks)  # fmt: skip
        return workspace

    return make


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def intact(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smallest run, to which nothing has happened."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert run_here(few, *SMALL, *BATCH, "--workspace", folder) == 0
    yield folder
    shutil.rmtree(folder)
