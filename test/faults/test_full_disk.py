# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be written: the training goes on, and nothing that was there is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from failing_saves import spoiled_saves
from record import record
from runs import ROOT, checkpoint, environment, run_main, same
from victims import (
    BATCH,
    SMALL,
    Victim,
    differences,
    is_running,
    on_request,
    run_here,
    wait_until,
    whole,
)

from image_classification import saver
from image_classification.checkpoint_files import load_verified

FOREVER = 10**6
TRIES = 1 + len(saver._PATIENCE)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A folder that does not stay: pytest would keep gigabytes."""
    yield tmp_path / "w"
    shutil.rmtree(tmp_path / "w", ignore_errors=True)


def check_files(folder: Path, epochs: set[int]) -> None:
    """All that is there is whole, from these epochs; nothing half written is left."""
    assert [path for path in folder.rglob("*") if ".tmp" in path.name] == []
    generations = sorted((folder / "generations").glob("*.pth.tar"))
    names = [folder / "checkpoint.pth.tar"] if generations else []
    found, said = set(), list[str]()
    for path in (*generations, *names):
        found.add(load_verified(path, said.append)["epoch"])
    assert found == epochs and said == []


def finish(few: Path, folder: Path, intact: Path) -> None:
    """With room again the same command goes on, and ends where the run without a fault did."""
    assert run_here(few, *SMALL, *BATCH, "--workspace", folder, "--resume", "auto") == 0
    assert differences(folder, intact) == []
    best = [checkpoint(path / "model_best.pth.tar")["state_dict"] for path in (folder, intact)]
    assert same(*best) == []


def test_first_a_failure_that_passes_then_one_for_good(
    few: Path, intact: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The file size limit is the kernel's."""
    monkeypatch.setattr(saver, "_PATIENCE", (0.0, 0.0, 0.0))
    transient, lasting = spoiled_saves(1, 3, "fsync", "EIO"), spoiled_saves(5, FOREVER, "limit")
    with transient, lasting as attempts:
        assert run_here(few, *SMALL, *BATCH, "--workspace", workspace) == 4
    assert attempts == [4 + TRIES]
    told = capsys.readouterr()
    assert told.out.count("could not write") == told.out.count("the training goes on") == 1
    (error,) = told.err.splitlines()
    assert "File too large; the previous one is intact; free disk space" in error
    check_files(workspace, {1})
    finish(few, workspace, intact)
    record("EIO, transient", "save", exit_code=0, lost_steps=0)
    record("file size limit, lasting", "last save", exit_code=4, lost_steps=3)


# ---- the real command line


@pytest.mark.parametrize(
    "fault",
    whole("fsync EIO", "write EIO", "write EDQUOT", "create EDQUOT", "sum EDQUOT", "create EROFS",
          "rename EROFS", "write ENOSPC", "limit"),
)  # fmt: skip
@pytest.mark.parametrize("lasting", [False, True])
def test_attempts_that_fail(
    few: Path, intact: Path, workspace: Path, fault: str, lasting: bool
) -> None:
    """The first attempts for the last checkpoint, or all of them."""
    last = FOREVER if lasting else 3
    victim = Victim(few, *SMALL, "--workspace", workspace, batch=8,
                    saves=f"2 {last} {fault}")  # fmt: skip
    code = victim.wait()
    assert code == (4 if lasting else 0), victim.output[-3000:]
    assert victim.output.count("the training goes on") == lasting
    assert victim.output.count("main.py: error: could not write a checkpoint") == lasting
    check_files(workspace, {1} if lasting else {1, 2})
    if lasting:
        finish(few, workspace, intact)
    else:
        assert differences(workspace, intact) == []
    kind = "lasting" if lasting else "transient"
    record(f"{fault}, {kind}", "last save", exit_code=code, lost_steps=3 if lasting else 0)


@on_request
def test_only_the_last_save_decides(few: Path, intact: Path, workspace: Path) -> None:
    """Saves in the middle fail for good."""
    victim = Victim(few, *SMALL, "--workspace", workspace, "--checkpoint-interval", 2,
                    batch=8, saves=f"1 {TRIES} write ENOSPC")  # fmt: skip
    assert victim.wait() == 0, victim.output[-3000:]
    assert victim.output.count("No space left on device; the previous one is intact") == 1
    assert "the training goes on" in victim.output
    check_files(workspace, {1, 2})
    assert differences(workspace, intact) == []
    record("ENOSPC, lasting", "save within an epoch", exit_code=0, lost_steps=0)


