# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the fake accelerator once per PyTorch version: python test/fakes/build.py"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCE = FOLDER / "common" / "fakeacc.cpp"


def compiler() -> str | None:
    """Return the path of the C++ compiler ($CXX, else g++ or c++), None without one."""
    for name in (os.environ.get("CXX"), "g++", "c++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def build(folder: Path | None = None) -> Path:
    """Compile the library unless it is there already; safe when several processes do so.

    Args:
        folder: where libraries are kept; default $FAKE_ACC_BUILD_DIR or test/fakes/build.

    Returns:
        The path of the shared library.

    Raises:
        RuntimeError: there is no compiler, or it rejects the source.
    """
    import torch

    folder = folder or Path(os.environ.get("FAKE_ACC_BUILD_DIR") or FOLDER / "build")
    root = Path(torch.__file__).resolve().parent
    key = hashlib.sha256(f"{torch.__version__}\n{root}\n{compiler()}\n".encode())
    key.update(SOURCE.read_bytes())
    library = folder / f"fakeacc-{key.hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(root, library, int(torch.compiled_with_cxx11_abi()))
    return library


def _compile(torch_root: Path, library: Path, abi: int) -> None:
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("the fake accelerator needs a C++ compiler; install g++ or set CXX")
    include, lib = torch_root / "include", torch_root / "lib"
    unfinished = library.with_suffix(f".{os.getpid()}")
    command = [cxx, "-std=c++20", "-O0", "-w", "-fPIC", "-shared"]
    command += [f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={abi}", str(SOURCE), f"-L{lib}"]
    command += ["-ltorch", "-ltorch_cpu", "-lc10", "-o", str(unfinished)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[:4000]}")
    os.replace(unfinished, library)


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
