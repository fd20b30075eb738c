# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Adds the fast loader's compiled core to wheels (pip wheel .) and editable installs.

Without a compiler the wheel is pure Python: it runs anywhere, with the slower loader.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from image_classification.fast_loader import build


@cache
def has_compiler() -> bool:
    """Whether the core can be compiled here; says so once where it cannot."""
    try:
        build.find_compiler()
    except build.BuildError as error:
        print(f"fast loader: not built: {error}", file=sys.stderr)
        return False
    return True


class BuildWithCore(build_py):
    """Compiles the core: into the wheel, or in place for an editable install."""

    def run(self) -> None:
        """Copy the Python files and add the library."""
        super().run()
        if not has_compiler():
            return
        if self.editable_mode:
            build.build()
        else:
            build.compile_into(Path(self.build_lib, *build.__package__.split("."), "build"))


class PlatformDistribution(Distribution):
    """Belongs to one platform where the core can be compiled."""

    def has_ext_modules(self) -> bool:
        """Whether a wheel holds compiled code."""
        return has_compiler()


class AnyPython(bdist_wheel):
    """The core has a plain C interface: one wheel serves all versions of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """For example ("py3", "none", "linux_x86_64")."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithCore, "bdist_wheel": AnyPython}, distclass=PlatformDistribution
)
