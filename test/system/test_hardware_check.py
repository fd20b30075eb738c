# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""hardware_check.sh on the CPU and on fake accelerators, whole and with faults."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import hardware_check
import hardware_runs
import numpy
import pytest
from fakes.support import fake_environment, skip_reason
from hardware_runs import Bench, Failure, Finished, Training
from runs import ROOT, environment, nursery

pytestmark = pytest.mark.timeout(600)
ALL = os.environ.get("FAULTS") == "all"
SLOW = ["collective", "resume", "bfloat16", "images-amp"]
needs_fake = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))
# A plug-in that computes argmax on the CPU unless it is told not to, in the words of Ascend's, and
# whose FP32 units lose bits by default, which must be off at the end of the runs compared.
NAIVE_PLUGIN = """
import atexit, os, sys
from types import SimpleNamespace
import torch
from fake_accelerator import install

npu = install("npu")
npu.conv, npu.matmul = SimpleNamespace(allow_hf32=True), SimpleNamespace(allow_hf32=True)

@atexit.register
def end():
    if "--deterministic" in sys.argv and (npu.conv.allow_hf32 or npu.matmul.allow_hf32):
        os._exit(9)

def _autoload():
    pass

def refuse(*arguments, **options):
    raise RuntimeError(
        "The operator 'aten::argmax' would execute its main computation on CPU through "
        "BoxedFallback, but CPU fallback is disabled by TORCH_NPU_FALLBACK_CPU_DISABLE=1.")

if os.environ.get("TORCH_NPU_FALLBACK_CPU_DISABLE") == "1":
    library = torch.library.Library("aten", "IMPL")
    library.impl("argmax", refuse, "PrivateUse1")
"""


class Check(NamedTuple):
    """A run of hardware_check.sh: exit code, what it printed, its report and the JSON in it."""

    code: int
    output: str
    files: list[str]
    report: str
    content: dict[str, Any]

    def row(self, check: str) -> tuple[str, str]:
        """Status and finding of a check, which the report, its JSON and the output agree on."""
        found = {row["check"]: (row["status"], row["finding"]) for row in self.content["checks"]}
        status, finding = found[check]
        assert f"| {check} | {status} |" in self.report
        lines = [line for line in self.output.splitlines() if line.startswith(f"{status}  {check}")]
        assert len(lines) == 1
        assert finding in lines[0]
        return status, finding


def run_check(folder: Path, env: dict[str, str], *arguments: str) -> Check:
    command = ["bash", str(ROOT / "test" / "hardware_check.sh"), "--quick", *arguments]
    command += ["--output", str(folder / "out")]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=550, check=False, cwd=folder
    )
    files = sorted(path.name for path in folder.glob("out/*"))
    report = (folder / "out" / files[0]).read_text(encoding="utf-8") if files else ""
    content = json.loads(report.partition("```json\n")[2].partition("```")[0] or "{}")
    return Check(done.returncode, done.stdout + done.stderr, files, report, content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hardware")


@pytest.fixture(scope="module")
def start(folder: Path) -> Iterator[Callable[..., Future[Check]]]:
    """Starts hardware_check.sh in the background, two at a time."""
    cache = {"PYTHON": nursery().python, "OMP_NUM_THREADS": "1"}
    if not any(Path(numpy.__file__).parent.glob("__pycache__/*")):
        # Packages without compiled files: compiling PyTorch again in each process takes longer
        # than what the process is for.
        cache |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "cache")}
    with ThreadPoolExecutor(2) as pool:

        def submit(
            name: str, env: dict[str, str], *arguments: str, **more: str
        ) -> Future[Check]:
            (folder / name).mkdir()
            return pool.submit(run_check, folder / name, env | cache | more, *arguments)

        yield submit


@pytest.fixture(scope="module")
def on_npu(start: Any) -> Future[Check] | None:
    """All but float16 and FP32 throughput with FAULTS=all; else what no other test shows."""
    if skip_reason() is not None:
        return None
    checks = ",".join(["parity,fall-back,host-waits", *(SLOW if ALL else [])])
    return start("npu", fake_environment("npu"), "--device", "npu", "--only", checks)


@pytest.fixture(scope="module")
def on_naive_npu(start: Any, folder: Path) -> Future[Check] | None:
    if skip_reason() is not None:
        return None
    package = folder / "naive" / "torch_npu"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(NAIVE_PLUGIN, encoding="utf-8")
    env = fake_environment("npu", no_bf16=True, count=1)
    env["PYTHONPATH"] = os.pathsep.join([str(package.parent), env["PYTHONPATH"]])
    checks = "bfloat16,collective,fall-back" if ALL else "fall-back"
    return start("naive_run", env, "--only", checks)


