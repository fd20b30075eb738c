# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint holds, and reading it without executing code; checkpoint_files.py writes it.

A checkpoint holds CPU tensors and JSON types only. Keys: `epoch` (the epoch in which training goes
on), `samples_done` (global samples of that epoch already used), `phase` ("train", or "validate"
where the training part of the epoch is done, with its metrics in `row`), `sums` (of the epoch so
far, for its metrics), `arch`, `num_classes`,
`model_options`, `state_dict` (torchvision's names), `state_dict_ema`, `best_prec1`, `best_epoch`,
`optimizer` (state keyed by parameter name), `amp` (gradient scaler), `counters`, `seed`, `classes`,
`preprocessing`, `config`, `format`. `_CHECKS` says what each of them may hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from image_classification.augmentation import EvalPreset, ShiftPreset, TrainPreset
from image_classification.errors import CheckpointError, printable
from image_classification.optimizers import OPTIMIZERS
from image_classification.safe_load import is_plain_tensor, load_tensors
from models import model_names

FORMAT = 1
Check = Callable[[Any, dict[str, Any]], bool]

# Settings that bend the course of a training that goes on.
_COURSE = (
    "data", "val_split", "data_backend", "batch_size", "optimizer_batch_size", "prof", "iters",
    "epochs", "seed", "lr", "lr_schedule", "lr_milestones", "lr_gamma", "warmup", "end_lr",
    "momentum", "nesterov", "weight_decay", "bn_weight_decay", "rmsprop_alpha", "rmsprop_eps",
    "lars_eta", "clip_grad_norm",
    "head_lr", "label_smoothing", "class_weights", "mixup", "cutmix", "randaugment",
    "random_erasing", "progressive_resize", "dropout", "survival_prob",
    "bn_momentum", "bn_epsilon", "freeze_bn", "freeze", "unfreeze_after", "sync_bn", "use_ema",
    "image_size", "val_size",
    "val_resize", "interpolation", "crop_scale", "hflip", "cutout", "augmentation", "amp",
    "amp_dtype", "static_loss_scale", "dynamic_loss_scale", "tf32",
)  # fmt: skip
# Settings of the first weights alone, which a checkpoint replaces.
_INITIAL = ("conv_init", "zero_init_last_bn")


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
    if "preprocessing" in saved:  # files from before that option
        then.setdefault("val_size", saved["preprocessing"]["val"]["image_size"])
    now = {**settings, "seed": then["seed"] if settings.get("seed") is None else settings["seed"]}
    _refuse_other_optimizer_state(saved, then, now)
    lines, unknown = [], []
    for name in (*_COURSE, *_INITIAL):
        if name not in now or _belongs_to_another(name, now["optimizer"]):
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


def _belongs_to_another(setting: str, optimizer: str) -> bool:
    """Whether only other optimizers have this setting."""
    owner = setting.partition("_")[0]
    return owner in ("rmsprop", "lars") and not optimizer.startswith(owner)


def snapshot(value: Any) -> Any:
    """Copies nested tensors to contiguous CPU tensors of their own; other values stay as they are.

    The copy does not change while the training goes on.
    """
    if isinstance(value, torch.Tensor):
        copied = value.detach().cpu().contiguous()
        return copied.clone() if copied.data_ptr() == value.data_ptr() else copied
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    return value


def is_finite(state: dict[str, Any]) -> bool:
    """Whether all weights (and averaged weights) of a checkpoint are finite numbers."""
    weights = [*state["state_dict"].values(), *(state.get("state_dict_ema") or {}).values()]
    return all(bool(tensor.isfinite().all()) for tensor in weights)


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
            "rmsprop": {"step", "square_avg"},
            "rmsprop-tf": {"square_avg", "momentum_buffer"},
            "lars": {"momentum_buffer"}}  # fmt: skip


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
    if state["arch"].startswith("resnet"):
        checks["channels"] = lambda entry: (
            isinstance(entry, list) and all(_is_count(number) and number > 0 for number in entry)
        )
    checks["bn_epsilon"] = lambda entry: _is_number(entry) and entry > 0
    checks["bn_momentum"] = lambda entry: _is_number(entry) and 0 < entry <= 1
    if state["arch"].startswith("efficientnet-"):
        checks["survival_prob"] = checks["bn_momentum"]
    return isinstance(value, dict) and all(checks[name](value[name]) for name in value)


