# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files: written atomically, read without executing code.

A checkpoint holds CPU tensors and JSON types only. Keys: `epoch` (the epoch in which training goes
on), `samples_done` (global samples of that epoch already used), `arch`, `num_classes`,
`model_options`, `state_dict` (torchvision's names), `state_dict_ema`, `best_prec1`, `best_epoch`,
`optimizer` (state keyed by parameter name), `amp` (gradient scaler), `counters`, `seed`, `classes`,
`preprocessing`, `config`, `format`. `_CHECKS` says what each of them may hold.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from image_classification.atomic_file import atomic_file, sync_folder
from image_classification.augmentation import EvalPreset, ShiftPreset, TrainPreset
from image_classification.data_index import few, printable
from image_classification.errors import CheckpointError
from image_classification.optimizers import OPTIMIZERS
from image_classification.safe_load import load_tensors
from models import model_names

FORMAT = 1
BEST_NAME = "model_best.pth.tar"
_NUMBERED = re.compile(r"checkpoint_(\d{4,})\.pth\.tar")
_COPY_BYTES = 1 << 22
Check = Callable[[Any, dict[str, Any]], bool]

# Settings that bend the course of a training that goes on.
_COURSE = (
    "data", "data_backend", "batch_size", "optimizer_batch_size", "prof", "iters", "epochs", "seed",
    "lr", "lr_schedule", "lr_milestones", "lr_gamma", "warmup", "end_lr", "momentum", "nesterov",
    "weight_decay", "bn_weight_decay", "rmsprop_alpha", "rmsprop_eps", "clip_grad_norm",
    "label_smoothing", "mixup", "dropout", "freeze_bn", "sync_bn", "use_ema", "image_size",
    "val_resize", "interpolation", "crop_scale", "hflip", "cutout", "augmentation", "amp",
    "amp_dtype", "static_loss_scale", "dynamic_loss_scale", "tf32",
)  # fmt: skip
# Settings of the first weights alone, which a checkpoint replaces.
_INITIAL = ("conv_init", "zero_init_last_bn")


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
    leaves the previous one. Each is a copy of its own: damage to one leaves the others.

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
    try:
        # Renamed from the end of the list: the last checkpoint comes last, it commits the epoch.
        with contextlib.ExitStack() as files:
            first, *copies = [files.enter_context(atomic_file(folder / name)) for name in names]
            torch.save(state, first)
            for copy in copies:
                first.seek(0)
                shutil.copyfileobj(first, copy, _COPY_BYTES)
        sync_folder(folder)
        if keep > 0:
            for path in _numbered(folder / filename)[keep:]:
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"could not write a checkpoint in {folder}: {reason}; "
            "the previous one is intact; free disk space or choose another --workspace"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this package for resuming or evaluation.

    Args:
        path: Checkpoint file.

    Returns:
        The dictionary described in the module's docstring, tensors on the CPU.

    Raises:
        CheckpointError: Missing, damaged, unsafe or not a training checkpoint, or one of its
            entries is not what the training stores.
    """
    loaded = load_tensors(path)
    state: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    if isinstance(state.get("arch"), tuple | list):
        raise CheckpointError(
            f"{path} is a checkpoint of NVIDIA's or Cambricon's program (its arch is a "
            f"{type(state['arch']).__name__}), from which a training cannot go on here; convert it "
            "with checkpoint2model.py and give --pretrained-weights"
        )
    missing = [key for key in _CHECKS if key not in state and key not in _OPTIONAL]
    if missing:
        raise CheckpointError(
            f"{path} is not a training checkpoint of this package (no {', '.join(missing)}); "
            "use --resume with a checkpoint.pth.tar or model_best.pth.tar written by main.py, "
            "or --pretrained-weights for bare weights"
        )
    for key, (is_valid, expected) in _CHECKS.items():
        if key in state and not _holds(is_valid, state[key], state):
            raise CheckpointError(
                f"{path} is no checkpoint that main.py wrote: {key} is {_shown(state[key])}, "
                f"expected {expected}; use another checkpoint"
            )
    return state


def load_resume(
    wanted: str | None,
    last: Path,
    *,
    arch: str | None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any] | None:
    """Reads what `--resume` names.

    Args:
        wanted: A path, or None, or "auto" for the newest valid checkpoint of the workspace: the
            last one; where it cannot be used, of the newest numbered and the best one that can be
            the one with the most epochs.
        last: The workspace's last checkpoint, which need not exist.
        arch: The network that the command line asks for, None for the checkpoint's.
        say: Told one line per file that "auto" left out: why, and which one is taken instead.

    Returns:
        The checkpoint; None without `--resume`, or with "auto" where there is none yet.

    Raises:
        CheckpointError: See `load`; with "auto", if there are files and none is valid; or the
            checkpoint holds another network.
    """
    if wanted is None:
        return None
    if wanted == "auto":
        found = _newest_valid(last, say)
        if found is None:
            return None
        path, saved = found
    else:
        path = Path(wanted)
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
        settings: Option name -> value of this run. A seed of None is the checkpoint's.

    Returns:
        One line per changed setting that bends the course of the training.

    Raises:
        CheckpointError: The checkpoint does not have the optimizer state that the settings need.
    """
    then = {**(saved.get("config") or {}), "seed": saved.get("seed")}
    now = {**settings, "seed": then["seed"] if settings.get("seed") is None else settings["seed"]}
    _refuse_other_optimizer_state(saved, then, now)
    lines, unknown = [], []
    for name in (*_COURSE, *_INITIAL):
        if name not in now or (name.startswith("rmsprop_") and now["optimizer"] != "rmsprop"):
            continue
        if name not in then:
            unknown.append(name)
        elif _as_json(then[name]) != _as_json(now[name]):
            effect = "; the checkpoint's weights stay" if name in _INITIAL else ""
            was = printable(str(then[name]), 60)
            lines.append(f"resuming with {name} {now[name]}, it was {was}{effect}")
    if unknown:
        lines.append(f"the checkpoint does not say its {', '.join(unknown)}: this run's apply")
    return lines


def to_cpu(value: Any) -> Any:
    """Copies nested tensors to contiguous CPU tensors; other values are returned as they are."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous()
    if isinstance(value, dict):
        return {key: to_cpu(entry) for key, entry in value.items()}
    return value


def _newest_valid(last: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint from which "auto" goes on and its file; see `load_resume`."""
    skipped: dict[Path, str] = {}

    def first_valid(paths: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
        for path in paths:
            try:
                return [(path, load(path))]
            except CheckpointError as error:
                skipped[path] = str(error)
        return []

    # A link whose target is gone is a file that cannot be read, not an empty workspace.
    there = [last] if os.path.lexists(last) else []
    best = [path for path in [last.with_name(BEST_NAME)] if os.path.lexists(path)]
    found = first_valid(there) or first_valid(_numbered(last)) + first_valid(best)
    if not found and not skipped:
        return None
    if not found:
        raise CheckpointError(
            f"no checkpoint in {last.parent} can be used: {few([path.name for path in skipped])} "
            f"(the first: {next(iter(skipped.values()))}); restore one, or leave out --resume"
        )
    path, saved = max(found, key=lambda entry: entry[1]["epoch"])  # the first of equal ones
    if not there:
        skipped[last] = f"{last} does not exist"
    for reason in skipped.values():
        say(f"{reason}; --resume auto takes {path} instead (epochs done: {saved['epoch']})")
    return path, saved


def _numbered(last: Path) -> list[Path]:
    """The numbered checkpoints beside the last one, the highest number first."""
    beside = [path for path in last.parent.glob("checkpoint_*") if path != last]
    found = [(_NUMBERED.fullmatch(path.name), path) for path in beside]
    return [path for _, path in sorted(((int(m[1]), path) for m, path in found if m), reverse=True)]


def _refuse_other_optimizer_state(
    saved: dict[str, Any], then: dict[str, Any], now: dict[str, Any]
) -> None:
    """Raises where the steps would need buffers that the checkpoint lacks, or of other shapes."""
    was, rate = then.get("optimizer", "an unknown optimizer"), now.get("momentum")
    as_conv, trt = (saved.get("model_options") or {}).get("se_as_conv"), now.get("trt")
    rules = [
        (was != now["optimizer"], f"{was}, --optimizer is {now['optimizer']}"),
        (was == "rmsprop" and then.get("momentum") == 0 and bool(rate),
         f"{was} without momentum, --momentum is {rate}"),
        (as_conv is not None and trt is not None and as_conv != trt,
         f"--trt {as_conv}, --trt is {trt}"),
    ]  # fmt: skip
    for broken, text in rules:
        if broken:
            raise CheckpointError(
                f"the checkpoint was trained with {text}; use the same, or start anew with "
                "--pretrained-weights"
            )


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ---- what a checkpoint may hold: the file comes from outside, nothing in it is taken on trust

_COUNTERS = ("step", "skipped_steps", "ema_updates")
_SCALER = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
# Without these an optimizer's step fails; an empty entry, of a parameter without steps, is fine.
_BUFFERS = {"sgd": set(), "adamw": {"step", "exp_avg", "exp_avg_sq"},
            "rmsprop": {"step", "square_avg"}}  # fmt: skip


def _holds(is_valid: Check, value: Any, state: dict[str, Any]) -> bool:
    """Whether a check passes; what it may raise on hostile values cannot be listed."""
    try:
        return is_valid(value, state)
    except Exception:
        return False


def _shown(value: Any) -> str:
    """A value for a message, in a few words."""
    if _is_plain(value):
        return printable(repr(value), 60)
    count = f" of {len(value)}" if isinstance(value, dict | list | tuple) else ""
    return f"a {type(value).__name__}{count}"


def _is_count(value: Any, largest: int = 2**63 - 1) -> bool:
    return type(value) is int and 0 <= value <= largest


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= 64  # longer ones cannot always be printed
    return value is None or isinstance(value, float | str)


def _is_config(value: Any, _: dict[str, Any]) -> bool:
    """Whether it is a dict of plain values and lists of them, with an optimizer's name."""
    entries = [
        part
        for name, entry in value.items()
        for part in (name, *(entry if isinstance(entry, list | tuple) else [entry]))
    ]
    return all(map(_is_plain, entries)) and value.get("optimizer") in OPTIMIZERS


def _is_model_options(value: Any, state: dict[str, Any]) -> bool:
    """Whether `models.create_model` takes them for this network."""
    switches = {"zero_init_last_bn"}
    if state["arch"].startswith("se-"):
        switches |= {"se_as_conv", "fused_se"}
    checks = dict.fromkeys(switches, lambda entry: isinstance(entry, bool))
    checks["conv_init"] = lambda entry: entry in ("fan_in", "fan_out")
    checks["dropout"] = lambda entry: _is_number(entry) and 0 <= entry < 1
    return isinstance(value, dict) and all(checks[name](value[name]) for name in value)


def _is_preprocessing(value: Any, _: dict[str, Any]) -> bool:
    """Whether both presets accept it; they raise where they do not."""
    train = ShiftPreset if "padding" in value["train"] else TrainPreset
    return all(
        preset.from_dict(value[split]).image_size
        for split, preset in (("train", train), ("val", EvalPreset))
    )


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and value.device.type == "cpu"
    )


def _is_weights(value: Any, _: Any = None) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and _is_dense(entry) for name, entry in value.items()
    )  # fmt: skip


