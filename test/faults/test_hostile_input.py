# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Mutated images, lists, names and CIFAR batches: counted, replaced or named, and no crash."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_archives import write_cifar100
from PIL import EpsImagePlugin, Image, ImageFile
from record import record
from runs import write_images
from victims import run_here, whole

from image_classification.augmentation import EvalPreset, TrainPreset
from image_classification.bad_images import BadImages
from image_classification.cifar import find_cifar, load_cifar
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import create_loader
from image_classification.datasets import load_splits
from image_classification.device import Device
from image_classification.errors import DataError, ImageError, printable
from image_classification.fast_loader.native import kernel_names
from image_classification.image_reading import read_image
from image_classification.inference import Classifier

RED = "\x1b[31mred\x07\u202e"
MEGABYTES = 300
BACKENDS = ["pytorch"] + (["fast"] if kernel_names() else [])
CPU = Device.select("cpu")


def memory() -> int:
    """The most memory that this process has had (MiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


# ---- images


def encoded(kind: str) -> bytes:
    """A small image as a file."""
    pixels = np.random.default_rng(1).integers(0, 256, (29, 37, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    options: dict[str, object] = {}
    if kind in ("CMYK", "L"):
        kind, image = "JPEG", image.convert(kind)
    elif kind == "progressive":
        kind, options = "JPEG", {"progressive": True}
    elif kind == "PNG16":
        kind, image = "PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif kind == "animation":
        kind, options = "GIF", {"save_all": True, "append_images": [image.rotate(90)]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


KINDS = ("JPEG", "progressive", "L", "CMYK", "PNG", "PNG16", "WEBP", "GIF", "animation", "BMP",
         "TIFF", "PPM")  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Flipped bits, in the head or anywhere; cut, blanked, doubled, or as it was."""
    data = bytearray(content)
    kind = draw.randrange(6)
    if kind < 2:
        reach = min(len(data), 64) if kind == 0 else len(data)
        for _ in range(draw.randrange(1, 8)):
            data[draw.randrange(reach)] ^= 1 << draw.randrange(8)
    elif kind == 2:
        del data[draw.randrange(len(data)) :]
    elif kind == 3:
        start, end = sorted(draw.randrange(len(data)) for _ in range(2))
        data[start:end] = bytes(end - start)
    elif kind == 4:
        start, end = sorted(draw.randrange(len(data)) for _ in range(2))
        data[end:end] = data[start:end]
    return bytes(data)


def png_bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than any memory has."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
            + chunk(b"IEND", b""))  # fmt: skip


