# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""A trained network and all that belongs to it, from one file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from image_classification.augmentation import EvalPreset
from image_classification.errors import CheckpointError, UsageError, printable
from image_classification.pretrained import load_weights
from image_classification.published_weights import recognise_published
from image_classification.safe_load import load_tensors
from image_classification.weight_files import extract_weights
from models import create_model, find_arch, model_names
from models.common import head_name


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """What a file of a trained network holds.

    Attributes:
        model: float32, on the CPU, in evaluation mode.
        arch: name of the network.
        options: keyword arguments of `create_model` beside the number of classes.
        classes: class names by index.
        preset: how images are resized and cropped.
        notes: one line each on what was chosen while loading.
    """

    model: nn.Module
    arch: str
    options: dict[str, Any]
    classes: list[str]
    preset: EvalPreset
    notes: list[str]


def load_trained_network(
    path: str | os.PathLike[str],
    *,
    ema: bool | None = None,
    arch: str | None = None,
    image_size: int | None = None,
    val_resize: int | None = None,
    interpolation: str | None = None,
    class_names: Sequence[str] | None = None,
    bn_epsilon: float | None = None,
) -> TrainedNetwork:
    """Build the network that a file describes, with the file's weights.

    Args:
        path: a checkpoint of this package, a safetensors file of export.py, or bare weights, which
            need `arch`.
        ema: see `extract_weights`.
        arch: name of the network; a checkpoint knows its own.
        image_size: side of the network's input in pixels, instead of the checkpoint's.
        val_resize: short side in pixels before the central crop, instead of the checkpoint's.
        interpolation: one of `presets.INTERPOLATIONS`, instead of the checkpoint's.
        class_names: by index, instead of the checkpoint's. Without either, the index as text.
        bn_epsilon: BatchNorm's, instead of what the file tells of its training, if it does.

    Raises:
        CheckpointError: unreadable or unsafe file, or one that does not fit.
        UsageError: unknown network, an `arch` is needed, or a size is out of range.
    """
    name = os.fspath(path)
    content = load_tensors(path)
    saved: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    weights = extract_weights(content, source=name, ema=ema)

    arch = _choose_arch(saved.get("arch"), arch, name)
    options = saved.get("model_options") or {}
    epsilon = bn_epsilon or weights.bn_epsilon
    if epsilon and isinstance(options, Mapping):
        options = {**options, "bn_epsilon": epsilon}
    model, num_classes = _build(arch, options, weights.state, name)
    report = load_weights(model, weights, min_matched=1.0)
    preset, notes = choose_preset(saved, arch, name, image_size, val_resize, interpolation)
    return TrainedNetwork(
        model=model.eval(),
        arch=arch,
        options=dict(options),
        classes=choose_classes(saved.get("classes"), class_names, num_classes, name),
        preset=preset,
        notes=[*report.messages, *report.warnings, *notes],
    )


def _choose_arch(saved: object, wanted: str | None, source: str) -> str:
    if isinstance(saved, str) and saved in model_names():
        if wanted not in (None, saved):
            raise CheckpointError(
                f"{source} holds a {printable(saved, 60)}, not a {wanted}; drop --arch"
            )
        return saved
    if wanted is None:  # other libraries have other names for the same networks
        said = "does not say which network it is for"
        if isinstance(saved, str):
            said = f"calls its network {printable(saved, 60)!r}, a name of another library"
        raise UsageError(f"{source} {said}; add --arch NAME")
    return wanted


def _build(
    arch: str, options: Any, state: Mapping[str, torch.Tensor], source: str
) -> tuple[nn.Module, int]:
    """Build the network with as many classes as its weights in `state` have."""
    try:
        with torch.device("meta"):  # no memory, no time: only the name of its classifier is asked
            head = head_name(create_model(arch, **options))
        weight = state.get(f"{head}.weight")
        if weight is None or weight.ndim != 2:
            raise CheckpointError(f"{source} does not fit {arch}: it has no {head}.weight")
        return create_model(arch, weight.shape[0], **options), weight.shape[0]
    except (TypeError, UsageError) as error:
        raise CheckpointError(
            f"{source} has model_options that {arch} does not take ({printable(str(error))}); "
            "was it written by another version?"
        ) from error


def choose_classes(
    saved: object, wanted: Sequence[str] | None, num_classes: int, source: str
) -> list[str]:
    """The class names that are wanted, else those of the file, else the indices.

    Raises:
        CheckpointError: They are no names, or not as many as the network has outputs.
    """
    names = saved if wanted is None else list(wanted)
    if names is None:
        return [str(index) for index in range(num_classes)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{source} is damaged: its classes are not a list of names")
    if len(names) != num_classes:
        raise CheckpointError(
            f"{source} has {num_classes} outputs, but there are {len(names)} class names"
        )
    return names


def saved_preset(content: Mapping[str, Any], source: str) -> EvalPreset | None:
    """How a checkpoint says that validation images are prepared; None where it does not.

    Raises:
        CheckpointError: it says something that cannot be.
    """
    saved = content.get("preprocessing")
    if not isinstance(saved, Mapping) or not isinstance(saved.get("val"), Mapping):
        return None
    try:
        return EvalPreset.from_dict(dict(saved["val"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {printable(str(error))}") from error


def _usual_preset(arch: str, source: str) -> tuple[EvalPreset, str]:
    """What is taken where the file does not tell, and why; its name can show where it is from."""
    row = recognise_published(source)
    if row is not None and row.arch == arch:
        return row.preset, f"as torchvision does for {row.file}"
    size = find_arch(arch).image_size
    return EvalPreset(size, size + 32), "the usual way"


def choose_preset(
    content: Mapping[str, Any],
    arch: str,
    source: str,
    image_size: int | None,
    val_resize: int | None,
    interpolation: str | None,
) -> tuple[EvalPreset, list[str]]:
    """What the options say, else the file, else what is usual; and a line where that is taken.

    Args:
        content: Of the file, by the keys of a checkpoint.
        arch: Name of the network.
        source: The file, for messages.
        image_size, val_resize, interpolation: As of `load_trained_network`.

    Raises:
        CheckpointError: What the file says cannot be.
        UsageError: A size is out of range.
    """
    preset, why = saved_preset(content, source), ""
    if preset is None:
        preset, why = _usual_preset(arch, source)
    size = image_size or preset.image_size
    if val_resize is not None and val_resize < size:
        raise UsageError(
            f"--val-resize {val_resize} is below the input size of {size} pixels; give at least "
            "that, or a smaller --image-size"
        )
    margin = preset.resize_size - preset.image_size
    try:
        preset = EvalPreset(
            size, val_resize or size + margin, interpolation or preset.interpolation
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    said = f"{source} does not tell how images are prepared: {why}, with {preset.as_options}"
    return preset, [said] if why else []
