# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor: starts all probes side by side, then tells topic by topic what was found."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from image_classification.device_table import DEVICE_TABLE, plugin_entry_points
from image_classification.doctor import devices, machine, software
from image_classification.doctor.finding import Finding, note, ok, one_line
from image_classification.doctor.jobs import Answers, Job, Jobs
from image_classification.errors import UsageError, print_line
from image_classification.fast_loader.build import BuildError, find_compiler
from image_classification.user_cache import cache_folder

EXIT_CODE = UsageError.exit_code
# Seconds: a first import may come from a slow network disk, a driver may start its devices.
_TORCH_S, _TOOL_S, _LIGHT_S = 180, 30, 20
_GLOO = "cpu:2"  # two processes on the CPU
# An operator that silently runs on the CPU instead of the device counts as a failure.
_NO_FALLBACK = {"TORCH_NPU_FALLBACK_CPU_DISABLE": "1", "ENABLE_FALLBACK_TO_CPU": "0"}


def examine(root: Path, environ: Mapping[str, str]) -> int:
    """Examine machine and software and tell the findings, a line each.

    Args:
        root: The folder of main.py.
        environ: The environment.

    Returns:
        The exit code: 0, or 2 where something needs to be fixed.
    """
    counts = {"ok": 0, "note": 0, "FIX": 0}
    with Jobs(root, environ) as jobs:
        for finding in Examination(jobs, root, environ).findings():
            counts[finding.status] += 1
            print_line(str(finding))
    print_line(f"{counts['FIX']} to fix, {counts['note']} notes, {counts['ok']} ok")
    return EXIT_CODE if counts["FIX"] else 0


