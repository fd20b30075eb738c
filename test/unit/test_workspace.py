# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which folder a run goes to, and what a start that failed leaves there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from image_classification.errors import UsageError
from image_classification.workspace import choose, open_workspace, tidy

LAST = "checkpoint.pth.tar"
TRACES = [LAST, "metrics.jsonl"]
ALL = [LAST, "experiment_raport.json", "metrics.jsonl"]


def run_in(folder: Path, saved_at: int | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    if saved_at is not None:
        (folder / LAST).write_text("weights")
        os.utime(folder / LAST, (saved_at, saved_at))
    return folder


def test_a_fresh_run_takes_a_folder_without_a_run(tmp_path: Path) -> None:
    wanted = run_in(tmp_path / "net")
    run_in(tmp_path / "net-2")
    (tmp_path / "net-3").mkdir()
    (tmp_path / "net-3" / LAST).touch()  # empty: a start that failed early
    assert choose(None, wanted, None, traces=TRACES, only_logs=False) == (wanted, "new")
    opened = open_workspace(wanted, traces=TRACES, use="new", primary=True)
    assert opened == tmp_path / "net-3"


def test_the_newest_of_the_numbered_runs_goes_on(tmp_path: Path) -> None:
    wanted = run_in(tmp_path / "net", saved_at=100)
    run_in(tmp_path / "net-2", saved_at=300)
    run_in(tmp_path / "net-3")  # ended before its first checkpoint
    run_in(tmp_path / "net-4", saved_at=200)
    assert choose(None, wanted, "auto", traces=TRACES, only_logs=False) == (wanted, "newest")
    newest = open_workspace(wanted, traces=TRACES, use="newest", primary=True)
    assert newest == tmp_path / "net-2"
    first = tmp_path / "other"
    assert open_workspace(first, traces=TRACES, use="newest", primary=True) == first


def test_a_resumed_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    own, default = run_in(tmp_path / "net-2", saved_at=1), run_in(tmp_path / "net", saved_at=2)
    path = str(own / LAST)
    assert choose(None, default, path, traces=TRACES, only_logs=False) == (own, "same")
    assert choose(str(own), default, path, traces=TRACES, only_logs=False) == (own, "same")
    # Another folder may hold another run: that one is left alone.
    other = str(default)
    assert choose(other, default, path, traces=TRACES, only_logs=False) == (default, "new")
    assert choose(other, default, path, traces=TRACES, only_logs=True) == (default, "same")


def test_a_checkpoint_by_itself_brings_no_folder(tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/resnet50.pth.tar").write_text("weights")
    path, default = str(tmp_path / "downloads/resnet50.pth.tar"), tmp_path / "net"
    assert choose(None, default, path, traces=TRACES, only_logs=True) == (default, "new")


def test_the_current_folder_is_numbered_inside(tmp_path: Path, monkeypatch) -> None:
    run_in(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    opened = open_workspace(Path("."), traces=TRACES, use="new", primary=True)
    assert opened.resolve() == tmp_path / "here/run-2"


def test_a_failed_start_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    with pytest.raises(UsageError), tidy(folder, TRACES):
        raise UsageError("before the first message")
    assert not folder.exists()


def test_a_start_that_failed_is_no_run(tmp_path: Path) -> None:
    """Its messages and options go, and do not push the next run into another folder."""
    folder = tmp_path / "net"
    for lines, steps in ((2, False), (3, True)):
        folder.mkdir(exist_ok=True)
        kinds = ("parameter", "message", "train")[:lines]
        text = "".join(json.dumps({"type": kind}) + "\n" for kind in kinds)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "experiment_raport.json").write_text("DLLL {}\n")
        opened = open_workspace(folder, traces=ALL, use="new", primary=True)
        assert opened.name == ("net-2" if steps else "net")
        with pytest.raises(UsageError), tidy(folder, ALL):
            raise UsageError("fewer than one global batch")
        assert folder.exists() == steps


def test_what_was_logged_stays(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "net")
    (folder / LAST).touch()
    with pytest.raises(KeyboardInterrupt), tidy(folder, TRACES):
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]
    with tidy(tmp_path / "fine", TRACES):
        (tmp_path / "fine").mkdir()
    assert (tmp_path / "fine").is_dir()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--workspace .* cannot be written .*; choose another"):
        open_workspace(tmp_path / "file/net", traces=TRACES, use="new", primary=True)
