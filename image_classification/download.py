# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Downloads that go on where they were, and are checked before anyone sees them."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from image_classification.errors import DataError

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_REPORT_S = 5.0


def download(
    url: str, target: Path, *, checksum: str, size: int | None = None, say: Callable[[str], None]
) -> None:
    """Fetch a file; what an earlier try has fetched is not fetched again.

    Args:
        url: Address.
        target: The file; until it is complete and checked it is called <name>.part.
        checksum: See `find_fault`.
        size: Its size in bytes; None: what the server says.
        say: Receives lines about the progress.

    Raises:
        DataError: No connection, a failing server or disk, or a wrong sum; the text says where the
            file can be put by hand.
    """
    part = target.with_name(target.name + ".part")
    by_hand = (
        f"get {url} on a machine with network and put it there as {target} (its "
        f"{checksum.replace(' ', ' sum begins with ')})"
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several processes one fetches, the others wait
            if target.exists():
                return
            _fetch(url, file, size, say)
            file.flush()
            if fault := find_fault(part, checksum):
                part.unlink()
                raise DataError(f"{target.name} {fault}: try again, or {by_hand}")
            os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        kept = part.exists() and part.stat().st_size > 0
        if part.exists() and not kept:
            part.unlink()
        raise DataError(
            f"{target.name} cannot be downloaded ({getattr(error, 'reason', None) or error}): "
            + by_hand
            + (" (what has come so far is kept, the same command goes on)" if kept else "")
        ) from error


def find_fault(path: Path, checksum: str) -> str | None:
    """Compare a file with its check sum.

    Args:
        path: The file; it is read completely.
        checksum: Name of the algorithm, a blank, and the hexadecimal sum or the beginning of it.

    Returns:
        None for the right file, else what is wrong with it.

    Raises:
        OSError: It cannot be read.
    """
    algorithm, _, wanted = checksum.partition(" ")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest().startswith(wanted):
        return None
    found = digest.hexdigest()[: len(wanted)]
    return f"has the {algorithm} sum {found}, not {wanted}: damaged or foreign"


def _fetch(url: str, file: BinaryIO, size: int | None, say: Callable[[str], None]) -> None:
    done = file.tell()
    if done == size:
        return
    if size is not None and done > size:
        done = 0
    with _open(url, done) as answer:
        resumed = done > 0 and answer.status == 206
        if not resumed:
            done = 0  # the server begins anew
            file.truncate(0)
        if size is None and (length := answer.headers.get("Content-Length")) is not None:
            size = done + int(length)
        megabytes = "size unknown" if size is None else f"{size / 1e6:.0f} MB"
        say(f"downloading {url} ({megabytes}){' where it was' if resumed else ''}")
        told = time.monotonic()
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if time.monotonic() - told > _REPORT_S:
                told = time.monotonic()
                share = f" ({100 * done / size:.0f} %)" if size else ""
                say(f"{done / 1e6:.0f} of {megabytes}{share}")
    if size is not None and done < size:
        raise ConnectionError(f"the connection ended after {done} of {size} bytes")


def _open(url: str, start: int) -> Any:
    """The server's answer, from byte `start` on if it can; the caller closes it."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # Nothing comes behind what is there: it is all there, or was another file. Begin anew.
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not start:
            raise
        return urllib.request.urlopen(url, timeout=_TIMEOUT_S)
