# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Errors of other libraries that become one line for the user."""

from __future__ import annotations

import pytest
import torch

from image_classification.device import Device
from image_classification.errors import DataError, DeviceMemoryError, LostPeerError, UserError
from image_classification.failures import explain

DEVICE = Device.select("cpu")


class DistBackendError(RuntimeError):
    """Named as torch.distributed's own."""


@pytest.mark.parametrize(
    "error, kind, text",
    [
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "), DataError,
         "a loader worker process died"),
        (RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:12: "
                      "Connection reset by peer"), LostPeerError, "is gone or does not answer"),
        (DistBackendError("NCCL error in: x.cpp:1\nLast error: remote"), LostPeerError,
         r"\(NCCL error in: x.cpp:1\)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), DeviceMemoryError,
         "--batch-size"),
    ],
)  # fmt: skip
def test_it_is_explained_in_one_line(error: Exception, kind: type[UserError], text: str) -> None:
    explained = explain(error, DEVICE, 64)
    assert type(explained) is kind
    assert len(str(explained).splitlines()) == 1
    with pytest.raises(kind, match=text):
        raise explained


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("shape mismatch"), KeyError("k")])
def test_mistakes_in_the_code_keep_their_traceback(error: Exception) -> None:
    assert explain(error, DEVICE, 64) is None
