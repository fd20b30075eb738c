#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Checks the package on this machine's accelerator in about ten minutes, writes one report:
#   bash test/hardware_check.sh [--device auto|cuda|npu|mlu|xpu|cpu] [--output DIR] [--quick] \
#     [--only CHECK,...]
# PYTHON from the environment wins over .venv; no data set is needed. Exit code: 0 nothing failed,
# 1 a check failed, 2 no such device.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=$ROOT/.venv/bin/python; fi
fi
exec "$PYTHON" "$ROOT/test/hardware_check.py" "$@"
