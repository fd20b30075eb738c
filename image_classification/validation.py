# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""One pass over the validation images: every image counts exactly once, on any number of ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from image_classification.confusion import Confusion
from image_classification.distributed import (
    concat_over_ranks,
    max_over_ranks,
    sum_over_ranks,
)
from image_classification.errors import DataError, DivergedError
from image_classification.metrics import (
    LatencyMeter,
    Throughput,
    ranked_classes,
    topk_correct,
)

if TYPE_CHECKING:
    from image_classification.dataloaders import Loader
    from image_classification.device import Device
    from image_classification.logger import Logger


@dataclass(frozen=True)
class Validation:
    """The result of a pass.

    Attributes:
        loss: Mean loss over all images.
        correct1: Images whose target has the highest logit.
        correctk: Images whose target is among the k highest logits.
        seen: Images evaluated, over all ranks.
        topk: The k of `correctk`.
        prefix: "val" or "val_ema", the group of the metrics.
        speed: Images per second, times (s) and latencies (s), by metric name.
        confusion: Which classes were taken for which, over all ranks.
    """

    loss: float
    correct1: int
    correctk: int
    seen: int
    topk: int
    prefix: str
    speed: dict[str, float | None]
    confusion: Confusion

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100.0 * self.correct1 / self.seen

    def metrics(self) -> dict[str, float | None]:
        """Returns the log row."""
        accuracy: dict[str, float | None] = {
            "loss": self.loss,
            "top1": self.top1,
            f"top{self.topk}": 100.0 * self.correctk / self.seen,
            "correct": self.correct1,
            "seen": self.seen,
        }
        return {f"{self.prefix}.{name}": value for name, value in accuracy.items()} | self.speed

    def document(self, classes: Sequence[str], epoch: int | None) -> dict[str, Any]:
        """Returns what the report needs of it, in JSON types.

        Args:
            classes: Name of each class.
            epoch: Epoch number from 0, None outside of a training.
        """
        return {"group": self.prefix, "epoch": epoch, "top1": self.top1, "classes": [*classes],
                "confusion": self.confusion.to_json()}  # fmt: skip


class _Tally:
    """Sums over the batches of this rank; they stay on the device until they are read.

    Args:
        topk: Second accuracy beside top-1.
        device: Where the logits are.
    """

    def __init__(self, topk: int, device: torch.device) -> None:
        self._topk = topk
        self._seen = 0
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros(2, dtype=torch.int64, device=device)
        # Rows: the class of each image, the most probable class. Loaders use their memory again.
        self._answers = [torch.zeros(2, 0, dtype=torch.int64, device=device)]

    def add(self, logits: torch.Tensor, target: torch.Tensor, loss: torch.Tensor) -> None:
        """Adds a batch: logits [N, C], target [N], its mean loss."""
        ranked = ranked_classes(logits, self._topk)
        self._loss += loss * len(target)
        self._correct += topk_correct(ranked, target, (1, self._topk))
        self._answers.append(torch.stack((target, ranked[:, 0])))
        self._seen += len(target)

    def sums(self) -> list[float]:
        """Returns loss sum, images right at the first place, among the first k, images."""
        return [float(self._loss), *map(float, self._correct.tolist()), float(self._seen)]

    def metrics(self, prefix: str) -> dict[str, float | None]:
        """Returns the row of a log line: mean loss and top-1 of this rank so far."""
        loss, correct1, _, seen = self.sums()
        return {f"{prefix}.loss": loss / seen, f"{prefix}.top1": 100.0 * correct1 / seen}

    def confusion(self) -> Confusion:
        """Returns which classes were taken for which, over all ranks."""
        return Confusion.of(*concat_over_ranks(torch.cat(self._answers, dim=1).cpu()).numpy())


