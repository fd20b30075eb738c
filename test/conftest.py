# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What all tests take for granted of the process that runs them; the longest files come first."""

from __future__ import annotations

import signal

import pytest

# A shell that runs the tests in the background makes them, and all they start, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Those that take longest, longest first: what comes last then is short, and no worker waits for
#: minutes while another one is in the middle of a file. One that is missing here only costs time.
LONG = (
    "test_main_run", "test_fake_devices", "test_options", "test_compile", "test_signals",
    "test_hardware_check", "test_ascend_scripts", "test_dead_ranks", "test_kills",
    "test_validation_counts", "test_transfer", "test_torchrun", "test_benchmarks", "test_cifar_run",
    "test_prune", "test_mixup_ranks", "test_damaged_checkpoints", "test_fuzz_replay",
    "test_fake_accelerator_smoke", "test_quantize", "test_classify", "test_export",
    "test_evaluation", "test_full_disk", "test_other_processors", "test_matrix",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Has pytest-xdist keep the order: by itself it starts with the files of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order within a file stays."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
