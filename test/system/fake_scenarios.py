# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the smoke test of the fake accelerator runs: python fake_scenarios.py SCENARIO FOLDER

Each scenario runs in a process in which PyTorch has the fake device, and returns what it saw.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def small_net() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


class PlainSgd:
    """The smallest optimizer: torch.optim takes seconds to import and is tested in one process."""

    def __init__(self, params: Any, lr: float) -> None:
        self.param_groups = [{"params": list(params)}]
        self.lr = lr

    def zero_grad(self) -> None:
        for param in self.param_groups[0]["params"]:
            param.grad = None

    def step(self) -> None:
        import torch

        with torch.no_grad():
            for param in self.param_groups[0]["params"]:
                param -= self.lr * param.grad


def train(device: Any, steps: int = 5, amp: Any = None, scaler: Any = None, **sgd: Any) -> Any:
    """Return the losses and the net on the CPU after some steps on `device`."""
    import torch
    from torch.nn.functional import cross_entropy

    net = small_net().to(device.torch_device)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    target = torch.randint(0, 10, (16,), generator=generator)
    optimizer: Any = PlainSgd(net.parameters(), 0.1)
    if sgd:
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, **sgd)
    scaler = scaler or device.grad_scaler(None)
    stream = device.side_stream()
    losses = []
    for _ in range(steps):
        with device.stream_context(stream):
            moved = images.to(device.torch_device, non_blocking=True)
            labels = target.to(device.torch_device, non_blocking=True)
        device.wait_stream(stream)
        device.record_stream(moved)
        with device.autocast(amp):
            logits = net(moved)
        optimizer.zero_grad()
        loss = cross_entropy(logits.float(), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    return [loss.item() for loss in losses], net.cpu(), logits.dtype


def same_state(one: Any, other: Any) -> bool:
    import torch

    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def scenario_train(folder: Path) -> dict[str, Any]:
    from image_classification.device import Device

    npu = Device.select("auto")
    npu.configure(tf32=None, deterministic=True)
    cpu = Device.select("cpu")
    import torch

    report: dict[str, Any] = {"device": str(npu), "count": npu.count, "collective": npu.collective}
    report["text"] = npu.amp_dtype("auto")[1]
    for name in ("foreach", "fused"):
        options = {name: True}
        losses, net, _ = train(npu, **options)
        expected, reference, _ = train(cpu, **options)
        report[name] = [losses == expected, same_state(net, reference)]
        report["bn_mean"] = net[1].running_mean.tolist()
    for name, dtype in {"bfloat16": torch.bfloat16, "float16": torch.float16}.items():
        scaler = npu.grad_scaler(dtype)
        losses, _, kind = train(npu, amp=dtype, scaler=scaler, foreach=True)
        gap = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        report[name] = [str(kind), gap, scaler.is_enabled()]
    static = npu.grad_scaler(torch.float16, init_scale=128.0, dynamic=False)
    train(npu, amp=torch.float16, scaler=static)
    report["static_scale"] = static.get_scale()
    report["pinned"] = npu.can_pin_memory
    report["memory"] = list(npu.memory() or ())
    tensor = torch.arange(4.0, device=npu.torch_device)
    torch.save({"tensor": tensor}, folder / "npu.pt")
    before = dict(torch.ops.fakeacc.counters("waits"))
    net = small_net().to(npu.torch_device)
    net(torch.ones(2, 3, 8, 8).to(npu.torch_device)).sum().backward()
    npu.seed(5)
    report["waits_of_a_step"] = dict(torch.ops.fakeacc.counters("waits")) != before
    npu.seed(7)
    first = torch.rand(3, device=npu.torch_device)
    npu.seed(7)
    report["seeded"] = torch.equal(first, torch.rand(3, device=npu.torch_device))
    return report


def scenario_ddp(folder: Path) -> dict[str, Any]:
    from datetime import timedelta

    from image_classification.device import Device

    rank = int(os.environ["RANK"])
    device = Device.select("npu", local_rank=int(os.environ["LOCAL_RANK"]))
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        device.collective, timeout=timedelta(seconds=60), device_id=device.process_group_device()
    )
    net = small_net().to(device.torch_device)
    ddp = torch.nn.parallel.DistributedDataParallel(net, device_ids=device.ddp_device_ids())
    optimizer = PlainSgd(ddp.parameters(), 0.1)
    torch.manual_seed(10 + rank)
    for _ in range(3):
        images = torch.randn(4, 3, 8, 8).to(device.torch_device)
        with device.autocast(torch.bfloat16):
            loss = ddp(images).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = net[5].weight.detach().sum().reshape(1)
    gathered = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(gathered, weights)
    objects: list[Any] = [None, None]
    dist.all_gather_object(objects, device.identity)
    mixed = dist.new_group(backend=f"cpu:gloo,npu:{device.collective}")
    flag = torch.tensor([rank])
    dist.all_reduce(flag, group=mixed)
    dist.barrier()
    dist.destroy_process_group()
    return {
        "backend": device.collective, "index": device.index, "identities": objects,
        "sums": [value.item() for value in gathered], "flag": flag.item(),
    }  # fmt: skip


