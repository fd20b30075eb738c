# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""README.zh-CN.md says what README.md says; the model card and the figures follow the facts."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from benchmarks import train_contenders

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")
FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
# The proofs of the device tables, the figures that are missing, and how they read in Chinese.
STATES = {
    "measured": "实测", "fake": "模拟", "unverified": "未验证", "not offered": "不提供",
    "not measured": "未实测", "not named": "未注明",
}  # fmt: skip


class Part(NamedTuple):
    """What stands below one heading, down to the next one.

    Attributes:
        level: Number of "#" of the heading; 0 before the first one.
        title: The heading.
        text: All below it.
    """

    level: int
    title: str
    text: str


def parts(page: str) -> list[Part]:
    """A page divided at its headings; a "#" in a code block is none."""
    hidden = BLOCK.sub(lambda block: block[0].replace("#", "\0"), page)
    found = re.split(r"^(#+) (.+)$", "\n" + hidden, flags=re.MULTILINE)
    assert not found[0].strip()
    triples = zip(found[1::3], found[2::3], found[3::3], strict=True)
    return [Part(len(marks), title, text.replace("\0", "#")) for marks, title, text in triples]


PAIRS = list(zip_longest(parts(ENGLISH), parts(CHINESE)))


def prose(text: str) -> str:
    return BLOCK.sub("", text)


def code(text: str) -> list[list[str]]:
    """The lines of each code block without their comments."""
    blocks = [block[0] for block in BLOCK.finditer(text)]
    return [[re.sub(r"(^| +)# .*", "", line) for line in block.splitlines()] for block in blocks]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of each table of a text, head first, without the line below the head."""
    found: list[list[list[str]]] = []
    inside = False
    for line in prose(text).splitlines():
        masked = SPAN.sub(lambda span: span[0].replace("|", "\0"), line)
        cells = [cell.strip() for cell in masked.split(" | ")]
        if len(cells) == 1:
            inside = False
            continue
        if not inside:
            found.append([])
        inside = True
        if set(cells) != {"-----"}:
            found[-1].append(cells)
    return found


def numbers(text: str) -> list[str]:
    """The figures of a text, in ascending order of their text."""
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))


# ---- the two pages -----------------------------------------------------------------------------


def test_headings_have_the_same_order_and_levels() -> None:
    assert [part.level for part in parts(ENGLISH)] == [part.level for part in parts(CHINESE)]
    assert len(PAIRS) >= 25
    assert all(re.search(r"[\u4e00-\u9fff]", chinese.title) for _, chinese in PAIRS)


def test_each_page_links_to_the_other() -> None:
    assert "](README.zh-CN.md)" in ENGLISH.splitlines()[2]
    assert "](README.md)" in CHINESE.splitlines()[2]


@pytest.mark.parametrize("english, chinese", PAIRS, ids=lambda part: part and part.title)
def test_same_code_spans_tables_and_figures(english: Part, chinese: Part) -> None:
    assert code(chinese.text) == code(english.text)
    for found in (SPAN.findall, lambda text: re.findall(r"https?://[^)>\s`]+", text)):
        assert sorted(found(prose(chinese.text))) == sorted(found(prose(english.text)))
    shapes = [
        [[len(row) for row in rows] for rows in tables(part.text)] for part in (english, chinese)
    ]
    assert shapes[0] == shapes[1]
    for rows, translated in zip(tables(english.text), tables(chinese.text), strict=True):
        for row, its in zip(rows, translated, strict=True):
            for cell, other in zip(row, its, strict=True):
                assert numbers(cell) == numbers(other), (cell, other)
                for state, its_name in STATES.items():
                    assert cell.split(" (")[0] != state or other.startswith(its_name), (cell, other)


@pytest.mark.parametrize("english, chinese", PAIRS, ids=lambda part: part and part.title)
def test_same_links(english: Part, chinese: Part) -> None:
    def targets(text: str) -> list[str]:
        links = re.findall(r"\]\(([^)]+)\)", text)
        # Headings of the page itself have other names there; test_readme.py looks them up.
        return sorted("#" if link.startswith("#") else link for link in links)

    languages = ("README.md", "README.zh-CN.md")
    mine, theirs = (
        [t for t in targets(part.text) if t not in languages] for part in (english, chinese)
    )
    assert mine == theirs


def test_comments_of_the_chinese_commands_are_chinese() -> None:
    comments = re.findall(r"(?:^| +)# (.+)$", "".join(BLOCK.findall(CHINESE)), re.MULTILINE)
    plain = [
        text for text in comments if re.search(r"[a-z]{3,}", text) and not text.startswith("{")
    ]
    assert len(comments) >= 30
    assert all(re.search(r"[\u4e00-\u9fff]", text) for text in plain), plain


# ---- the model card ----------------------------------------------------------------------------


def card(page: str) -> dict[str, str]:
    """The fields of the model card by their English names."""
    rows = tables(parts(page)[1].text)[0][1:]
    return {re.sub(r".*\uff08(.+)\uff09", r"\1", name): value for name, value in rows}


def test_model_card() -> None:
    fields = ["Publisher", "Application Domain", "Version", "Modified", "Size", "Framework"]
    fields += ["Model Format", "Precision", "Processor", "Categories", "Description"]
    for page in (ENGLISH, CHINESE):
        found = card(page)
        assert list(found) == fields
        assert re.fullmatch(r"\d{4}\.\d\d\.\d\d", found["Modified"])
        project = (ROOT / "pyproject.toml").read_text("utf-8")
        assert re.search(
            rf'^version = "{re.escape(found["Version"])}\.\d+"$', project, re.MULTILINE
        )


def test_category_follows_from_the_measured_training_steps() -> None:
    """The worst ratio with the same settings on one device, against the template's thresholds."""
    (name,) = re.findall(r"Training step: .*?results/([\w.-]+-run[\w.-]*\.json)", ENGLISH)
    run = json.loads((ROOT / "benchmarks" / "results" / name).read_text("utf-8"))
    found: dict[str, list[float]] = {}
    for part in ("train_step", "train_step_b0"):
        record = run["parts"][part]["record"]
        for ratio in record["ratios"]:
            pair = ratio["of"], ratio["to"]
            if pair in train_contenders.PAIRS and "compile" not in pair[0]:
                group = f"{part} {ratio['of'] if part == 'train_step' else ''}"
                found.setdefault(group, []).append(ratio["median"])
    assert len(found) == 3 and all(len(ratios) >= 2 for ratios in found.values())
    # Benchmark needs 32 cards, which no file of results has.
    category = "Official" if min(map(min, found.values())) >= 1.2 else "Research"
    assert card(ENGLISH)["Categories"] == card(CHINESE)["Categories"] == category
    for ratios in found.values():
        low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
        assert re.search(rf"{low} to {high}", parts(ENGLISH)[1].text), (low, high)
        assert re.search(rf"{low} 至 {high}", parts(CHINESE)[1].text), (low, high)


