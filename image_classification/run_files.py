# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Names of files in a run's folder that no option changes."""

BEST_NAME = "model_best.pth.tar"
BENCHMARK_NAME = "benchmark.json"
CONFUSION_NAME = "confusion.json"
DIVERGENCE_NAME = "divergence.json"
EVALUATION_NAME = "confusion_evaluation.json"
METRICS_NAME = "metrics.jsonl"
SEEDS_NAME = "seeds.json"  # in the folder above, with --seeds
RESERVED_NAMES = (
    BEST_NAME, BENCHMARK_NAME, CONFUSION_NAME, DIVERGENCE_NAME, EVALUATION_NAME, METRICS_NAME,
    "bad_files.txt", "generations", "tensorboard", "train.txt", "val.txt",
)  # fmt: skip
