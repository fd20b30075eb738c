# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Reads pickles of plain data: numbers, text, lists, dictionaries and numpy arrays of bytes.

A pickle is a program. Here it runs with nothing to call: the few names that an array's pickle
needs stand for functions of this file, and any other name ends the reading.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classification.errors import DataError, printable


class _Type:
    """Stands for numpy.dtype: keeps its name."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment mean nothing for bytes."""


class _Array:
    """Stands for numpy.ndarray: keeps shape and content."""

    def __init__(self, *initial: Any) -> None:
        self.array: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        """Take (version, shape, type, column order, content); checks all of them."""
        _, shape, kind, column_order, content = state
        if not isinstance(kind, _Type) or kind.name not in ("u1", "|u1") or column_order:
            raise pickle.UnpicklingError("an array that is not of bytes in row order")
        self.array = np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin-1")  # how Python 3 writes bytes for Python 2


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


# The reader in Python: that in C sets up a table as long as the pickle says, and so takes 4 GB for
# ten bytes. Byte arrays, which plain data lack, are made as long as the pickle says here too.
class _PlainUnpickler(pickle._Unpickler):
    dispatch = {  # noqa: RUF012
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only what stands in the table."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data never do")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Plain data have no references to something outside."""
        raise pickle.UnpicklingError("it refers to something outside")


def load_plain_pickle(content: bytes, name: str) -> dict[str, Any]:
    """Read a pickled dictionary.

    Args:
        content: The pickle, as Python 2 or 3 wrote it.
        name: What it is, for the error.

    Returns:
        The dictionary with text as keys; arrays are uint8, read-only.

    Raises:
        DataError: Damaged, not a dictionary, or with anything but plain data in it.
    """
    try:
        loaded = _PlainUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = printable(" ".join(str(error).split()), 200) or type(error).__name__
        raise DataError(f"{name} cannot be read: {reason}; get the file again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{name} holds no dictionary; get the file again")
    return {_text(key): _value(value) for key, value in loaded.items()}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _value(value: Any) -> Any:
    return value.array if isinstance(value, _Array) else value
