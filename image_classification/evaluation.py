# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluation: accuracy through a runtime, and throughput and latency over batch sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from image_classification.metrics import LatencyMeter
from image_classification.run_files import BENCHMARK_NAME, EVALUATION_NAME
from image_classification.runtimes import FixedBatch, layout_of

if TYPE_CHECKING:
    from image_classification.dataloaders import Loader
    from image_classification.device import Device
    from image_classification.logger import Logger
    from image_classification.runtimes import Runtime
    from image_classification.validation import Validator

#: The first batches do not count: kernels are chosen and memory is taken there.
_WARMUP = 5
#: Batches that are timed at least and at most, and the seconds that they should fill.
_LEAST, _MOST, _SECONDS = 20, 1000, 2.0


def evaluate(
    way: Runtime,
    validator: Validator,
    loader: Loader,
    classes: Sequence[str],
    sizes: Sequence[int] | None,
    logger: Logger,
) -> tuple[float | None, dict[str, float | None]]:
    """Judges a network on all images of a loader; what was found is logged.

    Args:
        way: Runs the network.
        validator: Judges it.
        loader: Yields (images, target) on the device.
        classes: Class names by index.
        sizes: See `measure`; None: nothing is timed.
        logger: Receives metrics, confusions and, with sizes, `BENCHMARK_NAME`.

    Returns:
        Top-1 (%) and all metrics, like `EpochLoop.run`.

    Raises:
        DataError: No rank has an image.
        UsageError: See `Runtime.prepare`.
    """
    images = _first_images(loader) if sizes or way.name != "eager" else None
    network = way.model if images is None else way.prepare(images)
    result = validator.run(network, loader, "val")
    logger.log((), row := result.metrics())
    logger.document(EVALUATION_NAME, result.document(classes, None))
    if sizes and images is not None:
        logger.document(BENCHMARK_NAME, measure(sizes, way, network, images))
    return result.top1, row


def measure(
    sizes: Sequence[int], runtime: Runtime, network: nn.Module, images: Tensor
) -> dict[str, Any]:
    """Times batches that lie on the device already; loading is not measured.

    Args:
        sizes: Batch sizes.
        runtime: Makes the network ready for each of them, where that matters; hears a row of a
            table for each.
        network: What it has made ready for `images`.
        images: [N, 3, H, W] as the network gets them; they are repeated to fill a batch.

    Returns:
        JSON types: for each size images/s (all images / all time) and the latency of a batch in
        seconds, mean and at 95, 99 and 100 %. The sizes end where the memory does.
    """
    device, amp_dtype, say = runtime.device, runtime.amp_dtype, runtime.say
    say("batch | images/s | ms, mean | ms, 95 % | ms, 99 % | ms, 100 %")
    rows: list[dict[str, float]] = []
    for size in sizes:
        try:
            batch = images[torch.arange(size, device=images.device) % len(images)]
            batch = batch.contiguous(memory_format=layout_of(images))
            if isinstance(network, FixedBatch):
                network = runtime.prepare(batch)
            row = _measure(network, batch, device, amp_dtype)
        except Exception as error:
            if not device.is_out_of_memory(error):
                raise
            say(f"{size} | out of memory")
            break
        rows.append(row)
        times = [1000 * row[f"latency{part}"] for part in ("", "_at95", "_at99", "_at100")]
        say(" | ".join([str(size), f"{row['images_per_second']:.1f}",
                        *(f"{one:.2f}" for one in times)]))  # fmt: skip
    return {
        "runtime": runtime.name,
        "image_size": images.shape[-1],
        "device": str(device),
        "amp_type": str(amp_dtype or "FP32").removeprefix("torch."),
        "batches": rows,
    }


def _first_images(loader: Loader) -> Tensor | None:
    """The first batch [N, 3, H, W] of this rank, on the device; other ranks may have them all."""
    loader.set_position(0, 0)
    images, _ = next(iter(loader), (None, None))
    return images


@torch.inference_mode()
def _measure(
    network: nn.Module, batch: Tensor, device: Device, amp_dtype: torch.dtype | None
) -> dict[str, float]:
    meter, end = LatencyMeter(_WARMUP), math.inf
    for step in range(_WARMUP + _MOST):
        started = time.perf_counter()
        if step == _WARMUP:
            end = started + _SECONDS
        if step >= _WARMUP + _LEAST and started > end:
            break
        with device.autocast(amp_dtype):
            network(batch)
        device.synchronize()
        meter.add(time.perf_counter() - started)
    latency = meter.summary()
    assert latency is not None
    return {
        "batch_size": len(batch),
        "images_per_second": len(batch) / latency.average,
        "latency": latency.average,
        "latency_at95": latency.at95,
        "latency_at99": latency.at99,
        "latency_at100": latency.at100,
    }
