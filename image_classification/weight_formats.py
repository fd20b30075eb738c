# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""How other libraries name the weights of our networks, and what our networks call the same.

Our names are torchvision's. A file is recognised by a few names that no other library uses; from
there on its names are looked up, never guessed: what a table does not know keeps its name, and
shows up as missing and left over when the weights are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

# Wrappers put these in front of every name: DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")

Pair = tuple[str, str]


class Block(NamedTuple):
    """The modules of an inverted residual block; in pairs of a convolution and its BatchNorm.

    `gates` are the two layers of squeeze-and-excitation. Where nothing is expanded, `expand` is
    None.
    """

    depthwise: Pair
    gates: Pair
    project: Pair
    expand: Pair | None = None

    def in_order(self) -> list[Pair]:
        """The pairs in the order in which an image passes them."""
        pairs = (self.expand, self.depthwise, self.gates, self.project)
        return [pair for pair in pairs if pair is not None]


class EfficientNetNames(NamedTuple):
    """What a library calls the parts of an EfficientNet.

    `block` is a regular expression with the numbers of a block in groups. Libraries put blocks
    into stages in different ways, so only their order counts.
    """

    stem: Pair
    block: str
    plain: Block
    expanded: Block
    head: Pair
    classifier: str


class WeightFormat(NamedTuple):
    """One way to name weights.

    Args:
        name: whose it is, for the report.
        marks: names that a file of this format has.
        hint: regular expression that must be found in what a file says of itself, see `translate`.
        renames: regular expressions and replacements, applied in this order to each name.
        efficientnet: names of the parts, if it is an EfficientNet that needs translation.
        bn_epsilon: BatchNorm's epsilon of the training; None: the names do not tell.
        doubt: where they do not, what is known of the files that the library itself publishes.
        tf_padding: trained with TensorFlow's padding, that is, more on the right and the bottom
            where a convolution halves the resolution. Our networks pad all sides alike.
    """

    name: str
    marks: frozenset[str]
    hint: str = ""
    renames: tuple[Pair, ...] = ()
    efficientnet: EfficientNetNames | None = None
    bn_epsilon: float | None = 1e-5
    doubt: str = ""
    tf_padding: bool = False


TIMM = EfficientNetNames(
    stem=("conv_stem", "bn1"),
    block=r"blocks\.(\d{1,3})\.(\d{1,3})",
    plain=Block(
        depthwise=("conv_dw", "bn1"),
        gates=("se.conv_reduce", "se.conv_expand"),
        project=("conv_pw", "bn2"),
    ),
    expanded=Block(
        expand=("conv_pw", "bn1"),
        depthwise=("conv_dw", "bn2"),
        gates=("se.conv_reduce", "se.conv_expand"),
        project=("conv_pwl", "bn3"),
    ),
    head=("conv_head", "bn2"),
    classifier="classifier",
)

_LUKEMELAS_BLOCK = Block(
    depthwise=("_depthwise_conv", "_bn1"),
    gates=("_se_reduce", "_se_expand"),
    project=("_project_conv", "_bn2"),
)
LUKEMELAS = EfficientNetNames(
    stem=("_conv_stem", "_bn0"),
    block=r"_blocks\.(\d{1,3})",
    plain=_LUKEMELAS_BLOCK,
    expanded=_LUKEMELAS_BLOCK._replace(expand=("_expand_conv", "_bn0")),
    head=("_conv_head", "_bn1"),
    classifier="_fc",
)

# Without `backbone.`, which is taken off before. The stages of one resolution are one there.
_MMPRETRAIN_BLOCK = Block(
    depthwise=("depthwise_conv.conv", "depthwise_conv.bn"),
    gates=("se.conv1.conv", "se.conv2.conv"),
    project=("linear_conv.conv", "linear_conv.bn"),
)
MMPRETRAIN = EfficientNetNames(
    stem=("layers.0.conv", "layers.0.bn"),
    block=r"layers\.([1-5])\.(\d{1,3})",
    plain=_MMPRETRAIN_BLOCK,
    expanded=_MMPRETRAIN_BLOCK._replace(expand=("expand_conv.conv", "expand_conv.bn")),
    head=("layers.6.conv", "layers.6.bn"),
    classifier="head.fc",
)

# `layer1.` in the files on NGC, `layers.0.` since the networks are sequences.
_NVIDIA_BLOCK = Block(
    depthwise=("depsep.conv", "depsep.bn"),
    gates=("se.squeeze", "se.expand"),
    project=("proj.conv", "proj.bn"),
)
NVIDIA = EfficientNetNames(
    stem=("stem.conv", "stem.bn"),
    block=r"layer(?:s\.)?(\d)\.block(\d{1,3})",
    plain=_NVIDIA_BLOCK,
    expanded=_NVIDIA_BLOCK._replace(expand=("expand.conv", "expand.bn")),
    head=("features.conv", "features.bn"),
    classifier="classifier.fc",
)

