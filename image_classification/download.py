# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Downloads that go on where they were, and are checked before anyone sees them."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from image_classification.errors import DataError

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_REPORT_S = 5.0


def download(url: str, target: Path, *, md5: str, size: int, say: Callable[[str], None]) -> None:
    """Fetch a file; what an earlier try has fetched is not fetched again.

    Args:
        url: Address.
        target: The file; until it is complete and checked it is called <name>.part.
        md5: Its sum.
        size: Its size in bytes.
        say: Receives lines about the progress.

    Raises:
        DataError: No connection, a failing server or disk, or a wrong sum; the text says where the
            file can be put by hand.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several processes one fetches, the others wait
            if target.exists():
                return
            _fetch(url, file, size, say)
            file.flush()
            if (found := _md5(part)) != md5:
                part.unlink()
                raise DataError(
                    f"{target.name} has the md5 sum {found}, not {md5}: damaged or foreign; try "
                    f"again, or put {url} into {target.parent} yourself"
                )
            os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:
        kept = part.exists() and part.stat().st_size > 0
        if part.exists() and not kept:
            part.unlink()
        raise DataError(
            f"{target.name} cannot be downloaded ({getattr(error, 'reason', None) or error}): get "
            f"{url} on a machine with network and put it into {target.parent}"
            + (" (what has come so far is kept, the same command goes on)" if kept else "")
        ) from error


def _fetch(url: str, file: BinaryIO, size: int, say: Callable[[str], None]) -> None:
    done = file.tell()
    if done == size:
        return
    if done > size:
        done = 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        resumed = done > 0 and answer.status == 206
        if not resumed:
            done = 0  # the server begins anew
            file.truncate(0)
        say(f"downloading {url} ({size / 1e6:.0f} MB){' where it was' if resumed else ''}")
        told = time.monotonic()
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            if time.monotonic() - told > _REPORT_S:
                told = time.monotonic()
                say(f"{done / 1e6:.0f} of {size / 1e6:.0f} MB ({100 * done / size:.0f} %)")
    if done < size:
        raise ConnectionError(f"the connection ended after {done} of {size} bytes")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
