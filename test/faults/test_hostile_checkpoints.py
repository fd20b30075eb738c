# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Mutated checkpoints and weight files: one line, the right exit code, nothing is executed."""

from __future__ import annotations

import io
import math
import pickletools
import random
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from record import record
from runs import checkpoint as read
from runs import write_images
from victims import run_here, whole

from image_classification import checkpoint
from image_classification.errors import CheckpointError
from image_classification.weight_files import load_weight_file

SMALL = ("--arch", "resnet18", "--image-size", "32", "-j", "0", "--device", "cpu", "-b", "8",
         "--lr", "0.01", "--seed", "7", "--epochs", "1", "--prof", "1",
         "--momentum", "0")  # fmt: skip
LAYER = ("fc.weight", "fc.bias")
# Of memory in all, and more than all files together; a bomb unpacks to a multiple.
MEGABYTES = 150


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def real(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run has saved."""
    folder = tmp_path_factory.mktemp("runs") / "w"
    assert run_here(images, *SMALL, "--training-only", "--workspace", folder) == 0
    saved = read(folder / "checkpoint.pth.tar")
    for path in folder.rglob("*.pth.tar"):
        path.unlink()
    return saved


@pytest.fixture(scope="module")
def small(real: dict[str, Any]) -> dict[str, Any]:
    """The same with one layer, so that a thousand copies are written in no time."""
    weights = {name: real["state_dict"][name].clone() for name in LAYER}
    return {**real, "state_dict": weights, "optimizer": {}}


# ---- mutations of the file


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive whose check sums are right, whatever is in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def flipped(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.randrange(1, 6)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def cut(content: bytes, draw: random.Random) -> bytes:
    start, end = sorted(draw.randrange(len(content)) for _ in range(2))
    return draw.choice([content[:start], content[:start] + content[end:],
                        content[:start] + bytes(end - start) + content[end:]])  # fmt: skip


def swapped(content: bytes, draw: random.Random) -> bytes:
    parts = members(content)
    one, two = draw.sample(sorted(parts), 2)
    parts[one], parts[two] = parts[two], parts[one]
    return packed(parts)


def with_pickle(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    parts = members(content)
    (name,) = [name for name in parts if name.endswith("data.pkl")]
    return packed({**parts, name: change(parts[name])})


def called(content: bytes, draw: random.Random, mark: Path) -> bytes:
    """A call of a function somewhere in the pickle; its result is thrown away."""
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()".encode()
    function = draw.choice([b"os\nsystem", b"posix\nsystem", b"builtins\neval", b"builtins\nexec",
                            b"__builtin__\neval", b"subprocess\ncall", b"torch\nload"])  # fmt: skip
    argument = b"touch " + bytes(mark) if function.endswith((b"system", b"call")) else code
    argument = b"X" + len(argument).to_bytes(4, "little") + argument
    call = b"c" + function + b"\n" + argument + draw.choice([b"\x85R", b"\x85\x81"]) + b"0"

    def insert(program: bytes) -> bytes:
        places = [place for _, _, place in pickletools.genops(program) if place]
        place = draw.choice(places[1:])
        return program[:place] + call + program[place:]

    return with_pickle(content, insert)


def scrambled(content: bytes, draw: random.Random) -> bytes:
    """Other bytes in the pickle, behind a check sum that is right."""
    return with_pickle(content, lambda program: flipped(program, draw))


def mutated(content: bytes, seed: int, mark: Path) -> bytes:
    draw = random.Random(seed)
    kind = seed % 5
    if kind == 3:
        return called(content, draw, mark)
    return (flipped, cut, swapped, None, scrambled)[kind](content, draw)  # type: ignore[misc]


def memory() -> int:
    """The most memory that this process has had (MiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def outcome(load: Callable[[Path], object], path: Path) -> str:
    """The error's line, "" where it loads; nothing but a CheckpointError may come."""
    try:
        load(path)
    except CheckpointError as error:
        assert error.exit_code == 4 and str(error).isprintable() and len(str(error)) < 1000
        return str(error)
    return ""


@pytest.mark.parametrize("count", [40, *whole(1000)])
def test_mutated_files(small: dict[str, Any], tmp_path: Path, count: int) -> None:
    path, mark = tmp_path / "mutated.pth.tar", tmp_path / "executed"
    torch.save(small, path)
    content, harmless, before = path.read_bytes(), 0, memory()
    for seed in range(count):
        path.write_bytes(mutated(content, seed, mark))
        outcome(load_weight_file, path)
        if outcome(checkpoint.load, path) == "":
            harmless += 1
            assert seed % 5 != 3, "a call in the pickle was overlooked"
        assert not mark.exists(), f"mutation {seed} was executed"
    assert memory() - before < MEGABYTES
    assert 0 < harmless < count / 2  # padding, names, numbers that are as good as before
    record("mutated checkpoint", "loading", tries=count, exit_code=4)


def nested(depth: int) -> bytes:
    """A pickle of dictionaries in dictionaries, which pickle itself could not write."""
    return b"\x80\x02" + b"}X\x01\x00\x00\x00a" * depth + b"}" + b"s" * depth + b"."


def zip_bomb(small: bytes) -> bytes:
    parts = members(small)
    (name,) = [name for name in parts if name.endswith("data/0")]
    return packed({**parts, name: bytes(1 << 28)}, zipfile.ZIP_DEFLATED)


def tar_bomb(small: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "../../escaped", "/absolute"):
            info = tarfile.TarInfo(name)
            info.size = 1 << 40 if name == "/absolute" else 0
            archive.addfile(info)
    return buffer.getvalue()


def huge(small: bytes) -> bytes:
    """Sizes in the pickle that no memory has: a tensor of 512 x 3 becomes one of 2**31 x 3."""
    return with_pickle(small, lambda program: program.replace(b"M\x00\x02", b"J\xff\xff\xff\x7f"))


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "nested": lambda small: with_pickle(small, lambda program: nested(10_000)),
    "endless list": lambda small: with_pickle(
        small, lambda _: b"\x80\x02]q\x00" + b"h\x00a" * 10**4 + b"."
    ),
    "long text": lambda small: with_pickle(small, lambda _: b"\x80\x02X\xff\xff\xff\x7fx."),
    "long number": lambda small: with_pickle(
        small, lambda _: b"\x80\x02\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b"."
    ),
    "zip": zip_bomb,
    "tar": tar_bomb,
    "huge": huge,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(small: dict[str, Any], tmp_path: Path, bomb: str) -> None:
    path = tmp_path / "bomb.pth.tar"
    torch.save(small, path)
    path.write_bytes(BOMBS[bomb](path.read_bytes()))
    before = memory()
    for load in (checkpoint.load, load_weight_file):
        assert str(path) in outcome(load, path)
    assert memory() - before < MEGABYTES
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


# ---- whole runs with checkpoints whose entries are hostile

RED = "\x1b[31mred\x07\n\u202e"
STOPPED = {"epoch": 0, "samples_done": 8, "best_epoch": -1, "best_prec1": None}
COUNTS: list[float] = [0.0, 0.0, 8.0, 0.0]


def weight(value: torch.Tensor) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda saved: {"state_dict": {**saved["state_dict"], "bn1.weight": value}}


ENTRIES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], int]] = {
    "escapes in a row": (
        lambda saved: {"epoch": 0, "best_epoch": -1, "phase": "validate", "samples_done": 8,
                       "row": {RED: 1.0, "train.loss": math.nan}}, 0),
    "escapes in tensor names": (
        lambda saved: {"state_dict": {**saved["state_dict"], RED: torch.ones(1)}}, 4),
    "escapes in classes": (lambda saved: {"classes": [RED, "b", "c"]}, 3),
    "escapes in settings": (lambda saved: {"config": {**saved["config"], "lr": RED, RED: RED}}, 0),
    "counts that are none": (
        lambda saved: {**STOPPED, "sums": {"epoch": [0.0, math.nan, 8, 0.0],
                                           "ranks": [[0.0] * 5]}}, 4),
    "endless counts": (
        lambda saved: {**STOPPED, "sums": {"epoch": COUNTS, "ranks": [[10**400] * 5]}}, 4),
    "a position elsewhere": (lambda saved: {**STOPPED, "samples_done": 2**62}, 4),
    "an epoch far away": (lambda saved: {"epoch": 2**31}, 0),
    "the largest step": (
        lambda saved: {**STOPPED, "samples_done": 0, "counters": {
            "step": 2**63 - 1, "skipped_steps": 2**63 - 1, "ema_updates": 2**63 - 1}}, 0),
    "images without end": (
        lambda saved: {"preprocessing": {**saved["preprocessing"], "val": {
            "image_size": 2**31, "resize_size": 2**31}}}, 4),
    "complex weights": (weight(torch.ones(64, dtype=torch.complex64)), 4),
    "weights of bits": (weight(torch.ones(64, dtype=torch.uint8).view(torch.bits8)), 4),
    "weights without memory": (weight(torch.zeros(1).expand(2**40)), 4),
    "infinite weights": (weight(torch.full((64,), math.inf)), 4),
    "whole numbers as weights": (weight(torch.ones(64, dtype=torch.int64)), 0),
}  # fmt: skip
ALWAYS = ("escapes in a row", "escapes in tensor names", "images without end")