_NVIDIA_RESNET = (
    (r"^layers\.0\.(?=\d+\.)", "layer1."),
    (r"^layers\.1\.(?=\d+\.)", "layer2."),
    (r"^layers\.2\.(?=\d+\.)", "layer3."),
    (r"^layers\.3\.(?=\d+\.)", "layer4."),
    (r"^(layer\d\.\d+)\.squeeze\.(?=squeeze\.|expand\.)", r"\1.se."),
)
_TIMM_GATES = ((r"\.se\.fc1\.", ".se.squeeze."), (r"\.se\.fc2\.", ".se.expand."))
_MMPRETRAIN_RESNET = (
    (r"^head\.fc\.", "fc."),
    (r"\.se_layer\.conv1\.conv\.", ".se.squeeze."),
    (r"\.se_layer\.conv2\.conv\.", ".se.expand."),
)

# The first that fits is taken: what needs a hint, or more marks, comes before what does not.
FORMATS = (
    WeightFormat(
        "NVIDIA's ResNet (DeepLearningExamples)",
        frozenset({"conv1.weight", "layers.0.0.conv1.weight"}),
        renames=_NVIDIA_RESNET,
    ),
    WeightFormat(
        "NVIDIA's SE-ResNeXt (NGC)",
        frozenset({"conv1.weight", "layer1.0.squeeze.squeeze.weight"}),
        renames=_NVIDIA_RESNET,
    ),
    WeightFormat(
        "mmpretrain's ResNet",
        frozenset({"conv1.weight", "layer1.0.conv1.weight", "head.fc.weight"}),
        renames=_MMPRETRAIN_RESNET,
    ),
    WeightFormat(
        "timm's SE-ResNeXt",
        frozenset({"conv1.weight", "layer1.0.se.fc1.weight"}),
        renames=_TIMM_GATES,
    ),
    WeightFormat(
        "torchvision's ResNet, as timm's and this package's",
        frozenset({"conv1.weight", "layer1.0.conv1.weight"}),
    ),
    WeightFormat(
        "NVIDIA's EfficientNet (DeepLearningExamples)",
        frozenset({"stem.conv.weight", "layers.0.block0.depsep.conv.weight"}),
        efficientnet=NVIDIA,
        bn_epsilon=1e-3,
    ),
    WeightFormat(
        "NVIDIA's EfficientNet (NGC)",
        frozenset({"stem.conv.weight", "layer1.block0.depsep.conv.weight"}),
        efficientnet=NVIDIA,
        bn_epsilon=1e-3,
    ),
    WeightFormat(
        "mmpretrain's EfficientNet",
        frozenset({"layers.0.conv.weight", "layers.1.0.depthwise_conv.conv.weight"}),
        efficientnet=MMPRETRAIN,
        bn_epsilon=1e-3,
        tf_padding=True,
    ),
    WeightFormat(
        "EfficientNet-PyTorch (lukemelas)",
        frozenset({"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"}),
        efficientnet=LUKEMELAS,
        bn_epsilon=1e-3,
        tf_padding=True,
    ),
    WeightFormat(
        "timm's tf_efficientnet",
        frozenset({"conv_stem.weight", "blocks.0.0.conv_dw.weight"}),
        hint=r"tf_efficientnet_b\d",
        efficientnet=TIMM,
        bn_epsilon=1e-3,
        tf_padding=True,
    ),
    WeightFormat(
        "timm's efficientnet",
        frozenset({"conv_stem.weight", "blocks.0.0.conv_dw.weight"}),
        hint=r"efficientnet_b\d",
        efficientnet=TIMM,
    ),
    WeightFormat(
        "timm's EfficientNet",
        frozenset({"conv_stem.weight", "blocks.0.0.conv_dw.weight"}),
        efficientnet=TIMM,
        bn_epsilon=None,
        doubt="timm's efficientnet_b* have 1e-5; its tf_efficientnet_b* have 1e-3, and "
        "TensorFlow's padding",
    ),
    WeightFormat(
        "torchvision's EfficientNet B0 to B4",
        frozenset({"features.0.0.weight", "features.1.0.block.0.0.weight"}),
        hint=r"efficientnet_b[0-4](_rwightman)?-[0-9a-f]{8}\.pth|arch=efficientnet_b[0-4]",
    ),
    WeightFormat(  # the only ones with three blocks in the last stage
        "torchvision's EfficientNet B5 to B7, as this package's",
        frozenset({"features.0.0.weight", "features.7.2.block.0.0.weight"}),
        bn_epsilon=1e-3,
    ),
    WeightFormat(
        "torchvision's EfficientNet, as this package's",
        frozenset({"features.0.0.weight", "features.1.0.block.0.0.weight"}),
        bn_epsilon=None,
        doubt="torchvision's own B0 to B4 have 1e-5",
    ),
)