@on_request
def test_no_file_may_grow_from_the_start(few: Path, intact: Path, workspace: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))

    run = (few, *SMALL, *BATCH, "--workspace", workspace)
    command = [sys.executable, str(ROOT / "main.py"), *map(str, run)]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, preexec_fn=limit, timeout=200
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    check_files(workspace, set())
    finish(few, workspace, intact)
    record("file size limit, lasting", "before the start", exit_code=4, lost_steps=0)


@on_request
def test_killed_within_a_slow_save(few: Path, intact: Path, workspace: Path) -> None:
    victim = Victim(few, *SMALL, "--workspace", workspace, batch=8,
                    saves=f"2 {FOREVER} slow")  # fmt: skip
    victim.read_until("Epoch: 1 Iteration: 3 ")
    pattern = "generations/.000002.pth.tar-*.tmp"
    assert wait_until(lambda: any(workspace.glob(pattern)), 60.0), victim.output[-3000:]
    victim.process.kill()
    assert victim.wait() == -signal.SIGKILL
    assert any(workspace.glob(pattern)), "the save was over before the kill"
    assert not is_running(victim.process.pid)
    assert load_verified(workspace / "checkpoint.pth.tar", print)["epoch"] == 1
    finish(few, workspace, intact)
    check_files(workspace, {1, 2})
    record("SIGKILL", "within a slow save", exit_code=-9, lost_steps=3)


# ---- real file systems


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mounts a file system of this size there."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting needs root, or unshare -rm around the tests: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@on_request
@pytest.mark.parametrize("place", ["workspace", "generations"])
def test_a_full_disk(few: Path, intact: Path, workspace: Path, tmp_path: Path, place: str) -> None:
    """Others fill it but for one save; logs and the best share it, or it is the checkpoints'."""
    disk = workspace if place == "workspace" else workspace / "generations"
    with small_disk(disk, 500):
        victim = Victim(few, *SMALL, "--workspace", workspace, batch=8, pause="validation 3",
                        notes=tmp_path / "notes")  # fmt: skip
        victim.reach()
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - (130 << 20)))
        assert victim.wait() == 4, victim.output[-3000:]
        assert "No space left on device" in victim.output.splitlines()[-1]
        assert "Traceback" not in victim.output
        (disk / "ballast").unlink()
        check_files(workspace, {1})
        finish(few, workspace, intact)
    record("full disk, lasting", f"last save, {place}", exit_code=4, lost_steps=3)


@on_request
def test_a_disk_that_is_too_small(few: Path, workspace: Path) -> None:
    """Four checkpoints can be there at a time; nothing is trained that could not be saved."""
    with small_disk(workspace, 200):
        done = run_main(few, *SMALL, *BATCH, "--workspace", workspace, expect=4)
        assert "the checkpoints of this run need" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        check_files(workspace, set())
    record("disk too small", "before the start", exit_code=4, lost_steps=0)


@on_request
def test_a_disk_that_has_room_again(few: Path, intact: Path, workspace: Path) -> None:
    """Somebody frees space while the run tries."""
    with small_disk(workspace / "generations", 200):
        ballast = workspace / "generations" / "ballast"
        ballast.write_bytes(bytes(150 << 20))
        victim = Victim(few, *SMALL, "--workspace", workspace, batch=8)
        victim.read_until("Epoch: 1 Iteration: 1 ")
        os.truncate(ballast, 0)
        assert victim.wait() == 0, victim.output[-3000:]
        ballast.unlink()
        assert differences(workspace, intact) == []
    record("full disk, transient", "save", exit_code=0, lost_steps=0)


@on_request
def test_a_disk_that_becomes_read_only(few: Path, intact: Path, workspace: Path) -> None:
    disk = workspace / "generations"
    with small_disk(disk, 500):
        victim = Victim(few, *SMALL, "--workspace", workspace, batch=8)
        victim.read_until("Epoch: 0  ")
        first = disk / "000001.pth.tar.sha256"
        assert wait_until(first.exists, 60.0)
        remount = ["mount", "-o", "remount,ro", str(disk)]
        assert wait_until(lambda: subprocess.run(remount, capture_output=True).returncode == 0, 30)
        assert victim.wait() == 4, victim.output[-3000:]
        assert "Read-only file system" in victim.output.splitlines()[-1]
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        check_files(workspace, {1})
        finish(few, workspace, intact)
    record("read-only disk, lasting", "last save", exit_code=4, lost_steps=3)
