# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The class numbers of ImageNet's development kit, from its meta.mat.

Reads just enough of MATLAB's "MAT-File Format" (The MathWorks, level 5): one struct array with
texts and numbers. So no scipy is needed for the only such file that this package meets.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from image_classification.errors import DataError

_MAX_BYTES = 1 << 26
_MATRIX, _COMPRESSED = 14, 15
_STRUCT_CLASS, _CHAR_CLASS = 2, 4
# Data type -> struct code of one number.
_CODES = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_UTF8, _UTF16 = 16, 17


class _Element(NamedTuple):
    kind: int
    data: memoryview


class _Matrix(NamedTuple):
    """One array; `parts` are the elements behind its name."""

    kind: int
    size: int
    parts: list[_Element]


def read_class_numbers(content: bytes) -> dict[int, str]:
    """The class (WordNet id) of each ILSVRC2012_ID.

    Args:
        content: The file meta.mat; its struct array has the fields ILSVRC2012_ID and WNID.

    Returns:
        Number (from 1) -> WordNet id.

    Raises:
        DataError: Not such a file, or damaged.
    """
    try:
        return _class_numbers(content)
    except (struct.error, zlib.error, ValueError, LookupError, OverflowError):
        raise DataError(
            "meta.mat is damaged or not that of ILSVRC2012 (a struct array with ILSVRC2012_ID and "
            "WNID); get the development kit again"
        ) from None


def _class_numbers(content: bytes) -> dict[int, str]:
    if content[126:128] != b"IM":  # the mark of a little-endian file
        raise ValueError
    for element in _elements(memoryview(content)[128:]):
        matrix = _matrix(_inflated(element))
        if matrix.kind == _STRUCT_CLASS:
            return _numbers_of_structs(matrix)
    raise ValueError


def _numbers_of_structs(matrix: _Matrix) -> dict[int, str]:
    """The fields of all structs lie one after the other, struct by struct."""
    length, names = int(_numbers(matrix.parts[0])[0]), bytes(matrix.parts[1].data)
    fields = [
        names[start : start + length].partition(b"\0")[0].decode()
        for start in range(0, len(names), length)
    ]
    number, text = fields.index("ILSVRC2012_ID"), fields.index("WNID")
    cells = matrix.parts[2:]
    if len(cells) != matrix.size * len(fields):
        raise ValueError
    found = {}
    for start in range(0, len(cells), len(fields)):
        key = int(_numbers(_matrix(cells[start + number]).parts[0])[0])
        found[key] = _text(_matrix(cells[start + text]))
    return found


def _elements(data: memoryview) -> Iterator[_Element]:
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, place)
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, size, begin = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
        else:
            begin = place + 8
            place = begin + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if begin + size > len(data):
            raise ValueError
        yield _Element(kind, data[begin : begin + size])


def _inflated(element: _Element) -> _Element:
    if element.kind != _COMPRESSED:
        return element
    inflater = zlib.decompressobj()
    content = inflater.decompress(element.data, _MAX_BYTES)
    if inflater.unconsumed_tail:  # larger than any such file
        raise ValueError
    return next(_elements(memoryview(content)))


def _matrix(element: _Element) -> _Matrix:
    if element.kind != _MATRIX:
        raise ValueError
    flags, sizes, _, *parts = _elements(element.data)
    count = 1
    for size in _numbers(sizes):
        count *= int(size)
    return _Matrix(int(_numbers(flags)[0]) & 0xFF, count, parts)


def _numbers(element: _Element) -> tuple[int | float, ...]:
    code = _CODES[element.kind]
    return struct.unpack(f"<{len(element.data) // struct.calcsize(code)}{code}", element.data)


def _text(matrix: _Matrix) -> str:
    if matrix.kind != _CHAR_CLASS:
        raise ValueError
    (element,) = matrix.parts
    if element.kind in (_UTF8, _UTF16):
        return bytes(element.data).decode("utf-8" if element.kind == _UTF8 else "utf-16-le")
    return "".join(chr(int(letter)) for letter in _numbers(element))
