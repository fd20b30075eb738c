# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What other libraries call the tensors of our networks, written down from their sources.

Independent of image_classification/weight_formats.py: names are made here from our network's
structure, one library at a time, and read there from the file's names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

# Expansion, depthwise convolution, gates, projection; the first two are missing in stage 1.
OURS = "0.0 0.1 1.0 1.1 2.fc1 2.fc2 3.0 3.1".split()
OURS_PLAIN = "0.0 0.1 1.fc1 1.fc2 2.0 2.1".split()
NVIDIA = (
    "expand.conv expand.bn depsep.conv depsep.bn se.squeeze se.expand proj.conv proj.bn"
).split()
LUKEMELAS = (
    "_expand_conv _bn0 _depthwise_conv _bn1 _se_reduce _se_expand _project_conv _bn2"
).split()
MMPRETRAIN = (
    "expand_conv.conv expand_conv.bn depthwise_conv.conv depthwise_conv.bn "
    "se.conv1.conv se.conv2.conv linear_conv.conv linear_conv.bn"
).split()
TIMM = "conv_pw bn1 conv_dw bn2 se.conv_reduce se.conv_expand conv_pwl bn3".split()
TIMM_PLAIN = "conv_dw bn1 se.conv_reduce se.conv_expand conv_pw bn2".split()

Names = Callable[[Iterable[str]], dict[str, str]]


def _ends(stem: str, head: str, classifier: str) -> dict[str, str]:
    (conv, norm), (last_conv, last_norm) = stem.split(), head.split()
    return {
        "features.0.0": conv, "features.0.1": norm,
        "features.8.0": last_conv, "features.8.1": last_norm, "classifier.1": classifier,
    }  # fmt: skip


def _efficientnet(
    names: Iterable[str], ends: dict[str, str], block: Callable[[int, int, Counter[int]], str],
    parts: list[str], plain_parts: list[str] | None = None,
) -> dict[str, str]:  # fmt: skip
    """Our names of an EfficientNet's tensors -> another library's.

    `block` names a block from its stage (1 to 7), its place there and the depths of the stages.
    """
    names = list(names)
    found = {m.groups() for m in (re.match(r"features\.(\d)\.(\d+)\.block", n) for n in names) if m}
    blocks = [(int(stage), int(place)) for stage, place in found]
    depths = Counter(stage for stage, _ in blocks)
    modules = dict(ends)
    for stage, place in blocks:
        ours, theirs = (OURS, parts) if stage > 1 else (OURS_PLAIN, plain_parts or parts[2:])
        for end, part in zip(ours, theirs, strict=True):
            ours_name = f"features.{stage}.{place}.block.{end}"
            modules[ours_name] = f"{block(stage, place, depths)}.{part}"
    split = {name: name.rsplit(".", 1) for name in names}
    return {name: f"{modules[module]}.{leaf}" for name, (module, leaf) in split.items()}


def nvidia_efficientnet(names: Iterable[str]) -> dict[str, str]:
    """DeepLearningExamples: sequences in sequences."""
    ends = _ends("stem.conv stem.bn", "features.conv features.bn", "classifier.fc")
    return _efficientnet(
        names, ends, lambda stage, place, _: f"layers.{stage - 1}.block{place}", NVIDIA
    )


def ngc_efficientnet(names: Iterable[str]) -> dict[str, str]:
    """The files on NGC, older than that."""
    renamed = nvidia_efficientnet(names)
    stage = re.compile(r"^layers\.(\d)\.")
    return {
        ours: stage.sub(lambda match: f"layer{int(match[1]) + 1}.", theirs)
        for ours, theirs in renamed.items()
    }


def lukemelas_efficientnet(names: Iterable[str]) -> dict[str, str]:
    """EfficientNet-PyTorch: one list of all blocks."""
    return _efficientnet(
        names, _ends("_conv_stem _bn0", "_conv_head _bn1", "_fc"),
        lambda stage, place, depths: f"_blocks.{sum(depths[s] for s in range(1, stage)) + place}",
        LUKEMELAS,
    )  # fmt: skip


