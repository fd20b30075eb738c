# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The processes that test/hardware_check.py starts, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from hardware_probes import REDUCED_FLOAT32

ROOT = Path(__file__).resolve().parents[1]
PROBES = ROOT / "test" / "hardware_probes.py"
BUDGET = 600.0  # seconds for everything; what does not fit is skipped
RUN_LIMIT = 240.0  # seconds for one process; the first run of a vendor's stack may compile a lot
STEPS_PER_EPOCH = 10
NUM_CLASSES = 4
# What makes an operator without a kernel for the device an error (npu, mlu) or at least heard
# (xpu) where the plug-in would compute it on the CPU.
FALLBACK_SWITCHES = {
    "npu": {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1"},
    "mlu": {"ENABLE_FALLBACK_TO_CPU": "0"},
    "xpu": {"PYTORCH_DEBUG_XPU_FALLBACK": "1"},
}
FALLBACK_WORDS = re.compile(r"operator '([\w:.]+)'[^\n]*(?:CPU|not currently (?:impl|supp))")
LAUNCH_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC|SLURM_"
)


class Skip(Exception):
    """A check that cannot be made here, and why."""


class Failure(Exception):
    """A check that failed, and how; `finished` is the process that shows it."""

    def __init__(self, text: str, finished: Finished | None = None) -> None:
        super().__init__(text)
        self.finished = finished


