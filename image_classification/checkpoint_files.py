# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The checkpoint files of a run: written so that whatever happens, a valid one is there.

`generations/000042.pth.tar` is written once and never changed; `000042.pth.tar.sha256` beside it,
written last, commits it. `checkpoint.pth.tar`, `model_best.pth.tar` and the numbered checkpoints
are further names (hard links, else copies) of such files, with check sums of their own. A crash
leaves a generation without check sum, which counts for nothing, or a name that is one step behind
until the run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from image_classification import checkpoint
from image_classification.atomic_file import atomic_file, sync_folder
from image_classification.data_index import few
from image_classification.errors import CheckpointError
from image_classification.run_files import BEST_NAME

GENERATIONS = "generations"
#: Generations that stay: the newest, and the one before in case the newest is damaged.
KEPT = 2
_SUFFIX = ".pth.tar"
_SUM_SUFFIX = ".sha256"
_GENERATION = re.compile(r"(\d{6,})\.pth\.tar")
_NUMBERED = re.compile(r"checkpoint_(\d{4,})\.pth\.tar")
_BLOCK = 1 << 22


class CheckpointFiles:
    """The files of one run.

    Args:
        folder: The run's folder, existing.
        filename: Name of the last checkpoint.
        keep: Numbered checkpoints that stay (-1: all, 0: none are made).
    """

    def __init__(self, folder: Path, filename: str = "checkpoint.pth.tar", keep: int = 0) -> None:
        self.folder = folder
        self.last = folder / filename
        self.best = folder / BEST_NAME
        self._keep = keep
        self._generations = folder / GENERATIONS
        self._damaged: set[Path] = set()
        # Names to give: the generation of each, and its check sum.
        self._owed: dict[Path, tuple[Path, str]] = {}

    def write(self, state: dict[str, Any], *, best: bool = False, numbered: bool = False) -> None:
        """Commits a checkpoint, then gives it its names.

        Args:
            state: See checkpoint.py; tensors on the CPU.
            best: It is also the best one.
            numbered: Give it the number of its last whole epoch, where numbers are wanted.

        Raises:
            CheckpointError: It could not be written; all earlier ones are intact.
        """
        try:
            self._generations.mkdir(exist_ok=True)
            committed = self.generations()
            number = max(map(_number, self._all()), default=0) + 1
            path = self._generations / f"{number:06d}{_SUFFIX}"
            digest = _write(state, path)
            self._owe(path, digest, state, best=best, numbered=numbered)
            self._give_names()
            self._prune([path, *committed])
        except (OSError, RuntimeError) as error:
            raise self._not_written(error) from error

    def try_writing(self, state: dict[str, Any]) -> int:
        """Writes a checkpoint as `write` does and removes it.

        Returns:
            Its size in bytes.

        Raises:
            CheckpointError: It could not be written.
        """
        path = self.folder / f".trial{_SUFFIX}"
        try:
            _write(state, path)
            return path.stat().st_size
        except (OSError, RuntimeError) as error:
            raise self._not_written(error) from error
        finally:
            _remove(_sum_of(path))
            _remove(path)

    def _not_written(self, error: Exception) -> CheckpointError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return CheckpointError(
            f"could not write a checkpoint in {self.folder}: {reason}; "
            "the previous one is intact; free disk space or choose another --workspace"
        )

    def planned(self, epochs: int) -> int:
        """Returns how many checkpoints there can be at a time in the next `epochs` epochs."""
        numbered = min(self._keep + 1, epochs) if self._keep > 0 else -self._keep * epochs
        return KEPT + 2 + numbered  # the one being written, and the best one

    def held(self) -> int:
        """Returns the bytes of the checkpoints that are there; several names count once."""
        paths = [*self._all(), self.last, self.best, *self._numbered()]
        found = [path.stat() for path in paths if path.is_file()]
        return sum({(one.st_dev, one.st_ino): one.st_size for one in found}.values())

    def generations(self) -> list[Path]:
        """Returns the committed generations, the newest first."""
        committed = [path for path in self._all() if _sum_of(path).exists()]
        return sorted(committed, key=_number, reverse=True)

    def go_on_from(self, path: Path, saved: dict[str, Any]) -> None:
        """Looks which names a crash has withheld from the newest generation, for `sweep`.

        Args:
            path: The file that was read.
            saved: Its content.
        """
        newest = next(iter(self.generations()), None)
        if newest is None or not _is_same(path, newest):
            return
        done = saved["epoch"] - 1  # the epoch at whose end it was saved, if it was
        at_end = saved.get("phase", "train") == "train" and not saved.get("samples_done")
        best = at_end and saved["best_epoch"] == done >= 0
        self._owe(newest, _read_sum(newest) or "", saved, best=best, numbered=at_end and done >= 0)
        for name in [name for name in self._owed if _sum_of(name).exists()]:
            if _is_same(name, newest):
                del self._owed[name]

    def sweep(self) -> None:
        """Brings to its end what a process that was killed left half done; for the one that writes.

        What is half written goes, and the names that are missing are given.
        """
        for folder in (self.folder, self._generations):
            for path in folder.glob(f".*{_SUFFIX}*"):
                _remove(path)
        for path in self._all():
            if not _sum_of(path).exists():
                _remove(path)
        with contextlib.suppress(OSError):
            self._give_names()

    def newest(
        self, say: Callable[[str], None], until: int | None = None
    ) -> dict[str, Any] | None:
        """Reads the checkpoint from which `--resume auto` goes on.

        A last checkpoint that the user put there comes first, then the generations from the newest
        on, the last checkpoint, the numbered ones from the highest on and the best one.

        Args:
            say: Told one line per file that was left out: why, and which one is taken instead.
            until: Leave those out that have made more optimizer steps.

        Returns:
            The checkpoint; None where the run has none yet.

        Raises:
            CheckpointError: There are files and none is valid.
        """
        skipped: list[str] = []
        candidates = list(dict.fromkeys(self._candidates()))
        for path in candidates:
            try:
                saved = load_verified(path, say)
            except CheckpointError as error:
                skipped.append(str(error))
                self._damaged.add(path)
                continue
            if until is not None and saved["counters"]["step"] > until:
                continue
            for reason in skipped:
                say(f"{reason}; --resume auto takes {path} instead (epochs done: {saved['epoch']})")
            self.go_on_from(path, saved)
            return saved
        if not skipped or until is not None:
            return None
        names = [str(path.relative_to(self.folder)) for path in candidates]
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be used: {few(names)} (the first: {skipped[0]}); "
            "restore one, or leave out --resume"
        )

    def _candidates(self) -> Iterator[Path]:
        generations = self.generations()
        # A link whose target is gone is a file that cannot be read, not an empty workspace.
        last = [self.last] if os.path.lexists(self.last) else []
        if last and not any(_is_same(self.last, path) for path in generations):
            there = (path for path in generations if path.exists())
            newest = max((path.stat().st_mtime_ns for path in there), default=0)
            if not self.last.exists() or self.last.stat().st_mtime_ns >= newest:
                yield self.last
        yield from generations
        yield from last
        yield from self._numbered()
        if os.path.lexists(self.best):
            yield self.best

    def _all(self) -> list[Path]:
        paths = self._generations.glob(f"*{_SUFFIX}")
        return [path for path in paths if _GENERATION.fullmatch(path.name)]

    def _numbered(self) -> list[Path]:
        """The numbered checkpoints, the highest number first."""
        beside = [path for path in self.folder.glob("checkpoint_*") if path != self.last]
        found = [(_NUMBERED.fullmatch(path.name), path) for path in beside]
        numbers = sorted(((int(m[1]), path) for m, path in found if m), reverse=True)
        return [path for _, path in numbers]

    def _owe(
        self, generation: Path, digest: str, state: dict[str, Any], *, best: bool, numbered: bool
    ) -> None:
        names = [self.last]
        if best:
            names.append(self.best)
        if numbered and self._keep:
            names.append(self.folder / f"checkpoint_{state['epoch'] - 1:04d}{_SUFFIX}")
        self._owed |= dict.fromkeys(names, (generation, digest))

    def _give_names(self) -> None:
        """Gives the names that are due; one that fails stays due for the next save."""
        for name, (generation, digest) in list(self._owed.items()):
            self._name(generation, digest, name)
            del self._owed[name]

    def _name(self, generation: Path, digest: str, target: Path) -> None:
        """Lets a name stand for a generation: at any moment with the right check sum or none."""
        _sum_of(target).unlink(missing_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(generation, temporary)
        except OSError:  # a file system without hard links
            with open(generation, "rb") as source, atomic_file(target) as copy:
                shutil.copyfileobj(source, copy, _BLOCK)
        else:
            os.replace(temporary, target)
            temporary.unlink(missing_ok=True)  # a rename onto a link to the same file does nothing
        _write_sum(target, digest)
        sync_folder(self.folder)

    def _prune(self, generations: list[Path]) -> None:
        valid = [path for path in generations if path not in self._damaged]
        numbered = self._numbered()[self._keep :] if self._keep > 0 else []
        for path in [*set(generations).difference(valid[:KEPT]), *numbered]:
            # The check sum goes first, so that no half-removed generation counts.
            _remove(_sum_of(path))
            _remove(path)


def load_resume(
    wanted: str | None,
    files: CheckpointFiles,
    *,
    arch: str | None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Reads what `--resume` names.

    Args:
        wanted: A path, or None, or "auto" for the newest valid checkpoint of the run.
        files: Those of the run.
        arch: The network that the command line asks for, None for the checkpoint's.
        say: Told one line per remark: a file that was left out, a check sum that is missing.

    Returns:
        The checkpoint; None without `--resume`, or with "auto" where there is none yet.

    Raises:
        CheckpointError: See `checkpoint.load`; the check sum is wrong; with "auto", if there are
            files and none is valid; or the checkpoint holds another network.
    """
    if wanted is None:
        return None
    if wanted == "auto":
        saved = files.newest(say)
    else:
        saved = load_verified(Path(wanted), say)
        files.go_on_from(Path(wanted), saved)
    if saved is not None and arch not in (None, saved["arch"]):
        raise CheckpointError(
            f"{files.folder if wanted == 'auto' else wanted} holds a {saved['arch']}, --arch asks "
            f"for {arch}; drop --arch or choose another checkpoint"
        )
    return saved


def load_verified(path: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Reads a checkpoint whose check sum, if there is one, is right.

    Raises:
        CheckpointError: See `checkpoint.load`, or the check sum is wrong.
    """
    expected = _read_sum(path)
    if expected is None:
        saved = checkpoint.load(path)
        say(f"{path} has no check sum beside it ({path.name}{_SUM_SUFFIX}): taken as it is")
        return saved
    if expected != _digest(path):
        raise CheckpointError(
            f"{path} is damaged: it does not have the check sum in {_sum_of(path).name}; use "
            "another checkpoint"
        )
    return checkpoint.load(path)


class _Hashing:
    """A file to write to that knows the SHA-256 of what was written, and why it could not be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.sum.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(state: dict[str, Any], path: Path) -> str:
    """Writes a generation and, last, its check sum, which it returns."""
    with atomic_file(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(state, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            # Of a full disk torch says "unexpected pos".
            raise hashing.failure or error from error
    try:
        sync_folder(path.parent)
        digest = hashing.sum.hexdigest()
        _write_sum(path, digest)
        sync_folder(path.parent)
    except OSError:
        # Without a check sum it counts for nothing, and takes the room that the next try needs.
        _remove(_sum_of(path))
        _remove(path)
        raise
    return digest


def _number(generation: Path) -> int:
    return int(generation.name.removesuffix(_SUFFIX))


def _sum_of(path: Path) -> Path:
    return path.with_name(path.name + _SUM_SUFFIX)


def _remove(path: Path) -> None:
    """Removes a file if that can be done: one that stays takes room and no more."""
    with contextlib.suppress(OSError):
        path.unlink()


def _write_sum(path: Path, digest: str) -> None:
    """Writes the line that `sha256sum -c` reads."""
    with atomic_file(_sum_of(path)) as file:
        file.write(f"{digest}  {path.name}\n".encode())


def _read_sum(path: Path) -> str | None:
    try:
        with open(_sum_of(path), encoding="ascii", errors="replace") as file:
            return file.read(200).partition(" ")[0]
    except OSError:
        return None


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot load '{path}': {error.strerror}; check the path") from error
    return found.hexdigest()


def _is_same(first: Path, second: Path) -> bool:
    """Whether two names stand for the same checkpoint: one file, or copies with one check sum."""
    try:
        if os.path.samefile(first, second):
            return True
        if first.stat().st_size != second.stat().st_size:
            return False
        return (_read_sum(first) or _digest(first)) == _read_sum(second)
    except (OSError, CheckpointError):
        return False
