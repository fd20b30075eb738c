# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""scripts/setup_env.sh and its callers with stand-ins for Python, pip and uv: nothing is installed.

A stand-in Python is the real one with packages of our choice; what it is asked to install is noted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/bin/bash
# {name}
case "$1 $2" in
    "-m pip") [ -n "{pip}" ] || exit 1; echo "{name} -m ${{*:2}}" >>"{log}"; exit {fail} ;;
    "-m uv") exit 1 ;;
    "-m pytest" | "-m ruff" | "-m mypy") echo "$*" >>"{log}"; exit {fail} ;;
    "-m venv")
        echo "${{*:2}}" >>"{log}"
        target=${{*: -1}}
        mkdir -p "$target/bin"
        cp "{made}" "$target/bin/python"
        case "$*" in *--system-site*) shared=true ;; *) shared=false ;; esac
        echo "include-system-site-packages = $shared" >"$target/pyvenv.cfg"
        exit ;;
    "-c import ensurepip") exit {no_ensurepip} ;;
esac
case "$*" in
    *version_info*) [ -z "{version}" ] || {{ echo "{version}"; exit; }} ;;
    main.py* | */main.py*) echo "$0 $*"; exit ;;
esac
PYTHONPATH="{site}" exec "{real}" -S "$@"
"""
UV = """#!/bin/bash
echo "uv $*" >>"{log}"
if [ "$1" = venv ]; then mkdir -p "${{*: -1}}/bin"; cp "{made}" "${{*: -1}}/bin/python"; fi
[ "$1" != venv ] || touch "${{*: -1}}/pyvenv.cfg"
"""
ALL = ("numpy", "pillow", "pyyaml", "scikit-learn", "nvidia-ml-py")
DEV = (
    "matplotlib", "mypy", "onnx", "onnxruntime", "onnxscript", "pytest", "pytest-timeout",
    "pytest-xdist", "ruff", "safetensors", "setuptools", "timm", "torch-pruning",
)  # fmt: skip


class World:
    """A copy of the package's scripts and a PATH on which only stand-ins are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "the package"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        self.package.mkdir()
        for name in ("run_scripts", "scripts", "test/run_tests.sh"):
            source, target = ROOT / name, self.package / name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                target.parent.mkdir()
                shutil.copy(source, target)
        for path in ROOT.glob("requirements*.txt"):
            shutil.copy(path, self.package)
        for tool in ("bash", "cat", "cp", "dirname", "find", "grep", "mkdir", "mktemp", "rm", "sed",
                     "sha256sum", "touch"):  # fmt: skip
            (self.bin / tool).symlink_to(str(shutil.which(tool)))

    def add_python(
        self,
        name: str = "python3",
        packages: tuple[str, ...] = (),
        *,
        made: Path | None = None,
        version: str = "",
        ensurepip: bool = True,
        pip: bool = True,
        fail: int = 0,
    ) -> Path:
        """Adds a Python; `made` is the one that its virtual environments get."""
        site = self.folder / f"site of {name}"
        site.mkdir()
        for package in packages:
            info = site / f"{package.replace('-', '_')}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
            )
            if package == "torch":
                (site / "torch").mkdir()
                # Importing it would fail, as without the driver of the accelerator.
                (site / "torch/__init__.py").write_text("raise ImportError('no driver')\n")
        path = self.bin / name
        path.write_text(
            PYTHON.format(
                name=name, log=self.log, real=sys.executable, site=site, fail=fail, version=version,
                made=made or path, no_ensurepip=int(not ensurepip), pip="x" if pip else "",
            )
        )  # fmt: skip
        path.chmod(0o755)
        return path

    def add_uv(self, made: Path) -> None:
        path = self.bin / "uv"
        path.write_text(UV.format(log=self.log, made=made))
        path.chmod(0o755)

    def run(
        self, *arguments: str, script: str = "scripts/setup_env.sh", **env: str
    ) -> subprocess.CompletedProcess[str]:
        keep = {key: os.environ[key] for key in ("HOME", "TMPDIR", "LANG") if key in os.environ}
        return subprocess.run(
            ["bash", str(self.package / script), *arguments],
            cwd=self.folder, env={**keep, "PATH": str(self.bin), **env},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def calls(self) -> list[str]:
        """What was to be installed since the last call of this method."""
        text = self.log.read_text() if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        asked = ("--version", "pip config")
        return [line for line in text.splitlines() if not any(words in line for words in asked)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_fresh_environment_with_pip(world: World) -> None:
    world.add_python(made=world.add_python("made"))
    python = world.package / ".venv/bin/python"
    result = world.run("--sample")
    assert (result.returncode, result.stdout) == (0, f"{python}\n")
    venv, *_, torch, others = world.calls()
    assert venv == "venv .venv"
    assert torch.startswith("made -m pip install") and torch.endswith("-r requirements-torch.txt")
    assert others.endswith("-r requirements.txt -r requirements-sample.txt")
    assert "5 GB" in result.stderr
    again = world.run("--sample")
    assert (again.stdout, again.stderr, world.calls()) == (f"{python}\n", "", [])


def test_changed_requirements_are_installed(world: World) -> None:
    world.add_python(made=world.add_python("made", ("torch",)))
    assert world.run().returncode == 0
    world.calls()
    with (world.package / "requirements.txt").open("a") as file:
        file.write("something\n")
    assert world.run().returncode == 0
    installs = [call for call in world.calls() if "install" in call]
    assert len(installs) == 1 and installs[0].endswith("-r requirements.txt")


def test_uv_is_preferred(world: World) -> None:
    made = world.add_python("made")
    world.add_python()
    world.add_uv(made)
    env = {"TORCH_INDEX_URL": "https://torch.example/cpu"}
    assert world.run("--dev", **env).returncode == 0
    venv, torch, others = world.calls()
    python = world.package / ".venv/bin/python"
    assert venv.startswith("uv venv") and venv.endswith("--python python3 .venv")
    assert torch == (
        f"uv pip install -q --python {python} -r requirements-torch.txt "
        "--index-url https://torch.example/cpu"
    )
    assert others.endswith("-r requirements.txt -r requirements-dev.txt")


def test_the_tests_bring_uv(world: World) -> None:
    world.add_python()
    assert world.run("--dev").returncode == 0
    _, uv, torch, others = world.calls()
    assert uv.endswith("-m pip install -q --disable-pip-version-check uv")
    assert torch.endswith("-r requirements-torch.txt")
    assert others.endswith("-r requirements.txt -r requirements-dev.txt")


def test_packages_of_a_vendor_instead_of_torch(world: World) -> None:
    world.add_python()
    env = {"TORCH_PACKAGES": "torch==2.9.0 torch_npu==2.9.0"}
    for more, end in (({}, ""), ({"TORCH_INDEX_URL": "https://torch.example/cpu"},
                                 " --extra-index-url https://torch.example/cpu")):  # fmt: skip
        assert world.run("--in-place", **env, **more).returncode == 0
        torch, others = world.calls()
        assert torch.endswith(f" torch==2.9.0 torch_npu==2.9.0{end}")
        assert others.endswith(" -r requirements.txt")


def test_torch_version_in_its_own_environment(world: World) -> None:
    made = world.add_python("made")
    world.add_python(packages=("torch", *ALL), version="313")
    world.add_python("python3.12", made=made)
    world.add_uv(made)
    result = world.run("--torch", "2.4")
    assert result.stdout == f"{world.package / '.venv-torch2.4/bin/python'}\n"
    venv, torch, _ = world.calls()
    assert venv.endswith("--python python3.12 .venv-torch2.4")
    assert torch.endswith(" torch==2.4.* torchvision")
    assert not (world.package / ".venv").exists()


def test_complete_vendor_python_is_used_as_it_is(world: World) -> None:
    world.add_python(packages=("torch", *ALL))
    result = world.run("--sample")
    assert (result.returncode, result.stdout) == (0, "python3\n")
    assert world.calls() == []
    assert not (world.package / ".venv").exists()


@pytest.mark.parametrize("ensurepip", [True, False])
def test_vendor_torch_is_never_replaced(world: World, ensurepip: bool) -> None:
    packages = ("torch", "numpy", "nvidia-ml-py")
    world.add_uv(world.bin / "none")
    world.add_python(packages=packages, ensurepip=ensurepip)
    result = world.run("--sample")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{world.package / '.venv/bin/python'}\n"
    venv, install = world.calls()
    assert venv == "venv --system-site-packages --without-pip .venv"
    assert install.endswith(" pillow>=9.4 pyyaml>=6 scikit-learn>=1.2") and " -c " in install
    assert "torch" not in install and "numpy" not in install
    assert world.run("--sample").stderr == ""
    assert world.calls() == []
    assert world.run("--sample", "--dev").returncode == 0
    (install,) = world.calls()
    assert "pytest" in install and not re.search(r" torch(vision)?([ =<>]|$)", install)
    assert "timm" not in install  # it would bring torchvision


def test_constraints_hold_what_is_installed(world: World) -> None:
    pip = '"-m pip") '
    python = world.add_python(packages=("torch", "numpy", "nvidia-ml-py"))
    copy = pip + 'for word in "$@"; do [ ! -f "$word" ] || cat "$word"; done >>"{log}"; '
    python.write_text(python.read_text().replace(pip, copy.format(log=world.log)))
    assert world.run("--in-place").returncode == 0
    assert {"torch==1.0", "numpy==1.0"} <= set(world.calls())


def test_in_place(world: World) -> None:
    world.add_python(packages=("torch", "numpy", "pillow", "pyyaml", "nvidia-ml-py"))
    result = world.run("--sample", "--in-place")
    assert (result.returncode, result.stdout) == (0, "python3\n")
    (install,) = world.calls()
    assert install.startswith("python3 -m pip install") and install.endswith(" scikit-learn>=1.2")
    assert not (world.package / ".venv").exists()


def test_broken_environment_is_made_anew(world: World) -> None:
    world.add_python(made=world.add_python("made"))
    broken = world.package / ".venv"
    (broken / "bin").mkdir(parents=True)
    (broken / "bin/python").symlink_to("/nowhere/python")
    (broken / "rest").touch()
    result = world.run()
    assert result.returncode == 0 and "broken" in result.stderr
    assert not (broken / "rest").exists()
    assert world.calls()[0] == "venv .venv"


def test_python_without_ensurepip(world: World) -> None:
    world.add_python(ensurepip=False)
    result = world.run()
    assert result.returncode == 2
    assert "apt-get install python3-venv" in result.stderr
    assert not (world.package / ".venv").exists()


def test_old_python(world: World) -> None:
    world.add_python(version="309")
    result = world.run()
    assert result.returncode == 2
    assert "Python 3.10 or newer is needed (python3 is 3.9)" in result.stderr
    world.add_python("python3.11")
    assert world.run("--in-place").stdout == "python3.11\n"


def test_old_python_with_torch_is_not_passed_over(world: World) -> None:
    world.add_python(packages=("torch",), version="308")
    world.add_python("python3.11")
    result = world.run()
    assert result.returncode == 2
    assert "python3 is 3.8 and has PyTorch" in result.stderr
    assert world.calls() == []


def test_no_python(world: World) -> None:
    result = world.run()
    assert result.returncode == 2
    assert "there is none on the PATH" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--torch"], "--torch : expected"),
        (["--torch", "new"], "--torch new: expected"),
        (["--torch", "2.4", "--in-place"], "exclude each other"),
        (["--fast"], "unknown option --fast"),
    ],
)
def test_bad_options(world: World, arguments: list[str], words: str) -> None:
    world.add_python()
    result = world.run(*arguments)
    assert result.returncode == 2 and words in result.stderr
    assert world.calls() == []


