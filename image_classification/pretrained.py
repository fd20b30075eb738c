# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights from files: bare weights, checkpoints of this package, and those of other libraries.

A file that does not belong to the network is an error. Loading what happens to fit and going on
with random numbers for the rest would cost hours before anybody notices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from image_classification.errors import CheckpointError, UsageError, printable
from image_classification.published_weights import fetch_published, find_published
from image_classification.safe_load import is_plain_tensor, load_tensors
from image_classification.weight_formats import WeightFormat, translate
from models.common import head_name

# Where a checkpoint keeps its weights: this package, NVIDIA, timm, Lightning, mmpretrain;
# torchvision; PyTorch's tutorials; many a training script for CIFAR.
_KEYS = ("state_dict", "model", "model_state_dict", "net")
_EMA_KEYS = ("state_dict_ema", "model_ema")


class Weights(NamedTuple):
    """Weights of a file.

    Args:
        state: CPU tensors by torchvision's names.
        format: who named them in the file; None: nobody known, they are named as there.
        source: the file, for messages.
        channels: what pruning has left of the network's, see `models.resnet.ResNet`; else None.
    """

    state: dict[str, Tensor]
    format: WeightFormat | None = None
    source: str = "the file"
    channels: Any = None

    @property
    def bn_epsilon(self) -> float | None:
        """BatchNorm's epsilon with which they were trained; None where the file does not tell."""
        return self.format.bn_epsilon if self.format is not None else None


@dataclass
class PretrainedReport:
    """What became of every tensor of the file and of the model.

    Args:
        matched: names loaded from the file.
        missing: names of the model that the file does not have; they keep their values.
        unexpected: names of the file that the model does not have; they are ignored.
        mismatched: names that both have with different shapes; they keep the model's values.
        format: who named the weights in the file.
        messages: one line each on what a reader of the log should know.
        warnings: one line each on why the outputs may not be those that the weights were made for.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    format: str = "names of nobody known"
    messages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load_weight_file(path: str | os.PathLike[str], *, ema: bool = False) -> Weights:
    """Read the weights out of a file, whatever it wraps them in.

    Args:
        path: a file of `torch.save` or a safetensors file.
        ema: take the exponential moving average instead of the weights themselves.

    Returns:
        The weights by torchvision's parameter names, and the format that was recognised.

    Raises:
        CheckpointError: see `load_tensors` and `extract_weights`.
    """
    source = os.fspath(path)
    return extract_weights(load_tensors(path), source=source, ema=ema)


def extract_weights(content: object, *, source: str = "the file", ema: bool = False) -> Weights:
    """Find the weights in the content of a file and give them torchvision's names.

    Args:
        content: a checkpoint with the weights under one of the usual keys, or the weights
            themselves.
        source: path of the file, or what to call the content in an error.
        ema: take `state_dict_ema` (this package, NVIDIA, timm) or `model_ema` (torchvision).

    Returns:
        CPU tensors by name, without the prefixes of wrappers, and the format.

    Raises:
        CheckpointError: no weights there, values among them that are not dense CPU tensors, or
            two weights for the same place.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"no weights in {source!r}: it holds a {type(content).__name__}")
    found = _find(content, _EMA_KEYS if ema else _KEYS)
    if found is None and ema:
        raise CheckpointError(
            f"no EMA weights in {source!r}; train with --use-ema, or leave --ema out"
        )
    tensors = _check_tensors(content if found is None else found, source)
    names, row = translate(tensors, _hints(content, source))
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if names[name] in state:
            first = next(other for other, new in names.items() if new == names[name])
            raise CheckpointError(
                f"{source!r} is ambiguous: {printable(first, 60)!r} and {printable(name, 60)!r} "
                "are the same weight; save the one network that is wanted"
            )
        state[names[name]] = value
    options = content.get("model_options")
    channels = options.get("channels") if isinstance(options, Mapping) else None
    return Weights(state, _with_own_epsilon(row, options), source, channels)


