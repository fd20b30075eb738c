# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Which of main.py's options go together; option_types.py says what each may be by itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from image_classification import presets
from image_classification import run_files as names
from image_classification.device_table import DEVICE_TABLE, collectives
from image_classification.option_types import AUTO


def broken_rules(options: argparse.Namespace) -> list[str]:
    """Checks combinations of main.py's options.

    Args:
        options: What was parsed, other names of the same choice replaced by ours.

    Returns:
        One line for each that makes no sense: what, received, cure.
    """
    rules = [*_rules_of_the_run(options), *_rules_of_training(options)]
    return [line for broken, line in rules if broken]


def _rules_of_the_run(options: argparse.Namespace) -> list[tuple[Any, str]]:
    synthetic = options.data_backend == "synthetic"
    val_size = options.val_size or options.image_size
    given = options.pretrained_weights or options.pretrained or options.pretrained_optional
    rules: list[tuple[Any, str]] = [
        (not (options.data or synthetic or options.doctor or options.list_recipes),
         "DIR is missing: give a data folder, sample:digits, or --data-backend synthetic"),
        (options.data_backend == "dali-mlu",
         "--data-backend dali-mlu: DALI has no MLU version that can be installed; use fast"),
        (options.crop_scale[0] > options.crop_scale[1],
         f"--crop-scale {options.crop_scale[0]} {options.crop_scale[1]}: needs MIN <= MAX"),
        (options.fp16 and not options.evaluate,
         "--fp16 is for inference: add --evaluate, or train with --amp"),
        (options.fp16 and options.amp, "--fp16 and --amp exclude each other; give one"),
        (options.runtime != "eager" and not options.evaluate,
         f"--runtime {options.runtime} runs a trained network: add --evaluate"),
        (options.benchmark and not options.evaluate, "--benchmark needs --evaluate"),
        (options.check and options.evaluate, "--check is for a training: drop --evaluate"),
        (options.batch_size == AUTO and (options.evaluate or options.sync_bn),
         "--batch-size auto goes neither with --evaluate nor with --sync-bn: give a number"),
        (options.evaluate and options.training_only,
         "--evaluate and --training-only exclude each other"),
        (options.evaluate and options.resume == "auto", "--evaluate needs the path: --resume PATH"),
        (options.evaluate and not (options.resume or given or synthetic),
         "--evaluate would measure random weights: add --resume PATH or --pretrained-weights FILE"),
        (options.evaluate and options.seeds, "--seeds trains: drop --evaluate"),
        (options.seeds and options.seed is not None, "--seed and --seeds exclude each other"),
        (options.seeds and options.resume not in (None, "auto"),
         "--seeds starts several runs: it goes with --resume auto only"),
        (options.resume not in (None, "auto")
         and (options.pretrained_weights or options.pretrained),
         "--resume brings its own weights: drop --pretrained and --pretrained-weights"),
        (options.pretrained_weights and (options.pretrained or options.pretrained_optional),
         "--pretrained and --pretrained-weights exclude each other; give one"),
        ((options.weights_dir or options.weights_version)
         and not (options.pretrained or options.pretrained_optional),
         "--weights-dir and --weights-version belong to --pretrained"),
        (options.pretrained_optional and options.evaluate, "--evaluate needs --pretrained itself"),
        (options.val_resize and val_size and options.val_resize < val_size,
         f"--val-resize {options.val_resize} is smaller than the validation's size {val_size}"),
        (options.sync_bn and options.device == "cpu",
         "--sync-bn needs an accelerator; on cpu run without it"),
        (options.dist_backend is not None and options.device in DEVICE_TABLE
         and options.dist_backend not in collectives(options.device),
         f"--dist-backend {options.dist_backend} does not serve device '{options.device}'; leave "
         "it out"),
        (options.amp_dtype != "auto" and not options.amp,
         f"--amp-dtype {options.amp_dtype} needs --amp"),
        (options.tf32 is not None and options.device not in ("auto", "cuda"),
         f"--tf32 is a switch of cuda, the device is {options.device}"),
        (len({options.checkpoint_filename, options.raport_file} - {*names.RESERVED_NAMES}) < 2,
         f"--checkpoint-filename, --raport-file, {', '.join(names.RESERVED_NAMES)} must differ"),
    ]  # fmt: skip
    for option in ("--checkpoint-filename", "--raport-file", "--run-name"):
        name = getattr(options, option.lstrip("-").replace("-", "_"))
        rules.append((name is not None and (Path(name).name != name or name in ("", "..")),
                      f"{option} {name!r}: must be a name without folders"))  # fmt: skip
        rules.append((name not in (None, "..") and (name[:1] == "." or name.endswith(".sha256")),
                      f"{option} {name!r}: no dot in front, and no .sha256 at the end"))
    return rules


def _rules_of_training(options: argparse.Namespace) -> list[tuple[Any, str]]:
    (number, strength), milestones = options.randaugment, options.lr_milestones
    most, strongest = presets.MOST_OPERATIONS, presets.STRONGEST
    return [
        (not 1 <= number <= most or strength > strongest,
         f"--randaugment {number} {strength}: needs 1..{most} operations of 0..{strongest}"),
        (options.randaugment != [2, 9] and options.augmentation != "randaugment",
         "--randaugment is for --augmentation randaugment"),
        (options.nesterov and options.optimizer != "sgd",
         "--nesterov is for --optimizer sgd; --no-nesterov turns it off"),
        (options.lars_eta != 1e-3 and options.optimizer != "lars",
         "--lars-eta is for --optimizer lars"),
        (options.nesterov and options.momentum == 0, "--nesterov needs --momentum above 0"),
        (options.on_divergence == "rollback" and not options.save_checkpoints,
         "--on-divergence rollback goes back to a checkpoint: drop --no-checkpoints"),
        (options.training_only and options.early_stopping_patience > 0,
         "--early-stopping-patience needs the validation that --training-only leaves out"),
        (options.optimizer_batch_size > 0 and options.batch_size > 0
         and options.optimizer_batch_size % options.batch_size,
         f"--optimizer-batch-size {options.optimizer_batch_size} is not a multiple of "
         f"{options.batch_size} (--batch-size)"),
        (options.lr_schedule != "step" and (milestones is not None or options.lr_gamma != 0.1),
         "--lr-milestones and --lr-gamma are for --lr-schedule step"),
        (milestones is not None and sorted(set(milestones)) != milestones,
         "--lr-milestones: needs growing numbers of epochs"),
        (options.end_lr > 0 and options.lr_schedule == "step",
         "--end-lr is for --lr-schedule linear, cosine or exponential"),
        (options.freeze != "none" and options.jit == "script",
         "--freeze does not go with --jit script, which hides the network's parts"),
        (options.compile and options.evaluate, "--compile is for a training: drop --evaluate"),
        (options.sync_bn and options.jit == "script",
         "--sync-bn does not go with --jit script, which cannot hold it"),
        (options.compile and options.jit == "script",
         "--compile and --jit script exclude each other; give one"),
        (options.grad_checkpointing and (options.compile or options.jit == "script"),
         "--grad-checkpointing goes neither with --compile, which decides that itself, nor with "
         "--jit script"),
        (options.parallel == "fsdp" and (options.freeze != "none" or options.jit == "script"),
         "--parallel fsdp goes neither with --freeze nor with --jit script: use ddp"),
        (options.parallel == "fsdp" and options.bucket_mib is not None,
         "--bucket-mib is for --parallel ddp"),
        (options.head_lr is not None and options.lr == 0,
         "--head-lr is a multiple of --lr: not with 0"),
    ]  # fmt: skip