def scenario_reduced(folder: Path) -> dict[str, Any]:
    """A PyTorch like 2.4, and a device that lacks whatever a device can lack."""
    from image_classification.device import Device

    device = Device.select("auto", local_rank=1)
    import torch
    import torch.distributed as dist

    losses, net, _ = train(device, steps=2)
    expected, reference, _ = train(Device.select("cpu"), steps=2)
    report: dict[str, Any] = {
        "device": str(device),
        "hidden": [hasattr(torch, "accelerator"), hasattr(dist, "get_default_backend_for_device")],
        "same": losses == expected and same_state(net, reference),
        "identity": device.identity,
        "dtype": str(device.amp_dtype("auto")[0]),
        "scaler": type(device.grad_scaler(torch.float16)).__module__,
        "memory": device.memory(),
    }
    try:
        device.amp_dtype("bfloat16")
    except Exception as error:
        report["wish"] = str(error)
    kept = []
    try:
        for _ in range(100):
            kept.append(torch.zeros(1 << 18, device=device.torch_device))
    except Exception as error:
        report["out_of_memory"] = device.is_out_of_memory(error)
        report["tensors"] = len(kept)
    return report


def overflow(scaler: Any, device: Any) -> tuple[float, bool]:
    """Return the scale and whether the weights moved after a step whose gradient overflows."""
    import torch

    weight = torch.ones(4, device=device.torch_device, requires_grad=True)
    optimizer: Any = PlainSgd([weight], 1e-9)
    with device.autocast(torch.float16):
        loss = (weight.half() * 3e4).float().sum()
    scaler.scale(loss).backward()
    assert weight.grad is not None
    finite = bool(torch.isfinite(weight.grad).all())
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale(), finite


def scenario_saturate(folder: Path) -> dict[str, Any]:
    from image_classification.device import Device

    try:
        Device.select("npu", local_rank=1)
    except Exception as error:
        absent = str(error)
    device = Device.select("npu")
    import torch

    scaler = device.grad_scaler(torch.float16, init_scale=1024.0)
    plain = torch.amp.GradScaler(device.type, init_scale=1024.0)
    half = torch.full((2,), 6e4, dtype=torch.float16, device=device.torch_device)
    return {
        "dtype": str(device.amp_dtype("auto")[0]),
        "absent": absent,
        "saturates": device.saturates_on_overflow(),
        "sum": (half + half).tolist(),
        "vendor": overflow(scaler, device),
        "plain": overflow(plain, device),
    }


def scenario_select(folder: Path) -> dict[str, Any]:
    """Select the device of FAKE_WANTED and report the error."""
    from image_classification.device import Device

    try:
        return {"device": str(Device.select(os.environ["FAKE_WANTED"], local_rank=0))}
    except Exception as error:
        return {"error": str(error), "kind": type(error).__name__}


if __name__ == "__main__":
    scenario, target = sys.argv[1], Path(sys.argv[2])
    answer = globals()[f"scenario_{scenario}"](target)
    (target / f"{scenario}.json").write_text(json.dumps(answer), encoding="utf-8")
