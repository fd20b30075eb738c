# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""EfficientNet B0 to B7, and the variants with wide squeeze-and-excitation.

One network, B0, whose channels and depths the others multiply. Parameter names are torchvision's
(`features.1.0.block.0.0`, `classifier.1`), so that weights travel between the two without renaming.

The -widese- networks are NVIDIA's: their gates are computed from a quarter of the expanded channels
instead of a quarter of the block's input channels.

Papers: EfficientNet arXiv:1905.11946, inverted residuals arXiv:1801.04381, stochastic depth
arXiv:1603.09382.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from image_classification.errors import UsageError
from models.common import ConvInit, check_common
from models.depthwise import DepthwiseConv2d

# Of the squeezed channels, either to the block's input channels or (wide) to its expanded ones.
_SQUEEZE = 4
_STEM = 32
# torchvision's and timm's own weights of B0 to B4 were trained with an epsilon of 1e-5.
_BN_MOMENTUM, _BN_EPSILON = 0.01, 1e-3


class Stage(NamedTuple):
    """One row of the paper's table 1: blocks of one resolution, as B0 has them.

    `stride` and the change of channels belong to the first block alone.
    """

    expansion: int
    kernel: int
    stride: int
    channels: int
    depth: int


STAGES = (
    Stage(expansion=1, kernel=3, stride=1, channels=16, depth=1),
    Stage(expansion=6, kernel=3, stride=2, channels=24, depth=2),
    Stage(expansion=6, kernel=5, stride=2, channels=40, depth=2),
    Stage(expansion=6, kernel=3, stride=2, channels=80, depth=3),
    Stage(expansion=6, kernel=5, stride=1, channels=112, depth=3),
    Stage(expansion=6, kernel=5, stride=2, channels=192, depth=4),
    Stage(expansion=6, kernel=3, stride=1, channels=320, depth=1),
)


class Variant(NamedTuple):
    """What tells one network of the family from another.

    `width` and `depth` multiply B0's channels and blocks; `dropout` acts before the classifier;
    `survival` is the probability that the last block acts on a training image.
    """

    width: float
    depth: float
    dropout: float
    survival: float = 0.8
    wide_se: bool = False


VARIANTS: dict[str, Variant] = {
    # NVIDIA's recipe trains B0 without stochastic depth.
    "efficientnet-b0": Variant(1.0, 1.0, 0.2, survival=1.0),
    "efficientnet-b1": Variant(1.0, 1.1, 0.2),
    "efficientnet-b2": Variant(1.1, 1.2, 0.3),
    "efficientnet-b3": Variant(1.2, 1.4, 0.3),
    "efficientnet-b4": Variant(1.4, 1.8, 0.4),
    "efficientnet-b5": Variant(1.6, 2.2, 0.4),
    "efficientnet-b6": Variant(1.8, 2.6, 0.5),
    "efficientnet-b7": Variant(2.0, 3.1, 0.5),
}
for _name in list(VARIANTS):
    _wide = VARIANTS[_name]._replace(wide_se=True)
    VARIANTS[_name.replace("efficientnet-", "efficientnet-widese-")] = _wide


def round_channels(channels: float) -> int:
    """Round to a multiple of 8, but never down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class StochasticDepth(_DropoutNd):
    """Drops whole images of a residual branch in training; the others are scaled up.

    The expectation stays the same. Each image of the batch is drawn on its own.

    Args:
        p: probability of dropping the branch, in [0, 1).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x [N, C, H, W], some of its images set to zero."""
        if not self.training or self.p == 0.0:
            return x
        keep = torch.empty([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1.0 - self.p).div_(1.0 - self.p)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in (0, 1), computed from the means of all channels.

    Args:
        channels: channels of the input.
        squeezed: channels between the two layers.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, channels, H, W] to the same shape."""
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.activation(self.fc1(means))).sigmoid()


