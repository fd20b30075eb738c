# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor does in processes of its own, as it may hang, crash or be missing.

A probe is a list of steps. Each tells its name before it starts and its answer when it is done, so
that the doctor knows what worked before a process was lost, and in which step that happened.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classification.device import Device
from image_classification.device_table import (
    available_devices,
    choose_spec,
    import_torch_or_explain,
)
from image_classification.doctor.finding import one_line
from image_classification.doctor.jobs import MARK
from image_classification.errors import UserError
from image_classification.launcher import die_with_parent, signal_name

if TYPE_CHECKING:
    import torch

# Seconds in which two processes have to meet and add up a tensor.
COLLECTIVE_S = 60
_SUMMED = 2**18  # values
_JPEG_SIDE = 64

Answer = dict[str, Any]
Steps = list[tuple[str, Callable[[], Answer]]]


def main(words: list[str]) -> None:
    """Run the probe that the first word names, with the other words as its arguments."""
    for step, examine in PROBES[words[0]](*words[1:]):
        _tell(step, None)
        try:
            answer = examine()
        except Exception as error:  # vendors' code may raise anything
            answer = {"error": _explain(error)}
        _tell(step, answer)
        if step == "torch" and "error" in answer:
            return  # nothing else can be asked


def _tell(step: str, answer: Answer | None) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps([step, answer])}\n")
    sys.stdout.flush()


