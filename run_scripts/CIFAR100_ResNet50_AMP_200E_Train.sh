#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 on CIFAR-100, this package's recipe: 200 epochs, 128 images per step
# over all devices (NPROC, 1 by default).
# bash run_scripts/CIFAR100_ResNet50_AMP_200E_Train.sh [WORKSPACE] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_common.sh"
use_cifar cifar100
BATCH=$(share 128)
train auto 1 \
    --arch resnet50_cifar --amp --epochs 200 \
    --optimizer-batch-size 128 -b "$BATCH" --lr 0.1 --lr-schedule cosine --warmup 5 \
    --nesterov --wd 5e-4 --label-smoothing 0.1 --cutout 8 --mixup 0.2 -- "$@"