def convolution(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, *,
    activation: bool = True,
) -> nn.Sequential:  # fmt: skip
    """A convolution that keeps the resolution at stride 1, BatchNorm, and SiLU where asked for."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return _normalised(conv, activation=activation)


def _normalised(conv: nn.Conv2d, *, activation: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(conv.out_channels)]
    return nn.Sequential(*layers, nn.SiLU(inplace=True)) if activation else nn.Sequential(*layers)


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, gates, 1x1 projection.

    A shortcut goes around it where the shape stays the same.

    Args:
        in_channels: channels of the input.
        stage: expansion and kernel.
        out_channels: channels of the output.
        stride: 2 where the block halves the resolution, else 1.
        drop: probability of leaving the branch out, per image, in [0, 1).
        wide_se: see `Variant`.
    """

    def __init__(
        self, in_channels: int, stage: Stage, out_channels: int, *, stride: int, drop: float,
        wide_se: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        expanded = in_channels * stage.expansion
        squeezed = max(1, (expanded if wide_se else in_channels) // _SQUEEZE)
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(convolution(in_channels, expanded))
        layers += [
            _normalised(DepthwiseConv2d(expanded, stage.kernel, stride)),
            SqueezeExcitation(expanded, squeezed),
            convolution(expanded, out_channels, activation=False),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels
        self.stochastic_depth = StochasticDepth(drop if self.residual else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        out = self.block(x)
        if self.residual:
            out = self.stochastic_depth(out)
            out += x
        return out


class EfficientNet(nn.Module):
    """A stem, seven stages of inverted residuals, a 1x1 convolution and a linear classifier.

    Args:
        variant: multipliers and defaults, one of `VARIANTS`.
        num_classes: number of outputs, >= 1.
        conv_init: Kaiming's normal initialisation by "fan_out" or "fan_in".
        zero_init_last_bn: start every block that has a shortcut as this shortcut alone.
        dropout: probability of dropping a feature before the classifier, in [0, 1); None: the
            variant's.
        survival_prob: probability in (0, 1] that the last block acts on a training image; blocks
            before it act more often, linearly (arXiv:1603.09382, section 3). None: the variant's.

    Raises:
        UsageError: a value outside these ranges.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int = 1000,
        *,
        conv_init: ConvInit = "fan_out",
        zero_init_last_bn: bool = False,
        dropout: float | None = None,
        survival_prob: float | None = None,
    ) -> None:
        super().__init__()
        dropout = variant.dropout if dropout is None else dropout
        survival = variant.survival if survival_prob is None else survival_prob
        check_common(conv_init, dropout)
        if not 0.0 < survival <= 1.0:
            raise UsageError(f"survival_prob must be above 0 and at most 1, got {survival}")
        channels = round_channels(_STEM * variant.width)
        depths = [math.ceil(stage.depth * variant.depth) for stage in STAGES]
        stages: list[nn.Module] = [convolution(3, channels, kernel=3, stride=2)]
        drops = [(1.0 - survival) * block / sum(depths) for block in range(sum(depths))]
        for stage, depth in zip(STAGES, depths, strict=True):
            blocks = []
            for position in range(depth):
                shape = (channels, stage, round_channels(stage.channels * variant.width))
                stride = stage.stride if position == 0 else 1
                blocks.append(
                    MBConv(*shape, stride=stride, drop=drops.pop(0), wide_se=variant.wide_se)
                )
                channels = shape[2]
            stages.append(nn.Sequential(*blocks))
        features = 4 * channels  # 1280 of 320 in B0, and so on with the width
        self.features = nn.Sequential(*stages, convolution(channels, features))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))
        self._initialise(conv_init, zero_init_last_bn)

    def _initialise(self, conv_init: ConvInit, zero_init_last_bn: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # By the fan of one group: torch's own function takes the outputs of all of them.
                channels = module.out_channels if conv_init == "fan_out" else module.in_channels
                fan = channels // module.groups * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum, module.eps = _BN_MOMENTUM, _BN_EPSILON
            elif isinstance(module, nn.Linear):
                bound = module.out_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        for module in self.modules() if zero_init_last_bn else ():
            if isinstance(module, MBConv) and module.residual:
                nn.init.zeros_(module.block[-1][1].weight)

    @torch.jit.unused
    def stages(self) -> list[list[nn.Module]]:
        """Return the stem and four stages by resolution (1/4 to 1/32), each as its modules."""
        features = list(self.features)
        return [features[:1], features[1:3], features[3:4], features[4:6], features[6:]]

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            images: float [N, 3, H, W], normalised, of any size from 32 pixels up; the sizes below
                are B0's for 224 x 224 images.

        Returns:
            logits [N, num_classes].
        """
        x = self.features(images)  #      [N, 1280, 7, 7]
        x = self.avgpool(x).flatten(1)  # [N, 1280]
        return self.classifier(x)  #      [N, num_classes]


def build(name: str, num_classes: int, **options: object) -> EfficientNet:
    """Build one of `VARIANTS` by name; the options are the keyword arguments of `EfficientNet`."""
    return EfficientNet(VARIANTS[name], num_classes, **options)  # type: ignore[arg-type]
