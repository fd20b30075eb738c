# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What an exported file says about itself: enough to use the network without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalPreset

_READ = {"arch", "model_options", "classes", "image_size", "resize_size", "interpolation"}


def describe(
    arch: str, options: Mapping[str, Any], classes: Sequence[str], preset: EvalPreset
) -> dict[str, Any]:
    """Describe a network and how its images are prepared.

    Args:
        arch: name of the network.
        options: keyword arguments of `models.create_model` beside the number of classes.
        classes: class names by index.
        preset: how images are resized and cropped.

    Returns:
        JSON types. `image_size` and `resize_size` are pixels; `mean` and `std` belong to pixels in
        0..1, in the order R, G, B.
    """
    return {
        "arch": arch,
        "model_options": dict(options),
        "classes": list(classes),
        **preset.to_dict(),
        "mean": [round(value / 255, 6) for value in IMAGENET_MEAN],
        "std": [round(value / 255, 6) for value in IMAGENET_STD],
        "colour_order": "RGB",
        "normalisation": "(pixels / 255 - mean) / std",
    }


def to_strings(card: Mapping[str, Any]) -> dict[str, str]:
    """Turn a description into strings, as many formats need them: all but text becomes JSON."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in card.items()
    }


def from_strings(strings: Mapping[str, str]) -> dict[str, Any]:
    """Read what `to_strings` wrote.

    Args:
        strings: the metadata of a file. Nothing in it is taken on trust.

    Returns:
        The keys `arch`, `model_options`, `classes` and `preprocessing` of a checkpoint; nothing
        where there is no description, or somebody else's.

    Raises:
        ValueError: a part is not JSON.
    """
    if not _READ <= strings.keys():
        return {}
    try:
        sizes = {key: json.loads(strings[key]) for key in ("image_size", "resize_size")}
        return {
            "arch": strings["arch"],
            "model_options": json.loads(strings["model_options"]),
            "classes": json.loads(strings["classes"]),
            "preprocessing": {"val": {**sizes, "interpolation": strings["interpolation"]}},
        }
    except RecursionError as error:
        raise ValueError(f"{type(error).__name__} {error}") from error
