# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Downloads: complete and checked or not there, resumed, one process at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from image_classification.download import download
from image_classification.errors import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT; notes the ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.cut_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def fetch(
    server: Server, target: Path, checksum: str = f"md5 {MD5}", size: int | None = len(CONTENT)
) -> list[str]:
    said: list[str] = []
    download(server.url, target, checksum=checksum, size=size, say=said.append)
    return said


def test_a_download_is_complete_and_checked(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "set.tar.gz"
    assert fetch(server, target) == [f"downloading {server.url} (1 MB)"]
    assert target.read_bytes() == CONTENT and list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("size", [len(CONTENT), None])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_goes_on(
    server: Server, tmp_path: Path, knows_ranges: bool, size: int | None
) -> None:
    target = tmp_path / "set.tar.gz"
    server.cut_after, server.knows_ranges = 300_000, knows_ranges
    with pytest.raises(DataError, match=r"cannot be downloaded .*kept, the same command goes on"):
        fetch(server, target, size=size)
    assert (tmp_path / "set.tar.gz.part").stat().st_size == 300_000 and not target.exists()
    server.cut_after = None
    said = fetch(server, target, size=size)
    assert server.ranges == [None, "bytes=300000-"]
    assert ("where it was" in said[0]) is knows_ranges
    assert target.read_bytes() == CONTENT


def test_a_wrong_sum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"has the md5 sum {MD5}, not {'0' * 32}"):
        fetch(server, tmp_path / "set.tar.gz", "md5 " + "0" * 32)
    assert not list(tmp_path.iterdir())


def test_the_beginning_of_a_sum_is_enough(server: Server, tmp_path: Path) -> None:
    begins = hashlib.sha256(CONTENT).hexdigest()[:8]
    fetch(server, tmp_path / "set.tar.gz", f"sha256 {begins}", size=None)
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT
    with pytest.raises(DataError, match=f"has the sha256 sum {begins}, not 01234567: damaged"):
        fetch(server, tmp_path / "other.tar.gz", "sha256 01234567", size=None)


@pytest.mark.parametrize("there", [CONTENT, CONTENT + b"more"])
def test_what_is_there_completely_is_fetched_anew(
    server: Server, tmp_path: Path, there: bytes
) -> None:
    """A process that was killed before it could give the file its name; the size is not known."""
    (tmp_path / "set.tar.gz.part").write_bytes(there)
    fetch(server, tmp_path / "set.tar.gz", size=None)
    assert server.ranges == [f"bytes={len(there)}-", None]
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT


def test_a_host_without_network_hears_what_to_do(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "set.tar.gz"
    with pytest.raises(DataError) as caught:
        download("http://127.0.0.1:9/set.tar.gz", target, checksum=f"md5 {MD5}", say=print)
    text = f"on a machine with network and put it there as {target} (its md5 sum begins with {MD5})"
    assert text in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_several_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=fetch, args=(server, tmp_path / "set.tar.gz")) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.ranges) == 1
    assert (tmp_path / "set.tar.gz").read_bytes() == CONTENT
