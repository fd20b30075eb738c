# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights trained on ImageNet that torchvision publishes: what there is, and how to get it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image_classification.download import download, find_fault
from image_classification.errors import CheckpointError, DataError, UsageError
from image_classification.presets import EvalPreset

_SOURCE = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights.

    Attributes:
        arch: Our name of the network.
        version: "v1", or "v2" where a longer recipe has given better ones.
        url: Address; the last part is the file's name, and ends with eight digits of its sum.
        top1: Accuracy on ImageNet's validation images in percent, as published.
        image_size, val_resize, interpolation: How it was measured, as the options of these names.
        bn_epsilon: BatchNorm's epsilon of the training.
        num_classes: Outputs, in the order of ImageNet's sorted folders.
    """

    arch: str
    version: str
    url: str
    top1: float
    image_size: int
    val_resize: int
    interpolation: str = "bilinear"
    bn_epsilon: float = 1e-5
    num_classes: int = 1000

    @property
    def file(self) -> str:
        """Name of the file, here as there."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def sha256(self) -> str:
        """The first eight hexadecimal digits of the file's SHA-256."""
        match = re.fullmatch(r".+-([0-9a-f]{8})\.pth", self.file)
        assert match, f"{self.file} does not end with eight digits"
        return match[1]

    @property
    def preset(self) -> EvalPreset:
        """How images were prepared for the published accuracy."""
        return EvalPreset(self.image_size, self.val_resize, self.interpolation)

    @property
    def conditions(self) -> str:
        """The options with which a validation gives the published accuracy."""
        return self.preset.as_options


def _row(arch: str, version: str, file: str, *facts: float | str) -> PublishedWeights:
    return PublishedWeights(arch, version, _SOURCE + file, *facts)  # type: ignore[arg-type]


# fmt: off
PUBLISHED = (
    _row("resnet18", "v1", "resnet18-f37072fd.pth", 69.758, 224, 256),
    _row("resnet34", "v1", "resnet34-b627a593.pth", 73.314, 224, 256),
    _row("resnet50", "v1", "resnet50-0676ba61.pth", 76.130, 224, 256),
    _row("resnet50", "v2", "resnet50-11ad3fa6.pth", 80.858, 224, 232),
    _row("resnet101", "v1", "resnet101-63fe2227.pth", 77.374, 224, 256),
    _row("resnet101", "v2", "resnet101-cd907fc2.pth", 81.886, 224, 232),
    _row("resnet152", "v1", "resnet152-394f9c45.pth", 78.312, 224, 256),
    _row("resnet152", "v2", "resnet152-f82ba261.pth", 82.284, 224, 232),
    _row("efficientnet-b0", "v1", "efficientnet_b0_rwightman-7f5810bc.pth",
         77.692, 224, 256, "bicubic"),
    _row("efficientnet-b1", "v1", "efficientnet_b1_rwightman-bac287d4.pth",
         78.642, 240, 256, "bicubic"),
    _row("efficientnet-b1", "v2", "efficientnet_b1-c27df63c.pth",
         79.838, 240, 255),
    _row("efficientnet-b2", "v1", "efficientnet_b2_rwightman-c35c1473.pth",
         80.608, 288, 288, "bicubic"),
    _row("efficientnet-b3", "v1", "efficientnet_b3_rwightman-b3899882.pth",
         82.008, 300, 320, "bicubic"),
    _row("efficientnet-b4", "v1", "efficientnet_b4_rwightman-23ab8bcd.pth",
         83.384, 380, 384, "bicubic"),
    _row("efficientnet-b5", "v1", "efficientnet_b5_lukemelas-1a07897c.pth",
         83.444, 456, 456, "bicubic", 1e-3),
    _row("efficientnet-b6", "v1", "efficientnet_b6_lukemelas-24a108a5.pth",
         84.008, 528, 528, "bicubic", 1e-3),
    _row("efficientnet-b7", "v1", "efficientnet_b7_lukemelas-c5b4e57e.pth",
         84.122, 600, 600, "bicubic", 1e-3),
)
# fmt: on
VERSIONS = tuple(sorted({row.version for row in PUBLISHED}))


def find_published(arch: str, version: str | None = None) -> PublishedWeights:
    """Look up what is published for a network.

    Args:
        arch: One of `models.model_names()`.
        version: One of VERSIONS; None: the newest.

    Returns:
        A row of PUBLISHED.

    Raises:
        UsageError: Nothing is published for it, or not in this version.
    """
    rows = {row.version: row for row in PUBLISHED if row.arch == arch}
    if not rows:
        known = ", ".join(dict.fromkeys(row.arch for row in PUBLISHED))
        raise UsageError(
            f"torchvision publishes no weights of {arch}; give a file: --pretrained-weights FILE "
            f"(published: {known})"
        )
    if version is not None and version not in rows:
        raise UsageError(f"there are no weights {version} of {arch}, only {', '.join(rows)}")
    return rows[version or max(rows)]


def recognise_published(path: str | os.PathLike[str]) -> PublishedWeights | None:
    """The row of a file by the digits of its sum, which its name has if nobody has changed it."""
    words = re.split(r"[^0-9a-z]+", Path(path).name)
    return next((row for row in PUBLISHED if row.sha256 in words), None)


def fetch_published(row: PublishedWeights, folder: Path, *, say: Callable[[str], None]) -> Path:
    """Find a file of weights in a folder, or download it into there.

    Any number of processes may do so at once; one downloads.

    Args:
        row: Which file.
        folder: Where it is or shall be; made if it is missing.
        say: Receives lines about a download.

    Returns:
        Path of the file, whose sum is right.

    Raises:
        CheckpointError: It is damaged, or not there and cannot be downloaded; the text says which
            file has to be put where.
    """
    target = folder.absolute() / row.file
    checksum = f"sha256 {row.sha256}"
    try:
        if not target.exists():
            download(row.url, target, checksum=checksum, say=say)
        elif fault := find_fault(target, checksum):
            raise CheckpointError(f"{target} {fault}; remove it, or put {row.url} in its place")
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{target} cannot be read: {error.strerror}") from error
    return target
