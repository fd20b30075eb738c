# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What README and CONTRIBUTING say is true: options, files, commands, codes, defaults, texts."""

from __future__ import annotations

import argparse
import ast
import os
import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser as torchrun_parser

import checkpoint2model
import classify
import export
import launch
import main
import multiproc
import prune
import quantize
from benchmarks import (
    budgets,
    finetune,
    inference,
    loader,
    memory,
    memory_bound,
    reliability_overhead,
    scaling,
    startup,
    train_step,
)
from benchmarks import cifar as cifar_benchmark
from benchmarks import run as benchmark_run
from benchmarks import runtimes as benchmark_runtimes
from image_classification import dataset_tools, errors
from image_classification.device_table import DEVICE_TABLE
from image_classification.logger import METRICS
from image_classification.report import __main__ as report
from models import model_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
README = PAGES["README.md"] = PAGES["README.md"].replace("\\|", "|")
ORIGINALS = "Commands of the originals and their form here"

PARSERS: dict[str, argparse.ArgumentParser] = {
    "main.py": main.build_parser(),
    "multiproc.py": multiproc.build_parser(),
    "classify.py": classify.build_parser(),
    "checkpoint2model.py": checkpoint2model.build_parser(),
    "launch.py": launch.build_parser(),
    "export.py": export.build_parser(),
    "quantize.py": quantize.build_parser(),
    "prune.py": prune.build_parser(),
    "benchmarks/cifar.py": cifar_benchmark.build_parser(),
    "benchmarks/budgets.py": budgets.build_parser(),
    "benchmarks/finetune.py": finetune.build_parser(),
    "benchmarks/reliability_overhead.py": reliability_overhead.build_parser(),
    "benchmarks/inference.py": inference.build_parser(),
    "benchmarks/train_step.py": train_step.build_parser(),
    "benchmarks/loader.py": loader.build_parser(),
    "benchmarks/scaling.py": scaling.build_parser(),
    "benchmarks/run.py": benchmark_run.build_parser(),
    "benchmarks/runtimes.py": benchmark_runtimes.build_parser(),
    "benchmarks/startup.py": startup.build_parser(),
    "benchmarks/memory.py": memory.build_parser(),
    "benchmarks/memory_bound.py": memory_bound.build_parser(),
    "image_classification.dataset_tools": dataset_tools.build_parser(),
    "image_classification.report": report.build_parser(),
    "docs/figures/draw.py": runpy.run_path(str(ROOT / "docs/figures/draw.py"))["build_parser"](),
}
# Options of other programs: docker build and run, srun, git.
FOREIGN = {
    "--build-arg", "--gpus", "--privileged", "--ipc", "--shm-size", "--network",
    "--nodes", "--ntasks-per-node", "--no-deps", "--hard",
    "--signals-to-handle", "--shutdown-timeout",  # of newer versions of torchrun
}  # fmt: skip
# Files that a run or a user makes, in code spans of the two pages.
PRODUCED = re.compile(r"models/(?!\*?\.py)|data/digits$|/tensorboard|^(tensorboard|train|val)/$")


# ---- reading the pages -------------------------------------------------------------------------


def section(title: str, page: str = README) -> str:
    """The text below a heading of a page, up to the next one of the same or a higher level."""
    match = re.search(rf"^(##+) {re.escape(title)}$", page, re.MULTILINE)
    assert match, f"no heading {title!r}"
    rest = page[match.end() :]
    end = re.search(rf"^#{{2,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose head starts with a cell; "|" in a code span divides nothing."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{first} | "))
    rows = []
    for line in lines[start + 2 :]:
        if " | " not in line:
            break
        masked = re.sub(r"`[^`]*`", lambda span: span[0].replace("|", "\0"), line)
        rows.append([cell.strip().replace("\0", "|") for cell in masked.split(" | ")])
    assert rows, first
    return rows


def without_originals(text: str) -> str:
    """The page without what the original programs are called and take."""
    if f"## {ORIGINALS}" not in text:
        return text
    for original, _ in table(section(ORIGINALS, text), "Original"):
        text = text.replace(f"\n{original} | ", "\n")
    return text


OURS = {name: without_originals(text) for name, text in PAGES.items()}


def blocks(text: str) -> list[str]:
    return re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands() -> Iterator[list[str]]:
    """The words of every command in a bash block, or in a code span that starts a program."""
    for text in OURS.values():
        lines = [line for block in blocks(text) for line in block.splitlines()]
        starts = r"(?:[A-Z_]+=\S+ )*(?:(?:\.venv/bin/)?python|bash|docker|pip|source) (?!main.py$)"
        lines += [span for span in spans(text) if re.match(starts, span)]
        for line in lines:
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words:
                yield words


COMMANDS = list(commands())


@cache
def source_texts() -> list[str]:
    """Every string of the sources, f-strings with {} for their values."""
    texts = []
    for path in [*ROOT.glob("*.py"), *(ROOT / "image_classification").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [n.value if isinstance(n, ast.Constant) else "{}" for n in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def in_sources(line: str) -> bool:
    """Whether a string of the sources has the parts between the dots, in order, once per value."""
    parts = [re.escape(part.strip()) for part in line.split("...")]
    pattern = re.compile(r"[^\n]*?".join(part for part in parts if part))
    return any(pattern.search(text) for text in source_texts())


# ---- size and links ----------------------------------------------------------------------------


def test_sizes() -> None:
    assert len(README.splitlines()) <= 450
    assert len(PAGES["README.zh-CN.md"].splitlines()) <= 450
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 80


def anchors(page: Path) -> set[str]:
    """What links into a page may name."""
    text = PAGES[os.path.normpath(page)]
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGES[page])
    assert links or page != "README.md"
    for link in links:
        file, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_exist(page: str) -> None:
    top = {path.name for path in ROOT.iterdir()}
    words = set(spans(OURS[page]))
    words |= {word for block in blocks(OURS[page]) for word in block.split()}
    checked = 0
    for word in words:
        ours = word.split("/")[0] in top or re.fullmatch(r"[\w-]+\.(py|sh|md|toml)", word)
        if not ours or not re.fullmatch(r"[\w./*-]+", word) or PRODUCED.search(word):
            continue
        assert list(ROOT.glob(word.rstrip("/"))), f"{page}: {word}"
        checked += 1
    assert checked >= (10 if page.startswith(("README", "CONTRIBUTING")) else 3)


def test_every_run_script_is_in_the_table() -> None:
    named = {row[-1].strip("`").split("/")[-1] for row in table(section("Run scripts"), "Models")}
    scripts = {path.name for path in (ROOT / "run_scripts").glob("[!_]*.sh")}
    assert named == scripts


# ---- options and commands ----------------------------------------------------------------------


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options_of, action.choices.values()))
    return found


