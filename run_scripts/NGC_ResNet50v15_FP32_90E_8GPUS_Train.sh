#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 v1.5, FP32, 90 epochs, 8 GPUs.
# bash run_scripts/NGC_ResNet50v15_FP32_90E_8GPUS_Train.sh [WORKSPACE] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
train cuda 8 "${NGC_RESNET50_V15_90E[@]}" -- "$@"
