# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: generations with check sums, their names, and what --resume auto takes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import content, write

from image_classification import checkpoint, checkpoint_files
from image_classification.checkpoint_files import CheckpointFiles, load_resume
from image_classification.errors import CheckpointError

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"


def names(folder: Path) -> set[str]:
    """Files of a run but for the check sums."""
    return {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".sha256"}


def epoch_of(path: Path) -> int:
    return int(checkpoint.load(path)["epoch"])


def damage(path: Path) -> None:
    """Flips one bit in the middle, where a tensor lies."""
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(4).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def copy_without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file system without hard links answers."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def resume(folder: Path, wanted: str = "auto") -> tuple[dict[str, Any] | None, list[str]]:
    lines: list[str] = []
    return load_resume(wanted, CheckpointFiles(folder), arch=None, say=lines.append), lines


@pytest.mark.parametrize("links", [True, False])
def test_last_best_and_numbered_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        copy_without_links(monkeypatch)
    files = CheckpointFiles(tmp_path, keep=2)
    for epoch in range(1, 6):
        files.write(content(epoch), best=epoch == 3, numbered=True)
    assert names(tmp_path) == {LAST, BEST, "checkpoint_0003.pth.tar", "checkpoint_0004.pth.tar"}
    assert [path.name for path in files.generations()] == ["000005.pth.tar", "000004.pth.tar"]
    assert epoch_of(tmp_path / LAST) == 5 and epoch_of(tmp_path / BEST) == 3
    assert epoch_of(tmp_path / "checkpoint_0003.pth.tar") == 4
    assert os.path.samefile(tmp_path / LAST, files.generations()[0]) == links
    assert list(tmp_path.rglob(".*")) == []


def test_the_check_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    CheckpointFiles(tmp_path).write(content(), best=True)
    for folder in (tmp_path, tmp_path / "generations"):
        sums = [path.name for path in folder.glob("*.sha256")]
        done = subprocess.run(["sha256sum", "-c", *sums], cwd=folder, capture_output=True)
        assert sums and done.returncode == 0, done.stdout


@pytest.mark.parametrize(("keep", "numbered"), [(0, 0), (-1, 4)])
def test_keep_none_or_all(tmp_path: Path, keep: int, numbered: int) -> None:
    for epoch in range(1, 5):
        CheckpointFiles(tmp_path, keep=keep).write(content(epoch), numbered=True)
    assert len([name for name in names(tmp_path) if "_" in name]) == numbered


@pytest.mark.parametrize("last", [LAST, "checkpoint_0000.pth.tar"])
def test_numbers_decide_which_files_are_kept(tmp_path: Path, last: str) -> None:
    for epoch in (9_999, 10_000, 10_001):
        CheckpointFiles(tmp_path, last, keep=2).write(content(epoch), numbered=True)
    assert names(tmp_path) == {last, "checkpoint_9999.pth.tar", "checkpoint_10000.pth.tar"}


def test_the_files_have_the_usual_permissions(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        CheckpointFiles(tmp_path).write(content())
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / LAST).stat().st_mode) == 0o644


def test_the_file_loads_with_weights_only(tmp_path: Path) -> None:
    CheckpointFiles(tmp_path).write(content())
    loaded = torch.load(tmp_path / LAST, weights_only=True)
    assert torch.equal(loaded["state_dict"]["w"], torch.ones(4))


# ---- whatever goes wrong while a checkpoint is written


class Crash(BaseException):
    """The process is gone."""