class Translation(NamedTuple):
    """The new name of each name, in the same order, and the format that was recognised, if any."""

    names: dict[str, str]
    format: WeightFormat | None


def translate(state: Mapping[str, Tensor], hints: str = "") -> Translation:
    """Give the weights of a file torchvision's names.

    Args:
        state: tensors by name, of which only the shapes of convolutions are looked at.
        hints: what the file says of itself: its own name, and `arch=` with the network that it
            names.

    Returns:
        The new names. Unchanged are those that no table knows, and all where the format is not
        recognised, wrappers' prefixes apart. Two can have the same new name.
    """
    plain = {name: _unwrapped(name) for name in state}
    prefix, row = _find_network(set(plain.values()), hints)
    if row is None:
        return Translation(plain, None)
    plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
    modules: dict[str, str] = {}
    if row.efficientnet is not None:
        shapes = {plain[name]: tuple(value.shape) for name, value in state.items()}
        modules = _efficientnet_modules(row.efficientnet, shapes)
    return Translation(
        {name: _renamed(short, row.renames, modules) for name, short in plain.items()}, row
    )


def _unwrapped(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _find_network(names: set[str], hints: str) -> tuple[str, WeightFormat | None]:
    """The prefix of the network's names, "" if there is none, and their format.

    A network can be a member of what was saved, such as Lightning's `model.`; its head can be
    another one. Two networks side by side, a student and its teacher, are neither of them.
    """
    fitting: dict[str, WeightFormat] = {}
    for row in FORMATS:
        if re.search(row.hint, hints):
            for prefix in _prefixes(row.marks, names):
                fitting.setdefault(prefix, row)
    if "" in fitting:
        return "", fitting[""]
    return fitting.popitem() if len(fitting) == 1 else ("", None)


def _prefixes(marks: frozenset[str], names: set[str]) -> set[str]:
    """With which prefixes all marks are there; some, but not all of them, may be without."""
    found = [
        {name.removesuffix(mark) for name in names if name.endswith(f".{mark}")}
        for mark in marks
        if mark not in names
    ]
    return set.intersection(*found) if found else {""}


def _renamed(name: str, renames: tuple[Pair, ...], modules: Mapping[str, str]) -> str:
    module, _, leaf = name.rpartition(".")
    if module in modules:
        return f"{modules[module]}.{leaf}"
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _efficientnet_modules(
    names: EfficientNetNames, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """torchvision's name of each module of an EfficientNet.

    Stages are told by their numbers of output channels, which differ from one to the next. Where
    a block is not complete, where it belongs is not certain: then no block has a name here.
    """
    modules = {
        names.stem[0]: "features.0.0",
        names.stem[1]: "features.0.1",
        names.head[0]: "features.8.0",
        names.head[1]: "features.8.1",
        names.classifier: "classifier.1",
    }
    found = (re.match(rf"{names.block}(?=\.)", name) for name in shapes)
    order = {match[0]: tuple(map(int, match.groups())) for match in found if match}
    placed: dict[str, str] = {}
    stage, position = 0, 0
    channels: tuple[int, ...] | None = None
    for block in sorted(order, key=lambda name: order[name]):
        kind = _kind(block, names, shapes)
        if kind is None:
            return modules
        width = shapes[f"{block}.{kind.project[0]}.weight"][:1]
        stage, position = (stage, position + 1) if width == channels else (stage + 1, 0)
        channels = width
        for number, pair in enumerate(kind.in_order()):
            ends = ("fc1", "fc2") if pair is kind.gates else ("0", "1")
            for module, end in zip(pair, ends, strict=True):
                placed[f"{block}.{module}"] = f"features.{stage}.{position}.block.{number}.{end}"
    return modules | placed


def _kind(block: str, names: EfficientNetNames, shapes: Collection[str]) -> Block | None:
    """Which kind of block has all its convolutions there."""
    for kind in (names.expanded, names.plain):
        if all(f"{block}.{first}.weight" in shapes for first, _ in kind.in_order()):
            return kind
    return None
