#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 on CIFAR-10, this package's short recipe: 30 epochs, 512 images per
# step over all devices (NPROC, 1 by default).
# bash run_scripts/CIFAR10_ResNet50_AMP_30E_Train.sh [WORKSPACE] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
use_cifar cifar10
BATCH=$(share 512)
train auto 1 \
    --arch resnet50_cifar --zero-init-last-bn --amp --epochs 30 \
    --optimizer-batch-size 512 -b "$BATCH" --lr 0.4 --lr-schedule cosine --warmup 5 \
    --nesterov --wd 5e-4 --label-smoothing 0.1 --cutout 8 -- "$@"
