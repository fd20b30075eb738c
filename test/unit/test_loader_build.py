# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compiling the C++ core: where it goes, when it is made anew, what is said when it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image_classification.fast_loader import build

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in build.COMPILERS), reason="no C++ compiler"
)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch) -> Path:
    """A small core of one file, to be compiled in a moment, and folders for its library."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    places = [tmp_path / "package", tmp_path / "cache"]
    monkeypatch.setattr(build, "library_folders", lambda: places)
    return folder


@needs_compiler
def test_it_is_compiled_once_and_again_when_a_source_changes(sources: Path) -> None:
    first = build.build()
    stamp = first.stat().st_mtime_ns
    assert first.parent.name == "package" and build.build() == first
    assert first.stat().st_mtime_ns == stamp
    (sources / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    second = build.build()
    assert second != first and not first.exists()
    assert [path.name for path in second.parent.iterdir()] == [second.name]


@needs_compiler
def test_a_library_of_another_system_is_made_anew(sources: Path) -> None:
    library = build.build()
    library.write_bytes(b"not for this system")
    assert build.build() == library
    assert library.stat().st_size > 1000


@needs_compiler
def test_without_write_permission_it_goes_to_the_cache(
    sources: Path, tmp_path, monkeypatch
) -> None:
    (tmp_path / "package").write_text("a file where the folder should be")
    assert build.build().parent == tmp_path / "cache"
    assert build.find_library() == build.build()


@needs_compiler
def test_what_the_compiler_says_is_one_line(sources: Path) -> None:
    (sources / "one.cpp").write_text("no C++\n")
    with pytest.raises(build.BuildError, match=r"failed: .*error: .*; it must know C\+\+17"):
        build.build()
    assert not list((sources.parent / "package").iterdir())


def test_without_a_compiler(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(
        ROOT / "image_classification", copy / "image_classification",
        ignore=shutil.ignore_patterns("build", "__pycache__"),
    )  # fmt: skip
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(copy)}
    command = [sys.executable, "-m", "image_classification.fast_loader.build"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        "fast loader: not built: no C++ compiler found; install one (Debian, Ubuntu: apt-get "
        "install g++) or set CXX\n"
    )


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64")
def test_only_the_kernels_need_a_newer_processor() -> None:
    """A flag on any other file would end in an illegal instruction on an older machine."""
    names = {path.stem for path in build.SOURCES.glob("kernels_*.cpp")}
    assert set(build.KERNEL_FLAGS) < names
    assert not any(flag.startswith("-m") for flag in build.FLAGS)
