#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 on CIFAR-100, 1 device, 16 images per device: throughput in 2 epochs.
# bash test/train_performance_1p.sh [--data_path=DIR] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_ascend.sh"
run_case perf 1 16 2 "$@"
