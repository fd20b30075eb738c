#!/usr/bin/env bash
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# ResNet-50 on CIFAR-100, 8 devices, 16 images per device: throughput in 2 epochs.
# bash test/train_performance_8p.sh [--data_path=DIR] [flags of main.py ...]
source "$(dirname -- "${BASH_SOURCE[0]}")/_ascend.sh"
run_case perf 8 16 2 "$@"
