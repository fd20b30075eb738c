# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The formula of benchmarks/scaling.py at its limits and against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist

from benchmarks import scaling, scaling_model, scaling_published
from benchmarks.scaling_model import MIB, Interconnect, predict
from models import create_model

# 1 GB/s in a node of 4 and 0.1 GB/s beyond it, at 1 and 10 us a hop.
LINK = Interconnect("by hand", 4, 1e9, 1e-6, 1e8, 1e-5, 0.0)
FREE = Interconnect("free", 8, math.inf, 0.0, math.inf, 0.0, 0.0)
GRADIENTS = 1e8


def test_a_ring_by_hand() -> None:
    """4 devices, 100 MB: each sends 6 times 25 MB at 1 GB/s, after 6 hops."""
    assert scaling_model.ring_seconds(1e8, 4, 1e9, 1e-6) == pytest.approx(6 * 0.025 + 6e-6)
    assert scaling_model.ring_seconds(1e8, 1, 1e9, 1e-6) == 0.0


def test_a_tree_by_hand() -> None:
    """8 devices: all bytes up and down, 3 levels each."""
    assert scaling_model.tree_seconds(1e8, 8, 1e9, 1e-6) == pytest.approx(0.2 + 6e-6)
    assert scaling_model.tree_seconds(1e8, 1, 1e9, 1e-6) == 0.0


def test_an_all_reduce_of_two_nodes_by_hand() -> None:
    """The ring within the nodes, and a quarter of the bytes once there and back between them."""
    found = scaling_model.all_reduce_seconds(1e8, 8, LINK, 1.0)
    assert found == pytest.approx(0.15 + 6e-6 + 2.5e7 / 1e8 + 2e-5)
    half = scaling_model.all_reduce_seconds(1e8, 8, LINK, 0.5)
    assert half == pytest.approx(0.3 + 6e-6 + 0.5 + 2e-5)


def test_many_nodes_take_the_tree_for_little_and_the_ring_for_much() -> None:
    few, nodes = 1e3, 256
    tree = scaling_model.tree_seconds(few / 4, nodes, 1e8, 1e-5)
    assert tree < scaling_model.ring_seconds(few / 4, nodes, 1e8, 1e-5)
    local = scaling_model.ring_seconds(few, 4, 1e9, 1e-6)
    assert scaling_model.all_reduce_seconds(few, 4 * nodes, LINK, 1.0) == local + tree
    ring = scaling_model.ring_seconds(1e11 / 4, nodes, 1e8, 1e-5)
    assert ring < scaling_model.tree_seconds(1e11 / 4, nodes, 1e8, 1e-5)


def test_nodes_must_be_full() -> None:
    with pytest.raises(ValueError, match="6 devices do not fill nodes of 4"):
        predict(0.1, GRADIENTS, 6, LINK)


def test_a_step_by_hand() -> None:
    """Buckets of 1, 50 and 49 MB at 1 GB/s on 2 devices; forward 0.1 s, backward 0.2 s.

    The second is ready at 0.2 s and done at 0.25 s; the last one is ready at the end, at 0.3 s.
    """
    link = LINK._replace(node_latency=0.0)
    found = predict(0.3, GRADIENTS, 2, link, bucket=5e7, attained=1.0)
    first = scaling_model.FIRST_BUCKET_BYTES
    assert scaling_model.bucket_sizes(GRADIENTS, 5e7) == [first, 5e7, 5e7 - first]
    assert found.communication == pytest.approx(0.1)
    assert found.exposed == pytest.approx((5e7 - first) / 1e9)
    assert found.step == pytest.approx(0.3 + found.exposed)
    assert found.efficiency == pytest.approx(0.3 / found.step)


def test_buckets_queue_up_where_the_network_is_slow() -> None:
    """All that follows the moment at which the first bucket is ready cannot be hidden."""
    link = LINK._replace(node_latency=0.0)
    found = predict(1e-6, GRADIENTS, 2, link, attained=1.0)
    assert found.exposed == pytest.approx(0.1, rel=1e-4)
    assert found.communication == pytest.approx(0.1)


@pytest.mark.parametrize("link", [LINK, FREE])
def test_one_device_takes_the_measured_step(link: Interconnect) -> None:
    found = predict(0.123, GRADIENTS, 1, link)
    assert found == (1, 0.123, 0.0, 0.0) and found.efficiency == 1.0


@pytest.mark.parametrize("devices", [2, 8, 1024])
def test_an_infinite_bandwidth_costs_nothing(devices: int) -> None:
    found = predict(0.123, GRADIENTS, devices, FREE)
    assert found.step == 0.123 and found.communication == 0.0


def test_predictions_are_monotone() -> None:
    for link in scaling_published.INTERCONNECTS:
        by_devices = [predict(0.05, GRADIENTS, n, link).efficiency for n in (1, 2, 8, 64, 1024)]
        assert by_devices == sorted(by_devices, reverse=True)
        by_step = [predict(step, GRADIENTS, 64, link).efficiency for step in (0.01, 0.05, 0.5)]
        assert by_step == sorted(by_step)
        by_bytes = [predict(0.05, size, 64, link).efficiency for size in (1e6, 1e8, 1e9)]
        assert by_bytes == sorted(by_bytes, reverse=True)
        by_share = [predict(0.05, GRADIENTS, 64, link, attained=x).efficiency for x in (0.4, 0.8)]
        assert by_share == sorted(by_share)
        assert all(0 < value <= 1 for value in [*by_devices, *by_step, *by_bytes, *by_share])


@pytest.mark.parametrize("size", [1e3, MIB, 3e7, 102228128.0])
def test_buckets_add_up(size: float) -> None:
    sizes = scaling_model.bucket_sizes(size)
    assert sum(sizes) == size and max(sizes) <= scaling_model.BUCKET_BYTES
    assert sizes[0] <= scaling_model.FIRST_BUCKET_BYTES


def test_constants_are_those_of_torch_and_of_the_networks() -> None:
    assert dist._DEFAULT_FIRST_BUCKET_BYTES == scaling_model.FIRST_BUCKET_BYTES
    for name, classes, expected in (
        ("resnet50", 1000, scaling_published.RESNET50),
        ("resnet50_cifar", 100, scaling_published.RESNET50_CIFAR),
        ("efficientnet-b0", 1000, scaling_published.EFFICIENTNET_B0),
        ("efficientnet-b4", 1000, scaling_published.EFFICIENTNET_B4),
    ):
        with torch.device("meta"):
            model = create_model(name, classes)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected, name


def test_what_is_published_is_compared_as_it_is() -> None:
    rows = {(row["name"], row["interconnect"], row["batch_size"], row["devices"]): row
            for row in scaling.comparisons(25 * MIB)}  # fmt: skip
    nvidia = rows["ResNet-50, AMP", scaling_published.A100.name, 256, 8]
    assert nvidia["published"] == pytest.approx(16621 / 8 / 2470)
    assert nvidia["lost"] == pytest.approx(256 * 8 / 16621 - 256 / 2470)
    assert nvidia["communication"] < nvidia["lost"] / 10  # the formula does not explain it
    ascend = rows["ResNet-50, O2", scaling_published.ASCEND_910.name, 512, 8]
    assert ascend["published"] > 1 > ascend["predicted"]