class Finished(NamedTuple):
    """A process that has ended: exit code (None: the time limit), output, seconds."""

    command: str
    code: int | None
    output: str
    seconds: float

    def reason(self) -> str:
        """Returns the line of the output that says most about a failure."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        telling = [line for line in lines if re.search(r"\b\w*(Error|error):", line)] or lines
        last = telling[-1][:300] if telling else "no output"
        return f"{'time limit' if self.code is None else f'exit code {self.code}'}: {last}"


class Training(NamedTuple):
    """What a run of main.py left: loss of each step, row of its last step, rows of its epochs."""

    folder: Path
    losses: list[float]
    last: dict[str, Any]
    epochs: list[dict[str, Any]]


class Bench:
    """Starts the processes of all checks and keeps their results, so that checks can share them."""

    def __init__(self, device: str, quick: bool, work: Path) -> None:
        self.device, self.quick, self.work = device, quick, work
        self.environment: dict[str, Any] = {}
        self.figures: dict[str, Any] = {}
        self.losses: dict[str, list[float]] = {}
        self.operators: dict[str, list[str]] = {}  # run -> computed on the CPU
        self.notes: list[str] = []
        self._deadline = time.monotonic() + BUDGET
        self._deterministic = True
        self._trainings: dict[str, Training | Failure] = {}

    def start(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> Finished:
        """Runs a command of Python to its end or the time limit and returns what it printed."""
        left = self._deadline - time.monotonic()
        if left < 5:
            raise Skip(f"no time left of the {BUDGET:.0f} s for all checks")
        kept = {key: value for key, value in os.environ.items() if not LAUNCH_VARIABLES.match(key)}
        started, log = time.monotonic(), self.work / f"{name}.log"
        with open(log, "wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=self.work, env=kept | (extra or {}), stdout=stream,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code: int | None = process.wait(min(RUN_LIMIT, left))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_group(process)
        output = log.read_text(encoding="utf-8", errors="replace")
        seconds = time.monotonic() - started
        return Finished(shlex.join(["python", *command]), code, output, seconds)

    def probe(self, name: str, *arguments: str) -> dict[str, Any]:
        """Runs one of hardware_probes.py in a process of its own and returns its answer."""
        finished = self.start(name, [str(PROBES), name, *arguments])
        if finished.code != 0:
            raise Failure(finished.reason(), finished)
        return dict(json.loads(finished.output.splitlines()[-1]))

    def train(self, name: str, *flags: str, **options: Any) -> Training:
        """Runs main.py unless a run of this name was made before.

        Args:
            name: of the run; also that of its folder.
            flags: of main.py.
            options: of `_train`.

        Raises:
            Failure: The run did not end with exit code 0.
        """
        if name not in self._trainings:
            try:
                training = self._train(name, list(flags), **options)
                self._trainings[name], self.losses[name] = training, training.losses
            except Failure as failure:
                self._trainings[name] = failure
        found = self._trainings[name]
        if isinstance(found, Failure):
            raise found
        return found

    def _train(
        self, name: str, flags: list[str], *, device: str = "", ranks: int = 1, exact: bool = False
    ) -> Training:
        device = device or self.device
        entry = [str(ROOT / "main.py")]
        if exact and device in REDUCED_FLOAT32:
            entry = [str(PROBES), "main"]
        if exact and device == "cuda":
            flags = [*flags, "--no-tf32"]
        if ranks > 1:
            entry = [str(ROOT / "multiproc.py"), "--nproc_per_node", str(ranks), *entry]
        folder, strict = self.work / name, FALLBACK_SWITCHES.get(device, {})
        flags = [*flags, "--device", device, "--seed", "1", "--workspace", str(folder)]
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            extra = ["--deterministic"] if exact and self._deterministic else []
            finished = self.start(name, [*entry, *flags, *extra], strict)
            operators = sorted(set(FALLBACK_WORDS.findall(finished.output)))
            if strict and operators:
                self.operators[name] = sorted({*self.operators.get(name, []), *operators})
            if finished.code == 0:
                return read_training(folder)
            if strict and operators:  # does it pass where the plug-in may use the CPU?
                strict = {}
            elif extra and "deterministic" in finished.output:
                self._deterministic = False
                self.notes.append(f"without --deterministic: {finished.reason()}")
            else:
                raise Failure(finished.reason(), finished)

    def small_run(self, name: str, *flags: str, **options: Any) -> Training:
        """Two epochs of ten steps of a ResNet-18 on generated image files."""
        size, batch, workers = ("32", 8, "0") if self.quick else ("64", 16, "2")
        data = self.work / "images"
        if not data.exists():
            write_images(data, train=batch * STEPS_PER_EPOCH, val=NUM_CLASSES * 4)
        # Zero-initialised branches: rounding errors grow slowly, so that errors of another kind
        # show. Everything else about the recipe is of no importance.
        return self.train(
            name, str(data), "--arch", "resnet18", "--image-size", size, "--topk", "2", "-j",
            workers, "--epochs", "2", "--lr", "0.01", "--lr-schedule", "cosine", "-p", "1",
            "--zero-init-last-bn", *(() if "-b" in flags else ("-b", str(batch))), *flags,
            **options,
        )  # fmt: skip

    def reference(self) -> Training:
        """The FP32 run on the device to which other runs are compared."""
        return self.small_run("device", "--gather-checkpoints", exact=True)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a process and its helpers; multiproc.py ends its ranks itself."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience if process.returncode is None else 0)


def read_training(folder: Path) -> Training:
    """Reads metrics.jsonl of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["data"] for record in records if record["type"] == "train"]
    epochs = [record["data"] for record in records if record["type"] == "epoch"]
    losses = [float(row["train.loss"]) for row in steps]
    return Training(folder, losses, (steps or [{}])[-1], epochs)


def write_images(root: Path, *, train: int, val: int) -> None:
    """Writes train/ and val/ with noisy patterns, one per class, as PNG files."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:72, 0:72] / 72.0
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % NUM_CLASSES
            waves = [np.sin((label + 1) * 6 * columns + k) * np.cos((label + 1) * 4 * rows - k)
                     for k in range(3)]  # fmt: skip
            pixels = 128 + 60 * np.stack(waves, axis=-1) + rng.normal(0, 40, (72, 72, 3))
            folder = root / split / f"class_{label}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{number:04d}.png")


def differences(found: list[float], expected: list[float]) -> list[float]:
    """Relative differences, row by row; infinite where a value is not finite."""
    if len(found) != len(expected) or not found:
        raise Failure(f"{len(found)} rows to compare with {len(expected)}")
    pairs = zip(found, expected, strict=True)
    return [abs(a - b) / max(abs(b), 1e-6) if math.isfinite(a - b) else math.inf for a, b in pairs]