def stop_at(count: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Lets the system call number `count` that changes files fail; returns the calls made."""
    made = 0

    def wrap(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            made += 1
            if made == count:
                raise error
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for name in ("link", "replace", "fsync"):
        wrap(os, name)
    wrap(torch, "save")
    return lambda: made


def calls_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        made = stop_at(0, Crash(), patch)
        files = CheckpointFiles(tmp_path / "count", keep=1)
        files.folder.mkdir()
        files.write(content(1), best=True, numbered=True)
        return made()


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("crash", [Crash(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_that_ends_anywhere_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: BaseException, links: bool
) -> None:
    if not links:
        copy_without_links(monkeypatch)
    calls = calls_of_a_save(tmp_path, monkeypatch)
    assert calls > 10
    epochs = set()
    for count in range(1, calls + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        files = CheckpointFiles(folder, keep=1)
        files.write(content(1), best=True, numbered=True)
        with monkeypatch.context() as patch:
            stop_at(count, crash, patch)
            try:
                files.write(content(2) | {"best_epoch": 1}, best=True, numbered=True)
            except (Crash, CheckpointError):
                pass
        saved, lines = resume(folder)
        assert saved is not None and lines == [], count
        epochs.add(saved["epoch"])
        for name in names(folder):  # every name stands for a whole checkpoint at any time
            checkpoint_files.load_verified(folder / name, lines.append)
        again = CheckpointFiles(folder, keep=1)
        load_resume("auto", again, arch=None)
        again.sweep()
        assert {epoch_of(folder / name) for name in (LAST, BEST)} == {saved["epoch"]}, count
        assert (folder / f"checkpoint_{saved['epoch'] - 1:04d}.pth.tar.sha256").exists(), count
        again.write(content(3), best=True, numbered=True)
        assert names(folder) == {LAST, BEST, "checkpoint_0002.pth.tar"}
        assert list(folder.rglob(".*")) == [] and resume(folder)[0]["epoch"] == 3  # type: ignore[index]
    assert epochs == {1, 2}


def test_a_name_that_could_not_be_given_comes_with_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(content(1), best=True)
    with monkeypatch.context() as patch:
        stop_at(14, OSError(errno.EIO, "Input/output error"), patch)
        with pytest.raises(CheckpointError, match="Input/output error"):
            files.write(content(2), best=True)
    assert epoch_of(tmp_path / BEST) == 1
    files.write(content(3))
    assert epoch_of(tmp_path / LAST) == 3 and epoch_of(tmp_path / BEST) == 2


@pytest.mark.parametrize(
    "place", [{"samples_done": 8}, {"phase": "validate"}, {"best_epoch": 0}, {"epoch": 0}]
)
def test_only_the_checkpoint_of_the_best_epochs_end_becomes_the_best(
    tmp_path: Path, place: dict[str, Any]
) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(content(1), best=True)
    files.write(content(2) | {"best_epoch": min(1, place.get("epoch", 2) - 1)} | place)
    again = CheckpointFiles(tmp_path)
    load_resume("auto", again, arch=None)
    again.sweep()
    assert epoch_of(tmp_path / BEST) == 1


def test_a_failed_write_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(content(1))

    def half(state: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos\nmore")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(
        CheckpointError, match=r"could not write a checkpoint.*previous one"
    ) as told:
        files.write(content(2), best=True)
    assert "\n" not in str(told.value)
    assert names(tmp_path) == {LAST} and epoch_of(tmp_path / LAST) == 1


def test_a_full_disk_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save itself says "unexpected pos 640 vs 576"."""

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            if self.tell() > 1 << 16:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(
        checkpoint_files, "atomic_file", lambda path: contextlib.nullcontext(Full())
    )
    with pytest.raises(CheckpointError, match="No space left on device; the previous one"):
        CheckpointFiles(tmp_path).write(content() | {"sums": torch.ones(1 << 18)})


def test_a_generation_whose_check_sum_finds_no_room_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = CheckpointFiles(tmp_path)
    files.write(content(1))

    def refuse(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "_write_sum", refuse)
        with pytest.raises(CheckpointError, match="Disk quota exceeded"):
            files.write(content(2))
    assert sorted(path.name for path in (tmp_path / "generations").iterdir()) == [
        "000001.pth.tar", "000001.pth.tar.sha256"
    ]  # fmt: skip


# ---- what is taken


def test_resume_auto_and_missing_files(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    assert load_resume(None, files, arch=None) is None
    assert load_resume("auto", files, arch="resnet18") is None
    with pytest.raises(CheckpointError, match="nowhere"):
        load_resume(str(tmp_path / "nowhere.pth.tar"), files, arch=None)
    files.write(content(4))
    resumed = load_resume("auto", files, arch="resnet18")
    assert resumed is not None and resumed["epoch"] == 4
    with pytest.raises(CheckpointError, match="holds a resnet18, --arch asks for resnet50"):
        load_resume("auto", files, arch="resnet50")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five epochs, the third being the best; the last two have numbers."""
    files = CheckpointFiles(tmp_path, keep=2)
    for epoch in range(1, 6):
        files.write(content(epoch), best=epoch == 3, numbered=True)
    return tmp_path


@pytest.mark.parametrize("harm", [damage, truncate])
def test_auto_takes_the_generation_before_a_damaged_one(
    run: Path, harm: Callable[[Path], None]
) -> None:
    newest = run / "generations/000005.pth.tar"
    harm(newest)
    saved, lines = resume(run)
    assert saved is not None and saved["epoch"] == 4
    (line,) = lines
    assert line.startswith(f"{newest} is damaged: it does not have the check sum in")
    assert line.endswith(f"takes {newest.with_name('000004.pth.tar')} instead (epochs done: 4)")
    with pytest.raises(CheckpointError, match="is damaged"):  # a link to it, by name
        resume(run, str(run / LAST))


def test_damaged_generations_make_room_for_valid_ones(run: Path) -> None:
    damage(run / "generations/000005.pth.tar")
    files = CheckpointFiles(run)
    assert files.newest(lambda line: None) is not None
    files.write(content(6))
    assert [path.name for path in files.generations()] == ["000006.pth.tar", "000004.pth.tar"]


def test_what_is_no_file_hinders_nothing(run: Path) -> None:
    """In the place of a generation: a link to nowhere, a folder."""
    newest = run / "generations/000005.pth.tar"
    newest.unlink()
    newest.symlink_to("gone")
    (run / LAST).unlink()
    saved, (line,) = resume(run)
    assert saved is not None and saved["epoch"] == 4 and "No such file" in line
    newest.unlink()
    newest.mkdir()
    files = CheckpointFiles(run)
    assert files.newest(lambda line: None) is not None
    files.write(content(6))
    assert [path.name for path in files.generations()] == ["000006.pth.tar", "000004.pth.tar"]


def test_without_generations_the_other_names_serve(run: Path) -> None:
    shutil.rmtree(run / "generations")
    assert resume(run)[0]["epoch"] == 5  # type: ignore[index]
    truncate(run / LAST)  # and with it checkpoint_0004, the same file
    saved, lines = resume(run)
    assert saved is not None and saved["epoch"] == 4 and len(lines) == 2
    assert "checkpoint_0003.pth.tar instead" in lines[0]
    truncate(run / "checkpoint_0003.pth.tar")
    assert resume(run)[0]["epoch"] == 3  # type: ignore[index]


def test_a_generation_without_check_sum_does_not_count(run: Path) -> None:
    (run / "generations/000005.pth.tar.sha256").unlink()
    (run / LAST).unlink()
    saved, lines = resume(run)
    assert saved is not None and saved["epoch"] == 4 and lines == []
    CheckpointFiles(run).sweep()
    assert not (run / "generations/000005.pth.tar").exists()


def test_a_last_checkpoint_that_the_user_put_there_comes_first(run: Path) -> None:
    (run / LAST).unlink()
    (run / f"{LAST}.sha256").unlink()
    write(run / LAST, epoch=2)
    saved, lines = resume(run)
    assert saved is not None and saved["epoch"] == 2
    assert lines == [f"{run / LAST} has no check sum beside it ({LAST}.sha256): taken as it is"]


def test_wrong_content_is_told(run: Path) -> None:
    shutil.rmtree(run / "generations")
    for path in run.glob("*.sha256"):
        path.unlink()
    write(run / LAST, seed=None)
    saved, lines = resume(run)
    assert saved is not None
    assert any("seed is None, expected a whole number from 0" in line for line in lines)


def test_auto_does_not_start_anew_over_damaged_files(run: Path) -> None:
    for path in run.rglob("*.pth.tar"):
        truncate(path)
    with pytest.raises(CheckpointError) as caught:
        resume(run)
    text = str(caught.value)
    assert "generations/000005.pth.tar, generations/000004.pth.tar" in text
    assert caught.value.exit_code == 4 and "\n" not in text
    shutil.rmtree(run / "generations")
    for path in run.iterdir():
        path.unlink()
    (run / LAST).symlink_to(run / "unmounted")
    with pytest.raises(CheckpointError, match="No such file"):
        resume(run)
