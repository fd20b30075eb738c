# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Findings about software: Python, packages, PyTorch, compiler and fast loader."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from image_classification.doctor.finding import Finding, fix, note, ok, one_line, split_cure
from image_classification.doctor.jobs import Answers, Outcome

OLDEST_PYTHON = (3, 10)
_BUILD = f"{sys.executable} -m image_classification.fast_loader.build"
# Distributions, the first that is installed counts; what they are for; how they are installed.
_OPTIONAL = (
    (("nvidia-ml-py",), "utilisation, power and clock of NVIDIA GPUs in the log", "nvidia-ml-py"),
    (("matplotlib",), "curves: python -m image_classification.report", "matplotlib"),
    (("tensorboard",), "--tensorboard", "tensorboard"),
    (("scikit-learn",), "the built-in data set sample:digits", "scikit-learn"),
    (("safetensors",), "--pretrained-weights FILE.safetensors", "safetensors"),
    (("onnxscript",), "export.py's ONNX files", "onnx onnxscript"),
    (("onnxruntime",), "--runtime onnxruntime and quantize.py", "onnx onnxscript onnxruntime"),
    (("openvino",), "--runtime openvino", "onnx onnxscript openvino"),
    (("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-dali-cuda110"),
     "--data-backend dali-cpu and dali-gpu", "nvidia-dali-cuda130"),
    (("dllogger",), "NVIDIA's own writer of DLLL lines, which this package writes itself",
     "git+https://github.com/NVIDIA/dllogger"),
)  # fmt: skip


# ---- Python, system, packages --------------------------------------------------------------