def _is_average(value: Any, state: dict[str, Any]) -> bool:
    weights = state["state_dict"]
    return value is None or (
        _is_weights(value)
        and value.keys() == weights.keys()
        and all(entry.shape == weights[name].shape for name, entry in value.items())
    )


def _is_optimizer_state(value: Any, state: dict[str, Any]) -> bool:
    """Whether each parameter has no buffers yet or all that a step of the optimizer reads."""
    weights, config = state["state_dict"], state["config"]
    needed = _BUFFERS[config["optimizer"]]
    if config["optimizer"] == "rmsprop" and config.get("momentum"):
        needed = needed | {"momentum_buffer"}

    def fits(name: str, buffer: Any, weight: torch.Tensor) -> bool:
        if name == "step":
            return _is_number(buffer) or (_is_dense(buffer) and buffer.numel() == 1)
        if buffer is None:  # sgd without momentum
            return name not in needed
        return _is_dense(buffer) and buffer.shape == weight.shape

    return isinstance(value, dict) and all(
        isinstance(buffers, dict)
        and (not buffers or needed <= buffers.keys())
        and all(fits(name, buffer, weights[owner]) for name, buffer in buffers.items())
        for owner, buffers in value.items()
    )


def _is_scaler_state(value: Any, _: dict[str, Any]) -> bool:
    return not value or (all(_is_number(value[key]) for key in _SCALER) and value["scale"] > 0)