def script_options(word: str) -> set[str]:
    """The options that a shell script, or the program of the same name beside it, mentions."""
    files = [ROOT / word, (ROOT / word).with_suffix(".py")]
    text = "".join(path.read_text("utf-8") for path in files if path.exists())
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


@pytest.mark.parametrize("page", PAGES)
def test_options_exist(page: str) -> None:
    scripts = [word for words in COMMANDS for word in words if word.endswith(".sh")]
    parsers = [*PARSERS.values(), torchrun_parser()]
    known = FOREIGN.union(*map(options_of, parsers), *map(script_options, scripts))
    named = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", OURS[page]))
    assert named <= known, sorted(named - known)


def test_every_option_of_main_is_in_the_readme() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", section("Parameters by topic")))
    for action in PARSERS["main.py"]._actions[1:]:
        names = action.option_strings or ["--data"]
        assert named & set(names), names


def check_main(words: list[str]) -> None:
    options, _ = main.parse_args([word for word in words if word != "..."])
    assert (options.data or options.data_backend == "synthetic" or options.doctor
            or options.list_recipes)  # fmt: skip


def check_python(words: list[str]) -> None:
    """Parses the command line of one of our programs with its own parser."""
    program, arguments = words[0], words[1:]
    if arguments in (["-h"], ["..."]):
        assert program in PARSERS
    elif program == "main.py":
        check_main(["1" if word == "STAGE_LEN" else word for word in arguments])
    elif program == "multiproc.py":
        options = PARSERS[program].parse_args(arguments)
        assert options.script == "main.py"
        check_main(options.arguments)
    elif program == "launch.py":
        check_main(launch.command(arguments)[1:])
    elif program == "classify.py":
        args = PARSERS[program].parse_intermixed_args(arguments)
        classify.validate_args(args)
    elif program == "-m" and arguments[0] in PARSERS:
        PARSERS[arguments[0]].parse_args(arguments[1:])
    elif program == "-m":
        assert arguments[0] in ("pytest", "ruff", "mypy", "image_classification.fast_loader.build")
    elif program in PARSERS:
        PARSERS[program].parse_args(arguments)
    else:
        assert (ROOT / program).is_file() and not arguments, program


def check_script(script: str, arguments: list[str]) -> None:
    """Options of a recipe are main.py's; those of another script are in its text."""
    if script.startswith("run_scripts/"):
        flags = arguments[1:] if arguments and not arguments[0].startswith("-") else arguments
        infer = ["--evaluate", "--resume", "x"] if script.endswith("_Infer.sh") else []
        check_main(["DIR", *infer, *flags])
    else:
        used = {word.split("=")[0] for word in arguments if word.startswith("--")}
        assert used <= script_options(script), (script, used)


