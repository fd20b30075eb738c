# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Test double of Ascend's plug-in torch_npu: importing it gives PyTorch the device "npu"."""

from fake_accelerator import install

__version__ = "0.0.1+fake"
npu = install("npu")
npu_get_float_status = npu.get_float_status
npu_clear_float_status = npu.clear_float_status


def _autoload() -> None:
    """Entry point for `import torch`; the import of this package has done everything."""
