# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Loaders: broken images, short memory, hanging storage, workers that die or outlive their run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from loader_helpers import EVAL, TRAIN, HostDevice, make, write_colours
from PIL import Image

from image_classification import loader_worker, pytorch_loader
from image_classification.augmentation import TrainPreset
from image_classification.bad_images import BadImages
from image_classification.data_index import ImageIndex
from image_classification.dataloaders import BACKENDS, SyntheticIndex, choose_backend
from image_classification.datasets import load_splits
from image_classification.errors import DataError, UsageError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    return write_colours(tmp_path_factory.mktemp("colours"))


def broken(tmp_path: Path, spoil: Callable[[Path], object]) -> ImageIndex:
    for i in range(4):
        path = tmp_path / "train" / "0" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 70), 50).convert("RGB").save(path)
    index = load_splits(tmp_path, train=True, val=False).train
    spoil(path)
    return index


@pytest.mark.parametrize("preset", [TRAIN, EVAL], ids=["train", "eval"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1500]), "truncated"),
        (lambda path: path.write_bytes(b""), "not an image, or of an unknown format"),
        (lambda path: path.write_text("hello"), "not an image, or of an unknown format"),
        (lambda path: path.unlink(), "No such file or directory"),
    ],
    ids=["truncated", "empty", "text", "missing"],
)
def test_broken_image_is_named_in_one_line(tmp_path, spoil, reason, workers, preset) -> None:
    bad = BadImages(4, tolerated=False)
    loader = make(broken(tmp_path, spoil), preset, global_batch=4, workers=workers, bad=bad)
    with pytest.raises(DataError, match=f"cannot read image .*/3.jpg: .*{reason}") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    loader.close()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70)
    big = Image.new("RGB", (100, 100))
    index = broken(tmp_path, lambda path: big.save(path))
    loader = make(index, global_batch=4, bad=BadImages(4, tolerated=False))
    with pytest.raises(DataError, match=r"3.jpg: 100 x 100 pixels are above the limit of 6300"):
        list(loader)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.new("L", (20, 20), 100)
    image = grey.convert("I").convert(mode) if mode == "I;16" else grey.convert(mode)
    name = "train/0/x.tif" if mode in ("CMYK", "I;16") else "train/0/x.png"
    (tmp_path / "train/0").mkdir(parents=True)
    image.save(tmp_path / name)
    index = load_splits(tmp_path, train=True, val=False).train
    ((images, _),) = list(make(index, EVAL))
    assert images.shape == (1, 3, 16, 16)


def test_unknown_backend_and_index_without_files(index: ImageIndex) -> None:
    with pytest.raises(UsageError, match=f"unknown data backend 'dali'; known: {BACKENDS[0]}"):
        make(index, backend="dali")
    with pytest.raises(ValueError, match="reads files"):
        make(SyntheticIndex(100, 10))


def test_missing_torchvision_names_the_command(index: ImageIndex, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    for backend in ("pytorch", "synthetic"):
        with pytest.raises(UsageError, match=r"--augmentation randaugment needs .* pip install"):
            make(index, TrainPreset(policy="randaugment"), backend)
    with pytest.raises(UsageError, match=r"--augmentation autoaugment needs .* pip install"):
        choose_backend("auto", "autoaugment")


def test_closed_loader(index: ImageIndex) -> None:
    loader = make(index)
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(loader)


def test_shared_memory(index: ImageIndex, monkeypatch) -> None:
    batch_bytes = 4 * (3 * 16 * 16 + 8)
    free = {"bytes": 100 * batch_bytes}
    monkeypatch.setattr(
        os, "statvfs", lambda path: SimpleNamespace(f_bavail=free["bytes"], f_frsize=1)
    )
    loader = make(index, workers=2, prefetch=3)
    assert loader.notes == [] and loader._loader.prefetch_factor == 3
    free["bytes"] = 7 * batch_bytes
    loader = make(index, workers=2, prefetch=3)
    assert loader._loader.prefetch_factor == 2
    assert "prefetch reduced from 3 to 2" in loader.notes[0] and "--shm-size" in loader.notes[0]
    with pytest.raises(DataError, match=r"2 workers on 4 ranks need .* --shm-size=\d+g"):
        make(index, batch_size=2, workers=2, world_size=4)
    free["bytes"] = 0
    assert make(index, workers=0)._loader.num_workers == 0


def test_slow_storage(index: ImageIndex, monkeypatch) -> None:
    monkeypatch.setattr(pytorch_loader, "WORKER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(loader_worker, "open_image", lambda path: time.sleep(30))
    loader = make(index, workers=1)
    message = r"no batch .* for 0.2 s: the storage .* hangs.*waiting for a batch of 4 .*\.png on"
    with pytest.raises(DataError, match=message):
        list(loader)
    for process in loader._loader._iterator._workers:
        process.terminate()
        process.join(20)
    loader.close()


@pytest.mark.parametrize("accelerator", [False, True], ids=["fork", "forkserver"])
def test_killed_worker_is_noticed(index: ImageIndex, monkeypatch, accelerator: bool) -> None:
    monkeypatch.setattr(pytorch_loader, "WORKER_POLL_S", 0.2)
    options = {"device": HostDevice(accelerator), "workers": 1, "prefetch": 1}
    loader = make(index, batch_size=2, global_batch=2, **options)
    batches = iter(loader)
    next(batches)
    worker = loader._loader._iterator._workers[0]
    # Torch's signal handler could tell of a direct child's death first, on any line of the test.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with pytest.raises(DataError, match="worker process died"):
            os.kill(worker.pid, signal.SIGKILL)
            list(batches)
        loader.close()
    finally:
        signal.signal(signal.SIGCHLD, handler)


def test_workers_leave_signals_to_the_trainer(index: ImageIndex) -> None:
    loader = make(index, batch_size=2, global_batch=2, workers=1, prefetch=1)
    batches = iter(loader)
    next(batches)
    worker = loader._loader._iterator._workers[0]
    for number in ("SIGINT", "SIGTERM"):
        subprocess.run(["sh", "-c", f"kill -{number[3:]} {worker.pid}"], check=True)
    assert len(list(batches)) == 12
    assert worker.is_alive()
    worker.terminate()  # SIGTERM from the trainer itself
    worker.join(20)
    assert worker.exitcode == 0
    loader.close()


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.parametrize("accelerator", [False, True], ids=["fork", "forkserver"])
def test_no_worker_survives_its_trainer(index: ImageIndex, accelerator: bool) -> None:
    script = f"""
        import sys, time
        sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
        from loader_helpers import HostDevice, make
        from image_classification.datasets import load_splits

        if __name__ == "__main__":
            index = load_splits({str(index.root.parent)!r}, train=True, val=False).train
            loader = make(index, workers=2, device=HostDevice({accelerator}))
            next(iter(loader))
            pids = [worker.pid for worker in loader._loader._iterator._workers]
            print(*pids, flush=True)
            time.sleep(60)
    """
    trainer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the resource tracker reports the semaphores of the dead
        text=True,
    )
    pids = [int(pid) for pid in trainer.stdout.readline().split()]
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
