# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which errors of the libraries below are nobody's mistake in the code, and what they mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from image_classification.errors import (
    DataError,
    DeviceMemoryError,
    LostPeerError,
    UserError,
    first_line,
)
from image_classification.pytorch_loader import worker_failure

if TYPE_CHECKING:
    from image_classification.device import Device

# How the collective libraries tell that another process has gone or does not answer.
_LOST_PEER = (
    "Connection reset by peer",
    "Connection closed by peer",
    "Connection refused",
    "Broken pipe",
    "Socket closed",
    "Timed out waiting",
    "Socket Timeout",
    "remote process has terminated",
    "NCCL communicator was aborted",
)


def explain(error: BaseException, device: Device, batch_size: int) -> UserError | None:
    """Translate an error that a user can cause or cure.

    Args:
        error: What a library raised.
        device: The device of this process.
        batch_size: Images per device and batch, for the advice.

    Returns:
        The error to raise instead, None if it is something else.
    """
    if device.is_out_of_memory(error):
        return DeviceMemoryError(device.explain_out_of_memory(error, batch_size))
    if not isinstance(error, RuntimeError):
        return None
    # torch tells of a dead loader process from a signal handler: from any line of the main thread.
    if text := worker_failure(str(error)):
        return DataError(text)
    kind = type(error).__name__
    if kind.startswith("Dist") or any(text in str(error) for text in _LOST_PEER):
        return LostPeerError(
            f"another process of this run is gone or does not answer ({first_line(error)}); its "
            "own log says why; start again with --resume auto"
        )
    return None


@contextlib.contextmanager
def explained(device: Device, batch_size: int) -> Iterator[None]:
    """Raises what `explain` makes of an exception, where it makes something of it."""
    try:
        yield
    except Exception as error:
        if (found := explain(error, device, batch_size)) is not None:
            raise found from error
        raise
