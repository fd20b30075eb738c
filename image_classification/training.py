# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: one step, one epoch.

The host never waits for the device inside a step. Sums of loss and hits stay on the device and are
read at log lines only; with `--print-freq` N the host waits once in N steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from image_classification.augmentation import hash64
from image_classification.distributed import concat_over_ranks, sum_over_ranks
from image_classification.ema import ModelEma
from image_classification.errors import CheckpointError, DivergedError, UsageError
from image_classification.metrics import Rates, Throughput
from image_classification.mixup import draw_weight, mix_images, partner
from image_classification.optimizers import load_state_by_name, state_by_name

if TYPE_CHECKING:
    from image_classification.dataloaders import Loader
    from image_classification.device import Device
    from image_classification.logger import Logger

# First values of hash64 streams that are not image augmentation.
_STREAM_MIXUP = 0x6D69787570
_STREAM_DROPOUT = 0x64726F70

_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd,)


def accumulation_steps(batch_size: int, world_size: int, optimizer_batch: int) -> int:
    """Returns how many batches per device make one optimizer step.

    Args:
        batch_size: Images per device and batch.
        world_size: Number of devices.
        optimizer_batch: Images per optimizer step over all devices, -1 for one batch per device.

    Raises:
        UsageError: `optimizer_batch` is not a multiple of the images of one batch per device.
    """
    group = batch_size * world_size
    if optimizer_batch > 0 and optimizer_batch % group:
        raise UsageError(
            f"--optimizer-batch-size {optimizer_batch} is not a multiple of {group} (--batch-size "
            f"{batch_size} x {world_size} devices); nearest: "
            f"{max(1, round(optimizer_batch / group)) * group}"
        )
    return optimizer_batch // group if optimizer_batch > 0 else 1


