# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How images are prepared: what checkpoints store of it, and loaders are given."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

INTERPOLATIONS = ("bilinear", "bicubic", "triangular")
POLICIES = ("autoaugment", "autoaugment-cifar10", "randaugment", "trivialaugment")
# RandAugment's magnitudes in torchvision: 31 steps.
STRONGEST = 30
MOST_OPERATIONS = 16
# Sizes of growing images are multiples of it: the stride of the networks' last stage.
SIZE_STEP = 32

# What a file or an option may ask for: no network sees larger images, and memory is not endless.
MAX_SIDE = 1 << 14
_MOST_EPOCHS = 1 << 31


class _Preset:
    """What both presets share: checks and the form in which checkpoints store them."""

    def to_dict(self) -> dict[str, Any]:
        """The preset as JSON types."""
        values = asdict(self)  # type: ignore[call-overload]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Any:
        """The preset that `to_dict` described.

        Raises:
            ValueError: Unknown keys (they would change the preprocessing) or values out of range.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__}: unknown keys {unknown}, known are {sorted(known)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def at(self, epoch: int) -> Any:
        """The preset for the images of an epoch."""
        return self

    def _check_whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number {low} .. {high}, received {value!r}")

    def _check_share(self, name: str) -> None:
        value = getattr(self, name)
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be a probability from 0 to 1, received {value}")

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            choices = ", ".join(str(choice) for choice in allowed)
            raise ValueError(f"{name} must be one of {choices}, received {value!r}")

    def _check_range(self, name: str, low: float, high: float) -> None:
        first, last = getattr(self, name)
        if not low < first <= last <= high:
            raise ValueError(
                f"{name} must be two numbers above {low}, the larger one last and at most {high}, "
                f"received {first}, {last}"
            )


@dataclass(frozen=True, kw_only=True)
class _TrainingPreset(_Preset):
    """What is done to training images on the device, whatever their loader.

    Attributes:
        policy: None or one of POLICIES (needs torchvision): AutoAugment (Cubuk et al. 2018), as
            found for ImageNet or for CIFAR-10; RandAugment (Cubuk et al. 2019); TrivialAugmentWide
            (Mueller and Hutter 2021).
        policy_operations: RandAugment's N, operations on each image, 1..16.
        policy_magnitude: RandAugment's M, their strength, 0..30.
        erasing: Probability that a rectangle of an image is set to the mean (Zhong et al. 2017).
    """

    policy: str | None = None
    policy_operations: int = 2
    policy_magnitude: int = 9
    erasing: float = 0.0

    def __post_init__(self) -> None:
        self._check_choice("policy", (None, *POLICIES))
        self._check_whole("policy_operations", 1, MOST_OPERATIONS)
        self._check_whole("policy_magnitude", 0, STRONGEST)
        self._check_share("erasing")


@dataclass(frozen=True)
class TrainPreset(_TrainingPreset):
    """How training images are prepared: random crop, resize, flip; see also `_TrainingPreset`.

    Attributes:
        image_size: Side of the square output in pixels.
        scale: Smallest and largest share of the image area that a crop covers.
        ratio: Smallest and largest width / height of a crop.
        flip: Probability of a horizontal flip, 0..1.
        interpolation: Resize filter; all are antialiased, "triangular" is DALI's name of bilinear.
        start_size: Side in pixels in the first epoch where images grow, a multiple of 32; 0 where
            they do not.
        growth_epochs: Epochs of the training where images grow; the last one has `image_size`.
    """

    image_size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    interpolation: str = "bilinear"
    start_size: int = 0
    growth_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("image_size", 1, MAX_SIDE)
        self._check_range("scale", 0.0, 1.0)
        self._check_range("ratio", 0.0, math.inf)
        self._check_choice("interpolation", INTERPOLATIONS)
        self._check_share("flip")
        self._check_whole("start_size", 0, self.image_size)
        self._check_whole("growth_epochs", 0, _MOST_EPOCHS)
        if bool(self.start_size) != bool(self.growth_epochs):
            raise ValueError(
                "start_size and growth_epochs must both be above 0, or both 0; received "
                f"{self.start_size}, {self.growth_epochs}"
            )
        if self.start_size % SIZE_STEP:
            raise ValueError(
                f"start_size must be a multiple of {SIZE_STEP}, received {self.start_size}"
            )

    def at(self, epoch: int) -> TrainPreset:
        """The preset for the images of an epoch, without growth.

        The side grows in a straight line from `start_size` in the first epoch to `image_size` in
        the last, rounded to multiples of 32.

        Args:
            epoch: Epoch number, from 0; beyond the last one the images have their full size.
        """
        if not self.growth_epochs:
            return self
        first, last, final = self.start_size, self.growth_epochs - 1, self.image_size
        side = final
        if epoch < last:
            steps = (first + (final - first) * epoch / last) / SIZE_STEP
            side = min(math.floor(steps + 0.5) * SIZE_STEP, final)
        return replace(self, image_size=side, start_size=0, growth_epochs=0)


@dataclass(frozen=True)
class EvalPreset(_Preset):
    """How validation images are prepared: resize of the short side, then a central crop.

    Attributes:
        image_size: Side of the square output in pixels.
        resize_size: Short side in pixels before the crop; raised to `image_size` where smaller.
        interpolation: Resize filter; all are antialiased, "triangular" is DALI's name of bilinear.
    """

    image_size: int = 224
    resize_size: int = 256
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        self._check_whole("image_size", 1, MAX_SIDE)
        self._check_whole("resize_size", 1, MAX_SIDE)
        self._check_choice("interpolation", INTERPOLATIONS)

    @property
    def as_options(self) -> str:
        """The preset as options of the entry scripts."""
        return (
            f"--image-size {self.image_size} --val-resize {self.resize_size} "
            f"--interpolation {self.interpolation}"
        )


@dataclass(frozen=True)
class ShiftPreset(_TrainingPreset):
    """How small training images are prepared: shifted, with black where nothing is, and flipped.

    A random crop of the image padded on all sides (He et al. 2015, section 4.2); see also
    `_TrainingPreset`.

    Attributes:
        image_size: Side of the square images in pixels, in and out.
        padding: Largest shift in pixels, each way.
        flip: Probability of a horizontal flip, 0..1.
        cutout: Side in pixels of a square that is set to the mean (DeVries and Taylor 2017); its
            centre is anywhere in the image. 0: none.
    """

    image_size: int = 32
    padding: int = 4
    flip: float = 0.5
    cutout: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("image_size", 1, MAX_SIDE)
        self._check_whole("padding", 0, MAX_SIDE)
        self._check_whole("cutout", 0, MAX_SIDE)
        self._check_share("flip")