def _check_tensors(weights: Mapping[Any, object], source: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
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
        tensors[name] = value
    if not tensors:
        raise CheckpointError(f"no weights in {source!r}: it is empty")
    return tensors


def _hints(content: Mapping[str, object], source: str) -> str:
    """What a file says of itself: its name, or that of its folder in the cache of a hub; the
    network that is named in it (timm) or in the options of its training (torchvision)."""
    path = Path(source)
    hub = [part for part in path.parts if part.startswith("models--")]
    arch = content.get("arch", getattr(content.get("args"), "model", None))
    return " ".join([*hub, path.name, f"arch={arch}" if isinstance(arch, str) else ""])


def _with_own_epsilon(row: WeightFormat | None, options: object) -> WeightFormat | None:
    """The format; a checkpoint of this package also tells the options of its network."""
    if row is None or not isinstance(options, Mapping):
        return row
    # Without the option it is the network's own: 1e-5 in ResNet, which its row says, else 1e-3.
    epsilon = options.get("bn_epsilon", row.bn_epsilon or 1e-3)
    known = isinstance(epsilon, float) and math.isfinite(epsilon)
    name = "a checkpoint of this package"
    return row._replace(name=name, bn_epsilon=epsilon) if known else row


def starting_weights(
    arch: str,
    file: str | None,
    *,
    published: bool,
    version: str | None,
    folder: Path,
    optional: bool,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Weights | None:
    """Read the weights from which a training starts, or which are evaluated.

    Args:
        arch: the network, one of `models.model_names()`.
        file: weight file or checkpoint; None: none is given.
        published: take torchvision's weights for ImageNet instead.
        version: see `find_published`.
        folder: where they are, or are downloaded to.
        optional: go without where they cannot be had.
        say: receives lines about a download.
        warn: is told that there are none.

    Returns:
        The weights, None where there are none.

    Raises:
        CheckpointError: they cannot be read, or not be had.
        UsageError: none are published for this network.
    """
    epsilon = None
    if published:
        try:
            row = find_published(arch, version)
            file = os.fspath(fetch_published(row, folder, say=say))
        except (CheckpointError, UsageError) as error:
            if not optional:
                raise
            warn(f"TRAINING FROM SCRATCH, without pretrained weights: {error}")
        else:
            epsilon = row.bn_epsilon
            say(f"torchvision measures {row.top1} % top-1 with {file} ({row.conditions})")
    if not file:
        return None
    weights = load_weight_file(file)
    if epsilon is not None and weights.format is not None:
        return weights._replace(format=weights.format._replace(bn_epsilon=epsilon))
    return weights


def has_ema(content: object) -> bool:
    """Whether the content of a file includes averaged weights."""
    return isinstance(content, Mapping) and _find(content, _EMA_KEYS) is not None


def _find(content: Mapping[str, object], keys: tuple[str, ...]) -> Mapping[str, object] | None:
    found = (content.get(key) for key in keys)
    return next((value for value in found if isinstance(value, Mapping)), None)


def load_weights(
    model: nn.Module, weights: Weights, *, replace_head: bool = False, min_matched: float = 0.95
) -> PretrainedReport:
    """Load weights into a model.

    Args:
        model: on any device; loaded in place, and left as it was where an error is raised.
        weights: of `load_weight_file` or `extract_weights`.
        replace_head: where their classifier has another number of classes, keep the model's
            freshly initialised one and say so; else that is an error.
        min_matched: smallest share, in [0, 1], of the model's and of the file's tensors and
            values that must fit one another. The classifier that is replaced does not count.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    row, source = weights.format, weights.source
    own = model.state_dict()
    state = {name: _in_shape_of(own.get(name), value) for name, value in weights.state.items()}
    common = [name for name in own if name in state]
    report = PretrainedReport(
        matched=[name for name in common if own[name].shape == state[name].shape],
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mismatched=[name for name in common if own[name].shape != state[name].shape],
    )
    if row is not None:
        report.format = row.name
    head = f"{head_name(model)}."
    fresh_head = _rows(state.get(f"{head}weight")) != _rows(own[f"{head}weight"])
    _check_share(own, state, report, source, min_matched, head if fresh_head else None)
    if fresh_head:
        report.messages.append(_fresh_head(own, state, head, source, replace_head))
    _check_finite(state, report.matched, source)

    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    report.messages.append(_counts(own, report, source))
    missing = [name for name in report.missing + report.mismatched if not _is_counter(name)]
    if missing:
        report.messages.append(f"not in {source}, freshly initialised: {_some(missing)}")
    if report.unexpected:
        report.messages.append(f"in {source}, but not in the model: {_some(report.unexpected)}")
    report.warnings += _other_conditions(model, row, source)
    return report


def _counts(own: Mapping[str, Tensor], report: PretrainedReport, source: str) -> str:
    """How much was loaded; BatchNorm's step counters, which no one uses, are left out."""
    model, matched, missing, mismatched, unexpected = (
        sum(not _is_counter(name) for name in names)
        for names in (own, report.matched, report.missing, report.mismatched, report.unexpected)
    )
    return (
        f"loaded {matched} of {model} tensors from {source} ({report.format}): {missing} missing, "
        f"{mismatched} of another shape, {unexpected} only in the file"
    )


def _other_conditions(model: nn.Module, row: WeightFormat | None, source: str) -> list[str]:
    """What the weights were trained with and the model does not have."""
    norm = next((module for module in model.modules() if isinstance(module, nn.BatchNorm2d)), None)
    if norm is None or row is None:
        return []
    lines = []
    if row.bn_epsilon is None and norm.eps != 1e-5:  # which is nobody's default, but a choice
        lines.append(
            f"{source} does not tell its BatchNorm epsilon, the model has {norm.eps:g}: {row.doubt}"
            "; if it is one of these, add --bn-epsilon 1e-5"
        )
    elif row.bn_epsilon not in (None, norm.eps):
        lines.append(
            f"{source} was trained with a BatchNorm epsilon of {row.bn_epsilon:g}, the model has "
            f"{norm.eps:g}: its outputs will differ; add --bn-epsilon {row.bn_epsilon:g}"
        )
    if row.tf_padding:
        lines.append(
            f"{source} was trained with TensorFlow's padding, which this network does not have: "
            "less accurate than published until it is trained further"
        )
    return lines


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
    report: PretrainedReport,
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
    found = [name for name in report.matched if name in model]
    tensors = len(found) / max(len(model), len(file), 1)
    values = sum(model[name] for name in found) / max(sum(model.values()), sum(file.values()), 1)
    share = min(tensors, values)
    if share < min_matched:
        missing = [name for name in report.missing if name in model]
        unexpected = [name for name in report.unexpected if name in file]
        shapes = [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in report.mismatched
            if name in model
        ]
        raise CheckpointError(
            f"{source} ({report.format}) does not fit the model: {share:.1%} matches, "
            f"{min_matched:.0%} is needed (only in the model: {_some(missing)}; only in the file: "
            f"{_some(unexpected)}; of another shape: {_some(shapes)}); check the network's name "
            "and options"
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
    return (", ".join(printable(name, 100) for name in names[:3]) or "nothing") + more