def test_failed_installation_is_tried_again(world: World) -> None:
    failing = world.add_python("failing", fail=1)
    world.add_python(made=failing)
    result = world.run()
    assert result.returncode == 2 and "PyTorch could not be installed" in result.stderr
    world.calls()
    failing_again = world.run()
    assert failing_again.returncode == 2 and world.calls() != []


def test_quickstart(world: World) -> None:
    world.add_python(packages=("torch", *ALL))
    result = world.run("--epochs", "1", script="run_scripts/quickstart.sh")
    assert result.returncode == 0, result.stderr
    words = result.stdout.split(f"{world.package}/main.py ")[1]
    assert words == "sample:digits --device auto --run-name quickstart --epochs 1\n"


def test_run_tests(world: World) -> None:
    world.add_python(packages=("torch", *ALL, *DEV))
    assert world.run("-k", "a b", script="test/run_tests.sh").returncode == 0
    assert world.calls() == ["-m ruff check .", "-m mypy", "-m pytest -n 3 --dist loadfile -k a b"]
    (world.bin / "made").unlink(missing_ok=True)
    made = world.add_python("made", ("torch",))
    world.add_uv(made)
    result = world.run("--torch", "2.4", "-x", script="test/run_tests.sh")
    assert result.returncode == 0, result.stderr
    assert world.calls()[-1] == "-m pytest -n 3 --dist loadfile -m not fake_accelerator -x"


def test_run_tests_fails_when_a_check_fails(world: World) -> None:
    world.add_python(packages=("torch", *ALL, *DEV), fail=1)
    assert world.run(script="test/run_tests.sh").returncode == 1
    assert len(world.calls()) == 3
