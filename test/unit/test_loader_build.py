# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compiling the C++ core: where it goes, when it is made anew, what is said when it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from image_classification import user_cache
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
def test_a_library_that_cannot_be_loaded_hides_no_other(sources: Path, tmp_path: Path) -> None:
    good = build.build()
    other = tmp_path / "cache" / good.name
    other.parent.mkdir()
    good.rename(other)
    good.write_bytes(b"not for this system")
    assert build.find_library() == other


def test_without_a_home_there_is_no_cache(monkeypatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert user_cache.cache_folder() is None
    assert len(build.library_folders()) == 1


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


def test_a_chosen_compiler_that_is_not_there(sources: Path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "nocompiler")
    with pytest.raises(build.BuildError, match="CXX=nocompiler is not found"):
        build.build()


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


def build_wheel(folder: Path, path: str) -> Path:
    """A wheel of this project, made as pip makes it, from a copy: it leaves files behind."""
    pytest.importorskip("setuptools", "77")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("image_classification", "models", "test"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("build", "output"))
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    env = {"PATH": path, "HOME": str(folder)}
    subprocess.run([sys.executable, "-c", code], cwd=copy, env=env, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@needs_compiler
def test_the_wheel_holds_the_package_and_its_compiled_core(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, os.environ["PATH"])
    assert wheel.name.startswith("image_classification-") and "-py3-none-linux_" in wheel.name
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    tops = {path.name.partition("-")[0] for path in (tmp_path / "site").iterdir()}
    assert tops == {"image_classification", "models"}
    code = (
        "from image_classification.fast_loader import build, native; import models; "
        "print(build.find_library(), native.kernel_names()[-1])"
    )
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    library, kernels = done.stdout.split()
    assert Path(library).is_relative_to(tmp_path / "site") and kernels == "plain"


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_that_works_the_wheel_is_pure(tmp_path: Path, compiler: str) -> None:
    if compiler == "broken":
        (tmp_path / "c++").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "c++").chmod(0o755)
    wheel = build_wheel(tmp_path, str(tmp_path))
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "image_classification/fast_loader/csrc/huffman.cpp" in names
    assert not [name for name in names if name.endswith(".so")]


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64")
def test_only_the_kernels_need_a_newer_processor() -> None:
    """A flag on any other file would end in an illegal instruction on an older machine."""
    names = {path.stem for path in build.SOURCES.glob("kernels_*.cpp")}
    assert set(build.KERNEL_FLAGS) < names
    assert not any(flag.startswith("-m") for flag in build.FLAGS)