def mmpretrain_efficientnet(names: Iterable[str]) -> dict[str, str]:
    """Stages 4 and 5 are one layer, 6 and 7 too: the second of each halves no resolution."""
    layers = {1: (1, 0), 2: (2, 0), 3: (3, 0), 4: (4, 0), 5: (4, 4), 6: (5, 0), 7: (5, 6)}

    def block(stage: int, place: int, depths: Counter[int]) -> str:
        layer, before = layers[stage]
        return f"backbone.layers.{layer}.{(depths[before] if before else 0) + place}"

    stem, head = "backbone.layers.0.conv backbone.layers.0.bn", "backbone.layers.6.conv"
    ends = _ends(stem, f"{head} backbone.layers.6.bn", "head.fc")
    return _efficientnet(names, ends, block, MMPRETRAIN)


def timm_efficientnet(names: Iterable[str]) -> dict[str, str]:
    """timm's efficientnet_b* and tf_efficientnet_b*."""
    return _efficientnet(
        names, _ends("conv_stem bn1", "conv_head bn2", "classifier"),
        lambda stage, place, _: f"blocks.{stage - 1}.{place}", TIMM, TIMM_PLAIN,
    )  # fmt: skip


def nvidia_resnet(names: Iterable[str]) -> dict[str, str]:
    """DeepLearningExamples: the stages are a sequence."""
    stage = re.compile(r"^layer(\d)\.")
    return {
        name: stage.sub(lambda match: f"layers.{int(match[1]) - 1}.", name).replace(
            ".se.", ".squeeze."
        )
        for name in names
    }


def ngc_resnet(names: Iterable[str]) -> dict[str, str]:
    """The files on NGC: torchvision's names, but for the gates."""
    return {name: name.replace(".se.", ".squeeze.") for name in names}


def mmpretrain_resnet(names: Iterable[str]) -> dict[str, str]:
    """mmpretrain: a backbone and a head."""
    gates = {".se.squeeze.": ".se_layer.conv1.conv.", ".se.expand.": ".se_layer.conv2.conv."}

    def rename(name: str) -> str:
        for ours, theirs in gates.items():
            name = name.replace(ours, theirs)
        return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"

    return {name: rename(name) for name in names}


def timm_resnet(names: Iterable[str]) -> dict[str, str]:
    """timm: torchvision's names, but for the gates."""
    gates = {"squeeze": "fc1", "expand": "fc2"}
    return {
        name: re.sub(r"\.se\.(squeeze|expand)\.", lambda match: f".se.{gates[match[1]]}.", name)
        for name in names
    }


def same(names: Iterable[str]) -> dict[str, str]:
    """torchvision, timm's ResNets, this package."""
    return {name: name for name in names}


EFFICIENTNETS: Mapping[str, Names] = {
    "NVIDIA's EfficientNet (DeepLearningExamples)": nvidia_efficientnet,
    "NVIDIA's EfficientNet (NGC)": ngc_efficientnet,
    "EfficientNet-PyTorch (lukemelas)": lukemelas_efficientnet,
    "mmpretrain's EfficientNet": mmpretrain_efficientnet,
    "timm's EfficientNet": timm_efficientnet,
    "torchvision's EfficientNet, as this package's": same,
}
RESNETS: Mapping[str, Names] = {
    "NVIDIA's ResNet (DeepLearningExamples)": nvidia_resnet,
    "NVIDIA's SE-ResNeXt (NGC)": ngc_resnet,
    "mmpretrain's ResNet": mmpretrain_resnet,
    "timm's SE-ResNeXt": timm_resnet,
    "torchvision's ResNet, as timm's and this package's": same,
}


def unlike(value: Tensor, number: int) -> Tensor:
    """A tensor of this shape and type that holds one number; it takes no memory."""
    return value.new_tensor(number, device="cpu").expand(value.shape)
