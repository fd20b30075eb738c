# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Archives that nobody vouches for: nothing leaves the target, nothing grows without bounds."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path

import imagenet_archives as imagenet
import pytest
from imagenet_archives import WNIDS, jpeg, tar

from image_classification import dataset_tools
from image_classification.data_processing import placing, val_labels
from image_classification.data_processing.mat_file import read_class_numbers
from image_classification.data_processing.tar_reader import tar_members
from image_classification.errors import DataError


def unpack(folder: Path, inner: bytes | None = None, outer: bytes | None = None) -> int:
    """Unpacks an archive of training images; only what one class holds is unusual."""
    source = folder / "source"
    source.mkdir(exist_ok=True)
    whole = tar([("n01440764.tar", tar([("a.JPEG", jpeg(1)), ("b.JPEG", jpeg(2))])),
                 ("n02119789.tar", inner or b"")])  # fmt: skip
    (source / imagenet.TRAIN).write_bytes(whole if outer is None else outer)
    return dataset_tools.main(["process", str(source), str(folder / "target"), "-j", "1"])


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def with_size(size: bytes) -> bytes:
    """An archive whose first header claims a size."""
    header = bytearray(tar([("x.JPEG", jpeg(1))])[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(**headers: str) -> bytes:
    info = tarfile.TarInfo("x.JPEG")
    info.pax_headers = headers
    return tar([(info, jpeg(1))], format=tarfile.PAX_FORMAT)


IMAGE = jpeg(1)
HOSTILE = {
    "parent": (tar([("../x.JPEG", IMAGE)]), "../x.JPEG: not a plain file name"),
    "absolute": (tar([("/x.JPEG", IMAGE)]), "/x.JPEG: not a plain file name"),
    "folder": (tar([("a/x.JPEG", IMAGE)]), "not a plain file name"),
    "hidden": (tar([(".x.JPEG", IMAGE)]), "not a plain file name"),
    "terminal": (tar([("\x1b[2Jx.JPEG", IMAGE)]), "?[2Jx.JPEG: not a plain file name"),
    "program": (tar([("x.py", b"print()")]), "not an image by its name"),
    "link": (tar([special("x.JPEG", tarfile.SYMTYPE, "/etc/passwd")]), "kind of member: link,"),
    "hard link": (tar([special("x.JPEG", tarfile.LNKTYPE, "../../x")]), "kind of member: link,"),
    "device": (tar([special("x.JPEG", tarfile.CHRTYPE)]), "kind of member: device,"),
    "pipe": (tar([special("x.JPEG", tarfile.FIFOTYPE)]), "kind of member: pipe,"),
    "sparse": (tar([special("x.JPEG", tarfile.GNUTYPE_SPARSE)]), "kind of member: unknown,"),
    "through a link": (
        tar([special("d", tarfile.SYMTYPE, "/tmp"), ("d/x.JPEG", IMAGE)]), "kind of member: link,"),
    "twice": (tar([("x.JPEG", IMAGE), ("x.JPEG", IMAGE)]), "the name comes twice"),
    "empty": (tar([("x.JPEG", b"")]), "0 bytes, expected 1 to 268435456"),
    "long name": (tar([("y" * 200 + ".JPEG", IMAGE)], format=tarfile.GNU_FORMAT),
                  "kind of member: extended,"),
    "pax path": (pax(path="../x.JPEG"), "kind of member: extended,"),
    "pax sparse": (pax(**{"GNU.sparse.size": "99999999999"}), "kind of member: extended,"),
    "pax bomb": (pax(comment="x" * 70000), "a note of 70"),
    "ends early": (tar([("x.JPEG", IMAGE)])[:900], "it ends within a member"),
    "no end": (tar([("x.JPEG", IMAGE)])[: 512 + -(-len(IMAGE) // 512) * 512], "it ends too early"),
    "huge": (with_size(b"77777777777\0"), "it ends within a member"),
    "giant": (with_size(b"\x80" + b"\x7f" * 11), "it ends within a member"),
    "negative": (with_size(b"\xff" * 12), "no tar header at byte"),
    "minus": (with_size(b"-0000000001\0"), "no tar header at byte"),
    "noise": (random.Random(0).randbytes(2048), "no tar header at byte"),
    "nothing": (b"", "it ends too early"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members(tmp_path: Path, capsys, case: str) -> None:
    inner, message = HOSTILE[case]
    assert unpack(tmp_path, inner) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and imagenet.TRAIN in line
    assert line.isprintable()
    visible = [path for path in tmp_path.rglob("*") if "/." not in str(path.relative_to(tmp_path))]
    assert {path.name for path in visible if path.is_file()} == {
        imagenet.TRAIN, "a.JPEG", "b.JPEG"
    }  # fmt: skip
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "outer",
    [
        tar([("../n01440764.tar", b"x")]),
        tar([("n01440764", b"x")]),
        tar([("x.tar", b"x")]),
        tar([("n01440764.tar", b"x"), ("n01440764.tar", b"x")]),
        tar([special("n01440764.tar", tarfile.SYMTYPE, "/etc/passwd")]),
        tar([]),
        b"no archive" * 100,
    ],
)
def test_hostile_archives_of_archives(tmp_path: Path, capsys, outer: bytes) -> None:
    assert unpack(tmp_path, outer=outer) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert imagenet.TRAIN in line
    assert not (tmp_path / "target/train").exists()


def test_too_many_files(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(placing, "MAX_CLASS_FILES", 2)
    assert unpack(tmp_path, tar((f"{i}.JPEG", IMAGE) for i in range(3))) == 3
    assert "2.JPEG: more than 2 files" in capsys.readouterr().err


def test_times_and_owners_do_no_harm(tmp_path: Path) -> None:
    assert unpack(tmp_path, pax(mtime="1.5", comment="made by hand")) == 0
    assert (tmp_path / "target/train/n02119789/x.JPEG").read_bytes() == IMAGE


def test_the_bytes_of_a_member_lie_within_its_archive() -> None:
    """Whatever bits are flipped: the reader ends, with members inside or with a DataError."""
    chance = random.Random(1)
    good = tar([("a.JPEG", IMAGE), ("b.JPEG", jpeg(2))], format=tarfile.GNU_FORMAT)
    refused = 0
    for _ in range(2000):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            content[chance.choice([chance.randrange(512), chance.randrange(len(good))])] = (
                chance.randrange(256)
            )
        content = content[: chance.choice([len(good), chance.randrange(len(good))])]
        try:
            for member in tar_members(io.BytesIO(bytes(content)), "fuzzed"):
                assert 512 <= member.offset <= member.offset + member.size <= len(content)
        except DataError:
            refused += 1
    assert 500 < refused < 2000


def test_damaged_kits(tmp_path: Path) -> None:
    chance = random.Random(2)
    good = imagenet.meta(compressed=False)
    assert read_class_numbers(good)[1] == WNIDS[0]
    refused = 0
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(126, len(good))] = chance.randrange(256)
        try:
            read_class_numbers(bytes(content[: chance.randint(120, len(good))]))
        except DataError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("case", ["bomb", "cut", "no gzip", "lacking", "meta"])
def test_hostile_kits(tmp_path: Path, capsys, case: str) -> None:
    labels = imagenet.write_val(tmp_path)
    kit = imagenet.write_devkit(tmp_path, labels)
    content = {
        "bomb": gzip.compress(bytes(val_labels._MAX_BYTES + 1)),
        "cut": kit.read_bytes()[:-40],
        "no gzip": b"kit",
        "lacking": gzip.compress(tar([("x/data/meta.mat", imagenet.meta())])),
        "meta": gzip.compress(tar([("x/data/meta.mat", b"M" * 999),
                                   (f"x/data/{imagenet.GROUND_TRUTH}", b"1\n" * 7)])),
    }[case]  # fmt: skip
    kit.write_bytes(content)
    assert dataset_tools.main(["process", str(tmp_path), "-j", "1"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert {
        "bomb": "is larger than any development kit", "cut": "cannot be read (Compressed file",
        "no gzip": "cannot be read (Not a gzipped",
        "lacking": f"holds no data/{imagenet.GROUND_TRUTH}",
        "meta": "meta.mat is damaged or not that of ILSVRC2012",
    }[case] in line  # fmt: skip
