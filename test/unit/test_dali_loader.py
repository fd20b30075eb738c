# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What is particular to the DALI backends; test_fast_loader.py holds what all loaders promise."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

import pytest
from loader_helpers import make, write_photos
from test_fast_loader import DALI, PHOTO, pixels, read_greys, write_greys

from image_classification.bad_images import BadImages
from image_classification.dataloaders import choose_backend
from image_classification.errors import UsageError


def test_without_dali(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali.fn", None)
    with pytest.raises(UsageError, match=r"dali-cpu needs NVIDIA DALI.*pip install nvidia-dali-cu"):
        choose_backend("dali-cpu", None)


def test_dali_gpu_needs_a_gpu() -> None:
    for device_type in ("cpu", "npu"):
        with pytest.raises(UsageError, match=f"needs a CUDA GPU, the device is {device_type}"):
            choose_backend("dali-gpu", None, device_type)


@pytest.mark.parametrize("backend", [DALI])
def test_a_batch_that_dali_fails_on_is_read_by_pillow(tmp_path: Path, backend: str) -> None:
    index = write_greys(tmp_path)
    path = tmp_path / "train/c0/03.jpg"
    content = bytearray(path.read_bytes())
    table = content.index(b"\xff\xc4") + 5
    content[table : table + 16] = b"\xff" * 16  # more codes than fit: only decoding shows it
    path.write_bytes(content)
    bad = BadImages(26, seed=3)
    loader = make(index, backend=backend, bad=bad)
    found = read_greys(loader)
    assert [Path(name).name for name in bad.paths] == ["03.jpg"]
    assert found == read_greys(make(index, bad=BadImages(26, seed=3)))
    assert 3 not in chain.from_iterable(found)
    assert loader.fallbacks == 3  # the other images of its batch; DALI went on with the next


@pytest.mark.parametrize("backend", [DALI])
def test_jpegs_without_a_clear_end_are_pillows(tmp_path: Path, backend: str) -> None:
    """DALI fills up what is missing in silence; Pillow says whether anything is."""
    index = write_photos(tmp_path)
    for path in index.root.rglob("*.jpg"):
        path.write_bytes(path.read_bytes() + b"\0" * 100)
    loader = make(index, PHOTO, backend=backend, global_batch=4)
    assert (pixels(loader) - pixels(make(index, PHOTO, global_batch=4))).abs().max() == 0
    assert loader.fallbacks == 12
