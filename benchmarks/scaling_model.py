# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a training step costs on many devices: a formula, and what it leaves out.

The step of one device is measured. DistributedDataParallel adds the all-reduce of the gradients,
bucket by bucket while the backward pass goes on (Li et al. 2020, arXiv:2006.15704):

    ready(i)  = forward + backward x (bytes of buckets 1..i / all bytes)
    end(i)    = max(ready(i), end(i - 1)) + all_reduce(bytes of bucket i)
    step      = step of one device + max(0, end(last) - forward - backward)

    ring(n)   = 2 (n - 1) / n x bytes / bandwidth + 2 (n - 1) x latency
    tree(n)   = 2 x bytes / bandwidth + 2 log2(n) x latency

A ring of n devices is Patarasuk and Yuan 2009 (doi:10.1016/j.jpdc.2008.09.002), optimal in bytes.
Beyond a node: half a ring in the node (reduce-scatter), the all-reduce of each device's share with
its counterparts on the other nodes (ring or tree, whichever is faster, as NCCL chooses), the other
half (all-gather).

Left out: the data loader, devices that are slower than others or interrupted (all wait for the
slowest), kernels of the collectives that take compute units and memory bandwidth from the backward
pass, congestion of a shared network, and the host. A figure below the prediction is theirs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

BYTES_PER_PARAMETER = 4  # gradients are float32, with mixed precision too: the weights are
MIB = 2**20
BUCKET_BYTES = 25 * MIB  # DistributedDataParallel's default
FIRST_BUCKET_BYTES = 1 * MIB  # its first one is smaller, so that communication starts early

# Assumptions; each changes the prediction.
BACKWARD_SHARE = 2 / 3  # of the step: twice the products of matrices of the forward pass
ATTAINED = 0.8  # of a published bandwidth; NVLink: 20 of 25 GB/s a link (nccl-tests issue 149)


class Interconnect(NamedTuple):
    """How the devices of a machine, and machines, are joined.

    Attributes:
        name: As in the tables.
        node_size: Devices in a node, >= 1.
        node_bandwidth: Published, within the node, one direction of one device (byte/s).
        node_latency: Of one hop within the node (s).
        net_bandwidth: Published, between nodes, one direction, the share of one device (byte/s).
        net_latency: Of one hop between nodes (s).
        launch: Before each all-reduce starts (s).
    """

    name: str
    node_size: int
    node_bandwidth: float
    node_latency: float
    net_bandwidth: float
    net_latency: float
    launch: float


class Prediction(NamedTuple):
    """What the formula says of a step.

    Attributes:
        devices: Number of devices.
        step: Time of a step (s).
        communication: All-reduce of all gradients (s), overlapped or not.
        exposed: The part of it for which the devices wait (s).
    """

    devices: int
    step: float
    communication: float
    exposed: float

    @property
    def efficiency(self) -> float:
        """Images per second and device, relative to one device alone, in (0, 1]."""
        return (self.step - self.exposed) / self.step


def ring_seconds(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Time of an all-reduce over a ring.

    Args:
        size: Bytes that each device has and gets, >= 0.
        devices: In the ring, >= 1.
        bandwidth: Of each device, one direction (byte/s), > 0.
        latency: Of one of the 2 (n - 1) hops (s), >= 0.

    Returns:
        Seconds; 0 for a single device.
    """
    hops = 2 * (devices - 1)
    return hops / devices * size / bandwidth + hops * latency


def tree_seconds(size: float, devices: int, bandwidth: float, latency: float) -> float:
    """Time of an all-reduce up and down two complementary binary trees; as `ring_seconds`.

    Each tree carries half of the bytes, each device is a leaf in one of them: it sends, and
    receives, all bytes twice. The number of hops grows with the logarithm only.
    """
    if devices == 1:
        return 0.0
    return 2 * size / bandwidth + 2 * math.ceil(math.log2(devices)) * latency


def all_reduce_seconds(
    size: float, devices: int, link: Interconnect, attained: float = ATTAINED
) -> float:
    """Time of an all-reduce over all devices.

    Args:
        size: Bytes that each device has and gets, >= 0.
        devices: Within one node, or a multiple of its size.
        link: What joins them.
        attained: Share of the published bandwidths that is reached, in (0, 1].

    Returns:
        Seconds; 0 for a single device.

    Raises:
        ValueError: The nodes would not be full.
    """
    if devices == 1:
        return 0.0
    near = min(devices, link.node_size)
    nodes, rest = divmod(devices, near)
    if rest:
        raise ValueError(f"{devices} devices do not fill nodes of {link.node_size}")
    local = ring_seconds(size, near, attained * link.node_bandwidth, link.node_latency)
    network = (size / near, nodes, attained * link.net_bandwidth, link.net_latency)
    return link.launch + local + min(ring_seconds(*network), tree_seconds(*network))


def bucket_sizes(
    gradient_bytes: float, bucket: float = BUCKET_BYTES, first: float = FIRST_BUCKET_BYTES
) -> list[float]:
    """Cuts the gradients as DistributedDataParallel does, but for tensors that it does not cut.

    Args:
        gradient_bytes: Of all parameters, > 0.
        bucket: Largest bucket in bytes, > 0.
        first: Bytes of the first bucket, > 0.

    Returns:
        Bytes of each bucket in the order of the backward pass; they add up to `gradient_bytes`.
    """
    sizes = [min(first, bucket, gradient_bytes)]
    while (left := gradient_bytes - sum(sizes)) > 0:
        sizes.append(min(bucket, left))
    return sizes


def predict(
    step: float,
    gradient_bytes: float,
    devices: int,
    link: Interconnect,
    *,
    bucket: float = BUCKET_BYTES,
    attained: float = ATTAINED,
    backward_share: float = BACKWARD_SHARE,
) -> Prediction:
    """Predicts a step of data-parallel training with the same batch on each device.

    Args:
        step: Measured time of one device's step with this batch (s), > 0.
        gradient_bytes: Parameters x 4, > 0.
        devices: Within one node, or a multiple of its size.
        link: What joins them.
        bucket: Largest bucket in bytes, > 0.
        attained: Share of the published bandwidths that is reached, in (0, 1].
        backward_share: Share of the step that is the backward pass, at its end, in [0, 1].

    Returns:
        The prediction; of one device, the measured step.

    Raises:
        ValueError: The nodes would not be full.
    """
    forward, backward = step * (1 - backward_share), step * backward_share
    done, end, communication = 0.0, 0.0, 0.0
    for size in bucket_sizes(gradient_bytes, bucket):
        done += size
        seconds = all_reduce_seconds(size, devices, link, attained)
        ready = forward + backward * min(1.0, done / gradient_bytes)
        end = max(ready, end) + seconds
        communication += seconds
    exposed = max(0.0, end - step) if communication else 0.0
    return Prediction(devices, step + exposed, communication, exposed)
