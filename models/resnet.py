# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""ResNet v1.5 and its relatives ResNeXt and SE-ResNeXt.

v1.5 differs from the paper in one place: where a stage halves the resolution, the stride is on
the 3x3 convolution of the first bottleneck instead of on the 1x1 before it, which would skip
three quarters of its input. That is worth about half a percent of top-1 on ImageNet.

Parameter names are torchvision's (`conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), so
that weights travel between the two without renaming.

The networks named _cifar have a stem for images of 32 pixels (paper, section 4.2, with the widths
of the large networks).

Papers: ResNet arXiv:1512.03385, ResNeXt arXiv:1611.05431, squeeze-and-excitation
arXiv:1709.01507, residual branches that start at zero arXiv:1706.02677 (section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from image_classification.errors import UsageError
from models.common import ConvInit, check_common


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the resolution at stride 1; BatchNorm follows, so no bias."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution: one linear map of the channels, the same at every position."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The shortcut of a block: the identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class SqueezeExcitation(nn.Module):
    """A gate in (0, 1) for every channel, computed from the means of all channels.

    Args:
        channels: channels of the input, C.
        squeezed: channels between the two layers.
        as_conv: 1x1 convolutions instead of linear layers: the same numbers, for inference
            engines that prefer them.
    """

    def __init__(self, channels: int, squeezed: int, as_conv: bool = False) -> None:
        super().__init__()
        self.as_conv = as_conv
        self.squeeze: nn.Module
        self.expand: nn.Module
        if as_conv:
            self.squeeze = nn.Conv2d(channels, squeezed, 1)
            self.expand = nn.Conv2d(squeezed, channels, 1)
        else:
            self.squeeze = nn.Linear(channels, squeezed)
            self.expand = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the gates [N, C, 1, 1] of x [N, C, H, W]."""
        means = x.mean((2, 3), keepdim=self.as_conv)  # [N, C] or [N, C, 1, 1]
        gates = self.expand(self.squeeze(means).relu()).sigmoid()
        return gates if self.as_conv else gates[:, :, None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the block of ResNet 18 and 34.

    Args:
        in_channels: channels of the input.
        width: channels between the two convolutions.
        out_channels: channels of the output.
        stride: 2 where the block halves the resolution, else 1.
    """

    last_bn = "bn2"  # ends the residual branch

    def __init__(self, in_channels: int, width: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the 3x3 carries the stride (v1.5).

    Args:
        in_channels: channels of the input.
        width: channels of the 3x3 convolution.
        out_channels: channels of the output.
        stride: 2 where the block halves the resolution, else 1.
        groups: groups of the 3x3 convolution (ResNeXt's cardinality).
    """

    last_bn = "bn3"  # ends the residual branch

    def __init__(
        self, in_channels: int, width: int, out_channels: int, *, stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """The branch beside the shortcut, before the two are added."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        out = self.residual(x)
        out += self.downsample(x)
        return self.relu(out)


class SEBottleneck(Bottleneck):
    """Bottleneck whose residual branch is scaled by squeeze-and-excitation.

    Args:
        in_channels, width, out_channels, stride, groups: as for `Bottleneck`.
        fused_se: scale and add in one operation instead of two.
        se_as_conv: see `SqueezeExcitation`.
    """

    # NVIDIA's width, the same in every stage; the paper's is out_channels / 16.
    squeezed = 16

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        stride: int,
        groups: int = 1,
        fused_se: bool = True,
        se_as_conv: bool = False,
    ) -> None:
        super().__init__(in_channels, width, out_channels, stride=stride, groups=groups)
        self.se = SqueezeExcitation(out_channels, self.squeezed, se_as_conv)
        self.fused_se = fused_se

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, in_channels, H, W] to [N, out_channels, H / stride, W / stride]."""
        out = self.residual(x)
        gates = self.se(out)
        if self.fused_se:
            out = torch.addcmul(self.downsample(x), out, gates)
        else:
            out = out * gates + self.downsample(x)
        return self.relu(out)


class Variant(NamedTuple):
    """What tells one network of the family from another, the numbers stage by stage.

    `small_images`: the stem is one 3x3 convolution that keeps the resolution, for images of about
    32 pixels, which the usual stem would shrink to 8 before the first block.
    """

    block: type[BasicBlock] | type[Bottleneck]
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    out_channels: tuple[int, int, int, int]
    groups: int = 1
    small_images: bool = False


_STEM = 64
_NARROW = (64, 128, 256, 512)
_DOUBLE = (128, 256, 512, 1024)
_WIDE = (256, 512, 1024, 2048)

VARIANTS: dict[str, Variant] = {
    "resnet18": Variant(BasicBlock, (2, 2, 2, 2), _NARROW, _NARROW),
    "resnet34": Variant(BasicBlock, (3, 4, 6, 3), _NARROW, _NARROW),
    "resnet50": Variant(Bottleneck, (3, 4, 6, 3), _NARROW, _WIDE),
    "resnet101": Variant(Bottleneck, (3, 4, 23, 3), _NARROW, _WIDE),
    "resnet152": Variant(Bottleneck, (3, 8, 36, 3), _NARROW, _WIDE),
    "resnext101-32x4d": Variant(Bottleneck, (3, 4, 23, 3), _DOUBLE, _WIDE, groups=32),
    "se-resnext101-32x4d": Variant(SEBottleneck, (3, 4, 23, 3), _DOUBLE, _WIDE, groups=32),
}
for _depth in (18, 34, 50, 101, 152):
    VARIANTS[f"resnet{_depth}_cifar"] = VARIANTS[f"resnet{_depth}"]._replace(small_images=True)


def channels_of(model: ResNet) -> list[int]:
    """Read how many channels a network has, as the option `channels` of `ResNet` takes them.

    Raises:
        ValueError: the blocks of a stage differ from one another.
    """
    widths, outputs = [], []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        blocks = [[m for m in block.children() if isinstance(m, nn.Conv2d)] for block in stage]
        widths.append({layer.out_channels for block in blocks for layer in block[:-1]})
        outputs.append({block[-1].out_channels for block in blocks})
    if any(len(found) > 1 for found in widths + outputs):
        raise ValueError(f"the blocks of a stage differ: {widths}, {outputs}")
    return [model.conv1.out_channels, *(found.pop() for found in widths + outputs)]


def _narrowed(variant: Variant, channels: Sequence[int]) -> tuple[Variant, int]:
    """The variant with what is left of its channels, and those of the stem."""
    most = [_STEM, *variant.widths, *variant.out_channels]
    fits = (
        isinstance(channels, list | tuple)
        and len(channels) == len(most)
        and all(
            type(number) is int and 1 <= number <= limit
            for number, limit in zip(channels, most, strict=True)
        )
    )
    if not fits or variant.groups > 1:
        raise UsageError(
            f"channels must be whole numbers from 1 up to {most}, of a network without groups, "
            f"got {channels}"
        )
    stem, w1, w2, w3, w4, *outputs = channels
    o1, o2, o3, o4 = outputs
    return variant._replace(widths=(w1, w2, w3, w4), out_channels=(o1, o2, o3, o4)), stem


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, and a linear classifier.

    Args:
        variant: blocks and channels, one of `VARIANTS`.
        num_classes: number of outputs, >= 1.
        conv_init: Kaiming's normal initialisation keeps the variance of the gradients ("fan_out")
            or of the activations ("fan_in").
        zero_init_last_bn: start every block as its shortcut alone (the last BatchNorm's scale
            is 0), which helps with large batches.
        dropout: probability of dropping a feature before the classifier, in [0, 1).
        channels: how many pruning has left: of the stem, the four `widths` and the four
            `out_channels` of `Variant`; None: all.
        **se_options: `fused_se` and `se_as_conv` of `SEBottleneck`.

    Raises:
        UsageError: `conv_init`, `dropout` or `channels` outside these ranges, or `se_options` for
            a network without squeeze-and-excitation.
    """

    def __init__(
        self,
        variant: Variant,
        num_classes: int = 1000,
        *,
        conv_init: ConvInit = "fan_out",
        zero_init_last_bn: bool = False,
        dropout: float = 0.0,
        channels: Sequence[int] | None = None,
        **se_options: bool,
    ) -> None:
        super().__init__()
        check_common(conv_init, dropout)
        stem = _STEM
        if channels is not None:
            variant, stem = _narrowed(variant, channels)
        if se_options and variant.block is not SEBottleneck:
            raise UsageError(f"{', '.join(se_options)}: the network has no squeeze-and-excitation")
        options: dict[str, Any] = dict(se_options)
        if variant.groups > 1:
            options["groups"] = variant.groups

        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        if variant.small_images:
            self.conv1, self.maxpool = conv3x3(3, stem), nn.Identity()

        in_channels = stem
        stages: list[nn.Sequential] = []
        for stage, depth in enumerate(variant.depths):
            blocks = []
            for position in range(depth):
                # Every stage but the first halves the resolution, in its first block.
                stride = 2 if stage > 0 and position == 0 else 1
                shape = (in_channels, variant.widths[stage], variant.out_channels[stage])
                blocks.append(variant.block(*shape, stride=stride, **options))
                in_channels = variant.out_channels[stage]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        self.reset_convolutions(conv_init, zero_init_last_bn)

    def reset_convolutions(self, conv_init: ConvInit, zero_init_last_bn: bool) -> None:
        """Draw the convolutions anew; BatchNorm and the linear layers keep torch's defaults."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=conv_init, nonlinearity="relu")
            elif isinstance(module, BasicBlock | Bottleneck) and zero_init_last_bn:
                nn.init.zeros_(module.get_parameter(f"{module.last_bn}.weight"))

    @torch.jit.unused
    def stages(self) -> list[list[nn.Module]]:
        """Return the stem and the four stages, each as its modules."""
        layers = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [[self.conv1, self.bn1], *([layer] for layer in layers)]

    def forward(self, images: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            images: float [N, 3, H, W], normalised, of any size from 32 pixels up; the sizes
                below are those of 224 x 224 images and of a bottleneck network. For small images
                all stages have the resolution [H, H / 2, H / 4, H / 8].

        Returns:
            logits [N, num_classes].
        """
        x = self.relu(self.bn1(self.conv1(images)))  # [N,   64, 112, 112]
        x = self.maxpool(x)  #                         [N,   64,  56,  56]
        x = self.layer1(x)  #                          [N,  256,  56,  56]
        x = self.layer2(x)  #                          [N,  512,  28,  28]
        x = self.layer3(x)  #                          [N, 1024,  14,  14]
        x = self.layer4(x)  #                          [N, 2048,   7,   7]
        x = self.avgpool(x).flatten(1)  #              [N, 2048]
        return self.fc(self.dropout(x))  #             [N, num_classes]


def build(name: str, num_classes: int, **options: Any) -> ResNet:
    """Build one of `VARIANTS` by name; the options are the keyword arguments of `ResNet`."""
    return ResNet(VARIANTS[name], num_classes, **options)
