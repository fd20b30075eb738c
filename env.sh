# shellcheck shell=sh
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
# source env.sh: sets what the run scripts read; what is set already is kept.

# The ImageNet folder: train/<class>/*, val/<class>/* (and train.txt, val.txt)
: "${IMAGENET_TRAIN_DATASET:=/data/pytorch/datasets/imagenet_training/}"
export IMAGENET_TRAIN_DATASET

# The scripts also read these; without a value they take the one of their own recipe.
# DEVICE=auto|cuda|npu|mlu|xpu|cpu       the kind of device
# NPROC=N                                processes, one per device
# PRECISION=FP32|FP16|AMP                inference only (FP32)
# CIFAR_DATASET=DIR                      the CIFAR scripts only (downloaded into data/)
# PYTHON=/path/to/python                 (.venv/bin/python, else python3)
