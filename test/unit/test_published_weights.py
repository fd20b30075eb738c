# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Published weights: the table is torchvision's, a file is right before anybody loads it."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classification.errors import CheckpointError, UsageError
from image_classification.pretrained import load_weights
from image_classification.published_weights import (
    PUBLISHED,
    VERSIONS,
    PublishedWeights,
    fetch_published,
    find_published,
    recognise_published,
)
from image_classification.weight_files import load_weight_file
from models import ARCHS, create_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "pretrained.md"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishedWeights]:
    """A row for a small file on a server of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    torch.save(create_model("resnet18", 3).state_dict(), folder / "new.pth")
    begins = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()[:8]
    (folder / "new.pth").rename(folder / f"resnet18-{begins}.pth")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/resnet18-{begins}.pth"
    yield PublishedWeights("resnet18", "v1", url, 69.758, 224, 256, num_classes=3)
    server.shutdown()
    thread.join()
    server.server_close()


# ---- the table ----


@cache
def torchvision_weights() -> dict[str, object]:
    models = pytest.importorskip("torchvision.models")
    names = [name for name in ARCHS if name.replace("-", "_") in models.list_models()]
    found = {name: models.get_model_weights(name.replace("-", "_")) for name in names}
    return {name: weights for name, weights in found.items() if len(weights)}


def test_the_table_is_complete_and_in_the_order_of_the_networks() -> None:
    listed = [(row.arch, row.version) for row in PUBLISHED]
    assert listed == [
        (name, weights.name.removeprefix("IMAGENET1K_").lower())
        for name, enum in torchvision_weights().items()
        for weights in enum
    ]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.arch}-{row.version}")
def test_the_table_says_what_torchvision_says(row: PublishedWeights) -> None:
    enum = torchvision_weights()[row.arch]
    weights = enum[f"IMAGENET1K_{row.version.upper()}"]
    transforms = weights.transforms()
    assert row.url == weights.url
    assert row.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert [row.image_size] == transforms.crop_size
    assert [row.val_resize] == transforms.resize_size
    assert row.interpolation == transforms.interpolation.value
    assert row.num_classes == len(weights.meta["categories"])
    assert (find_published(row.arch) is row) == (weights is enum.DEFAULT)
    assert find_published(row.arch, row.version) is row
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.get_model(row.arch.replace("-", "_"), weights=None)
    epsilons = {module.eps for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)}
    assert epsilons == {row.bn_epsilon}


def test_what_is_not_published_is_said() -> None:
    with pytest.raises(
        UsageError, match=r"no weights of efficientnet-widese-b0; give a file: --pr"
    ):
        find_published("efficientnet-widese-b0")
    with pytest.raises(UsageError, match="no weights v2 of resnet18, only v1"):
        find_published("resnet18", "v2")
    assert VERSIONS == ("v1", "v2")


def test_a_file_is_recognised_by_the_digits_in_its_name() -> None:
    for row in PUBLISHED:
        assert recognise_published(f"some/folder/{row.file}") is row
    assert recognise_published(Path("b1-bac287d4.safetensors")) is find_published(
        "efficientnet-b1", "v1"
    )
    for name in ("resnet50.pth", "0676ba61/resnet50.pth", "resnet50-0676ba610.pth"):
        assert recognise_published(name) is None


def test_the_page_lists_the_table() -> None:
    lines = PAGE.read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Network | Version"))
    rows = lines[start + 2 : start + 2 + len(PUBLISHED)]
    assert rows == [
        f"`{row.arch}` | {row.version} | {row.top1:.3f} % | `{row.conditions}` | "
        f"{row.bn_epsilon:g} | `{row.sha256}` | <{row.url}>"
        for row in PUBLISHED
    ]
    assert not lines[start + 2 + len(PUBLISHED)].strip()
    commands = re.findall(r"weights/(\S+\.pth)", "\n".join(lines))
    assert commands and set(commands) <= {row.file for row in PUBLISHED}


# ---- the files ----


def test_a_file_is_downloaded_checked_and_loads(
    published: PublishedWeights, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = tmp_path / "new" / "weights"
    path = fetch_published(published, folder, say=said.append)
    assert path == folder / published.file and [*folder.iterdir()] == [path]
    assert len(said) == 1 and said[0].startswith(f"downloading {published.url} (45 MB)")
    report = load_weights(create_model("resnet18", 3), load_weight_file(path), min_matched=1.0)
    assert not report.missing


def test_a_file_that_is_there_needs_no_network(published: PublishedWeights, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch_published(published, tmp_path, say=said.append)
    nowhere = replace(published, url=f"http://127.0.0.1:9/{path.name}")
    assert fetch_published(nowhere, tmp_path, say=said.append) == path
    assert len(said) == 1


def test_a_damaged_file_is_named(published: PublishedWeights, tmp_path: Path) -> None:
    path = tmp_path / published.file
    path.write_bytes(b"half of it")
    with pytest.raises(CheckpointError) as caught:
        fetch_published(published, tmp_path, say=print)
    assert f"{path} has the sha256 sum" in str(caught.value)
    assert f"not {published.sha256}: damaged or foreign; remove it, or put {published.url}" in str(
        caught.value
    )
    assert path.read_bytes() == b"half of it"
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        fetch_published(published, tmp_path, say=print)


def test_another_file_on_the_server_is_refused(published: PublishedWeights, tmp_path: Path) -> None:
    (tmp_path / "server" / published.file).write_bytes(b"<html>not found</html>")
    with pytest.raises(
        CheckpointError, match=r"has the sha256 sum .* damaged or foreign: try again"
    ):
        fetch_published(published, tmp_path / "weights", say=print)
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize("kind", ["no server", "no file"])
def test_without_network_one_line_says_what_to_put_where(
    kind: str, published: PublishedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = published.url.replace("resnet18-", "resnet34-")
    if kind == "no server":
        url = f"http://127.0.0.1:9/{published.file}"
    row = replace(published, url=url)
    with pytest.raises(CheckpointError) as caught:
        fetch_published(row, Path("weights"), say=print)
    text = str(caught.value)
    assert caught.value.exit_code == 4 and "\n" not in text
    assert f"get {url} on a machine with network" in text
    assert f"put it there as {tmp_path / 'weights' / row.file} " in text
    assert f"(its sha256 sum begins with {published.sha256})" in text
    assert not list((tmp_path / "weights").iterdir())
