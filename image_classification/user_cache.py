# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Where this user's caches lie: never in a data set, which may be shared or read-only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The package's folder for caches; it need not exist (XDG Base Directory Specification).

    None where the user has no home: a folder that others may write to is no place for a library.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "image_classification"


def keep_compiled() -> None:
    """Has torch.compile keep its work in the cache instead of /tmp, unless the user chose a place.

    To be called before the first compilation of the process.
    """
    if (folder := cache_folder()) is not None:
        with contextlib.suppress(OSError):  # torch's own place in /tmp does as well
            (folder / "compiled").mkdir(parents=True, exist_ok=True)
            if os.access(folder / "compiled", os.W_OK):
                os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")  # torch's default since 2.5
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")  # since 2.6
