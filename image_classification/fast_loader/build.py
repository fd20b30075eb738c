# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles the C++ core of the fast loader: one shared library, no headers of Python or torch.

    python -m image_classification.fast_loader.build

The library lies beside this file, or in the user's cache folder where that cannot be written. Its
name holds a hash of the sources, so that a changed source is never run with an old library.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image_classification.user_cache import cache_folder

SOURCES = Path(__file__).parent / "csrc"
COMPILERS = ("c++", "g++", "clang++")
# Products and sums are rounded one by one, as in torch: the same values on every processor.
FLAGS = (
    "-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
)  # fmt: skip
_AVX2_FLAGS = ("-mavx2", "-mbmi", "-mbmi2", "-mmovbe")
# Loops that the compiler is to vectorise.
_EXTRA_FLAGS = {"small_images": ("-O3",)}
# Chosen at run time; all other files run on any processor of their kind.
KERNEL_FLAGS = {
    "kernels_avx2": _AVX2_FLAGS,
    "kernels_avx512": (*_AVX2_FLAGS, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vbmi"),
}


class BuildError(Exception):
    """The core could not be compiled; the text is one line with the cure."""


def library_name() -> str:
    """Name of the library that belongs to the sources on this kind of machine."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"libfast_loader-{platform.machine()}-{digest.hexdigest()[:12]}.so"


def library_folders() -> list[Path]:
    """Where the library may lie, the first choice first."""
    folders = [Path(__file__).parent / "build", cache_folder()]
    return [folder for folder in folders if folder is not None]


def find_library() -> Path | None:
    """The library, if it has been compiled for this system; a folder may be shared by several."""
    paths = [folder / library_name() for folder in library_folders()]
    return next((path for path in paths if path.is_file() and _loads(path)), None)


def find_compiler() -> str:
    """The C++ compiler: CXX, else the first one on the PATH.

    Raises:
        BuildError: There is none.
    """
    if chosen := os.environ.get("CXX"):
        if found := shutil.which(chosen):
            return found
        raise BuildError(f"CXX={chosen} is not found; correct it or leave it out")
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildError(
        "no C++ compiler found; install one (Debian, Ubuntu: apt-get install g++) or set CXX"
    )


def build() -> Path:
    """Compile the core, unless that has been done.

    Returns:
        Path of the library.

    Raises:
        BuildError: No compiler, the compiler failed, or no folder can be written.
    """
    library = find_library()
    if library is not None:
        return library
    return compile_into(_writable_folder())


def compile_into(folder: Path) -> Path:
    """Compile the core and remove older libraries from the folder.

    Args:
        folder: Where the library goes; made if need be.

    Returns:
        Path of the library.

    Raises:
        BuildError: No compiler, or it failed.
    """
    compiler = find_compiler()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
        objects = _compile(compiler, Path(scratch))
        made = Path(scratch) / library_name()
        _run([compiler, "-shared", "-pthread", "-o", str(made), *map(str, objects)])
        target = folder / made.name
        os.replace(made, target)  # at once: a second start never sees half a library
    for old in folder.glob(f"libfast_loader-{platform.machine()}-*.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return target


def _loads(library: Path) -> bool:
    """Whether it was made for this system."""
    try:
        ctypes.CDLL(os.fspath(library))
    except OSError:
        return False
    return True


def _writable_folder() -> Path:
    folders = library_folders()
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError(f"{' and '.join(map(str, folders))} cannot be written")


def _compile(compiler: str, scratch: Path) -> list[Path]:
    """The object files, made on as many cores as there are."""
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [scratch / f"{source.stem}.o" for source in sources]
    kernel_flags = KERNEL_FLAGS if platform.machine() in ("x86_64", "AMD64") else {}
    extra = _EXTRA_FLAGS | kernel_flags
    commands = [
        [compiler, *FLAGS, *extra.get(source.stem, ()), "-c", str(source), "-o", str(made)]
        for source, made in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    return objects


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if "error" in line]
        reason = (errors or said or [f"exit code {done.returncode}"])[0]
        raise BuildError(f"{command[0]} failed: {reason}; it must know C++17 (g++ 8 or newer)")


def main() -> int:
    """The command: prints where the library lies, or why there is none."""
    if sys.argv[1:]:  # -h, or what it does not know
        print(__doc__)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    try:
        print(build())
    except BuildError as error:
        print(f"fast loader: not built: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