class Examination:
    """One examination: its probes run from the start on.

    Args:
        jobs: Starts and ends processes.
        root: The folder of main.py.
        environ: The environment.
    """

    def __init__(self, jobs: Jobs, root: Path, environ: Mapping[str, str]) -> None:
        self._jobs, self._root, self._environ = jobs, root, environ
        self._files = devices.device_files()
        self._entry_points = [entry.value for entry in plugin_entry_points()]
        self._plug_ins = {
            spec.plugin: software.installed(spec.plugin) or "of unknown version"
            for spec in DEVICE_TABLE.values()
            if spec.plugin and importlib.util.find_spec(spec.plugin)
        }
        self._folders = {
            "models": str(root / "models"), "data": str(root / "data"),
            "cache": str(cache_folder() or ""),
        }  # fmt: skip
        self._start()

    def _start(self) -> None:
        jobs = self._jobs
        # The CPU's processes are forked, which a plug-in that import torch loads may not survive.
        self._torch = self._probe_torch(() if self._entry_points else (_GLOO,))
        self._images = jobs.probe("images", timeout_s=_TORCH_S)
        paths = [path for path in self._folders.values() if path]
        self._disk = jobs.probe("folders", *paths, timeout_s=_LIGHT_S)
        self._host_name = socket.gethostname()
        self._host = jobs.probe("host", self._host_name, timeout_s=_LIGHT_S)
        self._tools = {
            tool: jobs.command(path, *arguments, timeout_s=_TOOL_S)
            for tool, (_, arguments) in devices.TOOLS.items()
            if (path := shutil.which(tool, path=self._environ.get("PATH")))
        }
        self._compiler, self._compiler_problem = "", ""
        try:
            self._compiler = find_compiler()
            self._compiler_job = jobs.command(self._compiler, "--version", timeout_s=_LIGHT_S)
        except BuildError as error:
            self._compiler_problem = str(error)

    def _probe_torch(self, groups: tuple[str, ...], **variables: str) -> Job:
        own = [name for name in devices.ACCELERATORS if DEVICE_TABLE[name].plugin is None]
        added = [name for name, spec in DEVICE_TABLE.items() if spec.plugin in self._plug_ins]
        return self._jobs.probe(
            "torch", *groups, *own, *added, timeout_s=_TORCH_S, **_NO_FALLBACK, **variables
        )

    def findings(self) -> Iterator[Finding]:
        """All findings, the quick ones first; a topic that fails is one of them."""
        topics: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
            ("system", software.system_findings),
            ("machine", lambda: machine.findings(self._environ, self._accelerators)),
            ("packages", self._packages),
            ("folders", self._space),
            ("images", self._image_reading),
            ("drivers", self._drivers),
            ("devices", self._devices),
        )
        for name, topic in topics:
            try:
                yield from topic()
            except Exception as error:  # a doctor that fails helps nobody
                text = f"cannot be examined: {type(error).__name__}: {one_line(str(error))}"
                yield note(name, text, "report it, it is a mistake of this program")

    @property
    def _accelerators(self) -> int:
        return max((len(files) for files in self._files.values()), default=0)

    def _packages(self) -> Iterator[Finding]:
        answers = self._images.answers()
        for package in ("numpy", "pillow"):
            wanted = software.oldest(self._root, package)
            yield software.required_finding(package, answers[package], wanted)
        yield from software.optional_findings()

    def _space(self) -> Iterator[Finding]:
        answers, elsewhere = self._disk.answers(), "choose another folder: --workspace DIR"
        for what, needed, cure in (
            ("models", True, elsewhere),
            ("data", False, "only samples and CIFAR are stored there; give DIR"),
            ("cache", False, "export XDG_CACHE_HOME=<a folder>"),
        ):
            if path := self._folders[what]:
                answer = answers[path]
                yield machine.folder_finding(f"folder {what}", path, answer, needed, cure)
        yield machine.host_finding(self._host_name, self._host.answers()["host"], self._environ)

    def _image_reading(self) -> Iterator[Finding]:
        answers = self._images.answers()
        fast = software.loader_works(answers)
        version = self._compiler_job.outcome() if self._compiler else None
        yield software.compiler_finding(self._compiler, self._compiler_problem, version, fast)
        yield from software.loader_findings(answers)
        space, ranks = machine.shared_memory(), max(1, self._accelerators)
        yield machine.shared_memory_finding(space, ranks, fast)

    def _drivers(self) -> Iterator[Finding]:
        asked = set()
        for tool, job in self._tools.items():
            asked.add(devices.TOOLS[tool][0])
            yield from devices.tool_findings(tool, job.outcome())
        if self._files["cuda"] and "cuda" not in asked:
            answer = self._jobs.probe("nvml", timeout_s=_TOOL_S).answers()["nvml"]
            if "driver" in answer:
                asked.add("cuda")
                yield ok("cuda driver", f"{answer['driver']} (nvidia-ml-py)")
        yield from devices.missing_tool_findings(self._files, asked)

    def _devices(self) -> Iterator[Finding]:
        autoload = self._environ.get(devices.AUTOLOAD)
        answers, broken = self._torch.answers(), None
        if "error" in answers["torch"] and self._entry_points and autoload in (None, "1"):
            again = self._probe_torch((_GLOO,), **{devices.AUTOLOAD: "0"}).answers()
            if "error" not in again["torch"]:
                broken, answers = answers["torch"]["error"], again
        yield from devices.plug_in_findings(self._plug_ins, self._entry_points, autoload, broken)
        torch = answers["torch"]
        yield software.torch_finding(torch, software.oldest(self._root, "torch"))
        if "error" in torch:
            yield note("devices, collectives", "not examined without PyTorch", "repair it first")
            return
        version = software.installed("torchvision")
        yield software.torchvision_finding(answers["torchvision"], version)
        by_type = {name: self._answer(name, answers) for name in DEVICE_TABLE}
        yield from devices.rival_findings(self._plug_ins, by_type["cuda"], torch["version"])
        for name, answer in by_type.items():
            files = self._files.get(name, [])
            there = bool(files) or DEVICE_TABLE[name].plugin in self._plug_ins
            expected = there and not devices.are_hidden(name, self._environ)
            yield from devices.device_findings(name, answer, files, expected)
        yield devices.auto_finding({"error": broken} if broken else answers["auto"])
        yield from self._collectives(by_type, answers)

    def _answer(self, device_type: str, answers: Answers) -> dict[str, Any]:
        plug_in = DEVICE_TABLE[device_type].plugin
        if plug_in is not None and plug_in not in self._plug_ins:
            return {"error": f"{plug_in} is not installed"}
        return answers[device_type]

    def _collectives(
        self, by_type: Mapping[str, Mapping[str, Any]], answers: Answers
    ) -> Iterator[Finding]:
        """Each device type's own library; what was not tried with PyTorch is tried now."""
        counts = {name: min(2, len(by_type[name].get("devices", ()))) for name in by_type}
        groups = [f"{name}:{count}" for name, count in counts.items() if count and name != "cpu"]
        asked = [*groups, *([] if _GLOO in answers else [_GLOO])]
        job = self._jobs.probe("sums", *asked, timeout_s=_TORCH_S) if asked else self._torch
        for group in (_GLOO, *groups):
            answer = (answers if group in answers else job.answers())[group]
            yield devices.collective_finding(group, answer)
