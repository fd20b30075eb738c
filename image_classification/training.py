# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: one step, one epoch.

The host never waits for the device inside a step. Sums of loss and hits stay on the device and are
read at log lines only; with `--print-freq` N the host waits once in N steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from image_classification import sharding
from image_classification.augmentation import hash64
from image_classification.divergence import ROLLBACK_FACTOR, Place, StepGuard
from image_classification.ema import ModelEma
from image_classification.errors import CheckpointError
from image_classification.freezing import Freezing
from image_classification.metrics import Rates, Throughput
from image_classification.mixup import Mix, draw_cut, draw_weight, mix, partner
from image_classification.optimizers import load_state_by_name, state_by_name
from image_classification.running_sums import RunningSums, Sums

if TYPE_CHECKING:
    from image_classification.dataloaders import Loader
    from image_classification.device import Device
    from image_classification.logger import Logger

# First values of hash64 streams that are not image augmentation.
_STREAM_MIXUP = 0x6D69787570
_STREAM_CUTMIX = 0x6375746D6978
_STREAM_SWITCH = 0x737769746368
_STREAM_DROPOUT = 0x64726F70

_RANDOM_LAYERS = (nn.modules.dropout._DropoutNd,)


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
        cutmix_alpha: CutMix's Beta parameter, 0 for none; of both, a step gets either.
        ema: Averaged copy of `model`, updated after each optimizer step, or None.
        freeze_bn: Keep BatchNorm statistics fixed (evaluation mode) while training.
        freezing: Parts of the network that are not trained, or None.
        seed: Seed of MixUp, CutMix and dropout.
        rank: Rank of this process (its dropout masks differ from the others').
        world_size: Number of ranks, for the throughput.
        num_batches: Batches of an epoch on each device, a multiple of the accumulation steps.
        batch_images: Images of one batch over all ranks.

    Attributes:
        step: Optimizer steps attempted so far in the whole training; the schedule follows it.
        samples_done: Images of the current epoch used so far, over all ranks: those of whole
            optimizer steps, so that training can go on there.
        guard: Leaves out steps whose gradients are not finite.
        sums: Of losses and hits since the last log line and in the epoch.
        rollbacks: How often the training went back to a checkpoint after a divergence.
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
        cutmix_alpha: float = 0.0,
        ema: ModelEma | None = None,
        freeze_bn: bool = False,
        freezing: Freezing | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Stores the parts, see the class."""
        self.model = model
        self.forward = forward
        self._wrap: Callable[[nn.Module], nn.Module] = lambda network: network
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
        self.cutmix_alpha = cutmix_alpha
        self.ema = ema
        self.freeze_bn = freeze_bn
        self.freezing = freezing
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.step = 0
        self.samples_done = 0
        self.rollbacks = 0
        self.guard = StepGuard(optimizer, list(model.parameters()), scaler, device)
        self._epoch = 0
        self._micro_step = 0
        self._warm = False
        self._reseed = any(
            isinstance(layer, _RANDOM_LAYERS) and layer.p > 0 for layer in model.modules()
        )
        self.sums = RunningSums(device.torch_device)
        self._loss_is_finite = torch.ones((), dtype=torch.bool, device=device.torch_device)

    def spread(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Trains through what `wrap` makes of the network, which knows what is trained by then."""
        self._wrap = wrap
        self.forward = wrap(self.model)

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
        self._loss_is_finite = self._loss_is_finite & self.sums.add_batch(loss, logits, target)
        self._micro_step = 0 if last else self._micro_step + 1
        if last:
            self._update()

    def train_alone(self, images: torch.Tensor, target: torch.Tensor) -> None:
        """Makes one optimizer step of one batch, to see what it takes; see `train_step`."""
        accumulation, self.accumulation_steps = self.accumulation_steps, 1
        self._enter_train_mode()
        try:
            self.train_step(images, target)
        finally:
            self.accumulation_steps = accumulation

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
        """
        self._epoch = epoch
        if self.freezing is not None and self.freezing.enter(epoch):
            self.spread(self._wrap)
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
                interval = self.sums.read()
            throughput.step_done(self.batch_images)
            if at_log_line:
                row = self._metrics(interval, throughput.window_rates())
                self._log(row, epoch, iteration, logger, loader)
            logger.progress("train", epoch, epochs, iteration, self.num_batches, row or None)
            if self._micro_step == 0:
                self.samples_done = iteration * self.batch_images
                between_steps()
        self.guard.read_all()
        return self._metrics(self.sums.epoch, throughput.rates())

    def finish_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self.samples_done = 0
        self.sums.start_epoch()

    @property
    def step_images(self) -> int:
        """Images of an optimizer step over all ranks."""
        return self.batch_images * self.accumulation_steps

    def rate(self, step: int) -> float:
        """Returns the learning rate of an optimizer step."""
        return self.lr(step) * ROLLBACK_FACTOR**self.rollbacks

    def scale(self) -> float:
        """Returns the loss scale, 1 outside float16; the host waits."""
        return float(self.scaler.get_scale()) if self.scaler.is_enabled() else 1.0

    def models(self) -> dict[str, nn.Module]:
        """Returns what to validate, by metric prefix: the network and, last, its average."""
        return {"val": self.model} | ({"val_ema": self.ema.model} if self.ema else {})

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint needs of the training: see the keys in checkpoint.py.

        All ranks call it together, between two steps; in inference mode, too, as in a validation.
        """
        with torch.inference_mode(False):  # in which parts of tensors cannot be brought together
            return self._state()

    def _state(self) -> dict[str, Any]:
        return {
            "samples_done": self.samples_done,
            "sums": self.sums.state(),
            "state_dict": sharding.whole(self.model.state_dict()),
            "state_dict_ema": self.ema.state() if self.ema else None,
            "optimizer": state_by_name(self.optimizer),
            "amp": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "counters": {
                "step": self.step,
                "skipped_steps": self.sums.skipped_steps,
                "ema_updates": self.ema.updates if self.ema else 0,
                "rollbacks": self.rollbacks,
            },
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes to what `state_dict` returned, weights included; all ranks call it together."""
        sharding.load_state_dict(self.model, saved["state_dict"])
        self.load_state_dict(saved)

    def go_back(self, saved: dict[str, Any]) -> None:
        """Goes back to a checkpoint of this training, with a lower learning rate from there on."""
        rollbacks = self.rollbacks + 1
        self.restore(saved)
        self.rollbacks = rollbacks

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
        self.rollbacks = int(counters.get("rollbacks", 0))
        self.sums.skipped_steps = int(counters["skipped_steps"])
        self._load_position(saved)
        self.guard.forget()
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
        group = self.step_images
        if self.samples_done % group or self.samples_done > self.num_batches * self.batch_images:
            raise CheckpointError(
                f"the checkpoint stopped within an epoch, after {self.samples_done} images: that "
                f"is no whole number of steps of {group} images or beyond this run's epoch; use "
                "the same --optimizer-batch-size and data, or a checkpoint of a whole epoch"
            )
        self.sums.start_epoch()
        if saved.get("sums") is not None:
            self.sums.load(saved["sums"], rank=self.rank, world_size=self.world_size)

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
        if self.freezing is not None:
            self.freezing.hold()
        self._micro_step = 0

    def _gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Lets the ranks add up gradients in the last batch of a group only."""
        if sharding.is_sharded(self.model):
            self.model.set_requires_gradient_sync(last)
        elif not last and hasattr(self.forward, "no_sync"):
            return self.forward.no_sync()
        return contextlib.nullcontext()

    def _draw_key(self, *stream: int) -> int:
        """Returns the key of a draw of this optimizer step, the same after any resume."""
        return int(hash64(self.seed, self.step, *stream))

    def _forward_loss(
        self, images: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        how = self._draw_mix(*images.shape[2:])
        if how is not None:
            images = mix(images, how)
        with self.device.autocast(self.amp_dtype):
            logits = self.forward(images)
        logits = logits.float()  # the loss in full precision, on every device
        loss = self.criterion(logits, target)
        if how is not None:
            # Cross entropy is linear in the target distribution: no soft targets are needed.
            other = self.criterion(logits, partner(target))
            loss = how.weight * loss + (1.0 - how.weight) * other
        return loss, logits

    def _draw_mix(self, height: int, width: int) -> Mix | None:
        """Draws for all ranks and batches of the step; mixup.py says who is mixed with whom."""
        both = self.mixup_alpha and self.cutmix_alpha
        if self.cutmix_alpha and not (both and self._draw_key(_STREAM_SWITCH) % 2):
            return draw_cut(self.cutmix_alpha, self._draw_key(_STREAM_CUTMIX), height, width)
        if self.mixup_alpha:
            return Mix(draw_weight(self.mixup_alpha, self._draw_key(_STREAM_MIXUP)))
        return None

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step) * group["lr_scale"]
        place = Place(self.step, self._epoch, self.samples_done)
        left_out, norm = self.guard.step(place, self._loss_is_finite, self.clip_grad_norm)
        self.sums.add_step(left_out, norm)
        self._loss_is_finite = torch.ones_like(self._loss_is_finite)
        self.step += 1
        if self.ema is not None:
            self.ema.update()

    def _metrics(self, sums: Sums, rates: Rates) -> dict[str, float | None]:
        """Builds a log row; called at log lines, where the host has waited already."""
        row: dict[str, float | None] = {
            **sums.metrics(),
            **rates.metrics("train"),
            "train.lr": self.rate(max(self.step - 1, 0)),
            "train.grad_scale": self.scale(),
            "train.skipped_steps": self.sums.skipped_steps,
        }
        if self.clip_grad_norm is not None:
            row["train.grad_norm"] = sums.grad_norm
        memory = self.device.memory()
        if memory is not None:
            row["device.memory_peak"] = memory.peak / 2**20
        return row | self.device.telemetry()
