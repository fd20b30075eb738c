# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Validation counts each image once: any size, number of ranks and batch give the same hits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cifar_archives import colourful
from record import record
from runs import run_main, values, write_images
from torch import nn
from victims import on_request, whole

from image_classification import validation
from image_classification.augmentation import EvalPreset
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import create_loader
from image_classification.datasets import load_splits
from image_classification.device import Device
from image_classification.fast_loader.native import kernel_names
from image_classification.logger import Logger
from image_classification.pixel_index import PixelIndex
from image_classification.validation import Validation, Validator

LARGEST, CLASSES, TOPK = 33, 5, 2
CPU = Device.select("cpu")


class Ranks:
    """Stands for the process group: ranks come one after the other, the last one has the sums."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums: list[float] = []
        self.columns: list[torch.Tensor] = []
        monkeypatch.setattr(validation, "sum_over_ranks", self.add)
        monkeypatch.setattr(validation, "concat_over_ranks", self.join)
        monkeypatch.setattr(validation, "max_over_ranks", lambda number: number)

    def add(self, sums: list[float]) -> list[float]:
        self.sums = [sum(pair) for pair in zip(self.sums or [0.0] * 4, sums, strict=True)]
        return self.sums

    def join(self, columns: torch.Tensor) -> torch.Tensor:
        self.columns.append(columns)
        return torch.cat(self.columns, dim=1)


def network() -> nn.Module:
    """Class scores from the mean colour; some images are wrong at the first place."""
    head = nn.Linear(3, CLASSES)
    generator = torch.Generator().manual_seed(10)
    head.weight.data = torch.randn(CLASSES, 3, generator=generator)
    head.bias.data.zero_()
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def validate(
    index: ImageIndex | PixelIndex, backend: str, batch: int, world: int,
    monkeypatch: pytest.MonkeyPatch, model: nn.Module,
) -> Validation:  # fmt: skip
    """The result of the last of `world` ranks; each has its own loader and validator."""
    side = 32 if isinstance(index, PixelIndex) else 16
    with monkeypatch.context() as patch:
        Ranks(patch)
        for rank in range(world):
            loader = create_loader(
                backend, index, EvalPreset(side, side), device=CPU, batch_size=batch,
                rank=rank, world_size=world, workers=0,
            )  # fmt: skip
            validator = Validator(
                nn.CrossEntropyLoss(), device=CPU, amp_dtype=None, world_size=world, topk=TOPK,
                logger=Logger(),
            )  # fmt: skip
            result = validator.run(model, loader, "val")
            loader.close()
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    root = write_images(tmp_path_factory.mktemp("images"), train=1, val=7, classes=CLASSES, size=20)
    index = load_splits(root, train=False, val=True).val
    assert isinstance(index, ImageIndex) and len(index) >= LARGEST
    return index


@pytest.fixture(scope="module")
def cifar() -> PixelIndex:
    images, labels = colourful(LARGEST, CLASSES, 0)
    names = [str(label) for label in range(CLASSES)]
    return PixelIndex(Path("cifar"), np.array(labels), names, images, "val", "cifar")


def first(index: Any, size: int) -> Any:
    """The index of so many images, of all classes as far as they go."""
    order = np.random.default_rng(1).permutation(len(index))[:size]
    if isinstance(index, PixelIndex):
        return replace(index, images=index.images[order], labels=index.labels[order])
    paths = [index.relative_path(i) for i in order]
    offsets = np.cumsum([0, *map(len, paths)])
    return replace(
        index, labels=index.labels[order], path_offsets=offsets,
        path_bytes=np.frombuffer(b"".join(paths), dtype=np.uint8),
    )  # fmt: skip


def expected(index: Any, model: nn.Module) -> tuple[int, int]:
    """Hits at the first and among the first places, counted one image at a time."""
    side = 32 if isinstance(index, PixelIndex) else 16
    backend = "resident" if isinstance(index, PixelIndex) else "pytorch"
    hits = [0, 0]
    loader = create_loader(backend, index, EvalPreset(side, side), device=CPU, batch_size=1)
    for image, target in loader:
        scores = model(image)[0]
        place = int((scores > scores[target]).sum())
        hits[0] += place == 0
        hits[1] += place < TOPK
    loader.close()
    return hits[0], hits[1]


BACKENDS = ["pytorch", "resident", *(["fast"] if kernel_names() else [])]


def sizes(step: int) -> Iterator[int]:
    yield from sorted({1, 2, LARGEST - 1, LARGEST, *range(3, LARGEST, step)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("step", [12, *whole(1)])
def test_each_image_counts_once(
    folder: ImageIndex, cifar: PixelIndex, monkeypatch: pytest.MonkeyPatch, backend: str, step: int
) -> None:
    """Sizes 1 to 33, 1 to 4 ranks, 1 to 8 images per batch and rank."""
    model, tries, seen_hits = network(), 0, set()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for size in sizes(step):
        index = first(cifar if backend == "resident" else folder, size)
        hits = expected(index, model)
        seen_hits.add(hits)
        for world in range(1, 5):
            for batch in range(1, 9):
                if step > 1 and (world * 8 + batch + size) % 3:
                    continue
                found = validate(index, backend, batch, world, monkeypatch, model)
                case = (size, world, batch)
                assert found.seen == size == len(index), case
                assert (found.correct1, found.correctk) == hits, case
                tries += 1
    torch.set_num_threads(threads)
    assert any(0 < one < both for one, both in seen_hits)  # neither all right nor all wrong
    record("validation", f"sizes, ranks, batches: {backend}", tries=tries)


@on_request
@pytest.mark.parametrize(("ranks", "batch"), [(2, 3), (3, 4), (4, 5)])
def test_real_processes_count_the_same(tmp_path: Path, ranks: int, batch: int) -> None:
    """Of 11 images, with more ranks than batches or a short one at the end."""
    images = write_images(tmp_path / "images", train=16, val=4)
    (images / "val/class_2/3.jpg").unlink()
    flags = (images, "--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu",
             "--lr", 0.01, "--seed", 7, "--topk", 2)  # fmt: skip
    made = tmp_path / "made"
    run_main(*flags, "-b", 12, "--epochs", 1, "--workspace", made)
    evaluate = (*flags, "--evaluate", "--resume", made / "checkpoint.pth.tar")
    names = ("val.seen", "val.correct", "val.top2")
    for workspace, world, size in ((tmp_path / "one", 1, 11), (tmp_path / "many", ranks, batch)):
        run_main(*evaluate, "-b", size, "--workspace", workspace, ranks=world)
    one, many = (
        [values(tmp_path / name, "summary", metric) for metric in names] for name in ("one", "many")
    )
    assert one == many and one[0] == [11]
    record("validation", f"{ranks} processes", tries=1)
