# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from files: bare weights, checkpoints of this package, and NVIDIA's and torchvision's.

A file that does not belong to the network is an error. Loading what happens to fit and going on
with random numbers for the rest would cost hours before anybody notices.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from image_classification.data_index import printable
from image_classification.errors import CheckpointError
from image_classification.safe_load import is_plain_tensor, load_tensors

# Where a checkpoint keeps its weights: this package's and NVIDIA's key, torchvision's key.
_KEYS = ("state_dict", "model")
_EMA_KEYS = ("state_dict_ema", "model_ema")

# Wrappers put these in front of every name: DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")

# NVIDIA's ResNet (its names -> torchvision's). EfficientNet's `layers.0.block0` stays as it is.
_RENAMES = (
    (re.compile(r"^layers\.([0-3])\.(?=\d+\.)"), lambda match: f"layer{int(match[1]) + 1}."),
    (re.compile(r"^(layer\d\.\d+)\.squeeze\.(?=squeeze\.|expand\.)"), r"\1.se."),
)


@dataclass
class PretrainedReport:
    """What became of every tensor of the file and of the model.

    Args:
        matched: names loaded from the file.
        missing: names of the model that the file does not have; they keep their values.
        unexpected: names of the file that the model does not have; they are ignored.
        mismatched: names that both have with different shapes; they keep the model's values.
        messages: one line each on what a reader of the log should know.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def load_weight_file(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, Tensor]:
    """Read the weights out of a file, whatever it wraps them in.

    Args:
        path: a file of `torch.save` or a safetensors file.
        ema: take the exponential moving average instead of the weights themselves.

    Returns:
        CPU tensors by torchvision's parameter names.

    Raises:
        CheckpointError: see `load_tensors` and `extract_state_dict`.
    """
    return extract_state_dict(load_tensors(path), source=os.fspath(path), ema=ema)


def extract_state_dict(
    content: object, *, source: str = "the file", ema: bool = False
) -> dict[str, Tensor]:
    """Find the weights in the content of a file and give them torchvision's names.

    Args:
        content: a checkpoint with `state_dict` (this package, NVIDIA, Cambricon) or `model`
            (torchvision), or the weights themselves.
        source: what to call the content in an error.
        ema: take `state_dict_ema` (this package, NVIDIA) or `model_ema` (torchvision).

    Returns:
        CPU tensors by name, without `module.` and `_orig_mod.` in front.

    Raises:
        CheckpointError: no weights there, or values among them that are not dense CPU tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"no weights in {source!r}: it holds a {type(content).__name__}")
    weights = _find(content, _EMA_KEYS if ema else _KEYS)
    if weights is None and ema:
        raise CheckpointError(
            f"no EMA weights in {source!r}; train with --use-ema, or leave --ema out"
        )
    state: dict[str, Tensor] = {}
    for name, value in (content if weights is None else weights).items():
        # torch's own averaging counts its updates in the state; the count is not a weight.
        if name == "n_averaged":
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"no weights in {source!r}: entry {str(name)[:60]!r} is a {type(value).__name__}, "
                "not a tensor"
            )
        if not is_plain_tensor(value):
            raise CheckpointError(
                f"no usable weights in {source!r}: {printable(name, 60)!r} is not dense, or not of "
                "ordinary numbers"
            )
        state[_standard_name(name)] = value
    if not state:
        raise CheckpointError(f"no weights in {source!r}: it is empty")
    return state


def saved_channels(path: str | os.PathLike[str]) -> Any:
    """Return the option `channels` of the network in a weight file; None where it is not pruned.

    Raises:
        CheckpointError: see `load_tensors`.
    """
    content = load_tensors(path)
    options = content.get("model_options") if isinstance(content, Mapping) else None
    return options.get("channels") if isinstance(options, Mapping) else None


def has_ema(content: object) -> bool:
    """Whether the content of a file includes averaged weights."""
    return isinstance(content, Mapping) and _find(content, _EMA_KEYS) is not None


def _find(content: Mapping[str, object], keys: tuple[str, ...]) -> Mapping[str, object] | None:
    found = (content.get(key) for key in keys)
    return next((value for value in found if isinstance(value, Mapping)), None)


