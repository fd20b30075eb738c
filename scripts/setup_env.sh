#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Makes the Python environment of the package and prints the path of its Python.
#
# bash scripts/setup_env.sh [--sample] [--dev] [--torch VERSION | --in-place]
#   --sample         also what the built-in data set needs
#   --dev            also what the tests need
#   --torch VERSION  an environment of its own, .venv-torchVERSION, with that PyTorch
#   --in-place       no virtual environment: into the Python itself (for images)
#
# Where the active Python has PyTorch (images for NPU, MLU and NGC), that one is used: nothing that
# is installed there is replaced, and .venv holds only what is missing. From the environment:
# PYTHON (the Python to start from), TORCH_INDEX_URL (where PyTorch alone comes from),
# TORCH_PACKAGES (what is installed instead of PyTorch's newest version where there is none, such as
# "torch==2.9.0 torch_npu==2.9.0"; TORCH_INDEX_URL is then looked into as well).

set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
CALLED_FROM=$PWD
cd -- "$ROOT" # a package name is never looked up in the caller's folder
if command -v flock >/dev/null; then # two starts at once: the second one waits
    exec 9<.
    flock 9 || true
fi

say() { echo "setup: $*" >&2; }
fail() {
    say "$@"
    exit 2
}

files=(requirements.txt)
torch="" venv=.venv in_place=""
while [ $# -gt 0 ]; do
    case $1 in
        --sample) files+=(requirements-sample.txt) ;;
        --dev) files+=(requirements-dev.txt) ;;
        --torch)
            torch=${2:-}
            [[ $torch =~ ^[0-9]+\.[0-9]+(\.[0-9]+)?$ ]] || fail "--torch $torch: expected e.g. 2.4"
            venv=.venv-torch$torch
            shift
            ;;
        --in-place) in_place=yes ;;
        -h | --help)
            sed -n '4,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) fail "unknown option $1; see the head of scripts/setup_env.sh" ;;
    esac
    shift
done
[ -z "$torch" ] || [ -z "$in_place" ] || fail "--torch and --in-place exclude each other"

# version_of PYTHON: prints e.g. 311; nothing when it cannot be run.
version_of() {
    "$1" -c 'import sys; print("%d%02d" % sys.version_info[:2])' 2>/dev/null || true
}

# find_python: prints the first Python >= 3.10. With --torch one up to 3.12 is preferred: older
# PyTorch has no packages for newer ones.
find_python() {
    local candidate version old fallback="" seen=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.12 python3.11 python3.10 \
        python3.13 python3.14; do
        case $candidate in
            /*) ;;
            */*) candidate=$CALLED_FROM/$candidate ;;
        esac
        version=$(version_of "$candidate")
        [ -n "$version" ] || continue
        if [ "$version" -lt 310 ]; then
            old="$candidate is ${version:0:1}.$((10#${version:1}))"
            ! has_torch "$candidate" || fail "$old and has PyTorch, but Python 3.10 or newer is" \
                "needed: take a newer image, or name another Python: PYTHON=/path/to/python3.11"
            seen+=${seen:+, }$old
        elif [ -n "$torch" ] && [ "$version" -gt 312 ]; then
            fallback=${fallback:-$candidate}
        else
            echo "$candidate"
            return
        fi
    done
    if [ -n "$fallback" ]; then
        echo "$fallback"
        return
    fi
    fail "Python 3.10 or newer is needed (${seen:-there is none on the PATH}): install one and" \
        "name it: PYTHON=/path/to/python3.11"
}

# has_torch PYTHON: whether PyTorch is installed there. It is not imported: that takes seconds and
# fails in an image that is built without its accelerator.
has_torch() {
    "$1" - <<'END'
import importlib.util
import sys

spec = importlib.util.find_spec("torch")
sys.exit(spec is None or spec.origin is None)
END
}

# missing PYTHON FILE...: prints the requirements whose package is not installed, in any version.
missing() {
    "$@" <<'END'
import os
import re
import sys
from importlib import metadata


def requirements(path):
    with open(path) as lines:
        for line in map(str.strip, lines):
            if line.startswith("-r "):
                yield from requirements(line[3:].strip())
            elif line and not line.startswith("#"):
                yield line


def installed(name):
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


for requirement in dict.fromkeys(line for path in sys.argv[1:] for line in requirements(path)):
    name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
    if name == "nvidia-ml-py" and not os.path.exists("/dev/nvidiactl"):
        continue
    # It would bring a torchvision, which has to fit the vendor's PyTorch.
    if name == "timm" and installed("torch") and not installed("torchvision"):
        continue
    if not installed(name):
        print(requirement)
END
}

# keep_installed PYTHON FILE: writes constraints that hold every installed package as it is.
keep_installed() {
    "$1" - >"$2" <<'END'
import re
from importlib import metadata

for package in metadata.distributions():
    name, version = package.metadata["Name"], package.version
    if name and re.fullmatch(r"[0-9][0-9A-Za-z.!+-]*", version or ""):
        print(f"{name}=={version}")
END
}

# make_venv: creates $venv from $base.
make_venv() {
    local flags=()
    if [ -e "$venv" ]; then # not the folder itself, which may be a mount point
        say "$venv is broken: it is made anew"
        find "$venv" -mindepth 1 -delete
    fi
    if [ -n "$shared" ]; then
        flags=(--system-site-packages)
        # The pip of the base installs into the new environment just as well.
        if "$base" -m pip --version >/dev/null 2>&1; then flags+=(--without-pip); fi
    elif command -v uv >/dev/null && uv venv -q --allow-existing --python "$base" "$venv" >&2; then
        return
    fi
    if [[ ${flags[*]-} != *--without-pip ]] && ! "$base" -c 'import ensurepip' 2>/dev/null; then
        fail "$base cannot make virtual environments; on Debian and Ubuntu: apt-get install" \
            "python3-venv (pythonX.Y-venv for a Python X.Y beside the system's)"
    fi
    "$base" -m venv ${flags[@]+"${flags[@]}"} "$venv" >&2 || fail "$base -m venv $venv failed: is $ROOT" \
        "writable, and is the disk full?"
    if [ -n "$shared" ]; then see_parent; fi
}

