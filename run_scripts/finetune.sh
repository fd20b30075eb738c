#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# Fine-tunes ResNet-50 on your own images, a folder for each class (in train/ and val/, or without
# them: then a fifth of each class is kept for validation); prints how each class fares.
# bash run_scripts/finetune.sh DIR [flags of main.py ...]
# WEIGHTS=FILE starts from that file instead of torchvision's weights.
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
case ${1:-} in
    -h | --help | "" | -*)
        echo "usage: bash run_scripts/$NAME.sh DIR [flags of main.py ...]"
        echo "DIR: a folder for each class, or train/ and val/ with such folders. From the"
        echo "environment: DEVICE=auto NPROC=1 WEIGHTS=FILE PYTHON=$PYTHON"
        case ${1:-} in -h | --help) exit 0 ;; *) exit 2 ;; esac
        ;;
esac
DATA=("$1")
shift
START=(--pretrained-optional)
if [ -n "${WEIGHTS:-}" ]; then START=(--pretrained-weights "$WEIGHTS"); fi
train auto 1 --recipe finetune "${START[@]}" -- "" "$@"
