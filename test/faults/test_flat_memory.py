# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The memory of a process and its workers stays flat after the first epoch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from record import record
from runs import ROOT, environment
from victims import on_request

from image_classification.fast_loader.native import kernel_names

ENTRIES = 1_300_000
FILES = 200
GROWTH = 1.02
ROLLUP = Path("/proc/self/smaps_rollup")

# In a process of its own: what other tests have left behind would hide what grows.
SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
from image_classification.augmentation import TrainPreset
from image_classification.dataloaders import create_loader
from image_classification.datasets import load_splits
from image_classification.device import Device
from victims import members

KINDS = ("Pss_Anon:", "Pss_Shmem:")

def proportional(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(KINDS))

if __name__ == "__main__":
    root, backend, workers, images = sys.argv[4], sys.argv[5], int(sys.argv[6]), int(sys.argv[7])
    index = load_splits(Path(root), train=True, val=False).train
    loader = create_loader(
        backend, index, TrainPreset(8), device=Device.select("cpu"), batch_size=500,
        global_batch=500, seed=1, workers=workers,
    )
    for epoch in range(5):
        loader.set_position(epoch, len(index) - images)
        for number, batch in enumerate(loader):
            if number == images // 500 - 10:  # all workers are there and busy
                used = sum(map(proportional, [os.getpid(), *members(os.getpid())]))
        print(len(index), used, flush=True)
    loader.close()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 1.3 million lines; the same few files come again and again, part of it is read."""
    root = tmp_path_factory.mktemp("large")
    (root / "train").mkdir()
    for i in range(FILES):
        side = 8 + i % 25
        Image.new("RGB", (side, 40 - side), (i, 2 * i % 256, 90)).save(root / f"train/{i}.jpg")
    lines = [f"{i % FILES}.jpg {i % FILES % 10}\n" for i in range(ENTRIES)]
    (root / "train.txt").write_text("".join(lines))
    return root


@on_request
@pytest.mark.skipif(
    not ROLLUP.exists() or "Pss_Anon" not in ROLLUP.read_text(), reason="needs the PSS of Linux 5.9"
)
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("backend", "workers", "shown"),
    [
        pytest.param("fast", 4, 300_000, marks=pytest.mark.skipif(
            not kernel_names(), reason="the fast loader is not built")),
        ("pytorch", 4, 40_000),
    ],
)  # fmt: skip
def test_memory_stays_flat(images: Path, backend: str, workers: int, shown: int) -> None:
    """PSS, in which each page that processes share counts once, at the end of each epoch.

    Without files: whoever else has PyTorch's libraries open changes their part.
    """
    folders = [ROOT, ROOT / "test", ROOT / "test/faults"]
    command = [sys.executable, "-c", SCRIPT, *folders, images, backend, workers, shown]
    done = subprocess.run(
        [str(part) for part in command], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    entries, used = zip(*rows, strict=True)
    assert entries == (ENTRIES,) * 5
    # Two epochs warm buffers up; until then workers copy the shared pages that they write to.
    assert used[4] <= GROWTH * used[2], used
    record(f"memory: {used[2] >> 10} MiB, then {used[4] >> 10} MiB", f"{backend}, epochs 3 to 5")
