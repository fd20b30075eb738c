# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for device and precision change."""

from __future__ import annotations

import contextlib
import os
from typing import Any
from unittest import mock

import pytest
import torch
from option_lab import Lab, shows
from runs import same
from torch.distributed import fsdp

import main
from image_classification import distributed
from image_classification.device import Device, available_devices


@shows("--device", "where the run takes place; a missing device is an error")
def device(lab: Lab) -> None:
    assert "1 x cpu" in lab.base.out
    missing = [name for name, state in available_devices().items() if not state.startswith("ok")]
    assert missing, "this machine has every kind of device"
    text = lab.error("--device", missing[-1])
    assert text.startswith(f"--device {missing[-1]} is not available: ")
    assert "--device cpu always works" in text


@shows("--gpu-id", "which device: an index that is not there is an error")
def gpu_id(lab: Lab) -> None:
    assert lab.run("--gpu-id", 0).models
    assert "device index 1 does not exist" in lab.error("--gpu-id", 1)


BRIEF = ("--no-checkpoints",)


@contextlib.contextmanager
def bfloat16(fast: bool) -> Any:
    """A processor that is fast with bfloat16, or not."""
    with mock.patch("image_classification.device.has_fast_bfloat16", lambda: fast):
        yield


@shows("--amp", "precision: the loss, and a line that says which")
def amp(lab: Lab) -> None:
    with bfloat16(True):
        mixed = lab.run("--amp", *BRIEF)
    with bfloat16(False):
        slow = lab.run("--amp", *BRIEF)
    assert "mixed precision in bfloat16" in mixed.out and "FP32, seed 0" in lab.base.out
    assert mixed.value("train.loss") != lab.base.value("train.loss")
    assert "FP32 instead of mixed precision" in slow.out
    assert slow.value("train.loss") == lab.base.value("train.loss")
    recipe = ["sample:digits", "--recipe", "resnet50-16"]
    assert main.parse_args(recipe)[0].amp and not main.parse_args([*recipe, "--no-amp"])[0].amp


@shows("--amp-dtype", "precision on a device that would not choose it itself")
def amp_dtype(lab: Lab) -> None:
    with bfloat16(False):
        made = lab.run("--amp", "--amp-dtype", "bfloat16", *BRIEF)
    assert "bfloat16, as asked for" in made.out
    assert made.value("train.loss") != lab.base.value("train.loss")
    assert "float16 needs an accelerator" in lab.error("--amp", "--amp-dtype", "float16")


@shows("--pyamp", "the same as --amp, with a note")
def pyamp(lab: Lab) -> None:
    with bfloat16(True):
        mapped = lab.run("--pyamp", *BRIEF)
    assert "--pyamp is --amp here" in mapped.out and "in bfloat16" in mapped.out


@shows("--cnmix", "the same as --amp, with a note")
def cnmix(lab: Lab) -> None:
    with bfloat16(True):
        mapped = lab.run("--cnmix", *BRIEF)
    assert "--cnmix is --amp here" in mapped.out and "in bfloat16" in mapped.out


@shows("--opt_level", "whether --cnmix means --amp")
def opt_level(lab: Lab) -> None:
    with bfloat16(True):
        plain = lab.run("--cnmix", "--opt_level", "O0", *BRIEF)
    assert "O0 is FP32 here" in plain.out and "bfloat16" not in plain.out
    assert plain.value("train.loss") == lab.base.value("train.loss")
    assert main.parse_args(["DIR", "--cnmix", "--opt_level", "O3"])[0].amp


