# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The epochs of a run: train, validate, keep the best, save, stop where nothing is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from image_classification import distributed, sharding
from image_classification.agreement import Agreement
from image_classification.divergence import MOST_ROLLBACKS
from image_classification.errors import CheckpointError, DivergedError
from image_classification.interruption import Interruption, Stopped
from image_classification.run_files import CONFUSION_NAME, DIVERGENCE_NAME

if TYPE_CHECKING:
    from image_classification.dataloaders import Loader
    from image_classification.logger import Logger
    from image_classification.save_interval import SaveInterval
    from image_classification.saver import Saver
    from image_classification.training import Trainer
    from image_classification.validation import Validation, Validator

Row = dict[str, float | None]
GoBack = Callable[[Callable[[str], None], int | None], dict[str, Any] | None]

_CURE = "try a lower --lr, a longer --warmup or --clip-grad-norm 1; the checkpoints are from before"

# Seconds of training that nobody wants to repeat because its validation has failed.
_WORTH_SAVING_S = 60.0


@dataclasses.dataclass
class Progress:
    """How far a run has come; part of its checkpoints.

    Attributes:
        epoch: The epoch in which training goes on.
        phase: "train", or "validate" where the training part of the epoch is done.
        row: Metrics of that part.
        best_prec1: Best validation top-1 (%) so far.
        best_epoch: The epoch that reached it, -1 for none.
    """

    epoch: int = 0
    phase: str = "train"
    row: Row = dataclasses.field(default_factory=dict)
    best_prec1: float | None = None
    best_epoch: int = -1

    @classmethod
    def of(cls, saved: dict[str, Any] | None) -> Progress:
        """Returns that of a checkpoint, or that of a new run."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: saved[name] for name in names if name in saved} if saved else {})


class EpochLoop:
    """Runs the epochs of a training.

    Args:
        trainer: Trains; holds the weights and the place within the epoch.
        validator: Validates.
        loaders: "train" and, unless only training is wanted, "val".
        progress: Where to go on.
        saver: Writes checkpoints; None on ranks that do not, and where none are wanted.
        saves: Whether any rank has a saver.
        about: What a checkpoint holds beside progress and training state.
        interval: How often to save within an epoch.
        epochs: Epochs of the whole training.
        run_epochs: Largest number of epochs of this start, or less than 1 for no limit.
        patience: Stop after so many epochs without a better top-1, or less than 1 for never.
        print_freq: Batches between log lines.
        interruption: Asked for stop requests.
        beat: Called after each step of training and validation.
        logger: Receives rows and messages.
        name_sample: The path of a training image, by its number in the data set.
        go_back: Reads the newest checkpoint that has not made more optimizer steps than its second
            argument (None: any); its first one is told what was left out. None: a divergence ends
            the training.
    """

    def __init__(
        self,
        trainer: Trainer,
        validator: Validator,
        loaders: dict[str, Loader],
        progress: Progress,
        *,
        saver: Saver | None,
        saves: bool,
        about: dict[str, Any],
        interval: SaveInterval,
        epochs: int,
        run_epochs: int = -1,
        patience: int = -1,
        print_freq: int,
        interruption: Interruption,
        beat: Callable[[], None],
        logger: Logger,
        name_sample: Callable[[int], str] = str,
        go_back: GoBack | None = None,
    ) -> None:
        self.trainer = trainer
        self.validator = validator
        self.loaders = loaders
        self.progress = progress
        self.saver = saver
        self.saves = saves
        self.about = about
        self.interval = interval
        self.epochs = epochs
        self.run_epochs = run_epochs
        self.patience = patience
        self.print_freq = print_freq
        self.interruption = interruption
        self.beat = beat
        self.logger = logger
        self.name_sample = name_sample
        self.go_back = go_back
        self._agreement = Agreement(questions=4)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.step
        self._asked = False

    def run(self) -> tuple[float | None, Row]:
        """Trains to the end, or as far as this start may go.

        Returns:
            The best top-1 (%), if anything was validated, and the metrics of the last epoch.

        Raises:
            Stopped: All ranks have agreed to stop, and the last step is saved.
            DivergedError: Too many steps in a row were bad, or the validation's loss is not finite.
            CheckpointError: The last checkpoint could not be written.
        """
        progress, row = self.progress, Row()
        last = self.epochs
        if self.run_epochs > 0:
            last = min(last, progress.epoch + self.run_epochs)
        if progress.epoch >= last or self._is_stale():
            done = f"{progress.epoch} of {self.epochs} epochs are done"
            self.logger.message(f"nothing left to do: {done}")
            return progress.best_prec1, row
        self._tell_start()
        with self.interruption.held(), contextlib.ExitStack() as cleanup:
            if self.saver is not None:
                cleanup.callback(self.saver.finish)  # what is being written, whatever happens
            while progress.epoch < last and not self._is_stale():
                try:
                    row = self._run_epoch()
                    if progress.epoch == last or self._is_stale():
                        self._check_last_save()
                except DivergedError as error:
                    self._return_from(error)
            if self._is_stale():
                best = progress.best_epoch + 1
                self.logger.message(f"early stop: no better top-1 since epoch {best}")
            elif progress.epoch < self.epochs and self.saves:
                self.logger.message(
                    f"{progress.epoch} of {self.epochs} epochs are done; --resume auto goes on"
                )
            if self.saver is not None:
                self.saver.close()
        return progress.best_prec1, row

    def _tell_start(self) -> None:
        """Says where a training goes on that does not begin."""
        epoch, images, where = self.progress.epoch, self.trainer.samples_done, ""
        if self.progress.phase == "validate":
            where = ", with its validation"
        elif images:
            where = f", after {images} of its images"
        if epoch or where:
            self.logger.message(f"going on in epoch {epoch + 1} of {self.epochs}{where}")

    def _check_last_save(self) -> None:
        """Waits for the last checkpoint; all ranks learn whether its weights are finite."""
        self._wait_for_file()
        self._diverge_together()

    def _wait_for_file(self) -> None:
        """All ranks wait until the checkpoint that is being written is there, and stay alive."""
        if self.saver is not None:
            self.saver.finish()
        self._agreement.meet(self.beat)

    def _is_stale(self) -> bool:
        stale = self.progress.epoch - 1 - self.progress.best_epoch
        return self.progress.epoch > 0 and 0 < self.patience <= stale

    def _run_epoch(self) -> Row:
        progress, trainer, epoch = self.progress, self.trainer, self.progress.epoch
        if progress.phase == "train":
            progress.row = self._train(epoch)
            progress.phase = "validate"
            self._secure_training()
        row, result = self._validate(epoch)
        best = progress.best_prec1
        if is_best := result is not None and (best is None or result.top1 > best):
            progress.best_prec1, progress.best_epoch = result.top1, epoch
            self.logger.document(CONFUSION_NAME, result.document(self.about["classes"], epoch))
        self.logger.log((epoch,), row)
        progress.epoch, progress.phase, progress.row = epoch + 1, "train", {}
        trainer.finish_epoch()
        self._save(best=is_best, numbered=True)
        return row

    def _secure_training(self) -> None:
        """Save what took long to train: a validation that fails, say on a bad image, keeps it."""
        due = self.saver is not None and time.monotonic() - self._saved_at >= _WORTH_SAVING_S
        if "val" in self.loaders and distributed.max_over_ranks(int(due)):
            self._save()

    def _train(self, epoch: int) -> Row:
        started, loader = time.perf_counter(), self.loaders["train"]
        row = self.trainer.train_epoch(
            loader, epoch, epochs=self.epochs, print_freq=self.print_freq, logger=self.logger,
            between_steps=self._between_steps,
        )  # fmt: skip
        self._diverge_together()
        row["train.epoch_time"] = time.perf_counter() - started
        if (news := loader.news()) is not None:
            self.logger.warning(f"train: {news}")
        return row

    def _validate(self, epoch: int) -> tuple[Row, Validation | None]:
        """Returns the metrics of the epoch and the result that decides on the best one."""
        row, result = dict(self.progress.row), None
        for prefix, model in self.trainer.models().items():
            # BatchNorm statistics (and averages of them) are rank 0's, on every rank.
            distributed.broadcast_buffers(model)
            if "val" in self.loaders:
                with sharding.gathered(model):  # ranks may have different numbers of batches
                    result = self.validator.run(
                        model, self.loaders["val"], prefix, epoch=epoch,
                        iteration=self.trainer.num_batches, between_steps=self._within_validation,
                    )  # fmt: skip
                row |= result.metrics()
        return row, result  # of the average, which comes last, where there is one

    def _between_steps(self) -> None:
        """Save or stop, if any rank wants to."""
        self.beat()
        in_doubt = bool(self.trainer.guard.bad_steps)
        stop, save, doubt, diverged = self._agreement.ask(
            (self.interruption.requested, self._is_due(), in_doubt, self._has_diverged())
        )
        steps = self.interval.steps
        if stop:
            self._leave()
        if diverged:
            self._diverge()
        due = save or (steps and self.trainer.step - self._saved_step >= steps)
        if due and doubt:
            self._asked = False  # later: the checkpoints to go back to would soon be gone
        elif due:
            self._save()

    def _within_validation(self) -> None:
        self.beat()
        if self._agreement.ask((self.interruption.requested, False, False, False))[0]:
            self._leave()

    def _is_due(self) -> bool:
        """Whether this process asks for a save because of the time; only the one that saves."""
        seconds = self.interval.seconds
        if self.saver is None or seconds is None or self._asked or self.saver.busy:
            return False
        self._asked = time.monotonic() - self._saved_at >= seconds
        return self._asked

    def _has_diverged(self) -> bool:
        """Whether this rank knows of too many bad steps, or of weights that cannot be saved."""
        return self.trainer.guard.diverged or (self.saver is not None and self.saver.ruined)

    def _diverge_together(self) -> None:
        """Ends the training where any rank knows of a divergence; the ranks wait for each other."""
        if distributed.max_over_ranks(int(self._has_diverged())):
            self._diverge()

    def _diverge(self) -> NoReturn:
        """Says what was bad; all ranks have agreed on it."""
        steps, trainer = self.trainer.guard.bad_steps, self.trainer
        if not trainer.guard.diverged:
            raise DivergedError(
                f"the weights or BatchNorm statistics are not finite (epoch "
                f"{self.progress.epoch + 1}, optimizer step {trainer.step}); {_CURE}"
            )
        first, last, rate = steps[0], steps[-1], trainer.rate(steps[-1].step)
        samples = {
            place.step: self.loaders["train"].sample_ids(
                place.epoch, place.samples, trainer.step_images
            )
            for place in steps
        }
        content = {"rates": {place.step: trainer.rate(place.step) for place in steps},
                   "loss_scale": trainer.scale(),
                   "samples": {step: [*map(self.name_sample, numbers)]
                               for step, numbers in samples.items()}}  # fmt: skip
        self.logger.document(DIVERGENCE_NAME, content)
        ids = ", ".join(map(str, samples[last.step][:3]))
        raise DivergedError(
            f"loss or gradients were not finite in {len(steps)} optimizer steps in a row "
            f"({first.step} to {last.step}, epoch {last.epoch + 1}; lr {rate:.6g}, loss scale "
            f"{trainer.scale():g}, samples {ids}, ... in the last one, {DIVERGENCE_NAME} has all); "
            f"{_CURE}"
        )

    def _return_from(self, error: DivergedError) -> None:
        """Goes back to a checkpoint from before the bad steps.

        Raises:
            DivergedError: `error`, where the training may not go back, or not once more.
        """
        trainer = self.trainer
        if self.go_back is None or trainer.rollbacks >= MOST_ROLLBACKS:
            raise error
        self._wait_for_file()
        until = -distributed.max_over_ranks(-self._last_good_step())
        # One from among them serves too, if its weights are finite: those steps were left out.
        saved = self.go_back(self.logger.warning, until) or self.go_back(self.logger.warning, None)
        if saved is None:
            raise DivergedError(f"{error}; there is no checkpoint from before to go back to")
        self.logger.warning(str(error))
        trainer.go_back(saved)
        vars(self.progress).update(vars(Progress.of(saved)))
        if self.saver is not None:
            self.saver.ruined = False
        self._saved_step, self._asked = trainer.step, False
        self.logger.warning(
            f"rollback {trainer.rollbacks} of {MOST_ROLLBACKS}: back at optimizer step "
            f"{trainer.step}, with half the learning rate from here on"
        )

    def _last_good_step(self) -> int:
        """The optimizer step from before whatever has made the training diverge."""
        trainer = self.trainer
        if trainer.guard.bad_steps:
            return trainer.guard.bad_steps[0].step
        if self.progress.phase == "train":
            return trainer.step  # what is not finite was not saved
        # The validation's loss is not finite.
        return trainer.step - trainer.samples_done // trainer.step_images

    def _save(self, *, best: bool = False, numbered: bool = False) -> None:
        """All ranks have a part in it: the sums for the log are spread over them."""
        if not self.saves:
            return
        state = {**self.about, **dataclasses.asdict(self.progress), **self.trainer.state_dict()}
        if self.saver is not None:
            self.saver.save(state, best=best, numbered=numbered)
        self._saved_at, self._saved_step = time.monotonic(), self.trainer.step
        self._asked = False

    def _leave(self) -> NoReturn:
        """Saves the last finished step; all ranks leave together."""
        self._save()
        where = f"epoch {self.progress.epoch + 1}, {self.trainer.samples_done} images of it"
        saved, failure = f"not saved (--no-checkpoints): {where}", None
        if self.saver is not None:
            saved = f"saved in {where}; --resume auto goes on"
            try:
                self.saver.close()
            except CheckpointError as error:
                failure = error
            if self.saver.ruined:
                saved = "not saved, the weights are not finite; the checkpoints are from before"
        self._agreement.meet(self.beat)  # before anybody ends: the others wait for the file
        raise failure or Stopped(saved)