def in_one_printable_line(found: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A run has ended as it should, with one line where that is an error."""
    told = capsys.readouterr()
    assert found == code, told.err
    assert len(told.err.splitlines()) == (code != 0)
    assert all(line.isprintable() for line in (told.out + told.err).split("\n"))


@pytest.mark.parametrize(
    "entry", [*ALWAYS, *whole(*(name for name in ENTRIES if name not in ALWAYS))]
)
def test_a_run_that_goes_on_from_hostile_entries(
    images: Path, real: dict[str, Any], tmp_path: Path, entry: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    change, code = ENTRIES[entry]
    path = tmp_path / "hostile.pth.tar"
    torch.save({**real, **change(real)}, path)
    capsys.readouterr()
    flags = [flag for flag in SMALL if flag not in ("--image-size", "32")]
    sizes = () if entry == "images without end" else ("--image-size", 32)
    found = run_here(images, *flags, *sizes, "--resume", path, "--workspace", tmp_path / "w",
                     "--no-checkpoints")  # fmt: skip
    path.unlink()
    in_one_printable_line(found, code, capsys)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({f"{RED}{i}": torch.ones(1) for i in range(20)}, 4),
        *whole(
            ({RED: torch.ones(1)}, 0), ({RED: "text"}, 4), ({"fc.weight": torch.ones(1)}, 0),
            ({"bn1.weight": torch.ones(64, dtype=torch.complex64)}, 4),
            ({"bn1.weight": torch.full((64,), math.nan)}, 4),
        ),
    ],
)  # fmt: skip
def test_hostile_weights(
    images: Path, real: dict[str, Any], tmp_path: Path, change: dict[str, Any], code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "weights.pth"
    torch.save({**real["state_dict"], **change}, path)
    capsys.readouterr()
    found = run_here(images, *SMALL, "--pretrained-weights", path, "--workspace", tmp_path / "w",
                     "--no-checkpoints")  # fmt: skip
    path.unlink()
    in_one_printable_line(found, code, capsys)
