# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of files in models: which to start from, and whether they belong there.

A file that does not belong to the network is an error. Loading what happens to fit and going on
with random numbers for the rest would cost hours before anybody notices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from image_classification.errors import CheckpointError, UsageError, printable
from image_classification.published_weights import fetch_published, find_published
from image_classification.weight_files import Weights, known_names, load_weight_file
from image_classification.weight_formats import WeightFormat
from models.common import head_name


@dataclass
class PretrainedReport:
    """What became of every tensor of the file and of the model.

    Args:
        matched: names loaded from the file.
        missing: names of the model that the file does not have; they keep their values.
        unexpected: names of the file that the model does not have; they are ignored.
        mismatched: names that both have with different shapes, or for other classes; they keep
            the model's values.
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


def load_weights(
    model: nn.Module,
    weights: Weights,
    *,
    replace_head: bool = False,
    classes: Sequence[str] | None = None,
    min_matched: float = 0.95,
) -> PretrainedReport:
    """Load weights into a model.

    Args:
        model: on any device; loaded in place, and left as it was where an error is raised.
        weights: of `load_weight_file` or `extract_weights`.
        replace_head: where their classifier is for other classes, keep the model's freshly
            initialised one and say so; else that is an error.
        classes: names of the model's classes by index. Where the file has names too, they must be
            the same in the same order; else, and without names, only their number counts.
        min_matched: smallest share, in [0, 1], of the model's and of the file's tensors and
            values that must fit one another. The classifier that is replaced does not count.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    row, source, own = weights.format, weights.source, model.state_dict()
    state = {name: _in_shape_of(own.get(name), value) for name, value in weights.state.items()}
    fresh = _fresh_head(own, weights, head := f"{head_name(model)}.", classes)
    common = [name for name in own if name in state]
    fitting = {
        name: own[name].shape == state[name].shape and not (fresh and name.startswith(head))
        for name in common
    }
    report = PretrainedReport(
        matched=[name for name in common if fitting[name]],
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mismatched=[name for name in common if not fitting[name]],
    )
    if row is not None:
        report.format = row.name
    _check_share(own, state, report, source, min_matched, head if fresh else None)
    if fresh:
        report.messages.append(fresh.told(source, replace_head))
    _check_values(own, state, report.matched, source)

    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    report.messages.append(_counts(own, report, source))
    if weights.averaged:
        report.messages.append(f"using the averaged (EMA) weights of {source}")
    missing = [name for name in report.missing + report.mismatched if not _is_counter(name)]
    if missing:
        report.messages.append(f"not from {source}, freshly initialised: {_some(missing)}")
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
        f"{mismatched} that do not fit, {unexpected} only in the file"
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


class _FreshHead(NamedTuple):
    """Why the model keeps its own classifier: what the file's is, what the model's."""

    held: str
    wanted: str

    def told(self, source: str, replace: bool) -> str:
        """Say that it is replaced, or raise where it must not be."""
        if not replace:
            raise CheckpointError(
                f"{source} holds {self.held}, the model has {self.wanted}; use data with the "
                "classes of the file, in their order, or ask for the classifier to be replaced"
            )
        return (
            f"{source} holds {self.held}; replaced by a fresh one of {self.wanted}, which needs "
            "training"
        )


def _fresh_head(
    own: Mapping[str, Tensor], weights: Weights, head: str, classes: Sequence[str] | None
) -> _FreshHead | None:
    """Compare the classifiers by the number of their classes, and by name where both are known."""
    rows, wanted = _rows(weights.state.get(f"{head}weight")), _rows(own[f"{head}weight"])
    if rows != wanted:
        held = f"a classifier of {rows} classes" if rows else "no classifier"
        return _FreshHead(held, f"{wanted}")
    pairs = zip(weights.classes or (), known_names(classes) or (), strict=False)
    for label, (name, other) in enumerate(pairs):
        if name != other:
            return _FreshHead(
                f"a classifier of {rows} classes (class {label} is {printable(name, 60)!r})",
                f"{wanted} (class {label} is {printable(other, 60)!r})",
            )
    return None


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


def _check_values(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], names: list[str], source: str
) -> None:
    """Raise where the model would not have the file's numbers, or cannot compute with them."""
    for name in names:
        kind, value = own[name].dtype, state[name]
        if not kind.is_floating_point:
            continue
        if not value.is_floating_point():
            raise CheckpointError(
                f"{source} holds whole numbers ({value.dtype}) in {name}: a quantised network, or "
                "no weights; use the file that it was made from"
            )
        if not bool(value.to(kind).isfinite().all()):  # float64 reaches further than float32
            raise CheckpointError(
                f"{source} holds NaN or infinite values in {name} (as {kind}): a training that "
                "diverged, or a damaged file; use an earlier checkpoint"
            )


def _is_counter(name: str) -> bool:
    """BatchNorm's step counters: unused with momentum, and absent from old files."""
    return name.endswith("num_batches_tracked")


def _some(names: list[str]) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(printable(name, 100) for name in names[:3]) or "nothing") + more
