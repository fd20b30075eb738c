# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Results of benchmarks/run.py: compared with earlier ones, and shown on the page."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import memory_bound, performance_page
from benchmarks.comparison import compare
from benchmarks.photographs import HEIGHT, WIDTH, write_photographs
from benchmarks.run import read_result
from image_classification.errors import DataError

ENVIRONMENT = {
    "device": "cpu", "device_name": "Some CPU", "driver": None, "date": "2030-01-02T03:04:05+00:00",
    "command": "python benchmarks/run.py", "cpu": "Some CPU", "threads": 2, "cores": 2,
    "cores_usable": 2, "python": "3.11", "versions": {"torch": "9.9"}, "commit": "abc",
    "load_before": [0.0],
}  # fmt: skip


def row(name: str, rate: float, spread: float = 0.1) -> dict[str, Any]:
    rates = {"median": rate, "low": rate * (1 - spread), "high": rate * (1 + spread)}
    return {"name": name, "images_per_second": rates}


def result(ours: float, timm: float, seconds: float = 1.0, size: float = 100.0) -> dict[str, Any]:
    spread = {"median": seconds, "low": seconds, "high": seconds * 1.05}
    printed = ("device: cpu\n| contender | img/s |\n| --- | --- |\n| ours | 1 |\n"
               "ours --amp: left out: no such unit\ntimm amp: left out: no such unit")  # fmt: skip
    records = {
        "train_step": {"contenders": [row("ours", ours), row("timm amp", timm)]},
        "runtimes": {"batches": {"16": [row("ours eager", ours)]}},
        "startup": {"seconds": {"main.py -h": spread}},
        "memory": {"bytes": {"default": size}},
    }
    parts = {
        name: {"title": f"Title of {name}", "command": f"python {name}.py", "printed": printed,
               "record": record}
        for name, record in records.items()
    }  # fmt: skip
    parts["loader"] = {"title": "Loader", "command": "python loader.py", "failed": "exit code 3"}
    return {"benchmark": "run", "environment": copy.deepcopy(ENVIRONMENT), "parts": parts}


@pytest.mark.parametrize(
    ("new", "slower"),
    [
        (result(100, 50), []),
        (result(92, 50), []),  # within the spread
        (result(85, 50), ["train_step: ours", "runtimes/16: ours eager"]),
        # A slow hour: the peer of the same table lost as much. The other table has no peer.
        (result(50, 25), ["runtimes/16: ours eager"]),
        (result(100, 70), ["train_step: ours"]),  # the machine is faster, we are not
        (result(100, 50, seconds=1.2), ["startup: main.py -h"]),
        (result(100, 50, size=101), []),
        (result(100, 50, size=104), ["memory: default"]),
    ],
)
def test_what_is_slower_than_the_spread_is_named(new: dict[str, Any], slower: list[str]) -> None:
    text, found = compare(result(100, 50), new)
    assert found == slower
    assert text.endswith(f"\nslower than the spread: {', '.join(slower) or 'nothing'}")
    assert "timm" not in text and "| runtimes/16: ours eager " in text


def test_only_equal_measurements_are_compared() -> None:
    old, new = result(100, 50), result(10, 50)
    del old["parts"]["train_step"]
    new["parts"]["runtimes"]["command"] += " --batch-sizes 1"
    text, slower = compare(old, new)
    assert "\nnot measured there in the same way: train_step, runtimes, loader\n" in text
    assert slower == []
    new["parts"] = {"runtimes": new["parts"]["runtimes"]}
    with pytest.raises(DataError, match="no part is measured there in the same way, of runtimes"):
        compare(old, new)
    new["environment"]["device_name"] = "Another CPU"
    with pytest.raises(DataError, match="that result is of Some CPU; this is Another CPU"):
        compare(old, new)
    new["environment"] |= {"device_name": "Some CPU", "cpu_instructions": ["avx2", "avx512f"]}
    with pytest.raises(DataError, match="of Some CPU; this is Some CPU, avx2 avx512f"):
        compare(old, new)


