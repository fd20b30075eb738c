# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The measured part of scaling.py: main.py alone, beside others like it, and together with them.

Every process has one device or, on a CPU, one core. Three epochs of equal length: the first warms
up, the second is measured, and the third keeps the machine busy for those that are behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Comparison, Result, Unavailable
from image_classification.device import Device

ROOT = Path(__file__).resolve().parent.parent
ALONE, BESIDE, TOGETHER = "1 process", "independent processes", "DistributedDataParallel"
EPOCHS = 3
# A launcher's variables would change what main.py thinks it is.
FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
           "SLURM_STEP_NUM_TASKS")  # fmt: skip


class Plan(NamedTuple):
    """What each process trains.

    Attributes:
        device: cpu, cuda, ...
        arch: Name of the network.
        image_size: Side of the images (pixels).
        batch_size: Images per process and step.
        steps: Of an epoch.
        processes: As many as run beside each other.
        amp: Mixed precision.
    """

    device: str
    arch: str
    image_size: int
    batch_size: int
    steps: int
    processes: int
    amp: bool


class Epochs(NamedTuple):
    """When a process did what, in seconds since some common moment, and how fast.

    Attributes:
        begun: Start of the first epoch.
        measured: Start and end of the measured one.
        ended: End of the last epoch.
        rate: Images per second of the measured epoch, over all ranks.
    """

    begun: float
    measured: tuple[float, float]
    ended: float
    rate: float


def physical_cores() -> list[int]:
    """One logical processor of each core that this process may use, in their order (Linux)."""
    found: dict[str, int] = {}
    for number in sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else ():
        path = Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list")
        siblings = str(number)
        with suppress(OSError):
            siblings = path.read_text()
        found.setdefault(siblings, number)
    return list(found.values())


def check(plan: Plan, device: Device, cores: list[int]) -> None:
    """Refuses what cannot be measured here.

    Raises:
        Unavailable: There are fewer devices, or cores, than processes.
    """
    there = device.count if device.is_accelerator else len(cores)
    if there < plan.processes:
        what = f"{device.type} devices" if device.is_accelerator else "cores that it may bind to"
        raise Unavailable(f"{plan.processes} processes need {plan.processes} {what}, {there} found")


def command(plan: Plan, workspace: Path, *, index: int | None = None) -> list[str]:
    """The command line of one process (with its `index`), or of all together under multiproc.py."""
    words = [sys.executable]
    if index is None:
        words += [str(ROOT / "multiproc.py"), "--nproc_per_node", str(plan.processes)]
    words += [str(ROOT / "main.py"), "--data-backend", "synthetic", "--training-only",
              "--no-checkpoints", "--device", plan.device, "--arch", plan.arch,
              "--image-size", str(plan.image_size), "--batch-size", str(plan.batch_size),
              "--epochs", str(EPOCHS), "--prof", str(plan.steps), "--print-freq", str(plan.steps),
              "--seed", "0", "--workspace", str(workspace)]  # fmt: skip
    if plan.amp:
        words.append("--amp")
    if plan.device == "cpu" and index is None:
        words += ["--gpu-affinity", "socket_unique_contiguous"]  # a core of its own for each rank
    elif plan.device != "cpu" and index is not None:
        words += ["--gpu-id", str(index)]
    return words


def start(words: list[str], cores: list[int]) -> subprocess.Popen[str]:
    """Starts a command; with `cores` it gets only these, and a thread for each rank."""
    env = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    if cores:
        env["OMP_NUM_THREADS"] = "1"
        # taskset's way; this process has one thread that would matter, and it is waiting.
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
    try:
        return subprocess.Popen(
            words, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
    finally:
        if cores:
            os.sched_setaffinity(0, before)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for a run; ends this program with its exit code and its words if it fails."""
    told = process.communicate()[1]
    if process.returncode:
        sys.stderr.write(told)
        sys.exit(process.returncode)


def read_epochs(workspace: Path) -> Epochs:
    """Reads metrics.jsonl of a run."""
    lines = (workspace / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["type"] == "epoch"]
    ends = [datetime.fromisoformat(row["time"]).timestamp() for row in rows]
    starts = [
        end - row["data"]["train.epoch_time"] for row, end in zip(rows, ends, strict=True)
    ]  # fmt: skip
    return Epochs(starts[0], (starts[1], ends[1]), ends[-1], rows[1]["data"]["train.total_ips"])


def always_beside(runs: list[Epochs]) -> bool:
    """Whether all processes were training while any of them was measured."""
    first, last = max(run.begun for run in runs), min(run.ended for run in runs)
    return all(first <= run.measured[0] and run.measured[1] <= last for run in runs)


def run_setting(name: str, plan: Plan, cores: list[int], number: int) -> dict[str, Any]:
    """Runs one setting once.

    Args:
        name: ALONE, BESIDE or TOGETHER.
        plan: What is trained.
        cores: Of each process on a CPU, empty on an accelerator.
        number: Of the round: processes that are alone take turns on the cores or devices.

    Returns:
        JSON types as in measure.py: images, seconds, images_per_second, ..., and facts.
    """
    count = 1 if name == ALONE else plan.processes
    with tempfile.TemporaryDirectory() as folder:
        workspaces = [Path(folder) / str(index) for index in range(count)]
        if name == TOGETHER:
            workspaces = workspaces[:1]
            started = [start(command(plan, workspaces[0]), cores[:count])]
        else:
            places = [(number + index) % plan.processes for index in range(count)]
            started = [
                start(command(plan, workspace, index=place), cores[place : place + 1])
                for workspace, place in zip(workspaces, places, strict=True)
            ]
        try:
            for process in started:
                finish(process)
        finally:
            for process in started:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        runs = [read_epochs(workspace) for workspace in workspaces]
    images, rate = count * plan.steps * plan.batch_size, sum(run.rate for run in runs)
    return {
        "images": images,
        "seconds": images / rate,
        "images_per_second": rate,
        "peak_memory": None,
        "clock_mhz": None,
        "facts": {"rates": [run.rate for run in runs], "always_beside": always_beside(runs)},
    }


def measure(plan: Plan, device: Device, rounds: int, say: Callable[[str], None]) -> Comparison:
    """Measures all settings in turns.

    Args:
        plan: What is trained.
        device: The device.
        rounds: Runs of each setting, >= 1.
        say: Receives lines about the progress.

    Raises:
        Unavailable: See `check`.
    """
    cores = [] if device.is_accelerator else physical_cores()[: plan.processes]
    check(plan, device, cores)
    each = f"one device of {plan.processes}" if device.is_accelerator else f"one core of {cores}"
    results = [Result(name, f"each process: {each}") for name in (ALONE, BESIDE, TOGETHER)]
    for number in range(rounds):
        first = number % len(results)
        for result in results[first:] + results[:first]:
            result.rounds.append(run_setting(result.name, plan, cores, number))
        rates = ", ".join(f"{result.name} {result.rates[-1]:.1f}" for result in results)
        say(f"round {number + 1}/{rounds}, img/s: {rates}")
    return Comparison(results, {})
