# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds in machines that are not as they should be, and what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from image_classification import pytorch_loader
from image_classification.control_group import ControlGroup, read_control_group
from image_classification.device import Device
from image_classification.doctor import devices, examination, machine, probes, software
from image_classification.doctor.finding import Finding, fix, note, ok
from image_classification.doctor.jobs import MARK, Answers, Job, Jobs, Outcome
from image_classification.errors import DataError
from image_classification.fast_loader.build import BuildError, find_compiler

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def answers(**steps: Any) -> Answers:
    lines = [f"{MARK}{json.dumps([step, answer])}" for step, answer in steps.items()]
    return Answers(Outcome("\n".join(lines)))


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def shown(findings: Iterator[Finding]) -> dict[str, str]:
    """Statuses by topic."""
    return {finding.what: finding.status for finding in findings}


def is_gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody has waited for yet counts as ended."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                time.sleep(0.02)
                continue
        return True
    return False


# ---- findings ------------------------------------------------------------------------------


def test_a_finding_is_one_line_and_its_cure_another() -> None:
    lines = str(fix("memory", "none\n left", "buy\nsome")).splitlines()
    assert lines == ["FIX   memory                  none left", "      -> buy some"]
    assert str(ok("a", "b")).splitlines() == ["ok    a                       b"]
    assert len(str(ok("a", "b" * 5000))) < 500


@pytest.mark.parametrize(
    "found, code", [([ok("a", "b"), note("a", "b", "c")], 0), ([fix("a", "b", "c")], 2)]
)
def test_only_what_needs_fixing_changes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: list, code: int
) -> None:
    monkeypatch.setattr(examination.Examination, "_start", lambda self: None)
    monkeypatch.setattr(examination.Examination, "findings", lambda self: iter(found))
    assert examination.examine(ROOT, {}) == code
    assert capsys.readouterr().out.endswith(" ok\n")


def test_a_topic_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("boom")

    monkeypatch.setattr(examination.Examination, "_start", lambda self: None)
    for module, name in ((machine, "findings"), (software, "optional_findings")):
        monkeypatch.setattr(module, name, fail)
    with Jobs(ROOT, {}) as jobs:
        found = list(examination.Examination(jobs, ROOT, {}).findings())
    assert found[0].what == "Python"
    broken = [finding for finding in found if "RuntimeError: boom" in finding.value]
    assert [finding.what for finding in broken] == ["machine"]


# ---- machine -------------------------------------------------------------------------------


def test_shared_memory() -> None:
    docker = (64 * 2**20, 64 * 2**20)
    without = machine.shared_memory_finding(docker, 1, fast=False)
    assert without.status == "FIX" and "64 of 64 MiB" in without.value
    assert "--shm-size=8g" in without.cure
    assert machine.shared_memory_finding(docker, 1, fast=True).status == "note"
    assert machine.shared_memory_finding(None, 1, fast=False).status == "FIX"
    assert machine.shared_memory_finding((8 * GIB, 8 * GIB), 1, fast=False).status == "ok"
    # The batches of a process take 0.25 GiB at least: those of eight do not fit.
    eight = machine.shared_memory_finding((2 * GIB, 2 * GIB), 8, fast=False)
    assert eight.status == "FIX" and "for 8 processes" in eight.value
    full = machine.shared_memory_finding((8 * GIB, 2**20), 1, fast=False)
    assert full.status == "FIX" and "ls -l /dev/shm" in full.cure


def test_the_pytorch_loader_agrees_on_how_much_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = 256 * (3 * 224**2 + 8)
    for batches, works in ((7, True), (6, False)):
        finding = machine.shared_memory_finding((batches * batch,) * 2, 1, fast=False)
        assert (finding.status != "FIX") == works
        monkeypatch.setattr(pytorch_loader, "shared_memory_free", lambda n=batches: n * batch)
        with contextlib.nullcontext() if works else pytest.raises(DataError):
            pytorch_loader.fitting_prefetch(5, 2, batch, 1)