@pytest.fixture(scope="module")
def on_cpu(start: Any, on_npu: Any, on_naive_npu: Any) -> Future[Check]:
    checks = "parity,float16,collective,resume,fall-back,host-waits"
    return start("cpu", environment(), "--device", "cpu", "--only", checks)


# ---- whole runs --------------------------------------------------------------------------------


@pytest.mark.skipif(
    not ALL and skip_reason() is None,
    reason="the fake accelerator runs the same checks; FAULTS=all runs it too",
)
def test_the_cpu_passes(on_cpu: Future[Check]) -> None:
    check = on_cpu.result()
    assert check.code == 0, check.output
    assert check.files == ["hardware_report.md"]
    assert check.row("environment")[0] == "PASS"
    assert check.row("parity")[1].startswith("20 steps, largest relative difference of the loss ")
    assert "2 processes ended with exit code 0, 5 steps" in check.row("collective")[1]
    for name in ("parity", "collective", "resume"):
        assert check.row(name)[0] == "PASS"
    assert "equal bit for bit" in check.row("resume")[1]
    assert check.row("float16")[0] == "SKIP"
    assert "float16 needs an accelerator" in check.row("float16")[1]
    assert "not applicable" in check.row("fall-back")[1]
    assert check.row("host-waits")[0] == "SKIP"


@needs_fake
@pytest.mark.fake_accelerator
def test_an_accelerator_passes(on_npu: Future[Check]) -> None:
    check = on_npu.result()
    assert check.code == 0, check.output
    assert check.files == ["hardware_report.md"]
    environment_line = check.row("environment")[1]
    for word in ("2 x Fake Ascend 910B", "torch_npu 0.0.1", "hccl", "16 GiB"):
        assert word in environment_line
    for name in ("parity", "fall-back", *(SLOW if ALL else [])):
        assert check.row(name)[0] == "PASS", check.output
    losses = check.content["losses"]
    assert losses["device"] == pytest.approx(losses["cpu"], rel=1e-5)
    assert len(losses["device"]) == 20
    if ALL:
        assert losses["bfloat16"] != losses["device"][:10]
        assert check.content["figures"]["images-amp"]["images_per_s"] > 0
    assert "TORCH_NPU_FALLBACK_CPU_DISABLE=1 in " in check.row("fall-back")[1]
    assert check.row("host-waits")[0] == "PASS"


@needs_fake
@pytest.mark.fake_accelerator
def test_faults_are_named(on_naive_npu: Future[Check]) -> None:
    check = on_naive_npu.result()
    assert check.code == 1, check.output
    if ALL:
        assert check.row("bfloat16")[0] == "SKIP"
        assert "bfloat16 is not supported by npu:0 (Fake Ascend 910A)" in check.row("bfloat16")[1]
        assert check.row("collective") == ("SKIP", "one device is visible")
    status, finding = check.row("fall-back")
    assert status == "FAIL"
    assert "computed on the CPU: aten::argmax (runs: device;" in finding
    assert len(check.content["losses"]["device"]) == 20, "it passes where the CPU may be used"


def test_an_absent_device_is_exit_code_2(start: Any) -> None:
    check = start("absent", environment(), "--device", "mlu", PYTHON=sys.executable).result()
    assert (check.code, check.files) == (2, [])
    assert "--device mlu is not available" in check.output
    assert "Traceback" not in check.output


def test_bad_usage_is_exit_code_2(start: Any) -> None:
    check = start("usage", environment(), "--only", "parity,speed").result()
    assert (check.code, check.files) == (2, [])
    assert "--only speed: unknown; known: environment, parity" in check.output


@needs_fake
@pytest.mark.fake_accelerator
@pytest.mark.slow  # a CPU computes float16 slowly
@pytest.mark.skipif(not ALL, reason="FAULTS=all runs it")
def test_a_saturating_device_notices_overflow(start: Any) -> None:
    env = fake_environment("npu", saturate=True)
    check = start("saturating", env, "--only", "float16").result()
    assert check.code == 0, check.output
    status, finding = check.row("float16")
    assert status == "PASS"
    assert "vendor's scaler (saturating device) skipped" in finding


