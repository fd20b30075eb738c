# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Built-in data sets: small, real, made without a download, written as ordinary data folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from image_classification.errors import DataError, UsageError, printable

SAMPLE_PREFIX = "sample:"
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Sample:
    """A built-in data set.

    Attributes:
        name: What follows "sample:" on the command line.
        description: One line for lists and help texts.
        writer: Writes the data set into an empty folder, list files included.
        num_images: Images in both splits together.
        image_size: Side in pixels at which they are shown, unless the user or a checkpoint says.
        recipe: Option name -> value that main.py trains with unless the user gives another one.
    """

    name: str
    description: str
    writer: Callable[[Path], None]
    num_images: int
    image_size: int
    recipe: dict[str, Any] = field(default_factory=dict)

    def defaults(self, *, evaluates: bool) -> dict[str, Any]:
        """The recipe; an evaluation has the precision that it has with any data set."""
        left_out = {"amp"} if evaluates else set()
        return {name: value for name, value in self.recipe.items() if name not in left_out}


def write_digits(folder: Path) -> None:
    """Write scikit-learn's handwritten digits as an ImageNet-layout folder of JPEG files.

    1,797 gray images of 8 x 8 pixels (Alpaydin and Kaynak, "Optical Recognition of Handwritten
    Digits", UCI 1998), enlarged to 32 x 32. Every fifth image of each class goes to val: 1,437 and
    360 images.

    Args:
        folder: An existing empty folder; receives train/<class>/, val/<class>/ and the lists
            train.txt and val.txt with lines `class/file.jpg label`.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"sample:digits needs scikit-learn, which cannot be imported ({error}); "
            "install it with: pip install scikit-learn"
        ) from error
    import numpy as np
    from PIL import Image

    digits = load_digits()
    by_class = np.argsort(digits.target, kind="stable")
    splits = {"val": by_class[::5], "train": np.delete(by_class, np.s_[::5])}
    for split, members in splits.items():
        lines = []
        for i in members.tolist():
            label = int(digits.target[i])
            name = f"{label}/digit_{i:04d}.jpg"
            pixels = np.rint(digits.images[i] * (255 / 16)).astype(np.uint8)
            image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=95)
            lines.append(f"{name} {label}\n")
        (folder / f"{split}.txt").write_text("".join(lines), encoding="ascii")


SAMPLES: dict[str, Sample] = {
    "digits": Sample(
        name="digits",
        description="1,797 handwritten digits, 10 classes, 32 px (from scikit-learn, no download)",
        writer=write_digits,
        num_images=1797,
        image_size=32,
        # No flips: a mirrored digit is another sign. About two minutes on two CPU cores.
        recipe={
            "crop_scale": [0.7, 1.0], "hflip": 0.0, "batch_size": 32, "epochs": 10, "lr": 0.05,
            "lr_schedule": "cosine", "warmup": 1.0, "nesterov": True, "weight_decay": 5e-4,
            "label_smoothing": 0.1, "zero_init_last_bn": True, "amp": True, "workers": 1,
        },
    ),
}


def is_sample(data: str | None) -> TypeGuard[str]:
    """Whether a DIR of the command line names a built-in data set."""
    return data is not None and data.startswith(SAMPLE_PREFIX)


def find_sample(name: str) -> Sample:
    """Look a built-in data set up.

    Args:
        name: Key of SAMPLES, with or without "sample:" in front.

    Raises:
        UsageError: There is none of this name.
    """
    sample = SAMPLES.get(name.removeprefix(SAMPLE_PREFIX))
    if sample is None:
        prefix = SAMPLE_PREFIX if is_sample(name) else ""
        known = ", ".join(prefix + known for known in SAMPLES)
        raise UsageError(f"unknown sample {printable(name)!r}; known: {known}")
    return sample


def prepare_sample(name: str, target: Path) -> Path:
    """Write a built-in data set unless it is there already.

    It is written beside `target` and renamed when complete, so that an interrupted run leaves
    nothing half-written under this name and several processes may do this at the same time.

    Args:
        name: Key of SAMPLES, with or without "sample:" in front.
        target: Folder of the data set; its parents are created.

    Returns:
        `target`.

    Raises:
        UsageError: Unknown name.
        DataError: A package is missing, the folder cannot be written, or `target` holds
            something else.
    """
    sample = find_sample(name)
    target = Path(target)
    if target.exists() and not _is_empty_folder(target):
        return _checked(target, sample)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            sample.writer(temporary)
            temporary.chmod(0o755)  # mkdtemp makes it private
            _rename_unless_there(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"sample:{sample.name} cannot be written to {printable(target)} ({error}); "
            "check permissions and free space, or choose another folder"
        ) from error
    return _checked(target, sample)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _rename_unless_there(temporary: Path, target: Path) -> None:
    try:
        os.rename(temporary, target)
    except OSError:
        # Another process was faster: a folder that is not empty cannot be replaced.
        if not target.is_dir() or _is_empty_folder(target):
            raise


def _checked(target: Path, sample: Sample) -> Path:
    """`target` if it holds all images of the sample's lists.

    Raises:
        DataError: It does not.
    """
    found = 0
    for split in SPLITS:
        try:
            lines = (target / f"{split}.txt").read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        names = (line.rpartition(" ")[0] for line in lines)
        found += sum((target / split / name).is_file() for name in names if name)
    if found != sample.num_images:
        raise DataError(
            f"{printable(target)} exists but is not a complete sample:{sample.name} ({found} of "
            f"{sample.num_images} images); remove this folder or choose another one"
        )
    return target
