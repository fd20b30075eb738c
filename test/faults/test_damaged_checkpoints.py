# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are damaged, swapped or gone: the one before is taken, and it is said."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from record import record
from runs import checkpoint, run_main, same
from victims import BATCH, SMALL, Victim, differences, on_request, run_here, whole

from image_classification.checkpoint_files import CheckpointFiles, load_resume

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it, to be damaged; hard links stay such."""
    subprocess.run(["cp", "-a", intact, tmp_path / "w"], check=True)
    yield tmp_path / "w"
    shutil.rmtree(tmp_path / "w", ignore_errors=True)


def auto(folder: Path) -> tuple[int, list[str]]:
    """The epochs done in the checkpoint that --resume auto takes, and what it says."""
    lines: list[str] = []
    saved = load_resume("auto", CheckpointFiles(folder), arch="resnet18", say=lines.append)
    assert saved is not None
    return saved["epoch"], lines


def flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


# ---- single bits: the check sum finds them wherever they are


@pytest.mark.parametrize("count", [4, *whole(60)])
def test_a_flipped_bit_anywhere(run: Path, count: int) -> None:
    """In tensors, between them, in the zip's directory; and in the check sum."""
    newest = run / "generations/000002.pth.tar"
    size, draw = newest.stat().st_size, random.Random(3)
    places = [size - 30, *(draw.randrange(size) for _ in range(count - 1))]
    for place in places:
        flip(newest, place)
        epoch, (line,) = auto(run)
        assert epoch == 1 and line.startswith(f"{newest} is damaged: it does not have"), place
        flip(newest, place)
    flip(sum_of(newest), draw.randrange(64))
    epoch, (line,) = auto(run)
    assert epoch == 1 and line.startswith(f"{newest} is damaged")
    record("flipped bit", "newest generation", tries=count + 1)


# ---- other damage to the newest generation, which is checkpoint.pth.tar too


def truncate(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def take_the_other_sum(path: Path) -> None:
    shutil.copy(sum_of(path.with_name("000001.pth.tar")), sum_of(path))


def take_the_other_file(path: Path) -> None:
    content = path.with_name("000001.pth.tar").read_bytes()
    path.write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "99.9 %": (truncate(0.999), "is damaged: it does not have the check sum"),
    "90 %": (truncate(0.9), "is damaged"),
    "50 %": (truncate(0.5), "is damaged"),
    "1 %": (truncate(0.01), "is damaged"),
    "empty": (truncate(0), "is damaged"),
    "folder": (become_folder, "Is a directory"),
    "other sum": (take_the_other_sum, "is damaged"),
    "other file": (take_the_other_file, "is damaged"),
}


ALWAYS = ("99.9 %", "folder")


