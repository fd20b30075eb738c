#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Makes the environment, then runs ruff, mypy and pytest, all three in any case:
#   bash test/run_tests.sh [--torch VERSION] [arguments of pytest ...]
# --torch 2.4: the tests that run on the CPU, with that PyTorch in an environment of its own.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
setup=(--sample --dev) selection=() checks=yes
case ${1:-} in
    --torch)
        setup+=(--torch "${2:-}") checks=""
        # The accelerator that stands in for npu and mlu is written against the newest PyTorch.
        selection=(-m "not fake_accelerator")
        shift $(($# > 1 ? 2 : 1))
        ;;
    -h | --help)
        sed -n '4,6s/^# //p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
esac
PYTHON=$(bash scripts/setup_env.sh "${setup[@]}")
status=0
if [ -n "$checks" ]; then # their findings do not depend on the version of PyTorch
    "$PYTHON" -m ruff check . || status=1
    "$PYTHON" -m mypy || status=1
fi
# One thread each; one file more at a time than a small machine has cores, for tests also wait.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n 3 --dist loadfile ${selection[@]+"${selection[@]}"} "$@" ||
    status=$?
exit $status