def system_findings(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Python and what it runs on."""
    value = f"{'.'.join(map(str, version))} ({sys.executable})"
    if version < OLDEST_PYTHON:
        yield fix("Python", value, f"install {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    else:
        yield ok("Python", value)
    kernel = os.uname()
    libc = " ".join(platform.libc_ver()).strip() or "another C library than glibc"
    yield ok("system", f"{_distribution()}, kernel {kernel.release}, {kernel.machine}, {libc}")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def installed(distribution: str) -> str | None:
    """The version of a distribution, None where it is not installed; nothing is imported."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def optional_findings() -> Iterator[Finding]:
    """Packages that some options need."""
    for names, purpose, source in _OPTIONAL:
        found = [(name, version) for name in names if (version := installed(name)) is not None]
        if found:
            yield ok(found[0][0], found[0][1])
        else:
            yield note(names[0], f"not installed; for {purpose}", _pip(source))


def _pip(*words: str) -> str:
    return f"{sys.executable} -m pip install {' '.join(words)}"


def oldest(root: Path, package: str) -> str:
    """The oldest version of a package that the requirements allow, "0" without a word on it."""
    for path in sorted(root.glob("requirements*.txt")):
        found = re.search(rf"^{re.escape(package)}>=([\d.]+)", path.read_text("utf-8"), re.M)
        if found:
            return found[1]
    return "0"


def is_older(version: str, wanted: str) -> bool:
    """Compare versions by their first two numbers."""
    first, second = (
        tuple(int(number) for number in re.findall(r"\d+", text)[:2]) for text in (version, wanted)
    )
    return first < second


def required_finding(package: str, answer: dict[str, Any], wanted: str) -> Finding:
    """A package without which nothing runs: imported by the probe."""
    cure = _pip("--upgrade", f"'{package}>={wanted}'")
    if "error" in answer:
        return fix(package, f"cannot be imported: {answer['error']}", cure)
    version = answer["version"]
    if is_older(version, wanted):
        return fix(package, f"{version} is too old, at least {wanted} is needed", cure)
    return ok(package, version)


# ---- PyTorch -------------------------------------------------------------------------------


def torch_finding(answer: dict[str, Any], wanted: str) -> Finding:
    """PyTorch itself, which was imported without the plug-ins if it failed with them."""
    if "error" in answer:
        return fix("torch", *split_cure(answer["error"], _pip("-r", "requirements-torch.txt")))
    built = {"cuda": "CUDA", "hip": "ROCm", "xpu": "XPU"}
    kinds = [f"{built[name]} {version}" for name, version in answer["built"].items() if version]
    value = f"{answer['version']}, built for {' and '.join(kinds) or 'the CPU'}"
    if is_older(answer["version"], wanted):
        cure = f"{_pip('--upgrade', repr(f'torch>={wanted}'))}; in a vendor's image: a newer image"
        return fix("torch", f"{value}; at least {wanted} is needed", cure)
    return ok("torch", f"{value}, imported in {answer['seconds']:.1f} s")


def torchvision_finding(answer: dict[str, Any], version: str | None) -> Finding:
    """torchvision, which is compiled for one version of torch."""
    if version is None:
        return note(
            "torchvision", "not installed; for the policies of --augmentation",
            f"{_pip('torchvision')} --no-deps (the version that belongs to your torch)",
        )  # fmt: skip
    if "error" in answer:
        return fix(
            "torchvision", f"{version} does not work with this torch: {answer['error']}",
            "install the version that belongs to it (https://github.com/pytorch/vision#installation"
            f"), or: {sys.executable} -m pip uninstall torchvision",
        )  # fmt: skip
    return ok("torchvision", f"{answer['version']}, imported with this torch")


# ---- compiler and fast loader --------------------------------------------------------------


def compiler_finding(path: str, problem: str, version: Outcome | None, built: bool) -> Finding:
    """The C++ compiler, which only the fast loader's build needs.

    Args:
        path: Where it is, "" where there is none.
        problem: Why there is none, and the cure.
        version: What it says of itself.
        built: The fast loader is there already.
    """
    if not path:
        reason, cure = split_cure(problem, "install one")
        more = "; not needed now, the fast loader is built" if built else ""
        return note("C++ compiler", reason + more, cure)
    if version is None or version.trouble:
        trouble = version.trouble if version else "was not asked"
        return note("C++ compiler", f"{path} {trouble}", "repair it, or set CXX to another one")
    return ok("C++ compiler", f"{path}: {one_line(version.output.strip().partition(chr(10))[0])}")


def loader_findings(answers: Answers) -> Iterator[Finding]:
    """The fast loader's compiled core, and whether its pixels are Pillow's."""
    what, library = "fast loader", answers["library"]
    missing = [name for name in ("numpy", "pillow") if "error" in answers[name]]
    if missing:
        yield note(what, "not examined", f"repair {missing[0]} first")
        return
    if "error" in library:
        yield fix(what, library["error"], f"remove the library and build it anew: {_BUILD}")
        return
    if not library["path"]:
        old = f" (but of others: {', '.join(library['others'])})" if library["others"] else ""
        yield note(
            what, f"not built of these sources, {library['name']}{old}: the pytorch loader reads "
            "the images, several times slower", _BUILD,
        )  # fmt: skip
        return
    if not library["kernels"]:
        yield fix(what, f"{library['path']} is built, but cannot be used", _rebuild(library))
        return
    used, *others = library["kernels"]
    more = f" (also: {', '.join(others)})" if others else ""
    yield ok(what, f"{library['name']}, runs with {used}{more}")
    answer = answers["decode"]
    if "error" in answer or answer["status"] != "OK" or answer["difference"] > 1:
        value = answer.get("error") or f"{answer['status']}, {answer['difference']:.1f} of 255 off"
        yield fix("JPEG decoder", f"not as Pillow: {value}", _rebuild(library))
    else:
        yield ok("JPEG decoder", f"{answer['difference']:.2f} of 255 from Pillow on average")


def _rebuild(library: dict[str, Any]) -> str:
    return f"rm {library['path']} && {_BUILD}; until then --data-backend pytorch"


def loader_works(answers: Answers) -> bool:
    """Whether the fast loader can be used."""
    return bool(answers["library"].get("kernels")) and answers["decode"].get("status") == "OK"