def test_size_is_that_of_the_weights() -> None:
    from models import create_model

    network = create_model("resnet50", num_classes=1000)
    tensors = sum(
        tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()
    )
    size = int(re.findall(r"[\d,]{9,}", card(ENGLISH)["Size"])[0].replace(",", ""))
    assert tensors < size < 1.005 * tensors  # names and the container take the rest
    assert card(ENGLISH)["Size"].startswith(f"{size / 2**20:.0f}M")


def test_images_are_those_of_the_docker_page() -> None:
    page = (ROOT / "docs" / "docker.md").read_text("utf-8")
    part = next(part for part in parts(ENGLISH) if part.title.startswith("Images for"))
    for architecture, image, version, cann in tables(part.text)[0][1:]:
        name = f"{image[:-1]}:{version[1:]}"
        line = next(line for line in page.splitlines() if name in line and line.count(" | ") == 6)
        cells = line.split(" | ")
        assert architecture == ("x86-64, ARM64" if cells[3] == "yes" else "x86-64")
        assert cells[2] == "yes"
        assert cann == "-" or f"CANN {cann}," in cells[4]


# ---- the figures -------------------------------------------------------------------------------


def draw() -> ModuleType:
    """docs/figures/draw.py as a module."""
    spec = importlib.util.spec_from_file_location("draw", FIGURES / "draw.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_data_flow_is_as_drawn(tmp_path: Path) -> None:
    draw().main(["--out", str(tmp_path)])
    assert (tmp_path / "data_flow.svg").read_text("utf-8") == (FIGURES / "data_flow.svg").read_text(
        "utf-8"
    )


def test_boxes_hold_their_text() -> None:
    textpath = pytest.importorskip("matplotlib.textpath")
    module = draw()
    width, height = module._BOX
    for box in module.BOXES:
        assert box.left + width <= module._WIDTH and box.top + height <= module._HEIGHT
        assert len(box.lines) <= 2
        for line in box.lines:  # matplotlib's own font is DejaVu Sans
            extents = textpath.TextPath((0, 0), line, size=13).get_extents()
            assert 12 + extents.width < width - 8, line


def test_curves_of_a_run_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    parameters = {"schema": 1, "run_id": "a", "time": "2026-01-01T00:00:00+00:00", "elapsed": 1.0,
                  "type": "parameter", "epoch": None, "iteration": None,
                  "validation_iteration": None, "data": {"arch": "resnet18"}}  # fmt: skip
    rows = [parameters] + [
        {"schema": 1, "run_id": "a", "time": "2026-01-01T00:00:00+00:00", "elapsed": 9.0 + epoch,
         "type": "epoch", "epoch": epoch, "iteration": None, "validation_iteration": None,
         "data": {"train.loss": 2.0 - epoch, "val.loss": 2.5 - epoch, "val.top1": 40.0 + epoch}}
        for epoch in range(2)
    ]  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    draw().main([str(run), "--out", str(tmp_path / "out")])
    for name in ("run_loss.svg", "run_top1.svg"):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert text.startswith("<svg") and "not measured" not in text


def test_figures_are_small_and_shown() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(docs/figures/([^)]+)\)", ENGLISH))
    files = {path.name for path in FIGURES.iterdir() if path.suffix in (".svg", ".png")}
    assert shown == files
    assert all((FIGURES / name).stat().st_size < 100_000 for name in files)