# see_parent: when $base is in a virtual environment itself, lets $venv see its packages too
# (venv only knows those of the system).
see_parent() {
    local parent
    parent=$("$base" -c 'import sys, sysconfig
if sys.prefix != sys.base_prefix: print(sysconfig.get_path("purelib"))')
    if [ -n "$parent" ]; then
        "$venv/bin/python" - "$parent" <<'END'
import sys
import sysconfig
from pathlib import Path

site = Path(sysconfig.get_path("purelib"))
(site / "parent_environment.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")
END
    fi
}

# install ARGUMENTS...: pip install into $python; with uv, which is faster, where that is found.
install() {
    local uv=()
    if command -v uv >/dev/null; then uv=(uv); fi
    if [ ${#uv[@]} -eq 0 ] && "$python" -m uv --version >/dev/null 2>&1; then
        uv=("$python" -m uv)
    fi
    if [ ${#uv[@]} -gt 0 ]; then
        # A mirror that pip has been told of; uv reads nothing of pip's.
        local mirror=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-}}
        mirror=${mirror:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
        if [ -n "$mirror" ]; then export UV_DEFAULT_INDEX=$mirror; fi
        "${uv[@]}" pip install -q --python "$python" "$@" >&2 && return
        "$python" -m pip --version >/dev/null 2>&1 || return 1
        say "uv has failed, trying pip"
    fi
    "$python" -m pip install -q --disable-pip-version-check "$@" >&2
}

# install_missing: adds what a Python with its own PyTorch lacks, and replaces nothing. Always with
# pip: uv does not see the packages of the Python that a virtual environment is based on.
install_missing() {
    local lacking constraints status=0
    mapfile -t lacking < <(missing "$python" - "${files[@]}")
    [ ${#lacking[@]} -gt 0 ] || return 0
    say "installing ${lacking[*]} beside the PyTorch of $base (small)"
    constraints=$(mktemp)
    keep_installed "$python" "$constraints"
    "$python" -m pip install -q --disable-pip-version-check -c "$constraints" \
        "${lacking[@]}" >&2 || status=$?
    rm -f -- "$constraints"
    [ $status -eq 0 ] || fail "pip could not install ${lacking[*]} into $python, see above"
}

install_all() {
    local arguments=() file
    if [[ ${files[*]} == *-dev* ]] && ! command -v uv >/dev/null; then # several times faster
        "$python" -m pip install -q --disable-pip-version-check uv >&2 || true
    fi
    for file in "${files[@]}"; do arguments+=(-r "$file"); done
    if has_torch "$python"; then
        say "installing ${files[*]} into $venv"
    else
        say "installing PyTorch and ${files[*]} into ${in_place:+$base}${in_place:-$venv}: up to" \
            "5 GB on disk, one to ten minutes (TORCH_INDEX_URL= chooses other builds of PyTorch)"
        local wanted=(-r requirements-torch.txt) index=--index-url
        if [ -n "$torch" ]; then
            wanted=("torch==$torch.*" torchvision)
        elif [ -n "${TORCH_PACKAGES:-}" ]; then
            read -r -a wanted <<<"$TORCH_PACKAGES"
            index=--extra-index-url
        fi
        if [ -n "${TORCH_INDEX_URL:-}" ]; then wanted+=("$index" "$TORCH_INDEX_URL"); fi
        install "${wanted[@]}" || fail "PyTorch could not be installed into $python, see above"
    fi
    install "${arguments[@]}" || fail "${files[*]} could not be installed into $python, see above"
}

# build_loader PYTHON: compiles the fast data loader (seconds, once); without it all else works.
build_loader() {
    [ -f image_classification/fast_loader/build.py ] || return 0 # an image gets the code later
    "$1" -m image_classification.fast_loader.build >/dev/null ||
        say "the slower pytorch loader will read the images"
}

base="" shared="" python=$ROOT/$venv/bin/python
if [ -n "$in_place" ]; then
    export PIP_BREAK_SYSTEM_PACKAGES=1 UV_BREAK_SYSTEM_PACKAGES=1
    base=$(find_python)
    python=$base
    if has_torch "$base"; then shared=yes; fi
elif [ -n "$(version_of "$python")" ]; then
    base=$venv
    [ "$(version_of "$python")" -ge 310 ] || fail "$venv has a Python older than 3.10: remove it"
    if grep -qi 'system-site-packages *= *true' "$venv/pyvenv.cfg" && has_torch "$python"; then
        shared=yes
    fi
else
    base=$(find_python)
    if [ -z "$torch" ] && has_torch "$base"; then
        shared=yes
        if [ -z "$(missing "$base" - "${files[@]}")" ]; then
            say "using $base, which has PyTorch and all else"
            build_loader "$base"
            echo "$base"
            exit 0
        fi
    fi
    say "making $venv with $base"
    make_venv
fi

# The second start does nothing: the stamp names what was installed.
stamp=$venv/.installed
key=$(cat requirements*.txt - <<<"${files[*]} $torch $shared" | sha256sum)
if [ -n "$in_place" ] || ! grep -qxF "$key" "$stamp" 2>/dev/null; then
    if [ -n "$shared" ]; then install_missing; else install_all; fi
    if [ -z "$in_place" ]; then echo "$key" >>"$stamp"; fi
    say "ready: $python"
fi
build_loader "$python"
echo "$python"
