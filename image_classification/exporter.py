# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Exports a trained network and proves that the file computes what PyTorch computes."""

from __future__ import annotations

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from image_classification import export_formats, model_card
from image_classification.atomic_file import atomic_file
from image_classification.device import Device
from image_classification.device_feed import DeviceFeeder
from image_classification.errors import CheckpointError, DeviceMemoryError, UsageError
from image_classification.export_formats import FORMATS, Example, Forward
from image_classification.image_reading import eval_pixels, read_image
from image_classification.network_options import ENDINGS
from image_classification.trained_network import TrainedNetwork

# What another order of float32 sums may cost: a share of the largest logit or, where a network
# amplifies rounding, a multiple of what PyTorch's own logits are off.
TOLERANCE, OWN_ERRORS = 1e-4, 4.0
# Two sizes, neither of them the example's, show that the file takes any batch.
_CHECKED_BATCHES = (1, 3)
_RANDOM_IMAGES = 3


def export(
    network: TrainedNetwork,
    output: Path,
    name: str,
    *,
    batch_size: int | None = None,
    images: Sequence[str] = (),
) -> list[str]:
    """Write a network, read the file again and compare its outputs with PyTorch's.

    Args:
        network: what `load_trained_network` returned.
        output: file to write; it appears, or is replaced, only after a successful check.
        name: one of `export_formats.FORMATS`.
        batch_size: images that the file takes at a time; None: any number.
        images: image files for the comparison, beside random numbers.

    Returns:
        Lines that say what was written and how it was checked.

    Raises:
        CheckpointError: the file computes something else; it was not kept.
        DataError: an image cannot be read.
        DeviceMemoryError: the images are too large for the memory.
        UsageError: a package is missing, or the file cannot be written.
    """
    card = model_card.describe(network.arch, network.options, network.classes, network.preset)
    with _memory_explained(network.preset.image_size):
        inputs = _inputs(network, images)
        example = Example(inputs[:1].repeat(batch_size or 2, 1, 1, 1), any_batch=batch_size is None)
        content = export_formats.write(name, network.model, card, example)
    try:
        with _memory_explained(network.preset.image_size), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{ENDINGS[name]}"
            path.write_bytes(content)
            checked = _check(network, path, name, card, inputs, batch_size)
            with atomic_file(output) as file, path.open("rb") as written:
                shutil.copyfileobj(written, file)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be written: {error.strerror}") from error
    size = network.preset.image_size
    shape = f"[{batch_size or 'batch'}, 3, {size}, {size}]"
    return [checked, f"{output}: {network.arch}, {name}, {len(content) / 1e6:.1f} MB, "
            f"{export_formats.INPUT} float32 {shape} -> {export_formats.OUTPUT} "
            f"[{batch_size or 'batch'}, {len(network.classes)}]"]  # fmt: skip


@contextlib.contextmanager
def _memory_explained(image_size: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not Device.select("cpu").is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"out of memory with images of {image_size} pixels; use a smaller --image-size"
        ) from error


def _inputs(network: TrainedNetwork, images: Sequence[str]) -> Tensor:
    """Random spots of colour, normalised, then the given images; float32 [N, 3, S, S].

    Spots, because on noise from pixel to pixel, which no network was made for, some answer with
    numbers that PyTorch itself cannot reproduce in another batch.
    """
    size = network.preset.image_size
    generator = torch.Generator().manual_seed(0)
    spots = torch.randn(_RANDOM_IMAGES, 3, 4, 4, generator=generator)
    random = nn.functional.interpolate(spots, size=(size, size), mode="bilinear")
    if not images:
        return random
    feeder = DeviceFeeder(
        Device.select("cpu"), dtype=torch.float32, memory_format=torch.contiguous_format
    )
    pixels = [eval_pixels(read_image(path), network.preset) for path in images]
    return torch.cat([random, feeder.normalize(torch.from_numpy(np.stack(pixels)))])


def _check(
    network: TrainedNetwork,
    path: Path,
    name: str,
    card: export_formats.Card,
    inputs: Tensor,
    batch_size: int | None,
) -> str:
    """Say how far the file's outputs are from PyTorch's; raise where they are another network's."""
    if missing := export_formats.missing_packages(FORMATS[name].readers):
        return (
            f"the outputs were not compared: {' and '.join(missing)} is not installed; "
            f"pip install {' '.join(missing)}"
        )
    written = export_formats.read(name, path)
    if written.card != model_card.to_strings(card):
        raise CheckpointError(f"the {name} file does not hold its description; it was not kept")
    sizes = _CHECKED_BATCHES if batch_size is None else (batch_size,)
    difference, allowed = compare(network.model, written.forward, inputs, sizes)
    if not difference <= allowed:  # NaN is not
        raise CheckpointError(
            f"the {name} file computes other logits than the network: they are off by up to "
            f"{difference:.1e}, allowed is {allowed:.1e}; it was not kept. Another --format, or "
            "other versions of torch and of the packages, may do better"
        )
    real = f"and {len(inputs) - _RANDOM_IMAGES} real " if len(inputs) > _RANDOM_IMAGES else ""
    return (
        f"checked with {_RANDOM_IMAGES} random {real}images in batches of "
        f"{' and '.join(map(str, sizes))}: logits are off by up to {difference:.1e} "
        f"(allowed {allowed:.1e})"
    )


@torch.inference_mode()
def compare(
    model: nn.Module, forward: Forward, images: Tensor, batch_sizes: Sequence[int]
) -> tuple[float, float]:
    """Compare logits with those that the network gives in float64.

    Args:
        model: float32, on the CPU, in evaluation mode.
        forward: maps float32 [N, 3, H, W] to logits [N, C].
        images: float32 [M, 3, H, W]; where a batch size does not divide M, some come twice.
        batch_sizes: each is tried on all images.

    Returns:
        The largest absolute error of `forward` (NaN where a logit is NaN), and how large it may be.
    """
    exact = copy.deepcopy(model).double()
    found = []
    for size in batch_sizes:
        rows = torch.arange(-(-len(images) // size) * size) % len(images)
        for batch in images[rows].split(size):
            logits = exact(batch.double())
            errors = [(each - logits).abs().max() for each in (forward(batch), model(batch))]
            found.append(torch.stack([*errors, logits.abs().max()]))
    error, own, largest = torch.stack(found).amax(dim=0).tolist()
    return error, max(TOLERANCE * largest, OWN_ERRORS * own)
