# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The fake accelerator behaves like a device, and `Device` drives it as npu and as mlu."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import build as fake_build
from fakes.support import fake_environment, skip_reason
from runs import nursery

SCENARIOS = Path(__file__).with_name("fake_scenarios.py")
pytestmark = [
    pytest.mark.fake_accelerator,
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
]


# --- running them ------------------------------------------------------------------------------


def run_scenario(name: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = environment | {"OMP_NUM_THREADS": "1"}
    if {"FAKE_ACC_OLD_TORCH", "FAKE_ACC_BROKEN"} & {*environment}:  # concern PyTorch's import
        command = [sys.executable, str(SCENARIOS), name, str(folder)]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    else:
        result = nursery().run(SCENARIOS, name, folder, env=environment, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return report | {"stderr": result.stderr}


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fake")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """All scenarios; three processes at a time, so that the two ranks can meet."""
    stats = {"stats": folder / "stats.json"}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    ranks = [rendezvous | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    reduced = {"no_bf16": True, "no_memory_stats": True, "oom_mb": 8, "count": 4, "old_torch": True}
    plans = {
        "ddp0": ("ddp", fake_environment("npu") | ranks[0]),
        "ddp1": ("ddp", fake_environment("npu") | ranks[1]),
        "train": ("train", fake_environment("npu", **stats)),
        "reduced": ("reduced", fake_environment("mlu", **reduced) | {"MLU_VISIBLE_DEVICES": "5"}),
        "saturate": ("saturate", fake_environment("npu", saturate=True, count=1)),
        "broken_npu": ("select", fake_environment("npu", broken=True) | {"FAKE_WANTED": "npu"}),
        "broken_mlu": ("select", fake_environment("mlu", broken=True) | {"FAKE_WANTED": "auto"}),
        "cpu": ("select", fake_environment("npu", broken=True) | {"FAKE_WANTED": "cpu"}),
    }
    nursery()  # one for all threads
    with ThreadPoolExecutor(3) as pool:
        yield {
            key: pool.submit(run_scenario, name, folder / key, environment)
            for key, (name, environment) in plans.items()
        }


# --- what must come out ------------------------------------------------------------------------


def test_training_equals_the_cpu_bit_for_bit(runs: Any) -> None:
    report = runs["train"].result()
    assert report["device"] == "npu:0 (Fake Ascend 910B)"
    assert (report["count"], report["collective"]) == (2, "hccl")
    for kind in ("foreach", "fused"):
        assert report[kind] == [True, True], kind
    assert any(abs(value) > 1e-4 for value in report["bn_mean"]), "BatchNorm statistics stood still"


def test_mixed_precision_runs_in_low_precision(runs: Any) -> None:
    report = runs["train"].result()
    assert "bfloat16" in report["text"]
    for name, scaled in (("bfloat16", False), ("float16", True)):
        dtype, gap, enabled = report[name]
        assert dtype == f"torch.{name}"
        assert 0 < gap < 0.05, "not low precision, or far from FP32"
        assert enabled is scaled
    assert report["static_scale"] == 128.0


def test_streams_pinned_memory_seeds_and_memory_figures(runs: Any) -> None:
    report = runs["train"].result()
    assert report["pinned"] is True
    assert report["seeded"] is True
    allocated, peak, total = report["memory"]
    assert 0 < allocated < peak < total
    assert report["waits_of_a_step"] is False


def test_statistics_name_who_waited(runs: Any, folder: Path) -> None:
    runs["train"].result()
    stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
    assert stats["host_waits"] == sum(stats["waits"].values()) > 0
    assert stats["device_to_host_copies"] > 0
    assert stats["operators"]["aten::native_batch_norm"] > 0
    sites = stats["wait_sites"]
    assert any(site.endswith("train aten::_local_scalar_dense") for site in sites), sites
    assert sum(sites.values()) == stats["host_waits"]


def test_a_file_from_the_device_loads_on_a_plain_cpu(runs: Any, folder: Path) -> None:
    import torch

    runs["train"].result()
    path = folder / "train" / "npu.pt"
    loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    assert loaded["tensor"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_two_ranks_agree(runs: Any) -> None:
    reports = [runs[key].result() for key in ("ddp0", "ddp1")]
    assert [report["index"] for report in reports] == [0, 1]
    for report in reports:
        assert report["backend"] == "hccl"
        assert report["identities"] == ["npu:0", "npu:1"]
        assert report["flag"] == 1, "a CPU tensor in a group of both kinds"
        assert report["sums"] == reports[0]["sums"]
        assert report["sums"][0] == report["sums"][1]


def test_plug_in_that_does_not_load_itself_is_found_without_torch_accelerator(runs: Any) -> None:
    report = runs["reduced"].result()
    assert report["hidden"] == [False, False]
    assert report["device"] == "mlu:0 (Fake MLU370)"
    assert report["same"] is True


def test_device_without_bfloat16_uses_float16(runs: Any) -> None:
    report = runs["reduced"].result()
    assert report["dtype"] == "torch.float16"
    assert report["scaler"].startswith("torch.amp")
    assert "--amp-dtype bfloat16 is not supported by mlu:0 (Fake MLU370)" in report["wish"]


def test_mask_memory_and_out_of_memory(runs: Any) -> None:
    report = runs["reduced"].result()
    assert report["identity"] == "mlu:5", "the launcher shows this process one device only"
    assert report["memory"] is None
    assert report["out_of_memory"] is True
    assert 0 < report["tensors"] <= 8, "1 MiB each, 8 MiB on the device"


def test_saturating_device_gets_the_vendors_scaler(runs: Any) -> None:
    report = runs["saturate"].result()
    assert report["dtype"] == "torch.float16"
    assert report["saturates"] is True
    assert report["sum"] == [65504.0, 65504.0]
    assert report["vendor"] == [512.0, True], "overflow found by its flag: scale halved"
    assert report["plain"] == [1024.0, True], "PyTorch's scaler must not see it"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("broken_npu", ("torch_npu", "libfakedriver.so.1", "--device cpu")),
        ("broken_mlu", ("torch_mlu", "libfakedriver.so.1", "--device cpu")),
    ],
)
def test_errors_name_cause_and_cure(runs: Any, key: str, words: tuple[str, ...]) -> None:
    report = runs[key].result()
    assert report["kind"] == "UsageError"
    assert "\n" not in report["error"]
    for word in words:
        assert word in report["error"]


def test_more_processes_than_devices(runs: Any) -> None:
    text = runs["saturate"].result()["absent"]
    for word in ("LOCAL_RANK=1", "1 Ascend NPU(s) visible", "--nproc_per_node 1"):
        assert word in text


def test_builds_at_the_same_time_compile_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    compiler = tmp_path / "slow-compiler"
    lines = [
        "#!/bin/sh",
        f'echo call >> "{calls}"',
        "sleep 0.3",
        "for last; do :; done",
        ': > "$last"',
    ]
    compiler.write_text("\n".join(lines), encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fake_build.build, [tmp_path / "cache"] * 4))
    assert len(set(paths)) == 1
    assert paths[0].exists()
    assert calls.read_text(encoding="utf-8").count("call") == 1
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="no such header"):
        fake_build.build(tmp_path / "other cache")


def test_cpu_run_does_not_load_a_broken_plug_in(runs: Any) -> None:
    assert runs["cpu"].result()["device"].startswith("cpu (")
