# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Class names for images, from one file: network, preprocessing and names are in the checkpoint.

from image_classification.inference import load_classifier

for prediction in load_classifier("model_best.pth.tar").predict(["cat.jpg", "dog.jpg"]):
    print(prediction.path, prediction.classes[0], prediction.probabilities[0])
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from image_classification import onnx_network
from image_classification.augmentation import EvalPreset
from image_classification.data_index import IMAGE_EXTENSIONS
from image_classification.device import Device
from image_classification.device_feed import DeviceFeeder
from image_classification.errors import (
    DataError,
    DeviceMemoryError,
    DivergedError,
    UsageError,
    printable,
)
from image_classification.image_reading import eval_pixels, read_image
from image_classification.runtimes import PACKAGES, Runtime
from image_classification.trained_network import load_trained_network

PRECISIONS = ("fp32", "amp", "fp16")

ImageSource = str | os.PathLike[str] | Image.Image


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best classes of one image.

    Attributes:
        path: the image's path as it was given; None for an image that came without one.
        classes: class names, the most probable first.
        probabilities: of these classes, in [0, 1].
    """

    path: str | None
    classes: list[str]
    probabilities: list[float]


class Classifier:
    """A trained network with all that belongs to it; made by `load_classifier`.

    Attributes:
        arch: name of the network.
        classes: class names by index.
        preset: how images are resized and cropped.
        device: where the network is.
        precision: "fp32", "amp" or "fp16".
        notes: one line each on what was chosen while loading.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        arch: str,
        classes: Sequence[str],
        preset: EvalPreset,
        device: Device,
        precision: str = "fp32",
        runtime: str = "eager",
        notes: Sequence[str] = (),
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r} is unknown; use {', '.join(PRECISIONS)}")
        if runtime not in PACKAGES:
            raise UsageError(f"runtime {runtime!r} is unknown; use {', '.join(PACKAGES)}")
        self.arch, self.classes, self.preset = arch, list(classes), preset
        self.device, self.precision, self.notes = device, precision, list(notes)
        self._amp_dtype = None
        if precision == "amp":
            self._amp_dtype, reason = device.amp_dtype("auto")
            self.notes.append(reason)
        weights_dtype = torch.float16 if precision == "fp16" else torch.float32
        memory_format = device.memory_format("auto", half=precision != "fp32")
        model = model.eval().to(device.torch_device, weights_dtype)
        model = model.to(memory_format=memory_format)
        self._runtime = Runtime(runtime, model, device, self._amp_dtype, say)
        self._model: nn.Module | None = None  # made for the first batch
        self._feeder = DeviceFeeder(
            device, dtype=self._amp_dtype or weights_dtype, memory_format=memory_format
        )

    def predict(
        self, images: Iterable[ImageSource], topk: int = 5, batch_size: int = 32
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: paths or PIL images.
            topk: number of classes to return for each, >= 1; at most all are.
            batch_size: images that go through the network together, >= 1.

        Returns:
            One prediction for each image, in the same order.

        Raises:
            DataError: an image cannot be read.
            DeviceMemoryError: the batch is too large for the device.
            DivergedError: the outputs are not finite, for example beyond the range of fp16.
            UsageError: `topk` or `batch_size` below 1.
        """
        return list(self.stream(images, topk, batch_size))

    def stream(
        self,
        images: Iterable[ImageSource],
        topk: int = 5,
        batch_size: int = 32,
        on_unreadable: Callable[[str, str], None] | None = None,
    ) -> Iterator[Prediction]:
        """`predict` for any number of images: yields each prediction as soon as it is there.

        Args:
            images, topk, batch_size: as for `predict`.
            on_unreadable: called with the path and the reason of each image that cannot be read,
                which is then left out; without it, the first one raises.

        Yields:
            A prediction for each readable image, in order.
        """
        if topk < 1 or batch_size < 1:
            raise UsageError(f"topk ({topk}) and batch_size ({batch_size}) must be at least 1")
        topk = min(topk, len(self.classes))
        decoded = self._decode(images, 2 * batch_size, on_unreadable)
        while batch := list(itertools.islice(decoded, batch_size)):
            probabilities, indices = self._classify([pixels for _, pixels in batch], topk)
            for (path, _), row, best in zip(batch, probabilities, indices, strict=True):
                yield Prediction(path, [self.classes[index] for index in best], row)

    def _decode(
        self,
        images: Iterable[ImageSource],
        ahead: int,
        on_unreadable: Callable[[str, str], None] | None,
    ) -> Iterator[tuple[str | None, NDArray[np.uint8]]]:
        """Yield path and pixels in order; threads read `ahead` images further (Pillow lets go of
        the interpreter while it decodes and resizes)."""
        waiting: deque[tuple[str | None, Future[NDArray[np.uint8]]]] = deque()
        pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "decode")
        try:
            for image in itertools.chain(images, itertools.repeat(None)):
                if image is not None:
                    path = None if isinstance(image, Image.Image) else os.fspath(image)
                    waiting.append((path, pool.submit(self._read, image)))
                    if len(waiting) < ahead:
                        continue
                if not waiting:
                    return
                path, result = waiting.popleft()
                try:
                    pixels = result.result()
                except DataError as error:
                    if on_unreadable is None:
                        raise
                    on_unreadable(path or "image", str(error))
                else:
                    yield path, pixels
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, image: ImageSource) -> NDArray[np.uint8]:
        """Decode an image, as uint8 [image_size, image_size, 3]."""
        if not isinstance(image, Image.Image):
            return eval_pixels(read_image(image), self.preset)
        try:
            return eval_pixels(image.convert("RGB"), self.preset)
        except OSError as error:  # Pillow reads the pixels only now
            raise DataError(f"cannot decode an image: {printable(str(error))}") from error

    @torch.inference_mode()
    def _classify(
        self, pixels: list[NDArray[np.uint8]], topk: int
    ) -> tuple[list[list[float]], list[list[int]]]:
        """Probabilities and class indices, `topk` for each image; the host waits here, once."""
        try:
            images = self._feeder.normalize(torch.from_numpy(np.stack(pixels)))
            with self.device.autocast(self._amp_dtype):
                self._model = self._model or self._runtime.prepare(images)
                logits = self._model(images)
            best = logits.float().softmax(dim=1).topk(topk)
            probabilities, indices = best.values.cpu(), best.indices.cpu()
        except Exception as error:
            if self.device.is_out_of_memory(error):
                raise DeviceMemoryError(
                    f"{self.device} is out of memory with a batch of {len(pixels)} images of "
                    f"{self.preset.image_size} pixels; use a smaller batch size"
                ) from error
            raise
        if not bool(probabilities.isfinite().all()):
            cure = "damaged weights?" if self.precision == "fp32" else "use fp32"
            raise DivergedError(
                f"{self.arch} gives outputs that are not finite in {self.precision}; {cure}"
            )
        return probabilities.tolist(), indices.tolist()


def load_classifier(
    path: str | os.PathLike[str],
    device: str = "auto",
    precision: str = "fp32",
    *,
    ema: bool | None = None,
    arch: str | None = None,
    image_size: int | None = None,
    val_resize: int | None = None,
    interpolation: str | None = None,
    class_names: Sequence[str] | None = None,
    bn_epsilon: float | None = None,
    runtime: str = "eager",
    say: Callable[[str], None] = lambda line: None,
) -> Classifier:
    """Load a trained classifier from one file.

    Args:
        path: a checkpoint of this package, what export.py made of it as safetensors or ONNX, what
            quantize.py made of it, or bare weights, which need `arch`.
        device: "auto", "gpu" or a type of the device table; an ONNX file is for "cpu".
        precision: "fp32"; "amp", mixed precision as the device supports it; "fp16", half
            precision weights. An ONNX file has its own.
        ema, arch, image_size, val_resize, interpolation, class_names, bn_epsilon: instead of what
            the file tells, see `load_trained_network`.
        runtime: how the network runs, a key of `runtimes.PACKAGES`.
        say: hears, at the first batch, how far the runtime's logits are from eager PyTorch's.

    Returns:
        The classifier, ready to predict.

    Raises:
        CheckpointError: unreadable or unsafe file, or one that does not fit.
        UsageError: unknown device, precision or network, an `arch` is needed, or a size is out of
            range.
    """
    wanted: dict[str, Any] = {
        "image_size": image_size, "val_resize": val_resize, "interpolation": interpolation,
        "class_names": class_names,
    }  # fmt: skip
    if (name := os.fspath(path)).lower().endswith(onnx_network.ENDING):
        onnx_network.refuse(name, (arch, ema, bn_epsilon), device, precision)
        exact = precision.lower() == "fp32"
        network = onnx_network.load_onnx_network(name, runtime, exact=exact, **wanted)
        device, precision, runtime = "cpu", "fp32", "eager"  # what is in the file stays as it is
    else:
        network = load_trained_network(path, ema=ema, arch=arch, bn_epsilon=bn_epsilon, **wanted)
    return Classifier(
        network.model,
        arch=network.arch,
        classes=network.classes,
        preset=network.preset,
        device=Device.select(device),
        precision=precision.lower(),
        runtime=runtime,
        notes=network.notes,
        say=say,
    )


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """List image files: those given, and those in the given folders.

    Args:
        paths: files, taken as they are whatever their name, and folders, searched at any depth for
            the endings of `IMAGE_EXTENSIONS`. What is hidden in them is left out.

    Returns:
        Paths, each folder's in the order of their names.

    Raises:
        DataError: a folder that cannot be read or holds no image.
    """
    found: list[str] = []
    for path in (os.fspath(path) for path in paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        images = sorted(_walk(path))
        if not images:
            raise DataError(
                f"no image in {printable(path)} (endings: {' '.join(IMAGE_EXTENSIONS)})"
            )
        found += images
    return found


def _walk(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise DataError(
            f"cannot read the folder {printable(error.filename)}: {error.strerror}"
        ) from error

    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        visited.add(os.path.realpath(parent))
        # In place, so that os.walk skips them; a link to a parent folder would never end.
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and os.path.realpath(os.path.join(parent, name)) not in visited
        ]
        for name in files:
            if not name.startswith(".") and name.lower().endswith(IMAGE_EXTENSIONS):
                yield os.path.join(parent, name)
