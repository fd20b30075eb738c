# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: written atomically, read without executing code.

A checkpoint holds CPU tensors and JSON types only. Keys: `epoch` (the epoch in which training goes
on), `samples_done` (global samples of that epoch already used), `arch`, `num_classes`,
`model_options`, `state_dict` (torchvision's names), `state_dict_ema`, `best_prec1`, `best_epoch`,
`optimizer` (state keyed by parameter name), `amp` (gradient scaler), `counters`, `seed`, `classes`,
`preprocessing`, `config`, `format`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from image_classification.errors import CheckpointError
from image_classification.safe_load import load_tensors

FORMAT = 1
BEST_NAME = "model_best.pth.tar"
_REQUIRED = ("epoch", "arch", "num_classes", "state_dict", "optimizer", "counters", "config")
_COURSE = (
    "batch_size", "optimizer_batch_size", "lr", "lr_schedule", "epochs", "warmup", "weight_decay",
    "momentum", "mixup", "label_smoothing", "use_ema",
)


def save(
    state: dict[str, Any],
    folder: Path,
    *,
    filename: str = "checkpoint.pth.tar",
    best: bool = False,
    keep: int = 0,
) -> None:
    """Writes the last checkpoint and, from the same bytes, the best and the numbered one.

    Each file is replaced by a rename of a complete, synced file, so that a crash at any moment
    leaves the previous one.

    Args:
        state: What to save; tensors are expected on the CPU.
        folder: Existing folder of the run.
        filename: Name of the last checkpoint.
        best: Also replace `model_best.pth.tar`.
        keep: Also keep `checkpoint_<epoch>.pth.tar` of the last `keep` epochs (-1: all, 0: none).

    Raises:
        CheckpointError: The file could not be written (disk full, no permission, ...).
    """
    names = [filename]
    if best:
        names.append(BEST_NAME)
    if keep:
        names.append(f"checkpoint_{state['epoch'] - 1:04d}.pth.tar")
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".checkpoint-", suffix=".tmp", dir=folder)
        with os.fdopen(descriptor, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        for name in reversed(names):  # the last checkpoint last: it commits the epoch
            _replace_by_link(temporary, folder / name)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError
        raise CheckpointError(
            f"could not write a checkpoint in {folder}: {str(error).splitlines()[0]}; "
            "the previous one is intact; free disk space or choose another --workspace"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    if keep > 0:
        _delete_all_but_newest(folder, keep)


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this package for resuming or evaluation.

    Args:
        path: Checkpoint file.

    Returns:
        The dictionary described in the module's docstring, tensors on the CPU.

    Raises:
        CheckpointError: Missing, damaged, unsafe or not a training checkpoint.
    """
    state = load_tensors(path)
    missing = [key for key in _REQUIRED if not isinstance(state, dict) or key not in state]
    if missing or not isinstance(state, dict):
        raise CheckpointError(
            f"{path} is not a training checkpoint of this package (no {', '.join(missing)}); "
            "use --resume with a checkpoint.pth.tar or model_best.pth.tar written by main.py, "
            "or --pretrained-weights for bare weights"
        )
    return state


def load_resume(wanted: str | None, last: Path, *, arch: str | None) -> dict[str, Any] | None:
    """Reads what `--resume` names.

    Args:
        wanted: A path, "auto" for the workspace's own last checkpoint, or None.
        last: The workspace's last checkpoint, which need not exist.
        arch: The network that the command line asks for, None for the checkpoint's.

    Returns:
        The checkpoint; None without `--resume`, or with "auto" where there is none yet.

    Raises:
        CheckpointError: See `load`; or the checkpoint holds another network.
    """
    if wanted is None or (wanted == "auto" and not last.exists()):
        return None
    path = last if wanted == "auto" else Path(wanted)
    saved = load(path)
    if arch not in (None, saved["arch"]):
        raise CheckpointError(
            f"{path} holds a {saved['arch']}, --arch asks for {arch}; drop --arch or choose "
            "another checkpoint"
        )
    return saved


def changed_settings(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Says which settings of the checkpoint the command line replaces.

    Args:
        saved: The checkpoint.
        settings: Option name -> value of this run.

    Returns:
        One line per changed setting that bends the course of the training.

    Raises:
        CheckpointError: Another optimizer, whose state the checkpoint does not have.
    """
    then = saved["config"]
    if then["optimizer"] != settings["optimizer"]:
        raise CheckpointError(
            f"the checkpoint was trained with {then['optimizer']}, --optimizer is "
            f"{settings['optimizer']}; use the same, or start anew with --pretrained-weights"
        )
    return [
        f"resuming with {name} {settings[name]}, it was {then.get(name)}"
        for name in _COURSE
        if then.get(name) != settings[name]
    ]


def to_cpu(value: Any) -> Any:
    """Copies nested tensors to contiguous CPU tensors; other values are returned as they are."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    return value


def _replace_by_link(source: str, target: Path) -> None:
    """Puts the bytes of `source` at `target` by one rename."""
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    try:
        try:
            os.link(source, staged)
        except OSError:  # file systems without hard links
            shutil.copyfile(source, staged)
            with open(staged, "rb") as file:
                os.fsync(file.fileno())
        os.replace(staged, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def _delete_all_but_newest(folder: Path, keep: int) -> None:
    numbered = sorted(
        path for path in folder.iterdir() if re.fullmatch(r"checkpoint_\d{4,}\.pth\.tar", path.name)
    )
    for path in numbered[:-keep]:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
