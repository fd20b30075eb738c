# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Imported by every Python start: makes this PyTorch look like 2.4 when FAKE_ACC_OLD_TORCH is set.

Hidden are torch.accelerator, torch.OutOfMemoryError and
torch.distributed.get_default_backend_for_device. PyTorch itself keeps seeing them.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_HIDDEN = {
    "torch": ("accelerator", "OutOfMemoryError"),
    "torch.distributed": ("get_default_backend_for_device",),
}


def _hide(module: ModuleType, names: tuple[str, ...]) -> None:
    kept = {name: module.__dict__.pop(name) for name in names if name in module.__dict__}
    original = module.__dict__.get("__getattr__")

    def lookup(name: str) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if name in kept and caller.partition(".")[0] == "torch":
            return kept[name]
        if name in kept or original is None:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return original(name)

    module.__dict__["__getattr__"] = lookup


class _Hider(importlib.abc.MetaPathFinder):
    """Finds the two modules in the usual way and edits them after their import."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in _HIDDEN:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_hide(module: ModuleType) -> None:
            execute(module)
            _hide(module, _HIDDEN[name])

        spec.loader.exec_module = execute_and_hide
        return spec


if os.environ.get("FAKE_ACC_OLD_TORCH", "") not in ("", "0"):
    sys.meta_path.insert(0, _Hider())