# Key -> check of (its value, the whole checkpoint) and what is expected. A check may rely on those
# before it having passed.
_CHECKS: dict[str, tuple[Check, str]] = {
    "format": (
        lambda value, _: _is_count(value) and value == FORMAT,
        f"{FORMAT} (another version of this package may read it)",
    ),
    "arch": (
        lambda value, _: isinstance(value, str) and value in model_names(),
        f"one of {', '.join(model_names())}",
    ),
    "num_classes": (lambda value, _: _is_count(value) and value >= 1, "a whole number from 1"),
    "classes": (
        lambda value, state: (
            isinstance(value, list)
            and len(value) == state["num_classes"]
            and all(isinstance(name, str) for name in value)
        ),
        "a list of num_classes names",
    ),
    "epoch": (lambda value, _: _is_count(value, 2**31), "a whole number from 0"),
    "samples_done": (lambda value, _: _is_count(value), "a whole number from 0"),
    "best_prec1": (
        lambda value, _: value is None or (_is_number(value) and 0 <= value <= 100),
        "a percentage or None",
    ),
    "best_epoch": (
        lambda value, state: type(value) is int and -1 <= value <= state["epoch"],
        "an epoch that is done, or -1",
    ),
    "seed": (lambda value, _: _is_count(value), "a whole number from 0 to 2**63 - 1"),
    "preprocessing": (_is_preprocessing, "train and val with sizes and filters that exist"),
    "config": (
        _is_config,
        f"option names with plain values, the optimizer being one of {', '.join(OPTIMIZERS)}",
    ),
    "model_options": (_is_model_options, "options that the network has, with values in range"),
    "counters": (
        lambda value, _: isinstance(value, dict) and all(_is_count(value[k]) for k in _COUNTERS),
        f"whole numbers {', '.join(_COUNTERS)}",
    ),
    "state_dict": (_is_weights, "a dict of tensors"),
    "state_dict_ema": (_is_average, "None or tensors with the names and shapes of state_dict"),
    "optimizer": (_is_optimizer_state, "buffers that fit the tensors of state_dict"),
    "amp": (_is_scaler_state, f"None or numbers {', '.join(_SCALER)}"),
}
_OPTIONAL = {"format", "samples_done", "state_dict_ema", "amp"}
