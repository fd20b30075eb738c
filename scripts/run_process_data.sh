#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Makes a data set that main.py trains on out of ImageNet's archives or a folder of images:
#   bash scripts/run_process_data.sh [SOURCE] [TARGET] [options ...]
#     SOURCE  holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or train/ and val/, or one
#             folder per class; default: $IMAGENET_TRAIN_DATASET, see env.sh
#     TARGET  folder of the data set; default: SOURCE
#     options --val-share, --seed, --val-labels, --synsets, --similar, --pack, --short-side,
#             --quality, -j; -h explains them
# From the environment: PYTHON (default: .venv/bin/python, else python3).

# ROOT, NAME and PYTHON come from here.
source "$(dirname -- "${BASH_SOURCE[0]}")/../run_scripts/_common.sh"
need_python
case ${1--} in
    -h | --help) sed -n '4,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
    -*)
        # shellcheck source=env.sh
        . "$ROOT/env.sh"
        set -- "$IMAGENET_TRAIN_DATASET" "$@"
        ;;
esac
if ! "$PYTHON" -c 'import numpy, PIL' 2>/dev/null; then
    echo "$NAME: $PYTHON lacks NumPy or Pillow: bash scripts/setup_env.sh" >&2
    exit 2
fi
called_from=$PWD
cd -- "$ROOT" || exit # no module is looked for in the caller's folder, which may be the data
exec "$PYTHON" -m image_classification.dataset_tools process -C "$called_from" "$@"
