#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# One validation of a trained model: bash run_scripts/NGC_ResNet50v15_Infer.sh [PATH] [flags ...]
# PATH: the folder of a run or a checkpoint file; without it the newest model_best.pth.tar.
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
infer -b 128 -j4 -p 100 -- "$@"