def steps_per_epoch(num_samples: int, optimizer_batch: int, limits: list[int]) -> int:
    """Returns the optimizer steps of an epoch: whole batches only, within the limits, at least 1.

    Args:
        num_samples: Images of an epoch over all ranks.
        optimizer_batch: Images per optimizer step over all ranks.
        limits: Largest numbers of steps the user asked for.
    """
    return max(1, min([num_samples // optimizer_batch, *limits]))


class Sums(NamedTuple):
    """Sums over the images of an interval, over all ranks.

    Attributes:
        loss: Sum of the loss over the images.
        hits: Images whose most probable class is their target.
        images: Number of images.
        grad_norm: L2 norm of the last gradient before clipping, 0 without clipping.
    """

    loss: float = 0.0
    hits: int = 0
    images: int = 0
    grad_norm: float = 0.0

    def plus(self, later: Sums) -> Sums:
        """Adds a later interval."""
        return Sums(
            self.loss + later.loss,
            self.hits + later.hits,
            self.images + later.images,
            later.grad_norm,
        )


class Trainer:
    """Owns everything a step changes: weights, optimizer, scaler, EMA and the step counters.

    Args:
        model: The network without wrappers, on the device.
        forward: What training calls: the network or its DistributedDataParallel wrapper.
        criterion: Mean loss of (logits float32 [N, C], target int64 [N]).
        optimizer: Optimizer whose groups carry "names" (see optimizers.parameter_groups).
        lr: Learning rate as a function of the optimizer step.
        device: The device of this process.
        amp_dtype: Autocast type, None for FP32.
        scaler: Gradient scaler of the device (a disabled one outside float16).
        accumulation_steps: Batches per optimizer step, >= 1.
        clip_grad_norm: Largest global L2 norm of the gradients, None for no clipping.
        mixup_alpha: MixUp's Beta parameter, 0 for none.
        ema: Averaged copy of `model`, updated after each optimizer step, or None.
        freeze_bn: Keep BatchNorm statistics fixed (evaluation mode) while training.
        seed: Seed of MixUp and dropout.
        rank: Rank of this process (its dropout masks differ from the others').
        world_size: Number of ranks, for the throughput.
        num_batches: Batches of an epoch on each device, a multiple of the accumulation steps.
        batch_images: Images of one batch over all ranks.

    Attributes:
        step: Optimizer steps attempted so far in the whole training; the schedule follows it.
        samples_done: Images of the current epoch used so far, over all ranks: those of whole
            optimizer steps, so that training can go on there.
        skipped_steps: Steps that the gradient scaler skipped because of an overflow.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr: Callable[[int], float],
        *,
        device: Device,
        num_batches: int,
        batch_images: int,
        amp_dtype: torch.dtype | None,
        scaler: Any,
        accumulation_steps: int = 1,
        clip_grad_norm: float | None = None,
        mixup_alpha: float = 0.0,
        ema: ModelEma | None = None,
        freeze_bn: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Stores the parts, see the class."""
        self.model = model
        self.forward = forward
        self.criterion = criterion
        self.optimizer = optimizer
        self.lr = lr
        self.device = device
        self.amp_dtype = amp_dtype
        self.scaler = scaler
        self.num_batches = num_batches
        self.batch_images = batch_images
        self.accumulation_steps = accumulation_steps
        self.clip_grad_norm = clip_grad_norm
        self.mixup_alpha = mixup_alpha
        self.ema = ema
        self.freeze_bn = freeze_bn
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.step = 0
        self.samples_done = 0
        self.skipped_steps = 0
        self._micro_step = 0
        self._warm = False
        self._reseed = any(
            isinstance(layer, _RANDOM_LAYERS) and layer.p > 0 for layer in model.modules()
        )
        # Of the epoch up to the last log line, and since: [loss sum, hits, skipped, gradient norm].
        self._totals = Sums()
        self._sums = torch.zeros(4, device=device.torch_device)
        self._images = 0

    def train_step(self, images: torch.Tensor, target: torch.Tensor) -> None:
        """Runs one batch forward and backward and, when a group of batches is full, one update.

        Args:
            images: [N, 3, H, W] on the device.
            target: Class indices [N], int64, on the device.
        """
        last = self._micro_step == self.accumulation_steps - 1
        if self._micro_step == 0:
            # Before the forward pass: freed last, the memory would go back to the system each step.
            self.optimizer.zero_grad(set_to_none=True)
        if self._reseed:
            self.device.seed(self._draw_key(self._micro_step, _STREAM_DROPOUT, self.rank))
        with self._gradient_sync(last):
            loss, logits = self._forward_loss(images, target)
            # The mean over the group: each batch contributes its share.
            share = loss / self.accumulation_steps if self.accumulation_steps > 1 else loss
            self.scaler.scale(share).backward()
        self._add_to_sums(loss, logits, target)
        self._micro_step = 0 if last else self._micro_step + 1
        if last:
            self._update()

    def train_epoch(
        self,
        loader: Loader,
        epoch: int,
        *,
        epochs: int,
        print_freq: int,
        logger: Logger,
        between_steps: Callable[[], None] = lambda: None,
    ) -> dict[str, float | None]:
        """Trains to the end of an epoch, from `samples_done` on.

        Args:
            loader: Yields (images, target) on the device.
            epoch: Epoch number from 0.
            epochs: Number of epochs of the whole training, for the log.
            print_freq: Batches between log lines.
            logger: Receives a row per log line and the moving progress.
            between_steps: Called after each optimizer step, when `state_dict` holds all there is;
                an exception of it ends the training.

        Returns:
            Metrics of the epoch: mean loss, top-1 (%), images/s, times (s).

        Raises:
            DivergedError: The loss of a log interval is not finite.
        """
        self._enter_train_mode()
        loader.set_position(epoch, self.samples_done)
        first = self.samples_done // self.batch_images
        # Compilation, autotuning and worker start-up belong to the first steps of the process.
        throughput = Throughput(warmup=0 if self._warm else min(10, self.num_batches // 4))
        self._warm = True
        row: dict[str, float | None] = {}
        batches = throughput.timed(loader, self.num_batches - first)
        for iteration, (images, target) in enumerate(batches, first + 1):
            self.train_step(images, target)
            if iteration == first + throughput.warmup:
                self.device.synchronize()
            at_log_line = iteration % print_freq == 0
            if at_log_line or iteration == self.num_batches:
                interval = self._read_sums()
                self._totals = self._totals.plus(interval)
            throughput.step_done(self.batch_images)
            if at_log_line:
                row = self._metrics(interval, throughput.window_rates())
                self._log(row, epoch, iteration, logger, loader)
                self._check_finite(interval, epoch, iteration)
            logger.progress("train", epoch, epochs, iteration, self.num_batches, row or None)
            if self._micro_step == 0:
                self.samples_done = iteration * self.batch_images
                between_steps()
        self._check_finite(self._totals, epoch, self.num_batches)
        return self._metrics(self._totals, throughput.rates())

    def finish_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self.samples_done, self._totals = 0, Sums()

    def models(self) -> dict[str, nn.Module]:
        """Returns what to validate, by metric prefix: the network and, last, its average."""
        return {"val": self.model} | ({"val_ema": self.ema.model} if self.ema else {})

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs of the training: see the keys in checkpoint.py.

        All ranks call it together, between two steps.
        """
        mine = torch.tensor([[*self._sums.tolist(), self._images]], dtype=torch.float64)
        return {
            "samples_done": self.samples_done,
            "sums": {"epoch": list(self._totals), "ranks": concat_over_ranks(mine.T).T.tolist()},
            "state_dict": self.model.state_dict(),
            "state_dict_ema": self.ema.state() if self.ema else None,
            "optimizer": state_by_name(self.optimizer),
            "amp": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "counters": {
                "step": self.step,
                "skipped_steps": self.skipped_steps,
                "ema_updates": self.ema.updates if self.ema else 0,
            },
        }

    def load_state_dict(self, saved: dict[str, Any]) -> list[str]:
        """Restores what `state_dict` returned, except the weights, which the model has already.

        Args:
            saved: The checkpoint.

        Returns:
            One line per part that the checkpoint does not have.
        """
        missing = []
        if load_state_by_name(self.optimizer, saved["optimizer"]):
            missing.append("the checkpoint lacks optimizer state of some parameters")
        counters = saved["counters"]
        self.step = int(counters["step"])
        self.skipped_steps = int(counters["skipped_steps"])
        self._load_position(saved)
        if self.scaler.is_enabled():
            if saved.get("amp"):
                self.scaler.load_state_dict(saved["amp"])
            else:
                missing.append("the checkpoint has no loss scale: it starts anew")
        if self.ema is not None:
            if saved.get("state_dict_ema") is not None:
                self.ema.load(saved["state_dict_ema"], int(counters["ema_updates"]))
            else:
                missing.append("the checkpoint has no EMA weights: the average starts now")
        return missing

    def _load_position(self, saved: dict[str, Any]) -> None:
        """Goes to the place within the epoch, with the sums of what is done of it."""
        self.samples_done = int(saved["samples_done"])
        group = self.batch_images * self.accumulation_steps
        if self.samples_done % group or self.samples_done > self.num_batches * self.batch_images:
            raise CheckpointError(
                f"the checkpoint stopped within an epoch, after {self.samples_done} images: that "
                f"is no whole number of steps of {group} images or beyond this run's epoch; use "
                "the same --optimizer-batch-size and data, or a checkpoint of a whole epoch"
            )
        sums = saved.get("sums")
        if sums is None:
            return
        loss, hits, images, grad_norm = sums["epoch"]
        self._totals = Sums(loss, int(hits), int(images), grad_norm)
        ranks = sums["ranks"]
        if len(ranks) != self.world_size:  # only the sum over the ranks matters to the log
            loss, hits, images = (sum(rank[place] for rank in ranks) for place in (0, 1, 4))
            ranks = [[loss, hits, *ranks[0][2:4], images]]
        if self.rank < len(ranks):
            *values, images = ranks[self.rank]
            self._sums.copy_(torch.tensor(values))
            self._images = int(images)

    def _log(
        self, row: dict[str, float | None], epoch: int, iteration: int, logger: Logger,
        loader: Loader,
    ) -> None:  # fmt: skip
        logger.log((epoch, iteration), row)
        if (advice := loader.explain_waiting(row)) is not None:
            logger.warning(advice)

    def _enter_train_mode(self) -> None:
        self.forward.train()
        self.model.train()
        if self.freeze_bn:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self._micro_step = 0

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Lets DistributedDataParallel add up gradients in the last batch of a group only."""
        if last or not hasattr(self.forward, "no_sync"):
            return contextlib.nullcontext()
        return self.forward.no_sync()

    def _draw_key(self, *stream: int) -> int:
        """Returns the key of a draw of this optimizer step, the same after any resume."""
        return int(hash64(self.seed, self.step, *stream))

    def _forward_loss(
        self, images: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight = None
        if self.mixup_alpha:
            # The same for all ranks and batches of the step; mixup.py says who blends with whom.
            weight = draw_weight(self.mixup_alpha, self._draw_key(_STREAM_MIXUP))
            images = mix_images(images, weight)
        with self.device.autocast(self.amp_dtype):
            logits = self.forward(images)
        logits = logits.float()  # the loss in full precision, on every device
        loss = self.criterion(logits, target)
        if weight is not None:
            # Cross entropy is linear in the target distribution: no soft targets are needed.
            other = self.criterion(logits, partner(target))
            loss = weight * loss + (1.0 - weight) * other
        return loss, logits

    @torch.no_grad()
    def _add_to_sums(self, loss: torch.Tensor, logits: torch.Tensor, target: torch.Tensor) -> None:
        hits = (logits.argmax(dim=1) == target).sum()
        self._sums[0] += loss.detach() * len(target)
        self._sums[1] += hits
        self._images += len(target)

    def _read_sums(self) -> Sums:
        """Reads and clears the sums since the last call, added over all ranks: the host waits."""
        loss, hits, skipped, grad_norm = self._sums.tolist()
        images, self._images = self._images, 0
        self._sums.zero_()
        self.skipped_steps += int(skipped)  # the same on every rank: gradients are shared
        loss, hits, total = sum_over_ranks([loss, hits, float(images)])
        return Sums(loss, int(hits), int(total), grad_norm)

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.step)
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad_norm)
            self._sums[3] = norm.detach()
        # Without a fused optimizer an enabled scaler waits here once to learn of an overflow.
        self.scaler.step(self.optimizer)
        for found in self._overflow_flags():
            self._sums[2] += found.sum().to(self._sums.device)
        self.scaler.update()
        self.step += 1
        if self.ema is not None:
            self.ema.update()

    def _overflow_flags(self) -> list[torch.Tensor]:
        """Returns the scaler's flags of this step, which torch keeps on the device."""
        if not self.scaler.is_enabled() or not hasattr(self.scaler, "_found_inf_per_device"):
            return []
        return list(self.scaler._found_inf_per_device(self.optimizer).values())

    def _metrics(self, sums: Sums, rates: Rates) -> dict[str, float | None]:
        """Builds a log row; called at log lines, where the host has waited already."""
        row: dict[str, float | None] = {
            "train.loss": sums.loss / max(sums.images, 1),
            "train.top1": 100.0 * sums.hits / max(sums.images, 1),
            **rates.metrics("train"),
            "train.lr": self.lr(max(self.step - 1, 0)),
            "train.grad_scale": self.scaler.get_scale() if self.scaler.is_enabled() else 1.0,
            "train.skipped_steps": self.skipped_steps,
        }
        if self.clip_grad_norm is not None:
            row["train.grad_norm"] = sums.grad_norm
        memory = self.device.memory()
        if memory is not None:
            row["device.memory_peak"] = memory.peak / 2**20
        return row | self.device.telemetry()

    def _check_finite(self, sums: Sums, epoch: int, iteration: int) -> None:
        if math.isfinite(sums.loss):
            return
        # An overflow that the scaler skipped may leave a non-finite loss behind without harm.
        if self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0:
            return
        raise DivergedError(
            f"the loss is not finite (epoch {epoch}, iteration {iteration}, optimizer step "
            f"{self.step}, lr {self.lr(max(self.step - 1, 0)):.6g}); try a lower --lr, a longer "
            "--warmup or --clip-grad-norm 1; a checkpoint that is there is from before"
        )
