# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""ILSVRC2012's archives with a few small images in them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

# In the order of their ILSVRC2012_IDs, which is not that of their names.
WNIDS = ("n02119789", "n02100735", "n01440764")
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def picture(seed: int, size: int = 24) -> Image.Image:
    """A picture of coarse noise, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size + 4), Image.Resampling.BILINEAR)


def jpeg(seed: int, size: int = 24, quality: int = 92) -> bytes:
    """A picture as a JPEG file."""
    file = io.BytesIO()
    picture(seed, size).save(file, "JPEG", quality=quality)
    return file.getvalue()


def tar(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], **settings: int) -> bytes:
    """An archive of files, or of whatever a TarInfo says."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **settings) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def val_name(number: int) -> str:
    """The name of a validation image, from 1."""
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write_train(folder: Path, images: int = 5) -> Path:
    """ILSVRC2012_img_train.tar with an archive for each class."""
    inner = [
        (f"{wnid}.tar", tar((f"{wnid}_{i}.JPEG", jpeg(100 * n + i)) for i in range(images)))
        for n, wnid in enumerate(WNIDS)
    ]
    path = folder / TRAIN
    path.write_bytes(tar(inner))
    return path


def write_val(folder: Path, images: int = 7) -> dict[str, str]:
    """ILSVRC2012_img_val.tar; returns the class of each image."""
    names = [val_name(number + 1) for number in range(images)]
    (folder / VAL).write_bytes(tar((name, jpeg(900 + i)) for i, name in enumerate(names)))
    return {name: WNIDS[i % len(WNIDS)] for i, name in enumerate(names)}


def ground_truth(labels: dict[str, str]) -> str:
    """The lines of the development kit: ILSVRC2012_IDs in the order of the images."""
    return "".join(f"{WNIDS.index(labels[name]) + 1}\n" for name in sorted(labels))


def meta(compressed: bool = True) -> bytes:
    """meta.mat, with a synset above the classes as in the real one."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
              "wordnet_height", "num_train_images")  # fmt: skip
    rows = [
        (number, wnid, "kit fox, Vulpes macrotis", "a fox", 0, np.zeros(0), 0, 1300)
        for number, wnid in enumerate(WNIDS, start=1)
    ]
    rows.append((1001, "n00001740", "entity", "all", 2, np.array([1.0, 2.0]), 19, 0))
    synsets = np.array(rows, dtype=[(name, object) for name in fields]).reshape(-1, 1)
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=compressed)
    return file.getvalue()


def write_devkit(folder: Path, labels: dict[str, str]) -> Path:
    """ILSVRC2012_devkit_t12.tar.gz."""
    members = [
        (f"{DEVKIT}/readme.txt", b"the kit"),
        (f"{DEVKIT}/data/{GROUND_TRUTH}", ground_truth(labels).encode()),
        (f"{DEVKIT}/data/meta.mat", meta()),
    ]
    path = folder / f"{DEVKIT}.tar.gz"
    path.write_bytes(gzip.compress(tar(members)))
    return path