def _explain(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return one_line(f"{type(error).__name__}: {error}")


# ---- PyTorch and devices -------------------------------------------------------------------


def _torch_steps(*types: str) -> Steps:
    """PyTorch, torchvision and devices, what may hang last.

    Args:
        types: Of devices; with a number of processes, as "cpu:2", their collectives.
    """
    return [
        ("torch", _torch),
        *_sum_steps(*[word for word in types if ":" in word]),  # before a driver starts threads
        ("cpu", lambda: _examine("cpu")),
        ("torchvision", _torchvision),
        *[(word, partial(_examine, word)) for word in types if ":" not in word],
        ("auto", lambda: {"type": choose_spec("auto").type}),
    ]


def _torch() -> Answer:
    started = time.perf_counter()
    torch = import_torch_or_explain()
    seconds = time.perf_counter() - started
    built = {name: getattr(torch.version, name, None) for name in ("cuda", "hip", "xpu")}
    return {"version": str(torch.__version__), "built": built, "seconds": seconds}


def _torchvision() -> Answer:
    importlib.import_module("torchvision.transforms")
    importlib.import_module("torchvision.ops").nms  # noqa: B018 - it is compiled for one torch
    return {"version": importlib.metadata.version("torchvision")}


def _examine(device_type: str) -> Answer:
    """Every visible device of a type: name, memory, precisions, and whether it can calculate."""
    state = available_devices([device_type])[device_type]
    if not state.startswith("ok"):
        return {"error": state}
    count = Device.select(device_type, index=0).count
    return {"devices": [_device(device_type, index) for index in range(count)]}


def _device(device_type: str, index: int) -> Answer:
    try:
        device = Device.select(device_type, index=index)
        memory = device.memory()
        return {
            "place": str(device.torch_device),
            "name": device.name,
            "memory": memory.total if memory else 0,
            "bfloat16": device.supports_bfloat16(),
            "wrong": _wrong_products(device),
        }
    except Exception as error:
        return {"place": f"{device_type}:{index}", "error": _explain(error)}


def _wrong_products(device: Device) -> list[str]:
    """Types in which a product of matrices differs from the CPU's in whole numbers.

    Factors from -2 to 2 and sums up to 256 are exact in bfloat16, float16 and TF32.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = torch.randint(-2, 3, (2, 64, 64), generator=generator)
    types = [torch.float32]
    types += [torch.bfloat16] if device.supports_bfloat16() else []
    types += [torch.float16] if device.is_accelerator else []
    return [
        str(dtype).removeprefix("torch.")
        for dtype in types
        if not torch.equal(_product(left, right, device, dtype), left @ right)
    ]


def _product(
    left: torch.Tensor, right: torch.Tensor, device: Device, dtype: torch.dtype
) -> torch.Tensor:
    place = device.torch_device
    return (left.to(place, dtype) @ right.to(place, dtype)).cpu().to(left.dtype)


# ---- collectives ---------------------------------------------------------------------------


def _sum_steps(*groups: str) -> Steps:
    """Sums over groups of processes; "npu:2" are two that use NPUs."""
    return [(group, partial(_add_up, *group.split(":"))) for group in groups]


def _add_up(device_type: str, count: str) -> Answer:
    """Let processes add up a tensor with the collective library of a device type."""
    import_torch_or_explain("cpu")  # once for all; each process loads its plug-in itself
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks, parent = {}, os.getpid()
    for rank in range(int(count)):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_rank(parent, device_type, rank, int(count), port, writer)
        os.close(writer)
        ranks[pid] = (rank, reader)
    answer: Answer = {}
    while ranks:
        pid, status = os.wait()
        if pid not in ranks:
            continue  # a library's
        rank, reader = ranks.pop(pid)
        with os.fdopen(reader) as told:
            text = told.read()
        code = os.waitstatus_to_exitcode(status)
        if code and "error" not in answer:
            for other in ranks:  # they would wait for it
                os.kill(other, signal.SIGKILL)
            reason = text or f"was killed by {signal_name(-code)}"
            if code == -signal.SIGALRM:
                reason = f"gave no answer within {COLLECTIVE_S} s"
            answer = {"error": f"process {rank} of {count}: {reason}"}
        elif "error" not in answer:
            answer = json.loads(text)
    return answer


def _be_rank(
    parent: int, device_type: str, rank: int, count: int, port: int, writer: int
) -> None:
    """The rest of the life of a process that was forked: tells its answer and ends."""
    die_with_parent(parent)
    signal.alarm(COLLECTIVE_S)  # a library may hang where no exception reaches it
    try:
        text, code = json.dumps(_all_reduce(device_type, rank, count, port)), 0
    except BaseException as error:
        text, code = _explain(error), 1
    os.write(writer, text.encode())
    os._exit(code)


def _all_reduce(device_type: str, rank: int, count: int, port: int) -> Answer:
    import torch
    import torch.distributed as dist

    device = Device.select(device_type, local_rank=rank)
    patience = timedelta(seconds=0.75 * COLLECTIVE_S)  # the library's own words come first
    library = device.collective
    started = time.perf_counter()
    # A store of its own: MASTER_ADDR and its like may be set to anything.
    dist.init_process_group(
        f"cpu:gloo,{device.type}:{library}" if device.is_accelerator else library,
        store=dist.TCPStore("127.0.0.1", port, count, rank == 0, patience),
        rank=rank,
        world_size=count,
        timeout=patience,
        device_id=device.process_group_device(),
    )
    seconds: list[float] = []
    for _ in range(2):  # the first sum connects the processes, its time is that of the start
        values = torch.full((_SUMMED,), rank + 1.0, device=device.torch_device)
        device.synchronize()
        if seconds:
            started = time.perf_counter()
        dist.all_reduce(values)
        device.synchronize()
        seconds.append(time.perf_counter() - started)
        if not bool((values == count * (count + 1) / 2).all()):
            raise ValueError(f"the sum is wrong: {values[0].item():g}")
    dist.all_reduce(torch.zeros(1))  # over gloo: rank 0 holds the store until all are done
    dist.destroy_process_group()
    return {"start": seconds[0], "again": seconds[1], "bytes": 4 * _SUMMED}


# ---- images --------------------------------------------------------------------------------


def _numpy() -> Answer:
    numpy = importlib.import_module("numpy")
    numpy.ones(1).sum()
    return {"version": numpy.__version__}


def _pillow() -> Answer:
    pillow = importlib.import_module("PIL")
    if not importlib.import_module("PIL.features").check("jpg"):
        raise ImportError("it is built without JPEG")
    return {"version": pillow.__version__}


def _library() -> Answer:
    """Which compiled core there is, and what the processor lets it use."""
    from image_classification.fast_loader.build import find_library, library_folders, library_name
    from image_classification.fast_loader.native import kernel_names

    found, name = find_library(), library_name()
    others = [path.name for folder in library_folders() for path in folder.glob("*.so")]
    return {
        "path": str(found or ""),
        "name": name,
        "others": [other for other in others if other != name],
        "kernels": kernel_names(),
    }


def _decode() -> Answer:
    """How far the core's pixels of a JPEG are from Pillow's."""
    import numpy as np
    from PIL import Image

    from image_classification.fast_loader.native import CROP, NativeDecoder, Status

    side = _JPEG_SIDE
    red, green = np.mgrid[0:side, 0:side] * 255 // side
    file = io.BytesIO()
    pixels = np.stack([red, green, 255 - red], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    decoder = NativeDecoder(1)
    batch = decoder.load_bytes([file.getvalue()])
    whole = (0, 0, side, side)
    output = np.zeros((1, side, side, 3), dtype=np.uint8)
    batch.decode(np.array([(whole, whole, 0, 0)], dtype=CROP), np.zeros(1, dtype=bool), output)
    batch.wait()
    status = Status(int(batch.statuses[0])).name
    batch.free()
    decoder.close()
    theirs = np.asarray(Image.open(file).convert("RGB"), dtype=int)
    return {"status": status, "difference": float(np.abs(output[0] - theirs).mean())}


# ---- the machine ---------------------------------------------------------------------------


def _folder(path: Path) -> Answer:
    """Space and write access where a folder is, or would be made."""
    place = next(folder for folder in (path, *path.parents) if folder.is_dir())
    status = os.statvfs(place)
    answer: Answer = {"exists": place == path, "free": status.f_bavail * status.f_frsize}
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        answer["refused"] = error.strerror or str(error)
    return answer


def _host(name: str) -> Answer:
    return {"addresses": sorted({entry[4][0] for entry in socket.getaddrinfo(name, None)})}


def _nvml() -> Answer:
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    return {"driver": str(nvml.nvmlSystemGetDriverVersion())}


PROBES: dict[str, Callable[..., Steps]] = {
    "torch": _torch_steps,
    "sums": _sum_steps,
    "images": lambda: [
        ("numpy", _numpy), ("pillow", _pillow), ("library", _library), ("decode", _decode),
    ],
    "folders": lambda *paths: [(path, partial(_folder, Path(path))) for path in paths],
    "host": lambda name: [("host", lambda: _host(name))],
    "nvml": lambda: [("nvml", _nvml)],
}  # fmt: skip
