# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What others have published: interconnects, and images per second on one and several devices."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.scaling_model import Interconnect

GB, GBIT, US = 1e9, 1e9 / 8, 1e-6

# NCCL's own table for its tuning (src/graph/tuning.cc, Ring, Simple): start of a collective, a hop
# over NVLink, over PCIe and over a network. For other vendors' libraries nothing is published:
# taken to be the same.
LAUNCH, NVLINK_HOP, PCIE_HOP, NET_HOP = 8.4 * US, 3.4 * US, 5.7 * US, 14.0 * US

# Bandwidths are those of one direction: half of what vendors print for NVLink.
V100 = Interconnect(
    "V100 (NVLink 2), DGX-1", 8, 150 * GB, NVLINK_HOP, 4 / 8 * 100 * GBIT, NET_HOP, LAUNCH
)
A100 = Interconnect(
    "A100 (NVLink 3), HDR InfiniBand", 8, 300 * GB, NVLINK_HOP, 200 * GBIT, NET_HOP, LAUNCH
)
H200 = Interconnect(
    "H100, H200 (NVLink 4), NDR InfiniBand", 8, 450 * GB, NVLINK_HOP, 400 * GBIT, NET_HOP, LAUNCH
)
# Two groups of four: a ring of eight has one HCCS link (30 GB/s) in a group, PCIe 4.0 (32 GB/s)
# between them. Assumed: that 30 GB/s is one direction, and PCIE_HOP.
ASCEND_910 = Interconnect(
    "Ascend 910 (HCCS), 100 Gb/s RoCE", 8, 30 * GB, PCIE_HOP, 100 * GBIT, NET_HOP, LAUNCH
)
# No product: what a machine without these networks has. All of it is an assumption.
PLAIN = Interconnect(
    "PCIe 4.0, one 100 Gb/s port per 8 devices", 8, 32 * GB, PCIE_HOP, 100 / 8 * GBIT, NET_HOP,
    LAUNCH,
)  # fmt: skip
INTERCONNECTS = (H200, A100, V100, ASCEND_910, PLAIN)

RESNET50, RESNET50_CIFAR = 25_557_032, 23_705_252
EFFICIENTNET_B0, EFFICIENTNET_B4 = 5_288_548, 19_341_616

NVIDIA = "NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets"
LAMBDA = "lambdal/deeplearning-benchmark"
ASCEND = "ModelZoo-PyTorch (Ascend)"


class Published(NamedTuple):
    """A figure for one device and figures for several.

    Attributes:
        name: Network and precision.
        link: What joins the devices; assumed where the source does not say it.
        parameters: Of the network.
        batch_size: Images per device and step.
        single: Images per second of one device.
        several: Images per second of all, by number of devices.
        source: Who says so.
        data: What the program read, as far as the source says.
    """

    name: str
    link: Interconnect
    parameters: int
    batch_size: int
    single: float
    several: dict[int, float]
    source: str
    data: str = "not said"


FILES, SYNTHETIC = "ImageNet's files", "synthetic"

# NVIDIA's benchmark_training mode reads the data set; Lambda starts the same program with
# --data-backend synthetic (pytorch/scripts/config_v2/config_pytorch_80GB.sh). The batch of Lambda's
# A100 and that of Ascend's EfficientNet-B0 are assumed.
PUBLISHED = (
    Published("ResNet-50, AMP", A100, RESNET50, 256, 2470, {8: 16621}, NVIDIA, FILES),
    Published("ResNet-50, TF32", A100, RESNET50, 256, 938, {8: 7248}, NVIDIA, FILES),
    Published("ResNet-50, AMP", V100, RESNET50, 256, 1200, {8: 8322}, NVIDIA, FILES),
    Published("ResNet-50, FP32", V100, RESNET50, 112, 367, {8: 2855}, NVIDIA, FILES),
    Published("EfficientNet-B0, AMP", A100, EFFICIENTNET_B0, 256, 2489, {8: 16652, 16: 29332},
              NVIDIA, FILES),
    Published("EfficientNet-B4, AMP", A100, EFFICIENTNET_B4, 128, 331,
              {8: 2570, 16: 4813, 32: 9425, 64: 18900}, NVIDIA, FILES),
    Published("ResNet-50, AMP", H200, RESNET50, 1280, 2789, {2: 5520, 4: 11035, 8: 22059}, LAMBDA,
              SYNTHETIC),
    Published("ResNet-50, AMP", A100, RESNET50, 1280, 1582, {2: 3038, 4: 6070, 8: 11439}, LAMBDA),
    Published("ResNet-50, O2", ASCEND_910, RESNET50, 512, 1259.591, {8: 11898.83}, ASCEND),
    Published("EfficientNet-B0, O1", ASCEND_910, EFFICIENTNET_B0, 256, 1300.6, {8: 7053.6},
              ASCEND),
    Published("ResNet-50, CIFAR-100, O2", ASCEND_910, RESNET50_CIFAR, 512, 4196, {8: 32507},
              ASCEND),
)  # fmt: skip


class Step(NamedTuple):
    """A step of one device, to predict from.

    Attributes:
        name: As in the table.
        link: What joins the devices.
        parameters: Of the network.
        batch_size: Images per device and step.
        seconds: Of the step, > 0.
    """

    name: str
    link: Interconnect
    parameters: int
    batch_size: int
    seconds: float

    def with_batch(self, batch_size: int) -> Step:
        """The step with another batch, if images per second stayed the same: few do when small."""
        return self._replace(
            batch_size=batch_size, seconds=self.seconds * batch_size / self.batch_size
        )


# ResNet-50 with mixed precision. The H100's rate is one of batch 1280, taken at 256.
STEPS = (
    Step("H100", H200, RESNET50, 256, 256 / 2789),
    Step("A100", A100, RESNET50, 256, 256 / 2470),
    Step("Ascend 910", ASCEND_910, RESNET50, 256, 256 / 1259.591),
    Step("A100's step, plain machine", PLAIN, RESNET50, 256, 256 / 2470),
)