class Validator:
    """Runs validations with the settings of one run.

    Args:
        criterion: Mean loss of (logits float32 [N, C], target int64 [N]).
        device: The device of this process.
        amp_dtype: Autocast type, None for the type of the weights.
        world_size: Number of ranks, for the throughput.
        topk: Second accuracy beside top-1.
        max_batches: Stop after this many batches (a partial, quick look).
        measure_latency: Wait for the device after each batch to time it (evaluation runs).
        epochs: Number of epochs of the run, for the progress.
        print_freq: Batches between log rows.
        logger: Receives rows and progress.
    """

    def __init__(
        self,
        criterion: nn.Module,
        *,
        device: Device,
        amp_dtype: torch.dtype | None,
        world_size: int,
        topk: int = 5,
        max_batches: int | None = None,
        measure_latency: bool = False,
        epochs: int = 1,
        print_freq: int = 100,
        logger: Logger,
    ) -> None:
        self.criterion = criterion
        self.device = device
        self.amp_dtype = amp_dtype
        self.world_size = world_size
        self.topk = topk
        self.max_batches = max_batches
        self.measure_latency = measure_latency
        self.epochs = epochs
        self.print_freq = print_freq
        self.logger = logger

    @torch.inference_mode()
    def run(
        self,
        model: nn.Module,
        loader: Loader,
        prefix: str,
        *,
        epoch: int = 0,
        iteration: int = 0,
        between_steps: Callable[[], None] = lambda: None,
    ) -> Validation:
        """Evaluates the model on the loader's images.

        Args:
            model: The network without wrappers: no collective runs in the forward pass, so ranks
                may have different numbers of batches.
            loader: Yields (images, target) on the device.
            prefix: "val" or "val_ema".
            epoch: Epoch number from 0, for the log.
            iteration: Training iterations of this epoch so far, for the log.
            between_steps: Called after each batch, on every rank equally often; an exception of it
                ends the validation.

        Returns:
            Sums over all ranks.

        Raises:
            DataError: No rank saw an image.
            DivergedError: The loss is not finite.
        """
        model.eval()
        loader.set_position(0, 0)
        num_batches = min(len(loader), self.max_batches or len(loader))
        warmup = min(5, num_batches // 4)
        throughput, latency = Throughput(warmup), LatencyMeter(warmup)
        tally = _Tally(self.topk, self.device.torch_device)
        row: dict[str, float | None] = {}
        for step, (images, target) in enumerate(throughput.timed(loader, num_batches), 1):
            logits = self._forward(model, images, latency)
            tally.add(logits, target, self.criterion(logits, target))
            if step % self.print_freq == 0:
                row = tally.metrics(prefix)
                self.logger.log((epoch, iteration, step), row)
            if step in (warmup, num_batches):
                self.device.synchronize()
            throughput.step_done(len(target) * self.world_size)
            self.logger.progress("val", epoch, self.epochs, step, num_batches, row or None)
            between_steps()
        for _ in range(num_batches, max_over_ranks(num_batches)):
            between_steps()  # other ranks have batches left
        if (news := loader.news()) is not None:
            self.logger.warning(f"{prefix}: {news}")
        speed = throughput.rates().metrics(prefix)
        if (times := latency.summary()) is not None:
            speed |= times.metrics(prefix)
        return self._result(tally, prefix, speed)

    def _result(self, tally: _Tally, prefix: str, speed: dict[str, float | None]) -> Validation:
        """Adds up what the ranks have counted."""
        loss, correct1, correctk, total = sum_over_ranks(tally.sums())
        if not total:
            raise DataError("validation saw no image; check the val folder or val.txt")
        if not math.isfinite(loss):
            raise DivergedError(
                f"the validation loss is {loss}: weights or activations overflowed; the last "
                "checkpoint is from before (with --fp16 try --amp)"
            )
        counts = int(correct1), int(correctk), int(total)
        return Validation(loss / total, *counts, self.topk, prefix, speed, tally.confusion())

    def _forward(
        self, model: nn.Module, images: torch.Tensor, latency: LatencyMeter
    ) -> torch.Tensor:
        started = time.perf_counter()
        with self.device.autocast(self.amp_dtype):
            logits: torch.Tensor = model(images)
        if self.measure_latency:
            self.device.synchronize()
            latency.add(time.perf_counter() - started)
        return logits.float()