def test_limits() -> None:
    none = (machine.UNLIMITED, machine.UNLIMITED)
    good = {"files": (4096, 4096), "processes": none, "locked": none}
    assert set(shown(machine.limit_findings(good, ControlGroup(), 8)).values()) == {"ok"}
    for limit, status, cure in (
        ((128, 4096), "FIX", "ulimit -n 4096; "), ((512, 512), "note", "raise it in /etc"),
        ((512, machine.UNLIMITED), "note", "ulimit -n 65536; "),
    ):  # fmt: skip
        found = next(machine.limit_findings({**good, "files": limit}, ControlGroup(), 0))
        assert (found.what, found.status) == ("open files", status)
        assert found.cure.startswith(cure) and "docker: --ulimit nofile" in found.cure
    tight = {**good, "locked": (65536, 65536)}
    group = ControlGroup(processes=100)
    assert shown(machine.limit_findings(tight, group, 2)) == {
        "open files": "ok", "processes and threads": "note", "locked memory": "note",
    }  # fmt: skip


def test_cores_and_quota() -> None:
    assert shown(machine.core_findings(8, 8, None)) == {"cores": "ok"}
    assert shown(machine.core_findings(8, 8, 8.0)) == {"cores": "ok"}
    bound, quota = machine.core_findings(64, 16, 2.5)
    assert bound.status == "note" and "16 of 64" in bound.value
    assert quota.status == "note" and "OMP_NUM_THREADS=2" in quota.cure


