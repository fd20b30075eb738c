# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank sees which samples when: the same for every backend and any number of ranks.

Micro-batch k of an epoch is order[k*W*B : (k+1)*W*B] for W ranks and B samples per rank, and rank r
takes the part [r*B : (r+1)*B] of it. The union over the ranks of one optimizer step is therefore a
contiguous piece of the epoch's order, whatever W, B and the accumulation are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from image_classification.augmentation import epoch_order
from image_classification.errors import DataError

# Share of the time (%) spent waiting for data that a user should hear of.
WORTH_A_WORD = 10.0
WORTH_BATCHES = 20


class BatchSchedule:
    """The slices of one rank, and the position within the epoch.

    Training shuffles and drops the incomplete last global batch, other samples in each epoch.
    Validation keeps every sample exactly once and in order; at the end some ranks get fewer samples
    or none.

    Args:
        total: Size of the data set.
        batch_size: Samples per rank and micro-batch (B).
        rank: This process, 0 .. world_size - 1.
        world_size: Number of processes (W).
        global_batch: Training: samples per optimizer step, a multiple of W * B. Ignored else.
        seed: Seed of the run.
        training: Training or validation.

    Attributes:
        batch_size: As given.
        seed: As given.
        num_samples: Samples of one epoch over all ranks.
        epoch: Epoch of the current position.
        samples: Samples of that epoch already consumed, over all ranks.

    Raises:
        DataError: Training on fewer samples than one global batch, or validation on none.
        ValueError: Numbers that do not fit together.
    """

    def __init__(
        self,
        total: int,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        global_batch: int,
        seed: int,
        training: bool,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size must be >= 1 and 0 <= rank < world_size, received batch_size "
                f"{batch_size}, rank {rank}, world_size {world_size}"
            )
        self.batch_size = batch_size
        self.seed = seed
        self._total = total
        self._training = training
        self._first = rank * batch_size
        self._stride = world_size * batch_size
        self._quantum = global_batch if training else self._stride
        if self._quantum < 1 or self._quantum % self._stride:
            raise ValueError(
                f"global_batch must be a multiple of world_size * batch_size = {self._stride}, "
                f"received {global_batch}"
            )
        self.num_samples = total - total % self._quantum if training else total
        self.epoch = 0
        self.samples = 0
        if self.num_samples == 0:
            raise DataError(self._too_few_text(world_size) if training else "no validation image")

    def _too_few_text(self, world_size: int) -> str:
        accumulation = self._quantum // self._stride
        return (
            f"{self._total} training images are fewer than one global batch of {self._quantum} "
            f"({world_size} devices x {self.batch_size} x {accumulation} accumulation steps); "
            "reduce --batch-size or --optimizer-batch-size"
        )

    def set_position(self, epoch: int, samples: int) -> None:
        """Go on within `epoch` after `samples` samples (over all ranks); O(1).

        Raises:
            ValueError: Negative, beyond the epoch, or not on a step boundary (training: multiples
                of the global batch; validation: of world_size * batch_size).
        """
        aligned = samples % self._quantum == 0 or samples == self.num_samples
        if epoch < 0 or not 0 <= samples <= self.num_samples or not aligned:
            raise ValueError(
                f"position must be epoch >= 0 and a multiple of {self._quantum} samples up to "
                f"{self.num_samples}, received epoch {epoch}, samples {samples}"
            )
        self.epoch, self.samples = epoch, samples

    def indices(self, epoch: int, samples: int, count: int) -> NDArray[np.int64]:
        """The `count` sample indices, over all ranks, after the first `samples` of an epoch."""
        order = epoch_order(self.seed, epoch, self._total, self._training)
        return order[samples : samples + count]

    def advance(self) -> None:
        """Go to the start of the next epoch."""
        self.epoch, self.samples = self.epoch + 1, 0

    def __len__(self) -> int:
        """Micro-batches that this rank still gets in the current epoch."""
        left = self.num_samples - self.samples - self._first
        return max(0, -(-left // self._stride))

    def slices(self) -> Iterator[tuple[int, int]]:
        """First position in the epoch's order and size of each remaining micro-batch."""
        for start in range(self.samples + self._first, self.num_samples, self._stride):
            yield start, min(self.batch_size, self.num_samples - start)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """The sample indices of each remaining micro-batch of this rank, int64 [<= B]."""
        order = epoch_order(self.seed, self.epoch, self._total, self._training)
        for start, size in self.slices():
            yield order[start : start + size]


class ScheduledLoader:
    """The part of a loader that its schedule answers; see `dataloaders.Loader`.

    Args:
        schedule: Which samples this rank gets, and in which order.

    Attributes:
        notes: One-line texts about what was adapted, for the log.
        fallbacks: Images so far that the loader's own decoder did not read, but Pillow.
        fallback_advice: What to do about them, for the user.
        waiting_advice: What to do where the device waits for this loader; empty: it never does.
    """

    fallback_advice = ""
    waiting_advice = ""

    def __init__(self, schedule: BatchSchedule) -> None:
        self._schedule = schedule
        self.notes: list[str] = []
        self.fallbacks = 0
        self._fallbacks_told = False
        self._waiting_told = False

    @property
    def num_samples(self) -> int:
        """Samples of one epoch over all ranks, as used."""
        return self._schedule.num_samples

    def sample_ids(self, epoch: int, samples: int, count: int) -> list[int]:
        """See `BatchSchedule.indices`."""
        return [int(index) for index in self._schedule.indices(epoch, samples, count)]

    def set_position(self, epoch: int, samples: int) -> None:
        """See `BatchSchedule.set_position`."""
        self._schedule.set_position(epoch, samples)
        self._waiting_told = False

    def __len__(self) -> int:
        """Batches that this rank yields from the current position to the end of the epoch."""
        return len(self._schedule)

    def news(self) -> str | None:
        """Once, how many images Pillow had to read; None if there is nothing to say."""
        if self._fallbacks_told or not self.fallbacks:
            return None
        self._fallbacks_told = True
        return (
            f"{self.fallbacks} images so far were read by Pillow, which is slower: "
            f"{self.fallback_advice}"
        )

    def explain_waiting(self, row: Mapping[str, float | None]) -> str | None:
        """What to change where training waits for its data, once after each `set_position`.

        Nothing is said of epochs so short that their start is all there is to measure.

        Args:
            row: Metrics: train.data_wait (%), train.total_ips and train.compute_ips (images/s).

        Returns:
            One line, None below 10 %.
        """
        wait, rate = row.get("train.data_wait"), row.get("train.total_ips")
        if not wait or not rate or wait <= WORTH_A_WORD:
            return None
        if not self.waiting_advice or self._waiting_told or len(self) < WORTH_BATCHES:
            return None
        self._waiting_told = True
        return (
            f"{wait:.0f} % of the time went into waiting for images: the loader gave {rate:.0f} "
            f"images/s, the network could take {row.get('train.compute_ips') or rate:.0f}; "
            f"{self.waiting_advice}"
        )
