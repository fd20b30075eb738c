# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The contenders of train_step.py: this package's training step and its peers'."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Contender, Runner, Unavailable
from benchmarks.peers import nvidia_loop, timm_loop, torchvision_loop
from image_classification import compiling
from image_classification.augmentation import TrainPreset
from image_classification.dataloaders import SyntheticIndex, create_loader
from image_classification.device import Device
from image_classification.errors import DivergedError
from image_classification.optimizers import create_optimizer, lr_policy
from image_classification.step_plan import steps_per_epoch
from image_classification.training import Trainer
from models import create_model

# Trains so many steps and returns the last loss, which is not read yet.
Loop = Callable[[int], torch.Tensor]

NUM_CLASSES = 1000
IMAGENET_IMAGES = 1281167

# Option -> name in the table.
NAMES = {
    "ours": "ours",
    "ours-amp": "ours --amp",
    "ours-compile": "ours --compile",
    "ours-compile-amp": "ours --compile --amp",
    "torchvision-fp32": "torchvision fp32 nchw",
    "torchvision-hand": "torchvision fp32 hand",
    "torchvision-amp": "torchvision amp hand",
    "timm-fp32": "timm fp32",
    "timm-amp": "timm amp",
    "timm-compile": "timm compiled fp32",
    "timm-compile-amp": "timm compiled amp",
    "nvidia-amp": "nvidia float16 nhwc",
}
BASELINE = NAMES["torchvision-fp32"]
# The same precision and memory format with and without this package.
PAIRS = [
    (NAMES["ours"], NAMES["torchvision-hand"]),
    (NAMES["ours"], NAMES["timm-fp32"]),
    (NAMES["ours-amp"], NAMES["torchvision-amp"]),
    (NAMES["ours-amp"], NAMES["timm-amp"]),
    (NAMES["ours-compile"], NAMES["timm-compile"]),
    (NAMES["ours-compile-amp"], NAMES["timm-compile-amp"]),
]


class Setup(NamedTuple):
    """Precision, memory format and the one batch on which contenders train.

    Attributes:
        amp_dtype: Autocast type, None for FP32.
        memory_format: Of weights and images.
        images: [N, 3, H, W] in `amp_dtype` (FP32 where that is None), on the device.
        target: Class indices [N], int64, on the device.
    """

    amp_dtype: torch.dtype | None
    memory_format: torch.memory_format
    images: torch.Tensor
    target: torch.Tensor


def set_up(
    device: Device, image_size: int, batch_size: int, *, amp: bool, layout: str = "auto"
) -> Setup:
    """Chooses precision and memory format like main.py with and without --amp; makes the batch.

    Args:
        device: The device.
        image_size: Side of the images in pixels.
        batch_size: Images of the batch.
        amp: Mixed precision, as far as the device is fast with it.
        layout: "auto", "nchw" or "nhwc", as --memory-format.
    """
    amp_dtype = device.amp_dtype()[0] if amp else None
    memory_format = device.memory_format(layout, half=amp)
    loader = create_loader(
        "synthetic",
        SyntheticIndex(batch_size, NUM_CLASSES),
        TrainPreset(image_size),
        device=device,
        batch_size=batch_size,
        global_batch=batch_size,
        memory_format=memory_format,
        dtype=amp_dtype or torch.float32,
    )
    images, target = next(iter(loader))
    return Setup(amp_dtype, memory_format, images, target)


def build_trainer(arch: str, device: Device, setup: Setup) -> Trainer:
    """Wires the parts of this package like main.py does for its default options."""
    torch.manual_seed(0)
    model = create_model(arch, NUM_CLASSES)
    model = model.to(device.torch_device, torch.float32, memory_format=setup.memory_format)
    batch_size = len(setup.target)
    base_lr = 0.256 * batch_size / 256
    optimizer = create_optimizer(
        "sgd",
        model,
        lr=base_lr,
        weight_decay=1e-4,
        momentum=0.9,
        fused=device.prefers_fused_optimizers(setup.amp_dtype),
    )
    steps = steps_per_epoch(IMAGENET_IMAGES, batch_size, [])
    return Trainer(
        model,
        model,
        torch.nn.CrossEntropyLoss(),
        optimizer,
        lr_policy("step", base_lr, total_steps=90 * steps),
        device=device,
        num_batches=steps,
        batch_images=batch_size,
        amp_dtype=setup.amp_dtype,
        scaler=device.grad_scaler(setup.amp_dtype),
    )


