# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The loops of other packages, each in the settings that its own documents recommend."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.measure import Unavailable


def require(module: str, package: str) -> Any:
    """Imports a module.

    Raises:
        Unavailable: It cannot be imported; names the package to install.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        cure = f"pip install {package}"
        raise Unavailable(f"{module} cannot be imported ({error}): {cure}") from error