@pytest.mark.parametrize("harm", [*ALWAYS, *whole(*(name for name in HARM if name not in ALWAYS))])
def test_the_generation_before_is_taken(
    few: Path, intact: Path, run: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends where the one without damage did."""
    newest = run / "generations/000002.pth.tar"
    spoil, reason = HARM[harm]
    spoil(newest)
    assert run_here(few, *SMALL, *BATCH, "--workspace", run, "--resume", "auto") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if str(newest) in line]
    assert len(told) == 1 and reason in told[0]
    assert f"takes {newest.with_name('000001.pth.tar')} instead (epochs done: 1)" in told[0]
    assert differences(run, intact) == []
    left = [path.name for path in CheckpointFiles(run).generations()]
    assert left == ["000003.pth.tar", "000001.pth.tar"]
    record(f"damaged: {harm}", "newest generation", lost_steps=3, exit_code=0)


def test_a_generation_that_is_gone(run: Path) -> None:
    """Its check sum alone, or a link to nowhere, is left: the same file has another name."""
    newest = run / "generations/000002.pth.tar"
    dangle(newest)
    assert auto(run) == (2, [])
    newest.unlink()
    assert auto(run) == (2, [])
    (run / LAST).unlink()
    assert auto(run) == (1, [])


def test_a_generation_without_check_sum(run: Path) -> None:
    """It counts for nothing: a crash leaves such files; checkpoint.pth.tar is whole, with its."""
    sum_of(run / "generations/000002.pth.tar").unlink()
    assert auto(run) == (2, [])
    sum_of(run / LAST).unlink()
    assert auto(run) == (2, [f"{run / LAST} has no check sum beside it ({LAST}.sha256): taken as "
                             "it is"])  # fmt: skip
    (run / LAST).unlink()
    assert auto(run) == (1, [])


def test_swapped_generations(run: Path) -> None:
    one, two = (run / "generations" / f"00000{number}.pth.tar" for number in (1, 2))
    aside = run / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    epoch, lines = auto(run)
    assert epoch == 2 and len(lines) == 2
    for line, path in zip(lines, (two, one), strict=True):
        assert line.startswith(f"{path} is damaged") and f"takes {run / LAST} instead" in line


# ---- checkpoint.pth.tar itself


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # not through the hard link
    path.write_bytes(content)


LAST_HARM: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: replace(path, b""),
    "text": lambda path: replace(path, b"no checkpoint"),
    "folder": become_folder,
    "link to nowhere": dangle,
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path))[1],
    "half": lambda path: replace(path, path.read_bytes()[:20_000_000]),
}


@pytest.mark.parametrize("harm", LAST_HARM)
def test_a_damaged_last_checkpoint_costs_nothing(run: Path, harm: str) -> None:
    LAST_HARM[harm](run / LAST)
    epoch, (line,) = auto(run)
    assert epoch == 2 and line.startswith(("cannot load '", f"{run / LAST} is damaged"))
    assert str(run / LAST) in line and "000002.pth.tar instead (epochs done: 2)" in line


def test_a_copy_without_check_sum_is_taken_with_a_note(
    few: Path, intact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "mine.pth.tar"
    os.link(intact / LAST, copy)
    command = (few, *SMALL, *BATCH, "--resume", copy, "--workspace", tmp_path / "w")
    assert run_here(*command) == 0
    out = capsys.readouterr().out
    assert f"{copy} has no check sum beside it (mine.pth.tar.sha256): taken as it is" in out
    assert "nothing left to do: 2 of 2 epochs are done" in out


def test_nothing_valid_is_left(few: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run does not start anew over what somebody may still want to rescue."""
    for path in [*run.rglob("*.pth.tar")]:
        os.truncate(path, path.stat().st_size // 2)
    before = {path: path.stat().st_size for path in run.rglob("*") if path.is_file()}
    assert run_here(few, *SMALL, *BATCH, "--workspace", run, "--resume", "auto") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "can be used: generations/000002.pth.tar, generations/000001.pth.tar" in line
    assert {path: path.stat().st_size for path in run.rglob("*") if path.is_file()} == before
    record("all checkpoints damaged", "--resume auto", exit_code=4)


# ---- the real command line


@on_request
@pytest.mark.parametrize("harm", ["flip", "50 %", "folder"])
def test_a_damaged_generation_on_the_command_line(
    few: Path, intact: Path, run: Path, harm: str
) -> None:
    newest = run / "generations/000002.pth.tar"
    flip(newest, newest.stat().st_size // 2) if harm == "flip" else HARM[harm][0](newest)
    done = run_main(few, *SMALL, *BATCH, "--workspace", run, "--resume", "auto")
    assert done.stdout.count("000001.pth.tar instead (epochs done: 1)") == 1
    assert differences(run, intact) == []


@on_request
@pytest.mark.parametrize(("save", "name"), [(1, LAST), (1, BEST), (2, LAST), (2, BEST)])
def test_killed_before_a_name_is_given(
    few: Path, intact: Path, tmp_path: Path, save: int, name: str
) -> None:
    """The generation is there, its names are not: they come when the run goes on.

    Nothing is learnt, so that the first epoch stays the best one; in the second run all is.
    """
    idle = (*SMALL, "--lr", 0, "--freeze-bn") if save == 1 else SMALL
    folder = tmp_path / "w"
    victim = Victim(few, *idle, "--workspace", folder, batch=8, saves=f"{save} 9 kill {name}")
    assert victim.wait() == -signal.SIGKILL
    assert checkpoint(folder / f"generations/00000{save}.pth.tar")["best_epoch"] == save - 1
    stale = folder / name
    assert not stale.exists() or checkpoint(stale)["epoch"] < save
    run_main(few, *idle, *BATCH, "--workspace", folder, "--resume", "auto")
    last, best = (checkpoint(folder / found) for found in (LAST, BEST))
    assert last["epoch"] == 2 and best["epoch"] == last["best_epoch"] + 1 == save
    if save == 2:
        assert differences(folder, intact) == []
        assert same(best["state_dict"], checkpoint(intact / BEST)["state_dict"]) == []
    record("SIGKILL", f"before {name} is there", exit_code=-9, lost_steps=0)
    shutil.rmtree(folder)
