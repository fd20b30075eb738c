# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The table of contents of an uncompressed tar archive that nobody vouches for.

Only headers are read, 512 bytes each (POSIX.1-2017, pax, "ustar Interchange Format"), and nothing
is unpacked here: the caller gets the place of each member's bytes. What changes the meaning of a
member (long names, sparse files, a second size) is not followed, but shows as kind "extended".
Python's tarfile would follow it, with an archive's own numbers for how much memory it takes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from image_classification.errors import DataError, printable

_BLOCK = 512
_MAX_NOTE_BYTES = 1 << 16
_KINDS = {
    b"0": "file", b"\0": "file", b"1": "link", b"2": "link", b"3": "device", b"4": "device",
    b"5": "folder", b"6": "pipe",
}  # fmt: skip
# Headers that speak of the next member: its long name or link, and pax records.
_LONG, _PAX, _PAX_FOR_ALL = (b"L", b"K"), b"x", b"g"
_PAX_RECORD = re.compile(rb"[0-9]+ ([^=]*)=")
_HARMLESS_RECORDS = (
    b"atime", b"mtime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment", b"charset",
)  # fmt: skip


class TarMember(NamedTuple):
    """One member: `kind` is file, folder, link, device, pipe, extended or unknown."""

    name: str
    kind: str
    offset: int
    size: int


def tar_members(file: BinaryIO, name: str, start: int = 0, size: int = -1) -> Iterator[TarMember]:
    """List an archive, or one that lies within another.

    Args:
        file: The archive.
        name: Its name for the errors.
        start: Where it begins, in bytes.
        size: Its length in bytes; -1: up to the end of the file.

    Yields:
        The members in order; `offset` counts from the start of `file`, the bytes of each lie within
        the archive.

    Raises:
        DataError: Not a tar archive, damaged, or it ends too early.
    """
    end = file.seek(0, os.SEEK_END) if size < 0 else start + size
    place, extended = start, False
    while True:
        block = _read(file, place, _BLOCK, end, name)
        if not block.strip(b"\0"):
            return
        kind, length = block[156:157], _length(block, place, name)
        data = place + _BLOCK
        place = data + -(-length // _BLOCK) * _BLOCK
        if kind in (*_LONG, _PAX, _PAX_FOR_ALL):
            if length > _MAX_NOTE_BYTES:
                raise _damaged(name, f"a note of {length} bytes on the next member")
            extended |= kind in _LONG or _changes_members(_read(file, data, length, end, name))
            continue
        if data + length > end:
            raise _damaged(name, "it ends within a member")
        shown = "extended" if extended else _KINDS.get(kind, "unknown")
        yield TarMember(_name(block), shown, data, length)
        extended = False


def _read(file: BinaryIO, place: int, count: int, end: int, name: str) -> bytes:
    file.seek(place)
    block = file.read(min(count, max(end - place, 0)))
    if len(block) < count:
        raise _damaged(name, "it ends too early")
    return block


def _length(block: bytes, place: int, name: str) -> int:
    """The size in a header whose check sum is right; octal, or base 256 where that is too short."""
    checked = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    try:
        if int(block[148:156].strip(b" \0"), 8) != checked:
            raise ValueError
        field = block[124:136]
        binary = field[0] == 0x80
        length = int.from_bytes(field[1:], "big") if binary else int(field.strip(b" \0"), 8)
        if length < 0:
            raise ValueError
    except ValueError:
        raise _damaged(name, f"no tar header at byte {place}") from None
    return length


def _name(block: bytes) -> str:
    """The path of a member, as in the archive but for "./" at its start."""
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    path = prefix + b"/" + name if prefix else name
    return os.fsdecode(path).removeprefix("./")


def _changes_members(records: bytes) -> bool:
    """Whether pax records say more than times and owners."""
    keys = _PAX_RECORD.findall(records)
    return not keys or any(key not in _HARMLESS_RECORDS for key in keys)


def _damaged(name: str, problem: str) -> DataError:
    return DataError(f"{printable(name)} is damaged or no tar archive: {problem}; get it again")
