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
    "test_fake_devices", "test_options", "test_main_run", "test_hardware_check", "test_signals",
    "test_ascend_scripts", "test_cifar_run", "test_dead_ranks", "test_torchrun", "test_fuzz_replay",
    "test_prune", "test_transfer", "test_compile", "test_kills", "test_benchmarks",
    "test_mixup_ranks", "test_fake_accelerator_smoke", "test_quantize", "test_classify",
    "test_export", "test_damaged_checkpoints", "test_validation_counts", "test_matrix",
    "test_full_disk", "test_evaluation", "test_other_processors",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Has pytest-xdist keep the order: by itself it starts with the files of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order within a file stays."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
