#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to a trained and evaluated model: bash run_scripts/quickstart.sh [flags ...]
# Makes the environment, writes the built-in data set and trains on whatever device is there.
set -euo pipefail
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$(bash "$ROOT/scripts/setup_env.sh" --sample)
exec "$PYTHON" "$ROOT/main.py" sample:digits --device auto --run-name quickstart "$@"
