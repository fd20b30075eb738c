#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 on CIFAR-100, 8 devices, 32 images per device: accuracy after 200 epochs.
# bash test/train_full_8p_bs32.sh [--data_path=DIR] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_ascend.sh"
run_case acc 8 32 200 "$@"