def _is_preprocessing(value: Any, _: dict[str, Any]) -> bool:
    """Whether both presets accept it; they raise where they do not."""
    train = ShiftPreset if "padding" in value["train"] else TrainPreset
    return all(
        preset.from_dict(value[split]).image_size
        for split, preset in (("train", train), ("val", EvalPreset))
    )


def _is_weights(value: Any, _: Any = None) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and is_plain_tensor(entry) for name, entry in value.items()
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
            return _is_number(buffer) or (is_plain_tensor(buffer) and buffer.numel() == 1)
        if buffer is None:  # sgd without momentum
            return name not in needed
        return is_plain_tensor(buffer) and buffer.shape == weight.shape

    return isinstance(value, dict) and all(
        isinstance(buffers, dict)
        and (not buffers or needed <= buffers.keys())
        and all(fits(name, buffer, weights[owner]) for name, buffer in buffers.items())
        for owner, buffers in value.items()
    )


def _is_row(value: Any, _: dict[str, Any]) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and (entry is None or type(entry) in (int, float))
        for name, entry in value.items()
    )


def _is_sums(value: Any, _: dict[str, Any]) -> bool:
    """Loss sums and gradient norms may overflow in a step that is skipped, counts may not."""
    rows = [value["epoch"], *value["ranks"]]
    lengths = [len(row) for row in rows]
    counts = [*value["epoch"][1:3], *(row[place] for row in value["ranks"] for place in (1, 2, 4))]
    return (
        bool(value["ranks"])
        and lengths == [4] + [5] * (len(rows) - 1)
        and all(type(entry) is float or _is_count(entry, 2**53) for row in rows for entry in row)
        and all(0 <= count <= 2**53 for count in counts)
    )


def _is_scaler_state(value: Any, _: dict[str, Any]) -> bool:
    if not value:
        return True
    factors = [value[key] for key in ("scale", "growth_factor", "backoff_factor")]
    counts = [value[key] for key in ("growth_interval", "_growth_tracker")]
    return all(_is_number(factor) and 0 < factor < 1e38 for factor in factors) and all(
        _is_count(count, 2**31 - 1) for count in counts
    )


# Key -> check of (its value, the whole checkpoint) and what is expected. A check may rely on those
# before it having passed.
_CHECKS: dict[str, tuple[Check, str]] = {
    "format": (
        lambda value, _: _is_count(value) and value == FORMAT,
        f"{FORMAT} (another version of this package may read it)",
    ),
    "arch": (
        lambda value, _: isinstance(value, str) and value in model_names(),
        "a network of this package (main.py -h lists them)",
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
    "phase": (lambda value, _: value in ("train", "validate"), "train or validate"),
    "row": (_is_row, "metric names with numbers or None"),
    "sums": (_is_sums, "sums of the epoch (4 numbers) and of each rank (5 numbers)"),
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
        lambda value, _: (
            isinstance(value, dict)
            and all(_is_count(value[key]) for key in _COUNTERS)
            and _is_count(value.get("rollbacks", 0), 100)
        ),
        f"whole numbers {', '.join(_COUNTERS)}",
    ),
    "state_dict": (_is_weights, "a dict of tensors"),
    "state_dict_ema": (_is_average, "None or tensors with the names and shapes of state_dict"),
    "optimizer": (_is_optimizer_state, "buffers that fit the tensors of state_dict"),
    "amp": (_is_scaler_state, f"None or numbers {', '.join(_SCALER)}"),
}
_OPTIONAL = {"format", "samples_done", "phase", "row", "sums", "state_dict_ema", "amp"}
