# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the three launchers say, and what contradicts them."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from image_classification import distributed
from image_classification.device import Device
from image_classification.distributed import Launch
from image_classification.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    # setenv first, so that what the code under test sets is undone afterwards too
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name, raising=False)


def test_no_launcher_is_rank_0_of_1() -> None:
    assert distributed.read_launch() == Launch()
    assert distributed.read_launch().primary


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("9", "1", "16", "8", "node0", "29500")
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, value)
    launch = distributed.read_launch()
    assert (launch.rank, launch.local_rank, launch.world_size) == (9, 1, 16)
    assert launch.num_nodes == 2 and not launch.primary and launch.master_addr == "node0"


PARENT = """
import subprocess, sys
child = "import time; from image_classification import distributed; "
child += "distributed.die_with_torchrun(); print('there', flush=True); time.sleep(90)"
process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
process.wait()
"""


def test_a_rank_dies_with_torchruns_agent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "1"},
    ) as agent:  # fmt: skip
        assert agent.stdout is not None
        assert agent.stdout.readline() == "there\n"
        agent.kill()
        # The pipe ends when the rank, which has it too, is gone.
        assert select.select([agent.stdout], [], [], 30)[0] and agent.stdout.read() == ""


def test_several_nodes_under_torchrun_are_told_how_to_start_anew(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Launch(0, 0, 8, 8), Launch(0, 0, 16, 8)
    assert distributed._torchrun_notes(two) == []
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in distributed._torchrun_notes(two)[0]
    assert distributed._torchrun_notes(one) == []
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # what the variable leads to
    assert distributed._torchrun_notes(two) == []


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[03-04,7]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_JOB_ID": "123456",
    }  # fmt: skip
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    launch = distributed.read_launch()
    assert (launch.rank, launch.local_rank, launch.world_size) == (5, 1, 8)
    assert launch.num_nodes == 2 and launch.launcher == "slurm"
    assert launch.master_addr == "gpu03"


def test_a_slurm_batch_script_without_srun_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert distributed.read_launch().world_size == 1


SINGLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
PAIR = {**SINGLE, "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("given", "changed", "text"),
    [
        (PAIR, {"RANK": None}, "RANK is missing"),
        (PAIR, {"LOCAL_RANK": None}, "LOCAL_RANK is missing"),
        (PAIR, {"MASTER_ADDR": None}, "MASTER_ADDR is missing"),
        (PAIR, {"MASTER_PORT": None}, "MASTER_PORT is missing"),
        (PAIR, {"MASTER_PORT": "http"}, "MASTER_PORT='http': expected a whole number"),
        (PAIR, {"MASTER_PORT": "70000"}, "MASTER_PORT=70000: expected 1..65535"),
        (PAIR, {"WORLD_SIZE": "two"}, "WORLD_SIZE='two': expected a whole number"),
        (PAIR, {"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 must be at least 0"),
        (PAIR, {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE=0 at least 1"),
        (STEP, {"SLURM_STEP_NUM_TASKS": "abc"}, "SLURM_STEP_NUM_TASKS='abc': expected a whole"),
        (STEP, {"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS='': expected a whole number"),
        (STEP, {"SLURM_PROCID": None}, "SLURM_PROCID is missing"),
        (STEP, {"SLURM_LOCALID": "x"}, "SLURM_LOCALID='x': expected a whole number"),
        (STEP, {"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID='x': expected a whole number"),
        (STEP, {"SLURM_PROCID": "2"}, r"RANK=2 is outside 0\.\.1"),
    ],
)
def test_an_incomplete_launcher_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, str],
    changed: dict[str, str | None],
    text: str,
) -> None:
    for name, value in (given | changed).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=text) as caught:
        distributed.read_launch()
    assert "start with `python multiproc.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_launcher_of_one_process_needs_no_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SINGLE.items():
        monkeypatch.setenv(name, value)
    assert distributed.read_launch() == Launch(0, 0, 1, 1, "multiproc/torchrun", "")


def test_a_slurm_step_without_a_list_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    assert distributed.read_launch() == Launch(0, 0, 2, 2, "slurm", "127.0.0.1")
    assert os.environ["MASTER_PORT"] == "20000"


def test_a_rank_outside_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(NAMES[:3], ("2", "0", "2"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"RANK=2 is outside 0\.\.1"):
        distributed.read_launch()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_nodes": 2}, "asks for 2 nodes, this run has 1"),
        ({"master_addr": "node0"}, "there is no launcher"),
    ],
)
def test_options_that_contradict_the_launch(options: dict[str, object], text: str) -> None:
    given = {"num_nodes": None, "master_addr": None, "device_index": None} | options
    with pytest.raises(UsageError, match=text):
        distributed.check_launch(Launch(), **given)  # type: ignore[arg-type]


def test_one_device_for_several_processes() -> None:
    launch = Launch(0, 0, 2, 2, "multiproc/torchrun", "127.0.0.1")
    with pytest.raises(UsageError, match="--gpu-id 0 picks one device, but 2 processes run"):
        distributed.check_launch(launch, num_nodes=1, master_addr="127.0.0.1", device_index=0)


def test_sums_of_a_single_process_are_the_numbers_themselves() -> None:
    assert distributed.sum_over_ranks([1.0, 2.5]) == [1.0, 2.5]
    assert distributed.share_from_primary({"a": 1}) == {"a": 1}
    assert 0 <= distributed.shared_seed() < 2**32


def test_gradients_are_sent_in_buckets_of_the_size_asked_for() -> None:
    launch, network = Launch(0, 0, 2, 2, "multiproc/torchrun", "127.0.0.1"), torch.nn.Linear(2, 2)
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        wrap = partial(distributed.wrap, network, launch, Device.select("cpu"), static_graph=True)
        torchs, ours = wrap(), wrap(bucket_mib=7)
    finally:
        distributed.shutdown()
    assert (torchs.bucket_bytes_cap, ours.bucket_bytes_cap) == (25 * 2**20, 7 * 2**20)
    assert distributed.wrap(network, Launch(), Device.select("cpu"), static_graph=True) is network