def test_a_loader_is_compared_on_the_same_kind_of_images() -> None:
    old, new = result(100, 50), result(100, 50)
    for one, images in ((old, "given"), (new, "made")):
        one["parts"]["runtimes"]["command"] += " DIR"
        one["settings"] = {"images": images}
    assert "in the same way: runtimes, loader\n" in compare(old, new)[0]


def test_rows_that_are_gone_and_other_versions_are_named() -> None:
    old, new = result(100, 50), result(100, 50)
    new["environment"]["versions"] = {"torch": "9.10"}
    del new["parts"]["train_step"]["record"]["contenders"][0]
    text, found = compare(old, new)
    assert found == ["train_step: ours"] and "\ngone: train_step: ours\n" in text
    assert text.endswith("other versions: torch 9.9 -> 9.10")


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for content in ("{", "[]", '{"benchmark": "loader"}'):
        other.write_text(content)
        with pytest.raises(DataError, match=r"other\.json"):
            read_result(other)
    with pytest.raises(DataError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_the_page_has_the_newest_result_of_each_device(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results, page = tmp_path / "benchmarks" / "results", tmp_path / "docs" / "performance.md"
    results.mkdir(parents=True), page.parent.mkdir()
    page.write_text(f"before\n\n{performance_page._BEGIN}\nold\n{performance_page._END}\nafter\n")
    old, new, gpu = (copy.deepcopy(result(100, 50)) for _ in range(3))
    old["environment"]["date"] = "2029-01-01T00:00:00+00:00"
    gpu["environment"] |= {"device": "cuda", "device_name": "H200", "driver": "1", "cuda": "2",
                           "cudnn": "3"}  # fmt: skip
    for name, content in (("a", old), ("b", new), ("c", gpu), ("d", {"benchmark": "loader"})):
        (results / f"{name}.json").write_text(json.dumps(content))
    for _ in range(2):  # writing it again changes nothing
        assert performance_page.write(tmp_path) == page
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert text.index("## H200, driver 1, cuda 2") < text.index("## Some CPU\n")
    assert "results/b.json" in text and "results/a.json" not in text
    assert text.count("failed: exit code 3") == 2
    assert text.count("Left out: ours --amp, timm amp (no such unit)") == 8
    assert "| ours | 1 |\n\nLeft out" in text
    plots = {path.name for path in (page.parent / "performance").iterdir()}
    assert plots == {f"{device}-{part}.svg" for device in ("h200", "some-cpu")
                     for part in ("train_step", "runtimes-16")}  # fmt: skip
    for name in plots:
        assert f"](performance/{name})" in text
        assert (page.parent / "performance" / name).read_text().startswith("<svg")


def test_bytes_of_a_step() -> None:
    found = memory_bound.count("resnet50", 224)
    # Outputs of all convolutions: 11.1 million (Radosavovic et al. 2020, arXiv:2003.13678, table 4
    # and others); inputs are about as many, and a step reads and writes both three times.
    assert found.convolutions == pytest.approx(3 * 2 * 11.1e6, rel=0.05)
    assert 8 * 11.1e6 < found.fused < found.eager
    assert memory_bound.count("resnet50", 448).eager == pytest.approx(4 * found.eager, rel=0.01)
    assert len(memory_bound.residual_blocks(memory_bound.create_model("efficientnet-b0", 10))) == 9


def test_made_photographs_have_the_size_of_photographs(tmp_path: Path) -> None:
    from PIL import Image

    folder = write_photographs(tmp_path / "train", 30)
    files = sorted(folder.rglob("*.jpg"))
    assert folder == tmp_path and len(files) == 30 and len({*map(Path.read_bytes, files)}) == 24
    assert all(Image.open(file).size == (WIDTH, HEIGHT) for file in files)
    assert 90e3 < sum(file.stat().st_size for file in files) / 30 < 130e3
