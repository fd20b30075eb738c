# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The structure of the code: who imports whom, where device and environment are asked."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A module imports modules of lower levels only, and of its own level within one group below.
LEVELS: dict[int, set[str]] = {
    0: {"errors", "augmentation", "metrics", "metric_names", "mixup", "optimizers", "ema",
        "device", "device_table", "device_telemetry", "atomic_file", "progress", "affinity",
        "data_index", "list_files", "samples", "datasets", "batch_schedule", "image_reading",
        "device_feed", "cpu_features", "safe_load", "sample_reader", "bad_images", "option_parser",
        "option_types", "option_rules", "recipes", "freezing", "losses", "rmsprop_tf",
        "lars",
        "index_cache", "index_arrays", "user_cache", "packing", "batch_ring",
        "interruption", "heartbeat", "launcher", "run_files",
        "save_interval", "cifar", "pixel_index", "plain_pickle", "download", "small_images",
        "confusion", "environment", "divergence", "control_group", "host_memory", "model_card",
        "seed_record", "weight_formats", "published_weights", "val_split",
        "compiling", "folding", "recomputing", "sharding", "step_plan", "presets", "policies",
        "image_operations", "batch_augmentation", "models"},
    1: {"distributed", "agreement", "running_sums", "logger", "dlll_log", "log_sinks"},
    2: {"checkpoint", "checkpoint_files", "saver", "pretrained", "weight_files", "loader_worker",
        "pytorch_loader", "synthetic_loader", "fast_loader", "dali_loader",
        "resident_loader", "dataloaders", "workspace", "data_processing", "trained_network",
        "export_formats", "network_options", "rehearsal", "batch_size", "runtimes", "onnx_network"},
    3: {"training", "validation", "epochs", "preflight", "inference", "failures", "dataset_tools",
        "data_sources", "report", "doctor", "exporter", "evaluation", "quantization", "pruning"},
    4: {"main", "classify", "checkpoint2model", "export", "quantize", "prune", "launch",
        "multiproc", "setup"},
}  # fmt: skip
LEVEL = {name: level for level, names in LEVELS.items() for name in names}

PACKAGE = sorted((ROOT / "image_classification").glob("*.py"))
FOLDERS = ("fast_loader", "report", "doctor", "data_processing")  # each counts as one module
for folder in FOLDERS:
    PACKAGE += sorted((ROOT / "image_classification" / folder).glob("*.py"))
# Started with python -m.
COMMANDS = [
    ROOT / "image_classification" / name
    for name in ("dataset_tools.py", "report/__main__.py", "fast_loader/build.py")
]
ENTRIES = sorted(ROOT.glob("*.py"))
MODULES = [*PACKAGE, *sorted((ROOT / "models").glob("*.py")), *ENTRIES]

# Where a vendor's library or the process environment may be asked.
DEVICE_MODULES = {"device", "device_table", "device_telemetry"}
# fast_loader: its build step asks for the compiler and the cache folder, as any build does.
ENVIRONMENT_MODULES = {
    "main", "multiproc", "launcher", "distributed", "device", "device_table", "fast_loader",
    "user_cache",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.parent.name if path.parent.name in ("models", *FOLDERS) else path.stem


def internal_imports(tree: ast.AST) -> set[str]:
    """Names of the modules of this project that a tree imports, type-only imports left out."""
    type_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in type_only:
            continue
        if isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            if node.level:  # from .module import name, from . import module
                found.update(parts[:1] if node.module else (alias.name for alias in node.names))
            elif node.module == "image_classification":
                found.update(alias.name for alias in node.names)
            elif parts[0] == "image_classification":
                found.add(parts[1])
            elif parts[0] in LEVEL:
                found.add(parts[0])
        elif isinstance(node, ast.Import):
            found.update(a.name.split(".")[0] for a in node.names if a.name.split(".")[0] in LEVEL)
    return found


def trees() -> list[tuple[str, Path, ast.Module]]:
    return [(name_of(path), path, ast.parse(path.read_text("utf-8"))) for path in MODULES]


def test_every_module_has_a_level() -> None:
    names = {name_of(path) for path in MODULES} - {"__init__"}
    assert names == set(LEVEL)


def test_imports_go_downwards() -> None:
    for name, path, tree in trees():
        if path.name == "__init__.py" and name != "models":
            assert not internal_imports(tree), "importing the package must import nothing"
            continue
        for imported in internal_imports(tree) - {name}:
            same_group = LEVEL[imported] == LEVEL[name] and LEVEL[name] < 3
            assert LEVEL[imported] < LEVEL[name] or same_group, f"{name} imports {imported}"


def test_there_are_no_import_cycles() -> None:
    graph = {name: internal_imports(tree) - {name} for name, _, tree in trees()}
    done: set[str] = set()
    while ready := {name for name in graph if name not in done and graph[name] <= done}:
        done |= ready
    assert done == set(graph), f"cycle among {sorted(set(graph) - done)}"


def test_only_main_knows_the_options() -> None:
    for path in PACKAGE:
        tree = ast.parse(path.read_text("utf-8"))
        parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert "args" not in parameters, path


def attribute_chain(node: ast.AST) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    ("chains", "allowed"),
    [
        (("torch.cuda", "torch.npu", "torch.mlu", "torch.xpu"), DEVICE_MODULES),
        (("os.environ", "os.getenv"), ENVIRONMENT_MODULES),
    ],
)
def test_vendors_and_environment_are_asked_in_one_place(
    chains: tuple[str, ...], allowed: set[str]
) -> None:
    for name, _, tree in trees():
        used = {attribute_chain(node) for node in ast.walk(tree)} & set(chains)
        assert not used or name in allowed, f"{name} uses {used}"


def test_no_star_imports_prints_or_grab_bags() -> None:
    for name, path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), path
            if isinstance(node, ast.Call) and attribute_chain(node.func) == "print":
                assert path in [*ENTRIES, *COMMANDS], f"print in {path}"
        assert name not in ("utils", "helpers", "misc", "common")


def test_sizes() -> None:
    for name, path, tree in trees():
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= (900 if name == "main" else 450), f"{path.name} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "pars" not in node.name:
                length = (node.end_lineno or 0) - node.lineno + 1
                limit = 40 if node.name == "train" else 25 if node.name == "train_step" else 60
                assert length <= limit, f"{path.name}: {node.name} has {length} lines"


def test_the_run_in_main_is_wiring() -> None:
    lines = (ROOT / "main.py").read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("# The run, in execution"))
    assert len(lines) - start <= 350


def test_every_public_function_is_documented() -> None:
    missing = []
    for _, path, tree in trees():
        scopes: list[ast.Module | ast.ClassDef] = [tree]
        scopes += [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"]
        for scope in scopes:
            for node in scope.body:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name[0] == "_":
                    continue
                overrides = isinstance(scope, ast.ClassDef) and scope.bases
                if not ast.get_docstring(node) and not overrides:
                    missing.append(f"{path.name}:{node.lineno} {node.name}")
    assert missing == []


def test_requirements_never_name_torch() -> None:
    for name in ("requirements.txt", "requirements-sample.txt", "pyproject.toml"):
        for line in (ROOT / name).read_text().splitlines():
            assert not line.strip(' "').startswith(("torch>", "torch=", "torchvision")), name


@pytest.mark.parametrize(
    "module",
    ["main", "multiproc", "classify", "checkpoint2model", "export", "quantize", "prune", "models"],
)
def test_entries_import_without_torch(module: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
