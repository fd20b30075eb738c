# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Test double of Cambricon's plug-in torch_mlu: importing it gives PyTorch the device "mlu".

Like the original it has no entry point: `import torch` does not load it.
"""

from fake_accelerator import install

__version__ = "0.0.1+fake"
mlu = install("mlu")