class OurRunner:
    """This package's own training step."""

    def __init__(
        self, arch: str, device: Device, setup: Setup, *, compiles: bool = False
    ) -> None:
        self.setup = setup
        self.trainer = build_trainer(arch, device, setup)
        if compiles:
            self.trainer.spread(lambda network: compiling.compiled(network, "default"))

    def run(self, steps: int) -> int:
        """Trains; returns the number of images."""
        for _ in range(steps):
            self.trainer.train_step(self.setup.images, self.setup.target)
        return steps * len(self.setup.target)

    def facts(self) -> dict[str, float]:
        """Reads the mean loss since the last call, as a log line does."""
        sums = self.trainer.sums.read()
        return {"loss": finite(sums.loss / max(sums.images, 1))}


class PeerRunner:
    """A peer's loop `run(steps)`, which returns its last loss."""

    def __init__(self, loop: Loop, batch_size: int) -> None:
        self.loop = loop
        self.batch_size = batch_size
        self.loss = torch.zeros(())

    def run(self, steps: int) -> int:
        """Trains; returns the number of images."""
        self.loss = self.loop(steps)
        return steps * self.batch_size

    def facts(self) -> dict[str, float]:
        """Reads the last loss."""
        return {"loss": finite(self.loss.item())}


def finite(loss: float) -> float:
    """Returns the loss.

    Raises:
        DivergedError: It is not finite: steps on such numbers need another power and time.
    """
    if not math.isfinite(loss):
        raise DivergedError(f"a contender's loss is {loss}: the measurement would mean nothing")
    return loss


def list_contenders(
    names: Sequence[str], arch: str, device: Device, *, image_size: int, batch_size: int
) -> list[Contender]:
    """Describes the contenders; on an accelerator their batches, which they share, are made now.

    Args:
        names: Keys of `NAMES`.
        arch: Name of the network.
        device: The device.
        image_size: Side of the images in pixels.
        batch_size: Images per step.
    """
    found = []
    for name in names:
        batch = Batch(device.type, image_size, batch_size, name.endswith("-amp"), _layout(name))
        if device.is_accelerator:
            prepare(batch)
        amp_dtype = device.amp_dtype()[0] if batch.amp else None
        precision = str(amp_dtype or torch.float32).removeprefix("torch.")
        last = device.memory_format(batch.layout, half=batch.amp) is torch.channels_last
        settings = f"{precision}, {'nhwc' if last else 'nchw'}"
        build = functools.partial(build_runner, name, arch, batch)
        found.append(Contender(NAMES[name], settings, build, peer=not name.startswith("ours")))
    return found


class Batch(NamedTuple):
    """What determines a `Setup`, in a form that another process can be told; see `set_up`.

    Attributes:
        device_type: As --device.
        image_size: Side of the images in pixels.
        batch_size: Images per step.
        amp: Mixed precision, as far as the device is fast with it.
        layout: As --memory-format.
    """

    device_type: str
    image_size: int
    batch_size: int
    amp: bool
    layout: str


@functools.cache
def prepare(batch: Batch) -> tuple[Device, Setup]:
    """Returns the device and what is made for this batch when it is first asked for."""
    device_type, image_size, batch_size, amp, layout = batch
    device = Device.select(device_type)
    return device, set_up(device, image_size, batch_size, amp=amp, layout=layout)


def _layout(name: str) -> str:
    return "nchw" if name == "torchvision-fp32" else "auto"


def build_runner(name: str, arch: str, batch: Batch) -> Runner:
    """Makes a contender ready.

    Args:
        name: A key of `NAMES`.
        arch: Name of the network.
        batch: On which it trains.

    Raises:
        Unavailable: It cannot run here.
    """
    device, setup = prepare(batch)
    peer, _, kind = name.partition("-")
    given = (arch, setup.images, setup.target)
    same: dict[str, Any] = {"amp_dtype": setup.amp_dtype, "memory_format": setup.memory_format}
    if peer == "nvidia":
        return PeerRunner(nvidia_loop.build(*given), len(setup.target))
    if batch.amp and setup.amp_dtype is None:
        raise Unavailable(device.amp_dtype()[1])
    compiles = kind.startswith("compile")
    if compiles and (problem := compiling.obstacle(device)) is not None:
        raise Unavailable(problem)
    if peer == "ours":
        return OurRunner(arch, device, setup, compiles=compiles)
    if peer == "timm":
        loop = timm_loop.build(*given, **same, compiles=compiles)
    elif kind == "fp32":
        loop = torchvision_loop.build_reference(*given)
    else:
        fused = device.prefers_fused_optimizers(setup.amp_dtype)
        loop = torchvision_loop.build_by_hand(*given, **same, fused=fused)
    return PeerRunner(loop, len(setup.target))
