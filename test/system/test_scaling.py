# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""benchmarks/scaling.py at a tiny size: every run is one of main.py; no speed is asserted."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import environment, nursery

from benchmarks import measure, scaling, scaling_published, scaling_runs
from image_classification.device import Device

TINY = ("--device", "cpu", "--arch", "resnet18", "--image-size", "32", "--batch-size", "2",
        "--rounds", "1", "--steps", "1")  # fmt: skip
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
two_cores = pytest.mark.skipif(
    len(scaling_runs.physical_cores()) < 2, reason="two processes need a core each"
)


class Forked:
    """A run that is over: forked one after the other, without their imports."""

    def __init__(self, words: list[str], cores: list[int]) -> None:
        done = nursery().run(*words[1:], timeout=200, env=environment())
        self.words, self.cores = words, cores
        self.returncode, self._told = done.returncode, done.stderr

    def communicate(self) -> tuple[None, str]:
        return None, self._told

    def poll(self) -> int:
        return self.returncode


def tables(printed: str) -> list[list[list[str]]]:
    """The cells of every table, with its head, without the rule below it."""
    found: list[list[list[str]]] = [[]]
    for line in printed.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


@two_cores
def test_both_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Forked] = []

    def start(words: list[str], cores: list[int]) -> Any:
        started.append(Forked(words, cores))
        return started[-1]

    monkeypatch.setattr(scaling_runs, "start", start)
    path = tmp_path / "new" / "scaling.json"
    assert scaling.main([*TINY, "--step-ms", "50", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "take more --steps" in printed  # one after the other they were not beside each other

    cores = scaling_runs.physical_cores()[:2]
    assert [run.cores for run in started] == [cores[:1], cores[:1], cores[1:], cores]
    assert ["multiproc.py" in " ".join(run.words) for run in started] == [False] * 3 + [True]

    rates, shares, predicted, compared = tables(printed)
    names = [scaling_runs.ALONE, scaling_runs.BESIDE, scaling_runs.TOGETHER]
    assert [row[0] for row in rates[1:]] == names
    record = json.loads(path.read_text())
    assert record["benchmark"] == "scaling" and record["schema"] == measure.SCHEMA
    assert record["environment"]["device"] == "cpu" and record["settings"]["steps"] == 1
    alone, beside, together = (
        row["rounds"][0]["images_per_second"] for row in record["measured"]
    )  # fmt: skip
    assert [row["rounds"][0]["images"] for row in record["measured"]] == [2, 4, 4]
    for name, expected in (
        ("efficiency", together / 2 / alone), ("sharing the machine", beside / 2 / alone),
        ("communication", together / beside),
    ):  # fmt: skip
        assert record["shares"][name]["median"] == pytest.approx(expected)
        assert f"{expected:.3f} " in next(row for row in shares if row[0] == name)[1]

    own = record["own_step"]
    assert own == {"arch": "resnet18", "parameters": 11689512, "batch_size": 2, "seconds": 0.05}
    mine = [row for row in record["predicted"] if row["name"] == scaling.OWN]
    assert len(mine) == len(scaling_published.INTERCONNECTS) and {
        row["batch_size"] for row in mine} == {2}  # fmt: skip
    for row in record["predicted"]:
        assert [entry["devices"] for entry in row["devices"]] == [1, 8, 64, 1024]
        assert row["devices"][0]["step"] == row["step"]
    assert len(predicted) == 1 + len(record["predicted"])
    figures = sum(len(entry.several) for entry in scaling_published.PUBLISHED)
    assert len(compared) == 1 + len(record["compared"]) == 1 + figures
    impossible = [row for row in compared if row[-1].startswith("impossible")]
    assert [row[0] for row in impossible] == ["ResNet-50, O2"]


@linux
def test_a_process_gets_its_cores_and_no_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = os.sched_getaffinity(0)
    monkeypatch.setenv("WORLD_SIZE", "7")
    code = ("import os, sys; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'],"
            " 'WORLD_SIZE' in os.environ, file=sys.stderr); sys.exit(6)")  # fmt: skip
    process = scaling_runs.start([sys.executable, "-c", code], [max(allowed)])
    assert os.sched_getaffinity(0) == allowed
    with pytest.raises(SystemExit, match="6"):
        scaling_runs.finish(process)
    assert capsys.readouterr().err == f"[{max(allowed)}] 1 False\n"


def test_more_processes_than_cores_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "scaling.json"
    words = [*TINY, "--parts", "measured", "--processes", "4096", "--json", str(record)]
    assert scaling.main(words) == 0
    assert "left out: 4096 processes need 4096 cores" in capsys.readouterr().out
    assert "measured" not in json.loads(record.read_text())
    with pytest.raises(measure.Unavailable, match="2 processes need 2 cores"):
        plan = scaling_runs.Plan("cpu", "resnet18", 32, 2, 1, 2, amp=False)
        scaling_runs.check(plan, Device.select("cpu"), [0])


def test_a_step_from_a_result_of_train_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, record = tmp_path / "step.json", tmp_path / "scaling.json"
    rates = {"torchvision fp32 nchw": 50.0, "ours": 100.0, "ours --amp": 400.0}
    content = {
        "settings": {"arch": "resnet18", "batch_size": 64},
        "contenders": [{"name": name, "images_per_second": {"median": rate}}
                       for name, rate in rates.items()],
    }  # fmt: skip
    result.write_text(json.dumps(content))
    words = ["--parts", "model", "--train-step", str(result), "--json", str(record)]
    assert scaling.main(words) == 0
    assert "your step, 160.0 ms" in capsys.readouterr().out
    assert json.loads(record.read_text())["own_step"]["batch_size"] == 64

    result.write_text(json.dumps({**content, "contenders": content["contenders"][:1]}))
    assert scaling.main(words) == 2
    assert "step.json: expected a result of train_step.py" in capsys.readouterr().err
    assert scaling.main([*TINY, "--processes", "1"]) == 2
    assert "--processes 1: at least 2" in capsys.readouterr().err


def test_processes_that_were_not_beside_each_other() -> None:
    run = scaling_runs.Epochs(0.0, (2.0, 4.0), 6.0, 1.0)
    late = scaling_runs.Epochs(1.9, (3.0, 5.0), 7.0, 1.0)
    later = scaling_runs.Epochs(2.1, (3.0, 5.0), 7.0, 1.0)
    assert scaling_runs.always_beside([run]) and scaling_runs.always_beside([run, late])
    assert not scaling_runs.always_beside([run, later])
