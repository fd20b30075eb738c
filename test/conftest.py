# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What all tests take for granted of the process that runs them."""

from __future__ import annotations

import signal

# A shell that runs the tests in the background makes them, and all they start, ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