def test_a_throttled_processor(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("17\n")
    assert "17 times" in only(machine.clock_findings(tmp_path / "count")).value
    assert not list(machine.clock_findings(tmp_path / "none"))


def test_memory() -> None:
    def status(available: float, group: ControlGroup) -> dict[str, str]:
        info = {"MemTotal": 64 * GIB, "MemAvailable": int(available * GIB)}
        return shown(machine.memory_findings(info, group))

    assert status(32, ControlGroup()) == {"memory": "ok"}
    assert status(2, ControlGroup()) == {"memory": "note"}
    assert status(0.5, ControlGroup()) == {"memory": "FIX"}
    full = ControlGroup(memory=8 * GIB, used=int(7.5 * GIB), killed=3)
    assert status(32, full) == {"memory": "FIX", "killed processes": "note"}


def test_control_groups_of_both_versions(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    write("new/a/b/memory.max", "max\n")
    write("new/a/memory.max", f"{4 * GIB}\n")
    write("new/a/b/memory.current", "3000\n")
    write("new/a/b/memory.stat", "anon 1\ninactive_file 1000\n")
    write("new/a/b/cpu.max", "150000 100000\n")
    write("new/a/cpu.max", "max 100000\n")
    write("new/a/pids.max", "max\n")
    write("new/a/b/memory.events", "oom 5\noom_kill 2\n")
    new = read_control_group(tmp_path / "new", "0::/a/b\n")
    assert new == ControlGroup(4 * GIB, 2000, 1.5, None, 2)
    write("old/memory/memory.limit_in_bytes", f"{2 * GIB}\n")
    write("old/memory/memory.usage_in_bytes", "500\n")
    write("old/cpu/cpu.cfs_quota_us", "-1\n")
    write("old/cpu/cpu.cfs_period_us", "100000\n")
    write("old/pids/pids.max", "512\n")
    own = "5:pids:/docker/x\n4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/\n"
    assert read_control_group(tmp_path / "old", own) == ControlGroup(2 * GIB, 500, None, 512, 0)
    write("old/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert read_control_group(tmp_path / "old", own).memory is None


def test_folders(tmp_path: Path) -> None:
    new = probes._folder(tmp_path / "runs" / "deeper")
    assert not new["exists"] and new["free"] > 0 and "refused" not in new
    assert not list(tmp_path.iterdir())

    def status(answer: dict[str, Any], needed: bool) -> str:
        return machine.folder_finding("folder models", "/x", answer, needed, "cure").status

    refused = probes._folder(Path("/proc/models"))
    assert refused["refused"]
    assert (status(refused, True), status(refused, False)) == ("FIX", "note")
    for free, wanted in ((0.1, "FIX"), (5, "note"), (50, "ok")):
        assert status({"exists": True, "free": int(free * GIB)}, True) == wanted
    assert status({"error": "gave no answer"}, True) == "FIX"


def test_a_host_name_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    probes.main(["host", "node7"])
    answer = Answers(Outcome(capsys.readouterr().out))["host"]
    finding = machine.host_finding("node7", answer, {})
    assert finding.status == "note" and "Name or service not known" in finding.value
    assert "/etc/hosts" in finding.cure and "GLOO_SOCKET_IFNAME" in finding.cure
    assert machine.host_finding("node7", answer, {"GLOO_SOCKET_IFNAME": "eth0"}).status == "ok"
    local = machine.host_finding("node7", {"addresses": ["127.0.1.1"]}, {})
    assert local.status == "ok" and "one node" in local.value


def test_variables_that_change_what_runs_do() -> None:
    environ = {
        "OMP_NUM_THREADS": "1", "NCCL_DEBUG": "INFO", "CUDA_VISIBLE_DEVICES": "", "RANK": "0",
        "HCCL_CONNECT_TIMEOUT": "600", "TORCH_LOGS": "all", "MASTER_ADDR": "node0", "HOME": "/",
        "CUDA_HOME": "/usr/local/cuda", "LANG": "C", "PATH": "/bin",
    }  # fmt: skip
    found = {finding.what: finding for finding in machine.variable_findings(environ)}
    assert set(found) == set(environ) - {"HOME", "CUDA_HOME", "LANG", "PATH"}
    assert {finding.status for finding in found.values()} == {"note"}
    assert "hides all devices" in found["CUDA_VISIBLE_DEVICES"].value
    assert found["RANK"].cure.endswith("unset RANK")


# ---- software ------------------------------------------------------------------------------


def test_an_old_python() -> None:
    assert next(software.system_findings((3, 9, 18))).status == "FIX"
    assert next(software.system_findings((3, 10, 0))).status == "ok"


def test_packages() -> None:
    wanted = software.oldest(ROOT, "numpy")
    assert wanted.startswith("1.") and software.oldest(ROOT, "torch").startswith("2.")
    assert software.required_finding("numpy", {"version": "1.9.3"}, wanted).status == "FIX"
    assert software.required_finding("numpy", {"version": "2.4.6"}, wanted).status == "ok"
    broken = software.required_finding("numpy", {"error": "ImportError: libblas"}, wanted)
    assert broken.status == "FIX" and "pip install --upgrade 'numpy>=" in broken.cure


def test_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"matplotlib": "3.9", "nvidia-dali-cuda120": "1.40"}
    monkeypatch.setattr(software, "installed", there.get)
    found = {finding.what: finding for finding in software.optional_findings()}
    assert found["matplotlib"] == ok("matplotlib", "3.9")
    assert found["nvidia-dali-cuda120"].status == "ok"
    assert found["tensorboard"].status == "note" and "--tensorboard" in found["tensorboard"].value
    assert found["tensorboard"].cure.endswith("pip install tensorboard")


def test_torch_and_torchvision() -> None:
    answer = {"version": "2.15.0+cu132", "built": {"cuda": "13.2", "hip": None}, "seconds": 1.0}
    assert "built for CUDA 13.2" in software.torch_finding(answer, "2.4").value
    plain = software.torch_finding({**answer, "built": {"cuda": None}}, "2.4")
    assert plain.status == "ok" and "built for the CPU" in plain.value
    assert software.torch_finding({**answer, "version": "2.3.1"}, "2.4").status == "FIX"
    missing = software.torch_finding({"error": "PyTorch is not installed; install it so"}, "2.4")
    assert missing == fix("torch", "PyTorch is not installed", "install it so")
    assert software.torchvision_finding({"error": "x"}, None).status == "note"
    foreign = software.torchvision_finding({"error": "no nms"}, "0.9")
    assert foreign.status == "FIX" and "no nms" in foreign.value


def test_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError) as error:
        find_compiler()
    finding = software.compiler_finding("", str(error.value), None, built=False)
    assert finding.status == "note" and "apt-get install g++" in finding.cure
    assert "not needed" in software.compiler_finding("", str(error.value), None, True).value
    broken = software.compiler_finding("/bin/c++", "", Outcome("", "was killed by SIGILL"), False)
    assert broken.status == "note" and "SIGILL" in broken.value


BUILT = {"path": "/x.so", "name": "x.so", "others": [], "kernels": ["avx2", "plain"]}
HERE = {"numpy": {"version": "2"}, "pillow": {"version": "13"}}


@pytest.mark.parametrize(
    "library, decode, statuses",
    [
        (BUILT, {"status": "OK", "difference": 0.3}, ["ok", "ok"]),
        (BUILT, {"status": "OK", "difference": 40.0}, ["ok", "FIX"]),
        (BUILT, {"status": "CORRUPT", "difference": 0.0}, ["ok", "FIX"]),
        (BUILT, None, ["ok", "FIX"]),  # the process was lost while it decoded
        ({**BUILT, "path": "", "kernels": []}, {"error": "not built"}, ["note"]),
        ({**BUILT, "kernels": []}, {"error": "not built"}, ["FIX"]),
        ({"error": "OSError"}, {"error": "OSError"}, ["FIX"]),
    ],
)
def test_the_fast_loader(library: Any, decode: Any, statuses: list[str]) -> None:
    given = answers(**HERE, library=library, decode=decode)
    assert [finding.status for finding in software.loader_findings(given)] == statuses
    assert software.loader_works(given) == (decode is not None and decode.get("status") == "OK")


def test_the_fast_loader_of_other_sources_and_without_numpy() -> None:
    old = {**BUILT, "path": "", "kernels": [], "others": ["old.so"]}
    finding = only(software.loader_findings(answers(**HERE, library=old)))
    assert "old.so" in finding.value and "fast_loader.build" in finding.cure
    missing = answers(**{**HERE, "numpy": {"error": "ImportError"}}, library=old)
    assert only(software.loader_findings(missing)).cure == "repair numpy first"


def test_the_images_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    probes.main(["images"])
    given = Answers(Outcome(capsys.readouterr().out))
    if not given["library"]["path"]:
        pytest.skip("the fast loader is not built")
    assert [finding.status for finding in software.loader_findings(given)] == ["ok", "ok"]


# ---- devices -------------------------------------------------------------------------------


def test_plug_ins() -> None:
    both = {"torch_npu": "2.4.0", "torch_mlu": "1.22"}
    conflict = only(devices.plug_in_findings(both, ["torch_npu:_autoload"], None, None))
    assert conflict.status == "FIX" and "torch_npu 2.4.0, torch_mlu 1.22" in conflict.value
    assert "uninstall torch_npu (or torch_mlu)" in conflict.cure
    one = {"torch_npu": "2.4.0"}
    foreign = ["torch_npu:_autoload", "torch_other:load"]
    assert "torch_other" in only(devices.plug_in_findings(one, foreign, "1", None)).value
    assert only(devices.plug_in_findings(one, ["torch_npu:_autoload"], "1", None)).status == "ok"
    assert only(devices.plug_in_findings({}, [], "0", None)).value == "none"
    off = shown(devices.plug_in_findings(one, ["torch_npu:_autoload"], "0", None))
    assert off == {"device plug-ins": "ok", devices.AUTOLOAD: "note"}
    broken = only(devices.plug_in_findings(one, [], None, "torch_npu: no libhccl; repair it"))
    assert broken.status == "FIX" and broken.value == "torch_npu: no libhccl"
    assert f"{devices.AUTOLOAD}=0" in broken.cure


def test_an_npu_beside_a_gpu() -> None:
    usable, none = {"devices": []}, {"error": "no GPU"}
    found = only(devices.rival_findings(["torch_npu"], usable, "2.15.0+cu132"))
    assert found.status == "FIX" and "torch==2.15.0 --index-url" in found.cure
    assert not list(devices.rival_findings(["torch_npu"], none, "2.15.0"))
    assert not list(devices.rival_findings(["torch_mlu"], usable, "2.15.0"))


def test_a_device_type_that_cannot_be_used(tmp_path: Path) -> None:
    answer = {"error": "torch_npu is not installed"}
    assert only(devices.device_findings("npu", answer, [], False)).status == "note"
    for name in ("davinci0", "davinci1", "davinci_manager", "nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    files = devices.device_files(tmp_path)
    assert [len(files[name]) for name in ("cuda", "npu", "mlu")] == [1, 2, 0]
    here = only(devices.device_findings("npu", answer, files["npu"], True))
    assert here.status == "FIX" and "davinci1" in here.value and "torch_npu" in here.cure


@pytest.mark.parametrize("value, hidden", [("", True), ("-1", True), ("0,1", False), (None, False)])
def test_devices_that_are_hidden_on_purpose(value: str | None, hidden: bool) -> None:
    for device_type, name in (("cuda", "HIP_VISIBLE_DEVICES"), ("xpu", "ZE_AFFINITY_MASK")):
        environ = {} if value is None else {name: value}
        assert devices.are_hidden(device_type, environ) == hidden
        assert not devices.are_hidden("cpu", environ)


def test_devices_that_work_and_that_do_not() -> None:
    good = {"place": "npu:0", "name": "910B", "memory": 32 * GIB, "bfloat16": True, "wrong": []}
    wrong = {**good, "place": "npu:1", "wrong": ["float16"]}
    lost = {"place": "npu:2", "error": "RuntimeError: no kernel image"}
    found = list(devices.device_findings("npu", {"devices": [good, wrong, lost]}, [], True))
    assert [finding.status for finding in found] == ["ok", "FIX", "FIX"]
    assert "910B, 32.0 GiB, bfloat16" in found[0].value
    assert "float16" in found[1].value and "do not train" in found[1].cure
    assert "no kernel image" in found[2].value


def test_a_device_that_calculates_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device.select("cpu")
    assert probes._wrong_products(cpu) == []
    product = probes._product

    def wrong(left: torch.Tensor, *rest: Any) -> torch.Tensor:
        result = product(left, *rest)
        result[-1, -1] += 1
        return result

    monkeypatch.setattr(probes, "_product", wrong)
    assert "float32" in probes._wrong_products(cpu)


def test_the_device_that_auto_takes() -> None:
    assert devices.auto_finding({"type": "npu"}) == ok("--device auto", "takes npu")
    failed = devices.auto_finding({"error": "a plug-in does not work; uninstall it"})
    assert failed == fix("--device auto", "a plug-in does not work", "uninstall it")


def test_what_the_vendors_programs_say() -> None:
    smi = "Driver Version : 580.65.06\nHW Thermal Slowdown : Active\nSW Power Cap : Active\n"
    found = list(devices.tool_findings("nvidia-smi", Outcome(smi + "HW Slowdown : Not Active")))
    assert found[0] == ok("cuda driver", "580.65.06 (nvidia-smi)")
    assert found[1].status == "note" and found[1].value.endswith("reports: HW Thermal Slowdown")
    info = "| npu-smi 24.1.rc2   Version: 24.1.rc2 |\n| 0  910B2 | OK |\n| 1  910B2 | Alarm |\n"
    found = list(devices.tool_findings("npu-smi", Outcome(info)))
    assert [finding.status for finding in found] == ["ok", "note"] and "24.1.rc2" in found[0].value
    failed = only(devices.tool_findings("cnmon", Outcome("no card", "ended with code 1")))
    assert failed.status == "note" and "no card" in failed.value
    none = {"cuda": ["/dev/nvidia0"], "npu": ["/dev/davinci0"], "mlu": []}
    assert only(devices.missing_tool_findings(none, {"cuda"})).what == "npu driver"


# ---- collectives ---------------------------------------------------------------------------


def test_the_time_of_collectives_and_their_failure() -> None:
    fine = {"start": 0.5, "again": 0.002, "bytes": 2**20}
    finding = devices.collective_finding("npu:2", fine)
    assert finding.what == "hccl" and "2 processes on npu added up 1 MiB" in finding.value
    assert "2.0 ms" in finding.value
    failed = devices.collective_finding("cpu:2", {"error": "process 1 of 2: no route"})
    assert failed.status == "FIX" and "GLOO_SOCKET_IFNAME" in failed.cure


@pytest.mark.parametrize(
    "trouble, text",
    [
        ("raise RuntimeError('no route')", "process 1 of 2: RuntimeError: no route"),
        ("os.kill(os.getpid(), 11)", "process 1 of 2: was killed by SIGSEGV"),
        ("time.sleep(1000)", "gave no answer within 1 s"),
    ],
)
def test_processes_that_do_not_meet(trouble: str, text: str) -> None:
    """One fails, the other waits for it; in a process of its own, which forks them."""
    code = f"""if True:
        import os, time
        from image_classification.doctor import probes
        def all_reduce(kind, rank, count, port):
            if rank == 1:
                {trouble}
            time.sleep(1000)
        probes.import_torch_or_explain = lambda wanted: None
        probes._all_reduce = all_reduce
        probes.COLLECTIVE_S = 1 if "sleep" in {trouble!r} else 60
        probes.main(["sums", "cpu:2"])
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert text in Answers(Outcome(done.stdout))["cpu:2"]["error"], done.stderr


# ---- processes -----------------------------------------------------------------------------


def python(code: str, timeout_s: float = 60) -> Job:
    return Job([sys.executable, "-c", code], os.environ, timeout_s)


def test_a_command_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; echo said; sleep 1000 & echo $! $$ > {pids}; wait; sleep 1000"
    outcome = Job(["sh", "-c", script], os.environ, 0.5).outcome()
    assert outcome == Outcome("said\n", "gave no answer within 0.5 s", hung=True)
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())
    finding = only(devices.tool_findings("npu-smi", outcome))
    assert finding.status == "FIX" and "no answer within" in finding.value


def test_how_other_ends_are_told() -> None:
    assert python("print(1)").outcome() == Outcome("1\n")
    assert python("import sys; sys.exit('bad')").outcome().trouble == "ended with code 1 (bad)"
    killed = python("import os; os.kill(os.getpid(), 11)").outcome()
    assert killed.trouble == "was killed by SIGSEGV"
    missing = Job(["/nowhere/cnmon"], os.environ, 1).outcome()
    assert missing.trouble == "cannot be started: No such file or directory"


def test_the_step_that_loses_the_process_is_known() -> None:
    lines = [f"{MARK}{json.dumps(line)}" for line in (["torch", None], ["torch", {"version": 1}])]
    begun = f"{MARK}{json.dumps(['cuda', None])}"
    given = Answers(Outcome("\n".join([*lines, "noise", begun]), "was killed by SIGSEGV"))
    assert given["torch"] == {"version": 1}
    assert given["cuda"] == {"error": "the process that tried it was killed by SIGSEGV"}
    assert "not examined" in given["auto"]["error"]
    assert "cuda" in given and "auto" not in given


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_jobs_end_with_the_doctor(number: int) -> None:
    code = """if True:
        import os, sys, time
        from pathlib import Path
        from image_classification.doctor.jobs import Jobs
        with Jobs(Path.cwd(), os.environ) as jobs:
            job = jobs.command("sleep", "1000", timeout_s=1000)
            print(job._process.pid, flush=True)
            job.outcome()
    """
    doctor = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background makes them ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    with doctor:
        assert doctor.stdout is not None
        pid = int(doctor.stdout.readline())
        doctor.send_signal(number)
    assert is_gone(pid)


def test_what_nobody_waited_for_ends_with_the_examination(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with Jobs(ROOT, os.environ) as jobs:
        script = f"sleep 1000 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"
        jobs.command("sh", "-c", script, timeout_s=1000)
        while not pids.exists():
            time.sleep(0.02)
    assert all(is_gone(int(pid)) for pid in pids.read_text().split())


def test_the_doctor_itself_imports_no_torch() -> None:
    code = "import sys, image_classification.doctor.examination; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


# ---- the whole examination -----------------------------------------------------------------


def test_a_machine_with_several_diseases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A torch that cannot be imported, a vendor's program that hangs, no compiler."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: bad ELF')\n")
    tool = tmp_path / "bin" / "npu-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec /bin/sleep 1000\n")
    tool.chmod(0o755)
    monkeypatch.setattr(examination, "_TOOL_S", 5)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tool.parent))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert examination.examine(ROOT, os.environ) == 2
    lines = capsys.readouterr().out.splitlines()
    statuses = {line[6:].split("  ")[0]: line.split()[0] for line in lines[:-1]}
    assert (statuses["torch"], statuses["npu driver"]) == ("FIX", "FIX")
    assert statuses["C++ compiler"] == "note" and statuses["numpy"] == "ok"
    assert any("libtorch.so: bad ELF" in line for line in lines)
    for line, following in itertools.pairwise(lines):  # what is not ok has a cure
        assert line.startswith("      -> ") or line.startswith("ok") != following.startswith("   ")
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert {path.name for path in tmp_path.iterdir()} <= {"torch", "bin", "pid"}