def commands_of_references() -> list[list[str]]:
    """The words of the commands that get the code of each reference implementation."""
    found = []
    for row in table(section("Introduction"), "Network"):
        url, branch, commit, path = (cell.strip("`") for cell in row[1:])
        found += [
            ["git", "clone", url],
            ["cd", Path(url).stem],
            ["git", "checkout", branch],
            ["git", "reset", "--hard", commit],
            ["cd", path],
        ]
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_accepted(words: list[str]) -> None:
    if words[0] == "torchrun":
        assert torchrun_parser().parse_args(words[1:]).training_script == "main.py"
    if words[0] in ("torchrun", "srun"):
        words = ["python", *words[words.index("main.py") :]]
    if words[0] in ("python", ".venv/bin/python"):
        check_python(words[1:])
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
        check_script(words[1], words[2:])
    elif words[0] == "source":
        assert words[1] == ".venv/bin/activate" or (ROOT / words[1]).is_file()
    elif words[0] == "pip":
        assert words == ["pip", "wheel", ".", "--no-deps"] or words[1] == "install"
        assert words[2] != "-r" or (ROOT / words[3]).is_file()
    elif words[0] in ("git", "cd"):
        assert words in commands_of_references()
    else:
        assert words[:2] in (["docker", "build"], ["docker", "load"])
        for flag in words[2:]:
            assert not flag.startswith("--") or flag in FOREIGN


def test_no_command_was_overlooked() -> None:
    words = {word for command in COMMANDS for word in command}
    programs = {word for word in words if word.endswith((".py", ".sh")) or word in PARSERS}
    assert {*PARSERS, "run_docker.sh", "env.sh", "test/run_tests.sh"} <= programs
    assert len([words for words in COMMANDS if "main.py" in words]) >= 15


def test_foreign_options_are_used() -> None:
    assert all(any(option in page for page in OURS.values()) for option in FOREIGN)


# ---- tables that repeat what the code says -----------------------------------------------------


def test_exit_codes() -> None:
    text = section("Exit codes", PAGES["docs/troubleshooting.md"])
    rows = {row[0]: row[1] for row in table(text, "Code")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {str(kind.exit_code) for kind in kinds if issubclass(kind, errors.UserError)}
    assert set(rows) == codes | {"0", "1", "143", "128 + n"}
    epilog = str(PARSERS["main.py"].epilog).removeprefix("Exit codes: ").split(".")[0]
    for entry in epilog.split(", "):
        code, meaning = entry.split(" ", 1)
        assert rows[code].startswith(meaning), entry


def test_networks() -> None:
    text = section("Supported features").split("Networks:")[1].split("(")[0]
    assert re.findall(r"`([^`]+)`", text) == model_names()


def test_devices() -> None:
    for heading, first in (("Training", "Models"), ("Inference", "Models")):
        rows = table(section(heading), first)
        types = [re.findall(r"`(\w+)`", row[2])[0] for row in rows]
        assert set(types) == set(DEVICE_TABLE), heading
        for device, row in zip(types, rows, strict=True):
            proofs = row[3:7] if heading == "Training" else row[3:6]
            for cell in proofs:
                assert re.match(r"(measured|fake|unverified|not offered)\b", cell), cell
            if heading == "Training":
                assert f"({DEVICE_TABLE[device].collective})" in row[6]
    for row in table(section("Preparing the environment"), "Device"):
        assert DEVICE_TABLE[row[0].strip("`")].visible_devices == row[2].strip("`")


def test_defaults_are_the_parsers() -> None:
    text = section("Optimizer: the defaults of `main.py`")
    named = [span for span in spans(text) if span.startswith("-")]
    assert len(named) >= 8
    plain = vars(main.parse_args(["DIR"])[0]) | {"model_config": None}
    for span in named:
        given = vars(main.parse_args(["DIR", *span.split()])[0]) | {"model_config": None}
        assert given == plain, span


def test_recipe_is_that_of_the_scripts() -> None:
    script = (ROOT / "run_scripts" / "_common.sh").read_text("utf-8")
    found = re.search(r"^NGC_RESNET50_V15_90E=\(\n(.*?)^\)", script, re.MULTILINE | re.DOTALL)
    assert found
    page = PAGES["docs/originals.md"]
    text = section("The recipe of the NGC run scripts", page).strip().split("\n\n")[0]
    named = " ".join(spans(text)).split()
    assert sorted(named) == sorted(found[1].split())


def test_metrics() -> None:
    names = re.compile(r"`((?:train|val|device|run)\.(?!txt`)[a-z]\w*)`")
    named = set(names.findall(PAGES["docs/outputs.md"]))
    assert named == {name for name in METRICS if not name.startswith("val_ema.")}


def test_checkpoint_keys_are_written() -> None:
    rows = [row[0] for row in table(PAGES["docs/outputs.md"], "Key")]
    keys = {key for row in rows for key in spans(row)}
    assert len(keys) >= 15
    assert keys <= set(source_texts()), sorted(keys - set(source_texts()))


def test_quoted_lines_are_those_of_the_code() -> None:
    first = "The line you see (`...` stands for your values)"
    rows = table(section("Lines and cures", PAGES["docs/troubleshooting.md"]), first)
    assert len(rows) >= 10
    for row in rows:
        for line in spans(row[0]):
            assert line == "data wait" or in_sources(line), line
    for line in ("Experiment ended", "finished", "workspace ", ", files in "):
        assert line in section("Quick start") and in_sources(line), line


def test_parts_that_others_look_for() -> None:
    assert "<https://www.image-net.org/>" in README
    assert len(re.findall(r"<!-- performance: (?:begin|end)", README)) == 2
