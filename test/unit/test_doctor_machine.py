# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the doctor finds in machines that are not as they should be."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from doctor_helpers import GIB, only, shown

from image_classification import pytorch_loader
from image_classification.control_group import ControlGroup
from image_classification.doctor import machine, probes
from image_classification.doctor.jobs import Answers, Outcome
from image_classification.errors import DataError


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