@shows("--fp16", "the type of the weights in an evaluation")
def fp16(lab: Lab) -> None:
    flags = ("--evaluate", "--resume", lab.base.workspace / "checkpoint.pth.tar")
    half, full = lab.run(*flags, "--fp16"), lab.run(*flags)
    types = [run.models[0].conv1.weight.dtype for run in (half, full)]
    assert types == [torch.float16, torch.float32]
    assert "FP16 weights" in half.out
    losses = [run.value("val.loss", "summary") for run in (half, full)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


@shows("--tf32", "matrix units of cuda; elsewhere an error")
def tf32(lab: Lab) -> None:
    for flag in ("--tf32", "--no-tf32"):
        assert "is a switch of cuda, the device is cpu" in lab.error(flag)
    found = Device.select("cpu")  # what auto finds where there is no accelerator
    with mock.patch.object(Device, "select", lambda *_: found):
        assert "--tf32 is a switch of NVIDIA GPUs" in lab.error("--device", "auto", "--tf32")
        assert lab.run("--device", "auto", "--no-tf32", "--no-checkpoints").models


@contextlib.contextmanager
def float16() -> Any:
    """A device whose mixed precision is float16, which needs a loss scale."""
    with mock.patch.object(Device, "amp_dtype", lambda *_: (torch.float16, "float16")):
        yield


@shows("--static-loss-scale", "the loss scale of float16: train.grad_scale and the checkpoint")
def static_loss_scale(lab: Lab) -> None:
    with float16():
        scaled = lab.run("--amp", "--static-loss-scale", 128)
    assert scaled.value("train.grad_scale") == 128 and scaled.last["amp"]["scale"] == 128


@shows("--dynamic-loss-scale", "whether an overflow lowers a given loss scale")
def dynamic_loss_scale(lab: Lab) -> None:
    flags = ("--amp", "--static-loss-scale", 2.0**40, "--no-checkpoints")
    with float16():
        fixed, moving = lab.run(*flags), lab.run(*flags, "--dynamic-loss-scale")
    assert [run.value("train.skipped_steps") for run in (fixed, moving)] == [1, 1]
    assert fixed.value("train.grad_scale") == 2.0**40
    assert moving.value("train.grad_scale") == 2.0**39


@shows("--memory-format", "the order of images and weights in memory")
def memory_format(lab: Lab) -> None:
    nchw = lab.run("--memory-format", "nchw", "--no-checkpoints")
    for run, last in ((lab.base, True), (nchw, False)):
        for tensor in (run.models[0].conv1.weight, run.batches[0]):
            assert tensor.is_contiguous(memory_format=torch.channels_last) is last


class Broken(torch.nn.Module):
    """What torch.compile makes of a network that it cannot compile."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel for it\nand a long story")


@shows("--compile", "that the training step is compiled, and how")
def compile_(lab: Lab) -> None:
    modes = []

    def traced(function: Any, mode: str = "", dynamic: bool | None = None) -> Any:
        modes.append(mode)
        return compiled(function, backend="aot_eager", dynamic=dynamic)  # no compiler, no minute

    compiled = torch.compile
    with mock.patch("torch.compile", traced):
        for flags in (("--compile",), ("--compile", "max-autotune")):
            run = lab.run(*flags, "--no-checkpoints")
            assert "compiled in " in run.out and "not compiled" in run.out
            assert run.value("train.loss") == pytest.approx(lab.base.value("train.loss"), 1e-4)
    assert modes == ["", "default", "", "max-autotune"]
    assert "invalid choice: 'fast'" in lab.error("--compile", "fast")
    broken = mock.Mock(side_effect=lambda function, **how: Broken() if "mode" in how else function)
    with mock.patch("torch.compile", broken):
        made = lab.run("--compile")
    assert "cannot be compiled (no kernel for it): not compiled" in made.out
    assert same(made.weights, lab.base.weights) == []


@shows("--deterministic", "torch's switch for reproducible operators")
def deterministic(lab: Lab) -> None:
    lab.run("--deterministic", "--no-checkpoints")
    assert torch.are_deterministic_algorithms_enabled()
    lab.run("--no-checkpoints")
    assert not torch.are_deterministic_algorithms_enabled()


@shows("--gpu-affinity", "the cores of the process")
def gpu_affinity(lab: Lab) -> None:
    if not hasattr(os, "sched_setaffinity"):
        assert "needs Linux" in lab.error("--gpu-affinity", "socket_single")
        return
    before = os.sched_getaffinity(0)
    try:
        lab.run("--no-checkpoints")
        assert os.sched_getaffinity(0) == before
        lab.run("--gpu-affinity", "socket_single", "--no-checkpoints")
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


@shows("--parallel", "where the weights are (test_sharding.py has several processes)")
def parallel(lab: Lab) -> None:
    if hasattr(fsdp, "fully_shard"):
        alone = lab.run("--parallel", "fsdp")
        assert "--parallel fsdp: a single process keeps all of the weights" in alone.out
        assert same(alone.weights, lab.base.weights) == []
    else:
        assert "--parallel fsdp needs PyTorch 2.6" in lab.error("--parallel", "fsdp")
    for flags in (("--freeze", "stage1"), ("--jit", "script")):
        text = lab.error("--parallel", "fsdp", *flags)
        assert "--parallel fsdp goes neither with --freeze nor" in text and "use ddp" in text


@shows("--bucket-mib", "the buckets of DistributedDataParallel (test_distributed.py has one)")
def bucket_mib(lab: Lab) -> None:
    for flags, wanted in ((), None), (("--bucket-mib", 7), 7):
        with mock.patch.object(distributed, "wrap", wraps=distributed.wrap) as wrapped:
            lab.run("--no-checkpoints", *flags)
        assert [call.kwargs["bucket_mib"] for call in wrapped.call_args_list] == [wanted]
    text = lab.error("--bucket-mib", 7, "--parallel", "fsdp")
    assert text == "--bucket-mib is for --parallel ddp"


@shows("--dist-backend", "the collective library: one that does not serve the device is an error")
def dist_backend(lab: Lab) -> None:
    assert lab.run("--dist-backend", "gloo", "--no-checkpoints").models
    text = lab.error("--dist-backend", "nccl")
    assert "does not serve device 'cpu'" in text and "leave it out" in text


@shows("--world-size", "the number of nodes that is demanded")
def world_size(lab: Lab) -> None:
    assert lab.run("--world-size", 1, "--no-checkpoints").models
    text = lab.error("--world-size", 2)
    assert "asks for 2 nodes, this run has 1" in text and "python multiproc.py" in text


@shows("--addr", "the master address that is demanded")
def addr(lab: Lab) -> None:
    text = lab.error("--addr", "10.0.0.1")
    assert "there is no launcher" in text and "python multiproc.py" in text