def jpeg_bomb() -> bytes:
    """A JPEG whose header says 65,500 x 65,500."""
    content = bytearray(encoded("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


def write_mutations(root: Path, count: int) -> ImageIndex:
    """A train folder of `count` mutated images and of what is no image at all."""
    folder = root / "train" / "c0"
    shutil.copytree(write_images(root / "good", train=4, val=1) / "train", root / "train")
    folder.mkdir()
    for seed in range(count):
        draw = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        (folder / f"{seed:04d}_{kind}.jpg").write_bytes(mutated(encoded(kind), draw))
    for name, content in {
        "text": b"this is no image", "zero": b"", "bomb_png": png_bomb(2**31 - 1, 2**31 - 1),
        "large_png": png_bomb(30_000, 30_000), "bomb_jpeg": jpeg_bomb(), f"{RED}\n": b"no image",
    }.items():  # fmt: skip
        (folder / f"{name}.jpg").write_bytes(content)
    Image.new("RGB", (1, 1), (9, 9, 9)).save(folder / "one_pixel.png")
    Image.new("RGB", (3000, 1), (9, 9, 9)).save(folder / "line.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "dangling.jpg").symlink_to("gone")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "forbidden.jpg").write_bytes(encoded("JPEG"))
    (folder / "forbidden.jpg").chmod(0)
    index = load_splits(root, train=True, val=False).train
    assert isinstance(index, ImageIndex)
    return index


def unreadable(index: ImageIndex) -> set[str]:
    """What Pillow, asked directly, cannot read."""
    found = set()
    for i in range(len(index)):
        try:
            read_image(index.path(i))
        except ImageError as error:
            assert str(error).isprintable()
            found.add(index.path(i))
    return found


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
@pytest.mark.parametrize("count", [100, *whole(1000)])
def test_mutated_images(tmp_path: Path, count: int) -> None:
    """Training replaces and counts them, validation names one, classify.py's engine lists them."""
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    index, before = write_mutations(tmp_path, count), memory()
    expected = unreadable(index)
    assert count / 5 < len(expected) < count
    for backend in BACKENDS:
        bad = BadImages(len(index), max_bad=1.0, seed=3)
        loader = create_loader(backend, index, TrainPreset(16), device=CPU, batch_size=1,
                               global_batch=1, seed=3, workers=0, bad=bad)  # fmt: skip
        shown = sum(len(target) for _, target in loader)
        loader.close()
        assert shown == len(index)
        # The core reads some images whose metadata make Pillow stumble.
        assert bad.paths <= expected and len(bad.paths) > 0.9 * len(expected), backend
        assert bad.paths == expected or backend == "fast"
        loader = create_loader(backend, index, EvalPreset(16, 18), device=CPU, batch_size=8)
        with pytest.raises(DataError) as told:
            list(loader)
        loader.close()
        assert str(told.value).isprintable()
        assert any(printable(path) in str(told.value) for path in expected)
    failed: list[str] = []
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    classifier = Classifier(model, arch="x", classes=["r", "g", "b"], preset=EvalPreset(16, 18),
                            device=CPU)  # fmt: skip
    paths = [index.path(i) for i in range(len(index))]
    predicted = [found.path for found in classifier.stream(
        paths, on_unreadable=lambda path, reason: failed.append(path))]  # fmt: skip
    assert set(failed) == expected and predicted == [path for path in paths if path not in expected]
    assert memory() - before < MEGABYTES
    record("mutated images", "training, validation, classify.py", tries=len(index))


# ---- names and lists


def test_names_that_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of classes and of bad images, through a whole run."""
    root = write_images(tmp_path / "images", train=5)
    for split in ("train", "val"):
        (root / split / "class_1").rename(root / split / f"{RED}\n")
    for bad in (root / "train" / "class_0" / f"{RED}\n\r.jpg", root / "val/class_0" / f"{RED}.jpg"):
        bad.write_bytes(b"no image")
    command = [root, "--arch", "resnet18", "--image-size", 32, "-b", 8, "-j", 0, "--device", "cpu",
               "--epochs", 1, "--lr", 0.01, "--no-checkpoints"]  # fmt: skip
    capsys.readouterr()
    assert run_here(*command, "--workspace", tmp_path / "w", "--allow-bad-val") == 0
    assert run_here(*command, "--workspace", tmp_path / "v", "--prof", 1) == 3
    told = capsys.readouterr()
    assert all(line.isprintable() for line in (told.out + told.err).split("\n"))
    assert len(told.err.splitlines()) == 1 and "?[31mred" in told.err
    listed = (tmp_path / "w/bad_files.txt").read_text("utf-8").splitlines()
    assert len(listed) == 2 and all(line.replace("\t", "").isprintable() for line in listed)


@pytest.mark.parametrize("count", [50, *whole(1000)])
def test_mutated_lists(tmp_path: Path, count: int) -> None:
    """Whatever a list holds, it is read or refused with a line; long lines are cut in it."""
    root = write_images(tmp_path / "images")
    lines = [f"class_{label}/{i}.jpg {label}" for label in range(3) for i in range(8)]
    good = "\n".join(lines).encode()
    long = b"a/" * 500_000
    contents = [long, long + b" 0", lines[0].encode() + b"\n" + long + b" 0", b"x" * 10**6 + b" 1",
                b"class_0/0.jpg " + b"9" * 10**6, good + b"\n/etc/passwd 0",
                good + b"\nclass_0/../../../etc/passwd 0", good + b"\nclass_0/\0.jpg 0",
                good + f"\n{RED} 0".encode(), good.replace(b"\n", b"\r")]  # fmt: skip
    draw, refused = random.Random(5), 0
    contents += [mutated(good, draw) for _ in range(count)]
    for content in contents:
        (root / "train.txt").write_bytes(content)
        try:
            index = load_splits(root, train=True, val=False).train
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and len(str(error)) < 2000
        else:
            assert isinstance(index, ImageIndex)
            base = os.path.realpath(root)
            paths = [os.path.realpath(index.path(i)) for i in range(len(index))]
            assert all(path.startswith(f"{base}/") for path in paths)
    assert 10 <= refused < len(contents)
    record("mutated list", "start", tries=len(contents), exit_code=3)


# ---- CIFAR


LYING = {
    "text": b"\x80\x02X\xff\xff\xff\x7fx.",
    "bytes": b"\x80\x04\x8e" + b"\xff" * 5 + b"\0\0\0x.",
    "byte array": b"\x80\x05\x96" + b"\xff" * 4 + b"\x01\0\0\0x.",
    "number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "memo": b"\x80\x02}r\xff\xff\xff\x0f.",
    "code": b"\x80\x02cposix\nsystem\nX\x08\x00\x00\x00touch it\x85R.",
}


@pytest.mark.parametrize("lie", LYING)
def test_cifar_batches_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """About sizes, for which no memory is taken; or with code, which does not run."""
    monkeypatch.chdir(tmp_path)
    folder, before = write_cifar100(tmp_path), memory()
    (folder / "train").write_bytes(LYING[lie])
    files = find_cifar(folder)
    assert files is not None
    with pytest.raises(DataError) as told:
        load_cifar(files, ["train"])
    assert str(told.value).isprintable()
    assert memory() - before < MEGABYTES
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("count", [50, *whole(1000)])
def test_mutated_cifar_batches(tmp_path: Path, count: int) -> None:
    folder, before = write_cifar100(tmp_path), memory()
    content, files = (folder / "train").read_bytes(), find_cifar(folder)
    assert files is not None
    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        head, tail = content[:300], content[300:]  # the pixels are most of it, and may be anything
        damaged = mutated(head, draw) + tail if seed % 2 else mutated(content, draw)
        (folder / "train").write_bytes(damaged)
        try:
            index = load_cifar(files, ["train"])["train"]
        except DataError as error:
            refused += 1
            assert str(error).isprintable()
        else:
            assert index.images.shape == (len(index.labels), 32, 32, 3)
            assert 0 <= index.labels.min() <= index.labels.max() < 6
    assert 0 < refused < count
    assert memory() - before < MEGABYTES
    record("mutated CIFAR batch", "start", tries=count, exit_code=3)


@pytest.mark.parametrize("name", ["page.jpg", "page.png"])
def test_an_image_that_is_a_program_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PostScript is a language, and Pillow hands such files to Ghostscript to execute them."""
    ghostscript, traces = tmp_path / "gs", tmp_path / "executed"
    ghostscript.write_text(f"#!/bin/sh\ntouch {traces}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked up anew
    file = tmp_path / name
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError):
        read_image(file)
    assert not traces.exists()
    with contextlib.suppress(OSError), Image.open(file) as image:
        image.load()
    assert traces.exists(), "the file is no trap: Pillow by itself does not execute it"
