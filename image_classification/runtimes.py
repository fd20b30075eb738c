# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Other ways than PyTorch's eager mode to run a trained network; each is compared with it once."""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from image_classification import compiling, export_formats
from image_classification.errors import DivergedError, UsageError
from image_classification.export_formats import read_onnx, run_openvino
from image_classification.folding import fold_batch_norm

if TYPE_CHECKING:
    from image_classification.device import Device

#: What each of them needs.
PACKAGES: dict[str, tuple[str, ...]] = {
    "eager": (),
    "folded": (),
    "compile": (),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("torch_tensorrt",),
}
_ON_CPU = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Runtime:
    """A way to run a network.

    Attributes:
        name: A key of `PACKAGES`.
        model: On the device.
        device: The device.
        amp_dtype: Autocast type, None for the type of the weights.
        say: Is told how far the logits are from eager's, and why something is not done.
    """

    name: str
    model: nn.Module
    device: Device
    amp_dtype: torch.dtype | None
    say: Callable[[str], None]

    def prepare(self, images: Tensor) -> nn.Module:
        """Makes the network ready for batches like this one.

        Args:
            images: [N, 3, H, W] as the network will get them, on the device.

        Returns:
            What maps images to logits: the network itself for "eager", or if it cannot be compiled.

        Raises:
            DivergedError: The logits are not finite.
            UsageError: The runtime does not go with device or precision, or a package is missing.
        """
        self.model.eval()
        if self.name == "eager":
            return self.model
        self._check()
        started = time.perf_counter()
        # What traces the network must see neither the caller's inference mode nor its precision;
        # and torch's exporter tells its steps.
        with (
            torch.inference_mode(False),
            torch.autocast(self.device.type, enabled=False),
            contextlib.redirect_stdout(None),
        ):
            ready = _MAKERS[self.name](self, images)
        if ready is self.model:
            return ready
        with torch.inference_mode(), self.device.autocast(self.amp_dtype):
            theirs = ready(images).float()
            self.device.synchronize()
            seconds = time.perf_counter() - started
            ours = self.model(images).float()
        difference = float((theirs - ours).abs().max())
        if not math.isfinite(difference):
            raise DivergedError(f"--runtime {self.name}: logits are not finite; use eager")
        equal = int((theirs.argmax(1) == ours.argmax(1)).sum())
        self.say(
            f"{self.name}, ready after {seconds:.1f} s: logits are up to {difference:.1e} from "
            f"eager's (largest {float(ours.abs().max()):.1f}), the same class for {equal} of "
            f"{len(images)} images"
        )
        return ready

    def _check(self) -> None:
        if self.name == "tensorrt" and self.device.type != "cuda":
            raise UsageError(f"--runtime tensorrt is for cuda, the device is {self.device}")
        if self.name in _ON_CPU and self.device.type != "cpu":
            raise UsageError(f"--runtime {self.name} runs on the CPU: add --device cpu")
        if self.name in _ON_CPU and next(self.model.parameters()).dtype is torch.float16:
            raise UsageError(f"--runtime {self.name} does not go with half-precision weights")
        if self.name == "onnxruntime" and self.amp_dtype is not None:
            raise UsageError(
                "--runtime onnxruntime computes in FP32 on a CPU, there is no mixed precision: "
                "leave --amp out (classify.py: --precision FP32)"
            )
        if isinstance(self.model, torch.jit.ScriptModule):
            raise UsageError(f"--runtime {self.name} does not go with --jit script; give one")
        if missing := export_formats.missing_packages(PACKAGES[self.name]):
            names = " ".join(name.replace("_", "-") for name in missing)
            raise UsageError(f"--runtime {self.name} needs {names}: pip install {names}")

    def _folded(self, images: Tensor) -> nn.Module:
        return fold_batch_norm(self.model)

    def _compile(self, images: Tensor) -> nn.Module:
        if (problem := compiling.obstacle(self.device)) is not None:
            self.say(f"{problem}: eager instead")
            return self.model
        return FixedBatch(compiling.compiled_for_inference(copy.deepcopy(self.model)), len(images))

    def _tensorrt(self, images: Tensor) -> nn.Module:
        importlib.import_module("torch_tensorrt")  # brings torch.compile's back end
        network = torch.compile(copy.deepcopy(self.model), backend="torch_tensorrt", dynamic=False)
        return FixedBatch(network, len(images))

    def _onnxruntime(self, images: Tensor) -> nn.Module:
        return Foreign(read_onnx(self._onnx(images), torch.get_num_threads()).forward)

    def _openvino(self, images: Tensor) -> nn.Module:
        precision = "f32" if self.amp_dtype is None else "bf16"
        return Foreign(run_openvino(self._onnx(images), torch.get_num_threads(), precision))

    def _onnx(self, images: Tensor) -> bytes:
        example = torch.zeros(2, *images.shape[1:])
        plain = copy.deepcopy(self.model).to(memory_format=torch.contiguous_format)
        return export_formats.write(
            "onnx", plain, {}, export_formats.Example(example, any_batch=True)
        )


_MAKERS: dict[str, Callable[[Runtime, Tensor], nn.Module]] = {
    "folded": Runtime._folded,
    "compile": Runtime._compile,
    "onnxruntime": Runtime._onnxruntime,
    "openvino": Runtime._openvino,
    "tensorrt": Runtime._tensorrt,
}


class FixedBatch(nn.Module):
    """Hands batches of one size on: what was compiled for it is not compiled again.

    Args:
        forward: Maps [N, 3, H, W] to logits [N, C].
        batch_size: N.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], batch_size: int) -> None:
        super().__init__()
        self._run, self._batch_size = forward, batch_size

    def forward(self, images: Tensor) -> Tensor:
        """Maps any number of images to their logits; the last batch is filled up."""
        parts = []
        for part in images.split(self._batch_size):
            missing = self._batch_size - len(part)
            whole = part
            if missing:  # in the memory format of the others: another one is compiled anew
                filler = part[:1].expand(missing, -1, -1, -1)
                whole = torch.cat([part, filler]).contiguous(memory_format=layout_of(images))
            parts.append(self._run(whole)[: len(part)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Foreign(nn.Module):
    """A network outside of PyTorch, which wants contiguous float32.

    Args:
        run: Maps float32 [N, 3, H, W] on the CPU to logits.
    """

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        # By numpy: PyTorch's threads would go on spinning for a while, on the cores of the runtime.
        return self._run(torch.from_numpy(np.ascontiguousarray(images.float().numpy())))


def layout_of(images: Tensor) -> torch.memory_format:
    """The memory format of [N, C, H, W]."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
