# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds in software, devices and collectives that are not as they should be."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from doctor_helpers import GIB, answers, is_gone, only, shown

from image_classification.device import Device
from image_classification.doctor import devices, examination, machine, probes, software
from image_classification.doctor.finding import fix, note, ok
from image_classification.doctor.jobs import Answers, Jobs, Outcome
from image_classification.fast_loader.build import BuildError, find_compiler

ROOT = Path(__file__).resolve().parents[2]


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
