# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Adds the fast loader's compiled core to wheels (pip wheel .) and editable installs.

Without a compiler the wheel is pure Python: it runs anywhere, with the slower loader.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from image_classification.fast_loader import build

SCRATCH = tempfile.TemporaryDirectory(prefix="fast_loader-")


@cache
def core_library() -> Path | None:
    """The compiled core in a temporary folder, None where it cannot be compiled; says why once."""
    try:
        return build.compile_into(Path(SCRATCH.name))
    except build.BuildError as error:
        print(f"fast loader: not built: {error}", file=sys.stderr)
        return None


class BuildWithCore(build_py):
    """Compiles the core: into the wheel, or in place for an editable install."""

    def run(self) -> None:
        """Copy the Python files and add the library."""
        super().run()
        library = core_library()
        if library is None:
            return
        package = [] if self.editable_mode else [self.build_lib]
        folder = Path(*package, *build.__package__.split("."), "build")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{library.name.rpartition('-')[0]}-*.so"):
            old.unlink()
        shutil.copy(library, folder)


class PlatformDistribution(Distribution):
    """Belongs to one platform where the core can be compiled."""

    def has_ext_modules(self) -> bool:
        """Whether a wheel holds compiled code."""
        return core_library() is not None


class AnyPython(bdist_wheel):
    """The core has a plain C interface: one wheel serves all versions of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """For example ("py3", "none", "linux_x86_64")."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithCore, "bdist_wheel": AnyPython}, distclass=PlatformDistribution
)