# ---- a process that hangs, an interrupt --------------------------------------------------------


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_hanging_process_and_its_children_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware_runs, "RUN_LIMIT", 2.0)
    script = (
        "import subprocess, sys, time; print('started', flush=True)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(200)'])\n"
        "open('child', 'w').write(str(child.pid)); time.sleep(200)"
    )
    finished = Bench("cpu", True, tmp_path).start("hang", ["-c", script])
    assert finished.code is None
    assert finished.reason() == "time limit: started"
    child, deadline = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_no_check_starts_after_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_runs, "BUDGET", 0.0)
    result = hardware_check.perform("resume", Bench("cpu", True, tmp_path))
    assert result.status == "SKIP"
    assert "no time left" in result.finding


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "test" / "hardware_check.py"), "--device", "cpu"]
    process = subprocess.Popen([*command, "--output", str(tmp_path)], env=environment())
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("work-*/environment.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


# ---- what the checks make of figures -----------------------------------------------------------


class Figures(Bench):
    """A bench whose runs are given instead of made."""

    def __init__(self, folder: Path, **runs: list[float]) -> None:
        super().__init__("npu", True, folder)
        self.environment = {
            "count": 2, "collective": "hccl", "amp": {"bfloat16": "", "float16": ""},
            "saturates": False,
        }  # fmt: skip
        self.runs = runs
        self.differences = [{"equal": False, "tensors": 2, "largest": 1e-3}]

    def small_run(self, name: str, *flags: str, **options: Any) -> Training:
        losses = self.runs[name]
        row = {"train.skipped_steps": 0, "train.grad_scale": 2.0**24}
        return Training(self.work / name, losses, row, [{"val.loss": losses[-1]}])

    def probe(self, name: str, *arguments: str) -> dict[str, Any]:
        return self.differences.pop()


def verdict(check: str, bench: Bench) -> tuple[str, str]:
    result = hardware_check.perform(check, bench)
    return result.status, result.finding


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ([1.0005, 2.0, 3.0], "as with FP32 units of fewer bits"),
        ([1.0, 2.0, 3.1], "largest relative difference of the loss 3.3e-02"),
        ([1.0, math.nan, 3.0], "difference of the loss inf"),
        ([1.0, 2.0], "2 rows to compare with 3"),
    ],
)
def test_parity_fails(tmp_path: Path, losses: list[float], word: str) -> None:
    status, finding = verdict("parity", Figures(tmp_path, cpu=[1.0, 2.0, 3.0], device=losses))
    assert status == "FAIL"
    assert word in finding


def test_amp_fails_far_from_fp32_and_without_overflow(tmp_path: Path) -> None:
    fp32, near = [1.0, 1.0, 1.0], [1.001, 1.0, 1.0]
    bench = Figures(tmp_path, device=fp32, bfloat16=[1.0, 2.0, 3.0], float16=near, overflow=near)
    assert verdict("bfloat16", bench)[0] == "FAIL"
    status, finding = verdict("float16", bench)
    assert status == "FAIL"
    assert "overflow not noticed: scaler skipped 0 of 5 steps" in finding


def test_other_losses_on_two_devices_fail(tmp_path: Path) -> None:
    bench = Figures(tmp_path, two_ranks=[1.0, 1.1], one_rank=[1.0, 1.0])
    assert verdict("collective", bench)[0] == "FAIL"


def test_throughput_takes_the_largest_batch_that_fits(tmp_path: Path) -> None:
    bench = Figures(tmp_path)
    bench.quick, tried = False, []

    def train(name: str, *flags: str) -> Training:
        tried.append(int(flags[flags.index("-b") + 1]))
        if tried[-1] > 64:
            raise Failure("out of memory", Finished("python main.py", 6, "", 1.0))
        return Training(tmp_path, [1.0], {}, [{"train.total_ips": 100.0}])

    bench.train = train  # type: ignore[method-assign, assignment]
    assert verdict("images-fp32", bench) == (
        "PASS", "100.0 images/s: resnet50, 224 px, batch 64, 50 steps; FP32")  # fmt: skip
    assert tried == [256, 128, 64]


def test_resume_is_judged_by_how_well_the_device_repeats(tmp_path: Path) -> None:
    runs = {"device": [1.0], "resumed": [1.0], "repeated": [1.0]}
    for spread, expected in ((0.0, "FAIL"), (1e-5, "FAIL"), (5e-4, "PASS")):
        bench = Figures(tmp_path, **runs)
        repeated = {"equal": spread == 0.0, "tensors": 2, "largest": spread}
        bench.differences.insert(0, repeated)
        assert verdict("resume", bench)[0] == expected


@pytest.mark.parametrize(
    "line",
    [
        "[W] Warning: CAUTION: The operator 'aten::argmax' is not currently supported on the NPU "
        "backend and will fall back to run on the CPU. This may have performance implications.",
        "RuntimeError: The operator 'aten::argmax' would execute its main computation on CPU "
        "through BoxedFallback, but CPU fallback is disabled by TORCH_NPU_FALLBACK_CPU_DISABLE=1.",
        "NotImplementedError: The operator 'aten::argmax' is not currently implemented for the "
        "MLU device. If you want this op to be added, please contact",
        "UserWarning: The operator 'aten::argmax' on the XPU backend is falling back to run on "
        "the CPU. (Triggered internally at XPUFallback.template:1)",
    ],
)
def test_the_plug_ins_words_for_a_fall_back_are_known(line: str) -> None:
    assert hardware_runs.FALLBACK_WORDS.findall(f"before\n{line}\nafter") == ["aten::argmax"]