def _standard_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def head_name(model: nn.Module) -> str:
    """Return the name of the classifier: the model's last linear layer."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the model has no linear layer")
    return linear[-1]


def load_pretrained(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    replace_head: bool = False,
    ema: bool = False,
    min_matched: float = 0.95,
) -> PretrainedReport:
    """Load the weights of a file into a model.

    Args:
        model: on any device; loaded in place, and left as it was where an error is raised.
        path: weight file or checkpoint.
        replace_head: where the file's classifier has another number of classes, keep the model's
            freshly initialised one and say so; else that is an error.
        ema: see `extract_state_dict`.
        min_matched: smallest share, in [0, 1], of the model's and of the file's tensors and
            values that must fit one another. The classifier that is replaced does not count.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the model.
    """
    state = load_weight_file(path, ema=ema)
    return load_weights(
        model, state, os.fspath(path), replace_head=replace_head, min_matched=min_matched
    )


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    replace_head: bool = False,
    min_matched: float = 0.95,
) -> PretrainedReport:
    """`load_pretrained` for weights that `load_weight_file` has read from `source`."""
    own = model.state_dict()
    state = {name: _in_shape_of(own.get(name), value) for name, value in state.items()}
    common = [name for name in own if name in state]
    report = PretrainedReport(
        matched=[name for name in common if own[name].shape == state[name].shape],
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mismatched=[name for name in common if own[name].shape != state[name].shape],
    )
    head = f"{head_name(model)}."
    fresh_head = _rows(state.get(f"{head}weight")) != _rows(own[f"{head}weight"])
    _check_share(own, state, report.matched, source, min_matched, head if fresh_head else None)
    if fresh_head:
        report.messages.append(_fresh_head(own, state, head, source, replace_head))
    _check_finite(state, report.matched, source)

    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    report.messages.append(f"loaded {len(report.matched)} of {len(own)} tensors from {source}")
    missing = [name for name in report.missing + report.mismatched if not _is_counter(name)]
    if missing:
        report.messages.append(f"not in {source}, freshly initialised: {_some(missing)}")
    if report.unexpected:
        report.messages.append(f"in {source}, but not in the model: {_some(report.unexpected)}")
    return report


def _in_shape_of(own: Tensor | None, value: Tensor) -> Tensor:
    """Turn a linear layer's [S, C] into a 1x1 convolution's [S, C, 1, 1] and back, where needed."""
    if own is not None and {own.ndim, value.ndim} == {2, 4} and own.numel() == value.numel():
        return value.reshape(own.shape)
    return value


def _rows(tensor: Tensor | None) -> int:
    """The number of outputs of a layer with this weight; 0 where there is none."""
    return tensor.shape[0] if tensor is not None and tensor.ndim else 0


def _fresh_head(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    head: str,
    source: str,
    replace_head: bool,
) -> str:
    """Say that the classifier is replaced, or raise where it must not be."""
    rows, wanted = _rows(state.get(f"{head}weight")), _rows(own[f"{head}weight"])
    classes = f"a classifier of {rows} classes" if rows else "no classifier"
    if not replace_head:
        raise CheckpointError(
            f"{source} holds {classes}, the model has {wanted}; give the number of classes of the "
            "file, or ask for the classifier to be replaced"
        )
    return f"{source} holds {classes}; replaced by a fresh one of {wanted}, which needs training"


def _check_share(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    matched: list[str],
    source: str,
    min_matched: float,
    ignored: str | None,
) -> None:
    """Raise where too little fits, counted in tensors and in values, on either side.

    A shallow network finds all its weights in the file of a deeper one, and values alone would
    not show that every BatchNorm is missing.
    """

    def counted(tensors: Mapping[str, Tensor]) -> dict[str, int]:
        names = (name for name in tensors if not (ignored and name.startswith(ignored)))
        return {name: tensors[name].numel() for name in names if not _is_counter(name)}

    model, file = counted(own), counted(state)
    found = [name for name in matched if name in model]
    tensors = len(found) / max(len(model), len(file), 1)
    values = sum(model[name] for name in found) / max(sum(model.values()), sum(file.values()), 1)
    share = min(tensors, values)
    if share < min_matched:
        raise CheckpointError(
            f"{source} does not fit the model: {share:.1%} matches, {min_matched:.0%} is needed "
            f"(only in the model: {_some([name for name in model if name not in found])}; "
            f"only in the file: {_some([name for name in file if name not in found])}); "
            "check the network's name and options"
        )


def _check_finite(state: Mapping[str, Tensor], names: list[str], source: str) -> None:
    for name in names:
        if state[name].is_floating_point() and not bool(state[name].isfinite().all()):
            raise CheckpointError(
                f"{source} holds NaN or infinite values in {name}: a training that diverged, or a "
                "damaged file; use an earlier checkpoint"
            )


def _is_counter(name: str) -> bool:
    """BatchNorm's step counters: unused with momentum, and absent from old files."""
    return name.endswith("num_batches_tracked")


def _some(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(printable(name, 60) for name in names[:3]) or "nothing") + more
