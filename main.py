#!/usr/bin/env python3
# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates image classifiers on any accelerator.

    python main.py sample:digits                                  # built-in data, any machine
    python main.py /data/imagenet --amp                           # one device
    python multiproc.py --nproc_per_node 8 main.py /data/imagenet --amp
    python main.py /data/imagenet --evaluate --resume models/resnet50/model_best.pth.tar

The file reads from top to bottom: options, their checks, then the run in execution order.
Torch is imported after the options have been checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classification import affinity, option_rules, recipes
from image_classification import option_types as kind
from image_classification import presets as preparation
from image_classification import run_files as names
from image_classification.errors import UsageError, UserError, print_line, tell
from image_classification.interruption import EXIT_CODE, Interruption, Stopped
from image_classification.option_parser import OptionParser
from image_classification.option_types import AUTO, Number
from image_classification.samples import SAMPLE_PREFIX, find_sample, is_sample
from image_classification.save_interval import SaveInterval
from models import NETWORK_PARTS, find_arch, model_names

if TYPE_CHECKING:
    import torch

    from image_classification.checkpoint_files import CheckpointFiles
    from image_classification.dataloaders import Loader
    from image_classification.datasets import Splits
    from image_classification.device import Device
    from image_classification.distributed import Launch
    from image_classification.epochs import EpochLoop
    from image_classification.logger import Logger
    from image_classification.training import Trainer
    from image_classification.validation import Validator
    from image_classification.workspace import Use

PACKAGE_ROOT = Path(__file__).resolve().parent
DOWNLOADS = PACKAGE_ROOT / "data"
DEFAULT_CROP_SCALE = (0.08, 1.0)

# ------------------------------------------------------------------------------------------------
# Options
# ------------------------------------------------------------------------------------------------


def build_parser() -> OptionParser:
    """Declares every option; each group is one topic of `-h`."""
    parser = OptionParser(
        prog="main.py",
        usage="main.py DIR [options]",
        description="Train and evaluate image classifiers on cuda, npu, mlu, xpu or cpu.",
        epilog="Exit codes: 0 done, 1 internal error, 2 usage or device, 3 data, 4 checkpoint, "
        "5 diverged, 6 out of memory, 7 lost peer. One process per device: "
        "python multiproc.py --nproc_per_node N main.py ...",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_augmentation_options(parser.add_argument_group("augmentation"))
    _add_model_options(parser.add_argument_group("model"))
    _add_device_options(parser.add_argument_group("device and precision"))
    _add_training_options(parser.add_argument_group("training"))
    _add_optimizer_options(parser.add_argument_group("optimizer and learning rate"))
    _add_mode_options(parser.add_argument_group("what to run"))
    _add_output_options(parser.add_argument_group("checkpoints, logs and workspace"))
    return parser


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("directory", metavar="DIR", nargs="?",
        help="folder with train/ and val/ (and train.txt, val.txt), CIFAR's archives, or "
        "sample:digits")
    add("--data", metavar="DIR", help="the same as the positional DIR")
    add("--dataset", default="auto", choices=["auto", "folder", "cifar10", "cifar100"],
        help="what DIR holds (auto: look); CIFAR is downloaded where it is missing, by default "
        "into data/ of this package")
    add("--data-backend", default="auto", metavar="NAME", choices=DATA_BACKENDS,
        help="auto (fast where it is built, else pytorch), fast, pytorch, dali-cpu, dali-gpu, "
        "resident (small images, in memory) or synthetic")
    add("--dummy_test", action="store_true", help="the same as --data-backend synthetic")
    add("--synthetic-size", nargs=2, default=[1281167, 50000], metavar=("TRAIN", "VAL"),
        type=kind.COUNT, help="images per epoch of the synthetic data (default: ImageNet's)")
    add("--data-layout", default="auto", choices=["auto", "folder", "list"],
        help="read class folders or train.txt/val.txt (auto: the lists where they exist)")
    add("--val-split", type=kind.CHANCE, metavar="SHARE",
        help="where DIR has no val: take this share of the images of each class, such as 0.2; the "
        "same in every run, written as lists into the workspace")
    add("--num-classes", "--num_classes", type=kind.COUNT, metavar="N",
        help="number of classes (default: from the data; 1000 for synthetic data)")
    add("-j", "--workers", type=Number(int, 0, affinity.MAX_THREADS), metavar="N",
        help="fast: threads per device that read images (default: the cores of this process); "
        "pytorch: worker processes per device, 0 reads in the training process (default: 5)")
    add("--prefetch", type=kind.COUNT, default=2, metavar="N",
        help="batches read ahead: in all (fast) or for each worker process (default: 2)")
    add("--max-bad", type=kind.SHARE, default=0.001, metavar="SHARE",
        help="training: share of unreadable images that are replaced by others before the run "
        "stops; ten are in any case (default: 0.001)")
    add("--allow-bad-val", action="store_true",
        help="validation: replace unreadable images too, instead of stopping at the first")


def _add_augmentation_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--image-size", type=kind.PIXELS, metavar="PX",
        help="side of the network's input (default: the network's own, 224)")
    add("--val-size", type=kind.PIXELS, metavar="PX",
        help="validation: side of the network's input (default: --image-size)")
    add("--val-resize", type=kind.PIXELS, metavar="PX",
        help="validation: short side before the centre crop (default: validation size + 32)")
    add("--interpolation", choices=["bilinear", "bicubic", "triangular"],
        help="resize filter, antialiased (default: the checkpoint's, else bilinear); triangular is "
        "bilinear's other name")
    add("--crop-scale", nargs=2, default=[*DEFAULT_CROP_SCALE], metavar=("MIN", "MAX"),
        type=kind.CHANCE, help="area of training crops as a share of the image (default: 0.08 1)")
    add("--hflip", type=kind.SHARE, default=0.5, metavar="P",
        help="probability of a horizontal flip in training (default: 0.5)")
    add("--augmentation", default="none", type=str.lower, metavar="NAME",
        choices=["none", *preparation.POLICIES],
        help=f"policy for training images: {', '.join(preparation.POLICIES)} (needs torchvision)")
    add("--randaugment", type=kind.INDEX, nargs=2, default=[2, 9], metavar=("N", "M"),
        help="--augmentation randaugment: operations per image, and strength 0..30 (default: 2 9)")
    add("--random-erasing", type=kind.SHARE, default=0.0, metavar="P",
        help="probability that a rectangle of a training image is set to the mean (default: 0)")
    add("--progressive-resize", type=kind.COUNT, metavar="PX",
        help="training images grow from PX in the first epoch to --image-size in the last")
    add("--cutout", type=kind.INDEX, default=0, metavar="PX",
        help="small images in memory: side of a square set to the mean colour (default: 0, none)")
    add("--mixup", type=kind.AMOUNT, default=0.0, metavar="ALPHA",
        help="MixUp with Beta(alpha, alpha); 0 is off (default: 0)")
    add("--cutmix", type=kind.AMOUNT, default=0.0, metavar="ALPHA",
        help="CutMix with Beta(alpha, alpha); with --mixup a step draws either (default: 0)")


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    # What a start finds out: a pruned network's widths, and whether there were weights.
    group.set_defaults(channels=None, from_scratch=False)
    add = group.add_argument
    add("-a", "--arch", choices=model_names(), metavar="NAME",
        help=f"network (default: resnet50): {', '.join(model_names())}")
    add("-c", "--model-config", choices=["classic", "fanin", "grp-fanin", "grp-fanout"],
        help="initialisation: classic (Kaiming fan_out, default) or fanin; grp-* are the same")
    add("--conv_init", "--conv-init", choices=["fan_in", "fan_out"],
        help="NVIDIA's name of the same choice")
    add("--zero-init-last-bn", "--last_bn_0_init", type=kind.boolean, nargs="?",
        const=True, default=False, metavar="BOOL",
        help="start each residual branch with a zero BatchNorm weight")
    add("--trt", type=kind.boolean, nargs="?", const=True, default=False, metavar="BOOL",
        help="squeeze-and-excitation as 1x1 convolutions, for TensorRT")
    add("--fused_se", "--fused-se", type=kind.boolean, nargs="?", const=True, default=True,
        metavar="BOOL", help="squeeze-and-excitation: scale and add in one operation (default)")
    add("--dropout", type=kind.PART, metavar="P",
        help="dropout before the classifier (default: the network's own: EfficientNet 0.2 to 0.5, "
        "others 0)")
    add("--survival-prob", "--survival_prob", type=kind.CHANCE, metavar="P",
        help="EfficientNet: probability that the last block acts on a training image (default: B0 "
        "1, others 0.8)")
    add("--bn-momentum", "--bn_momentum", metavar="M", type=kind.CHANCE,
        help="weight of a batch in BatchNorm's statistics (default: EfficientNet 0.01, others 0.1)")
    add("--bn-epsilon", "--bn_epsilon", type=kind.POSITIVE, metavar="E",
        help="added to BatchNorm's variances (default: EfficientNet 0.001, others 1e-5)")
    add("--freeze-bn", action="store_true", help="keep BatchNorm statistics fixed in training")
    add("--freeze", default="none", metavar="PART", choices=NETWORK_PARTS,
        help="do not train the first parts of the network: up to stage1, ... stage4, or the "
        "backbone, which is all but the classifier (default: none)")
    add("--unfreeze-after", type=kind.COUNT, metavar="EPOCHS",
        help="train everything after so many epochs (default: never)")
    add("--sync-bn", action="store_true",
        help="BatchNorm statistics over all devices (accelerators only)")
    add("--pretrained-weights", "--pretrained-from-file", "--weights", metavar="FILE",
        help="start from these weights; another number of classes gets a new classifier")
    add("--pretrained", action="store_true",
        help="start from torchvision's weights for ImageNet, downloaded where they are missing")
    add("--pretrained-optional", action="store_true",
        help="the same; trains from scratch, and says so, where they cannot be had")
    add("--weights-dir", metavar="DIR",
        help="where --pretrained looks first and downloads to (default: weights/ of this package)")
    add("--weights-version", choices=["v1", "v2"], help="of --pretrained (default: the newest)")
    add("--min-matched", type=kind.SHARE, default=0.95, metavar="SHARE",
        help="refuse weights if less of them fits the network (default: 0.95)")
    add("--jit", default="no", choices=["no", "script"], help="script: train the TorchScript of it")
    add("--grad-checkpointing", action="store_true",
        help="less memory, more time: compute activations again for the gradients; the same result")


def _add_device_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", default="auto", choices=["auto", "cuda", "gpu", "npu", "mlu", "xpu", "cpu"],
        help="auto: the accelerator that is there, else cpu (default: auto)")
    add("--gpu-id", "--gpu_id", type=kind.INDEX, metavar="N",
        help="index of the device, one process only")
    add("--amp", action=argparse.BooleanOptionalAction, default=False, help="mixed precision")
    add("--amp-dtype", default="auto", choices=["auto", "bfloat16", "float16"],
        help="auto: bfloat16 where the device is fast with it, else float16 with loss scaling")
    add("--pyamp", action="store_true", help="the same as --amp")
    add("--cnmix", action="store_true", help="mapped to --amp (see --opt_level)")
    add("--opt_level", default="O1", choices=["O0", "O1", "O2", "O3", "O4"],
        help="with --cnmix: O0 is FP32, the others are --amp")
    add("--fp16", action="store_true", help="half-precision weights, with --evaluate only")
    add("--tf32", action=argparse.BooleanOptionalAction, default=None,
        help="TF32 matrix units on cuda (default: torch's setting)")
    add("--static-loss-scale", type=kind.POSITIVE, metavar="S",
        help="float16: fixed loss scale (initial one with --dynamic-loss-scale)")
    add("--dynamic-loss-scale", action="store_true",
        help="float16: adapt the loss scale (default unless --static-loss-scale is given)")
    add("--memory-format", default="auto", choices=["auto", "nchw", "nhwc"],
        help="auto: nhwc (channels last) on cpu, and on cuda with --amp or --fp16; else nchw")
    add("--compile", nargs="?", const="default", metavar="MODE",
        choices=["default", "reduce-overhead", "max-autotune"],
        help="train through torch.compile: default, reduce-overhead, max-autotune; the start says "
        "what it took and what it brings")
    add("--deterministic", action="store_true", help="same bits in every run, slower on cuda")
    add("--gpu-affinity", default="none", choices=affinity.MODES, metavar="MODE",
        help=f"bind the process to CPU cores: {', '.join(affinity.MODES)}")
    add("--parallel", default="ddp", choices=["ddp", "fsdp"],
        help="several processes: each has all weights, or each a part (fsdp: sharded data "
        "parallel; default: ddp)")
    add("--bucket-mib", type=kind.COUNT, metavar="N",
        help="--parallel ddp: MiB of gradients that are sent together (default: torch's, 25)")
    add("--dist-backend", choices=["nccl", "hccl", "cncl", "xccl", "gloo"],
        help="collective library (default: the device's own)")
    add("--world-size", type=kind.COUNT, metavar="NODES",
        help="number of nodes the launcher must have")
    add("--addr", metavar="HOST", help="master address the launcher must have")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--epochs", type=kind.COUNT, default=90, metavar="N",
        help="epochs in all, those before a resume included (default: 90)")
    add("--run-epochs", type=kind.COUNT_OR_ALL, default=-1, metavar="N",
        help="run at most N epochs this time")
    add("-b", "--batch-size", type=kind.count_or_auto, default=256, metavar="N",
        help="images per device and step; auto: what fits into memory, up to 256 (default: 256)")
    add("--optimizer-batch-size", type=kind.COUNT_OR_ALL, default=-1, metavar="N",
        help="images per optimizer step over all devices, by gradient accumulation")
    add("--class-weights", default="none", choices=["none", "balanced"],
        help="balanced: in the loss, classes with few images count as much as those with many")
    add("--label-smoothing", type=kind.SHARE, default=0.0, metavar="E", help="default: 0")
    add("--use-ema", type=kind.PART, metavar="DECAY",
        help="also average the weights, e.g. 0.9999; the best model follows the average")
    add("--on-divergence", default="stop", choices=["stop", "rollback"],
        help="when 5 steps in a row have no finite loss and gradients: end with exit code 5, or go "
        "back to a checkpoint with half the learning rate, up to 3 times (default: stop)")
    add("--early-stopping-patience", type=kind.COUNT_OR_ALL, default=-1, metavar="N",
        help="stop after N epochs without a better top-1")
    add("--seed", type=kind.SEED, metavar="N", help="default: drawn, printed and stored")
    add("--seeds", type=kind.seeds, metavar="A,B,...",
        help="one run per seed in <workspace>/seed_<n>, then mean and spread of top-1")


def _add_optimizer_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--optimizer", default="sgd", choices=["sgd", "adamw", "rmsprop", "rmsprop-tf", "lars"],
        help="rmsprop-tf: as TensorFlow computes it; lars: sgd for steps of more than 8192 images "
        "(default: sgd)")
    add("--lr", "--learning-rate", type=kind.AMOUNT, metavar="LR",
        help="peak rate (default: 0.256 x images per optimizer step / 256)")
    add("--head-lr", type=kind.AMOUNT, metavar="LR",
        help="peak rate of the classifier (default: --lr)")
    add("--lr-schedule", default="step", choices=["step", "linear", "cosine", "exponential"],
        help="step multiplies by --lr-gamma at 1/3, 2/3 and 8/9 of the epochs (default)")
    add("--lr-milestones", type=kind.numbers, metavar="E,E,...",
        help="epochs after which step falls, instead of 1/3, 2/3 and 8/9")
    add("--lr-gamma", type=kind.AMOUNT, default=0.1, metavar="G", help="default: 0.1")
    add("--warmup", type=kind.AMOUNT, default=0, metavar="EPOCHS",
        help="linear warm-up (default: 0)")
    add("--end-lr", type=kind.AMOUNT, default=0.0, metavar="LR",
        help="last rate of linear, cosine and exponential (default: 0; exponential: lr / 1000)")
    add("--momentum", "--mom", type=kind.PART, default=0.9, metavar="M", help="default: 0.9")
    add("--weight-decay", "--wd", type=kind.AMOUNT, default=1e-4, metavar="W", help="default: 1e-4")
    add("--bn-weight-decay", action="store_true", help="also decay BatchNorm parameters and biases")
    add("--nesterov", action=argparse.BooleanOptionalAction, default=False,
        help="Nesterov momentum (sgd)")
    add("--rmsprop-alpha", type=kind.SHARE, default=0.9, metavar="A", help="default: 0.9")
    add("--rmsprop-eps", type=kind.POSITIVE, default=1e-3, metavar="E", help="default: 1e-3")
    add("--lars-eta", type=kind.POSITIVE, default=1e-3, metavar="E",
        help="lars: a step at rate 1 as a share of the weights' length (default: 1e-3)")
    add("--clip-grad-norm", type=kind.POSITIVE, metavar="NORM",
        help="largest L2 norm of the gradients")


def _add_mode_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--check", action="store_true",
        help="only try, at full size, whatever could end the run later; leaves nothing behind")
    add("--evaluate", action="store_true", help="validate once and exit, whatever --epochs says")
    add("--runtime", default="eager", metavar="NAME", choices=kind.RUNTIMES,
        help=f"with --evaluate: {', '.join(kind.RUNTIMES)}; says how far its outputs are from "
        "eager's (default: eager)")
    add("--benchmark", type=kind.counts, metavar="N,N,...",
        help="with --evaluate: time these batch sizes, too, for example 1,2,4,8,16,32")
    add("--training-only", action="store_true", help="no validation, so no best model either")
    add("--topk", type=kind.COUNT, default=5, metavar="K", help="second accuracy (default: 5)")
    add("--class-report", action="store_true",
        help="at the end: recall, precision and F1 of each class, and which was taken for which")
    add("--prof", type=kind.COUNT_OR_ALL, default=-1, metavar="N",
        help="only N iterations per training epoch and validation")
    add("--recipe", metavar="NAME",
        help="start from the options of a recipe (FILE.yml:NAME: of another file)")
    add("--list-recipes", action="store_true",
        help="print all recipes, or the options of --recipe, and exit")
    add("--doctor", action="store_true", help="examine the machine, say what to change, and exit")
    add("--iters", type=kind.COUNT_OR_ALL, default=-1, metavar="N",
        help="only N iterations per training epoch")


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--workspace", metavar="DIR",
        help="folder of the run (default: models/<run name>); a used one gets -2, -3, ...")
    add("--run-name", metavar="NAME", help="default: the network's name")
    add("--resume", metavar="PATH",
        help="checkpoint to go on from; auto: the workspace's last one, if any")
    add("--no-checkpoints", dest="save_checkpoints", action="store_false")
    add("--checkpoint-filename", "--checkpoint", default="checkpoint.pth.tar", metavar="NAME",
        help="name of the last checkpoint (default: checkpoint.pth.tar)")
    add("--checkpoint-interval", type=kind.interval, default="10m", metavar="TIME",
        help="also save within an epoch: every so many minutes (10m), seconds (30s), hours (1h) or "
        "optimizer steps (500); 0: never (default: 10m)")
    add("--gather-checkpoints", nargs="?", const=-1, default=0, metavar="N",
        type=Number(int, 0, also=-1),
        help="also keep checkpoint_<epoch>.pth.tar of the last N epochs (bare: all)")
    add("--raport-file", default="experiment_raport.json", metavar="NAME",
        help="log of DLLL lines in the workspace (default: experiment_raport.json)")
    add("-p", "--print-freq", type=kind.COUNT, default=10, metavar="N",
        help="iterations between log lines (default: 10)")
    add("--tensorboard", action="store_true", help="also write <workspace>/tensorboard")


DATA_BACKENDS = ["auto", "fast", "pytorch", "dali-cpu", "dali-gpu", "dali-mlu", "resident",
                 "synthetic", "syntetic"]


# ------------------------------------------------------------------------------------------------
# Checks: everything that can be known before torch is imported
# ------------------------------------------------------------------------------------------------


def parse_args(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses the command line over the recipe, and over that of the named sample.

    Returns:
        The options, and one line per option that was mapped to another.

    Raises:
        UsageError: One line per problem, all of them at once.
    """
    parser = build_parser()
    args, problems = parser.parse_all(argv)
    if (recipe := getattr(args, "recipe", None)) is not None:
        argv = [*read_recipes(recipe).find(recipe.rpartition(":")[2]).words, *argv]
        args, problems = parser.parse_all(argv)
    name = getattr(args, "directory", None) or getattr(args, "data", None)
    if is_sample(name):
        evaluates = getattr(args, "evaluate", False)
        parser.set_defaults(**find_sample(name).defaults(evaluates=evaluates))
        args, problems = parser.parse_all(argv)
    if not vars(args):
        raise UsageError("\n".join(problems))
    notes = _resolve_aliases(args, problems)
    problems += option_rules.broken_rules(args)
    if problems:
        raise UsageError("\n".join(problems))
    return args, notes


def read_recipes(name: str = "") -> recipes.RecipeBook:
    """Reads the file in front of a recipe's name, by default the package's."""
    return recipes.read(name.rpartition(":")[0] or PACKAGE_ROOT / "recipes.yml")


def _resolve_aliases(args: argparse.Namespace, problems: list[str]) -> list[str]:
    """Replaces other names of the same choice by ours; says what was mapped."""
    notes = []
    if args.directory and args.data and args.directory != args.data:
        problems.append(f"DIR is {args.directory!r} and --data is {args.data!r}; give one of them")
    args.data = args.data or args.directory
    if args.data is None and args.dataset.startswith("cifar"):
        args.data = str(DOWNLOADS)
    nothing_given = args.check and args.data is None
    if args.dummy_test or args.data_backend == "syntetic" or nothing_given:
        args.data_backend = "synthetic"
    if args.device == "gpu":
        args.device = "cuda"
    if args.cnmix and args.opt_level == "O0":
        notes.append("--cnmix --opt_level O0 is FP32 here")
    elif args.cnmix or args.pyamp:
        notes.append(f"{'--cnmix' if args.cnmix else '--pyamp'} is --amp here")
        args.amp = True
    if args.warmup > args.epochs and not args.evaluate:
        notes.append(f"--warmup {args.warmup:g} is longer than --epochs {args.epochs}: "
                     "the learning rate does not reach its peak")
    from_config = {None: None, "classic": "fan_out", "grp-fanout": "fan_out"}
    config_init = from_config.get(args.model_config, "fan_in")
    if config_init and args.conv_init and config_init != args.conv_init:
        problems.append(f"-c {args.model_config} contradicts --conv_init {args.conv_init}")
    args.conv_init = args.conv_init or config_init or "fan_out"
    return notes


# ------------------------------------------------------------------------------------------------
# What the options mean for the parts of a run
# ------------------------------------------------------------------------------------------------


def run_files(args: argparse.Namespace) -> list[str]:
    """The files by which a run's folder is known, its last checkpoint first."""
    return [args.checkpoint_filename, names.BEST_NAME, args.raport_file, names.METRICS_NAME]


def choose_workspace(args: argparse.Namespace, seed: int | None) -> tuple[Path, Use]:
    """The folder of --workspace, else the checkpoint's, else models/<run name, sample, network>."""
    from image_classification import workspace

    sample = args.data.removeprefix(SAMPLE_PREFIX) if is_sample(args.data) else None
    name = args.run_name or sample or args.arch or default_arch(args)
    base, use = workspace.choose(
        args.workspace, PACKAGE_ROOT / "models" / name, args.resume,
        traces=run_files(args), only_logs=args.evaluate)
    return base / f"seed_{seed}" if args.seeds else base, use


def settle_dataset(args: argparse.Namespace) -> None:
    """Fills in which kind of data set DIR holds."""
    from image_classification import data_sources

    synthetic = args.data_backend == "synthetic"
    args.dataset = "folder" if synthetic else data_sources.settle_dataset(args.dataset, args.data)


def default_arch(args: argparse.Namespace) -> str:
    """The network for the data set, where nobody has asked for one."""
    return "resnet50" if args.dataset == "folder" else "resnet50_cifar"


def settle_network(args: argparse.Namespace, saved: dict[str, Any] | None) -> None:
    """Fills in network and input size: the command line's, the checkpoint's, or ours."""
    from image_classification import cifar

    is_cifar = args.dataset != "folder"
    if saved is not None:
        preset = saved["preprocessing"]["val"]
        args.arch = saved["arch"]
        args.val_size = args.val_size or args.image_size or preset["image_size"]
        args.image_size = args.image_size or saved["preprocessing"]["train"]["image_size"]
        args.val_resize = args.val_resize or preset["resize_size"]
        args.interpolation = args.interpolation or preset["interpolation"]
        # Without them the weights mean something else.
        for name in ("bn_momentum", "bn_epsilon", "channels"):
            given = getattr(args, name)
            setattr(args, name, saved["model_options"].get(name) if given is None else given)
    args.arch = args.arch or default_arch(args)
    arch = find_arch(args.arch)
    shown = cifar.SIDE if is_cifar else None
    if is_sample(args.data):
        shown = find_sample(args.data).image_size
    args.image_size = args.image_size or shown or arch.image_size
    enlarge = 0 if shown or arch.small_images else 32
    args.val_size = args.val_size or args.image_size
    args.val_resize = args.val_resize or min(args.val_size + enlarge, preparation.MAX_SIDE)
    args.interpolation = args.interpolation or "bilinear"
    if args.val_resize < args.val_size:
        raise UsageError(f"--val-resize {args.val_resize} is below validation size {args.val_size}")
    cropped = tuple(args.crop_scale) != DEFAULT_CROP_SCALE
    if args.data_backend == "resident" and args.val_size != args.image_size:
        raise UsageError(f"--val-size {args.val_size}: images in memory have one size, "
                         f"{args.image_size}; leave it out")
    if is_cifar and ({args.image_size, args.val_size, args.val_resize} != {cifar.SIDE} or cropped):
        raise UsageError(f"{args.dataset} is shown as it is, with {cifar.SIDE} pixels: leave "
                         "--image-size, --val-size, --val-resize and --crop-scale out")
    if args.survival_prob is not None and arch.family != "efficientnet":
        raise UsageError(f"--survival-prob is for EfficientNet, the network is {args.arch}")
    start, step = args.progressive_resize or 0, preparation.SIZE_STEP
    if start > args.image_size or start % step:
        raise UsageError(f"--progressive-resize {start}: needs a multiple of {step} up to image "
                         f"size {args.image_size}")
    if args.cutout >= args.image_size:
        raise UsageError(f"--cutout {args.cutout} would cover the whole image of {args.image_size} "
                         "pixels: use less")
    if args.batch_size == 1 and args.image_size <= 32 and not (args.evaluate or args.freeze_bn):
        raise UsageError(f"--batch-size 1 leaves BatchNorm one value per channel at image size "
                         f"{args.image_size}: use 2 or more")


def shows_small_images(args: argparse.Namespace) -> bool:
    """Whether a folder of images that have the network's size may be brought into memory."""
    sizes = {args.image_size, args.val_size, args.val_resize}
    plain = len(sizes) == 1 and tuple(args.crop_scale) == DEFAULT_CROP_SCALE
    return args.data_backend == "resident" or (
        args.data_backend == "auto" and plain and find_arch(args.arch).small_images)


def policy(args: argparse.Namespace) -> str | None:
    """The augmentation policy, None for none."""
    return None if args.augmentation == "none" else args.augmentation


def presets(
    args: argparse.Namespace
) -> tuple[preparation.TrainPreset | preparation.ShiftPreset, preparation.EvalPreset]:
    """How training and validation images are prepared."""
    train: preparation.TrainPreset | preparation.ShiftPreset
    number, strength = args.randaugment
    extra: dict[str, Any] = {
        "policy": policy(args), "policy_operations": number, "policy_magnitude": strength,
        "erasing": args.random_erasing}
    if args.data_backend == "resident":
        train = preparation.ShiftPreset(
            args.image_size, args.image_size // 8, args.hflip, args.cutout, **extra)
    else:
        start = args.progressive_resize or 0
        train = preparation.TrainPreset(
            args.image_size, tuple(args.crop_scale), flip=args.hflip,
            interpolation=args.interpolation, start_size=start,
            growth_epochs=args.epochs if start else 0, **extra)
    return train, preparation.EvalPreset(args.val_size, args.val_resize, args.interpolation)


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The create_model options of this command line; stored in checkpoints."""
    options = {"conv_init": args.conv_init, "zero_init_last_bn": args.zero_init_last_bn}
    for name in ("dropout", "survival_prob", "bn_momentum", "bn_epsilon", "channels"):
        if (value := getattr(args, name)) is not None:
            options[name] = value
    if args.arch.startswith("se-"):
        options |= {"se_as_conv": args.trt, "fused_se": args.fused_se}
    return options


# ------------------------------------------------------------------------------------------------
# The run, in execution order
# ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """What the parts of one run share."""

    args: argparse.Namespace
    launch: Launch
    device: Device
    workspace: Path
    logger: Logger
    saved: dict[str, Any] | None
    seed: int
    amp_dtype: torch.dtype | None
    memory_format: torch.memory_format
    files: CheckpointFiles
    interruption: Interruption


def run(args: argparse.Namespace, notes: list[str], interruption: Interruption) -> None:
    """Binds the device, joins the other processes and runs every seed."""
    from image_classification import distributed
    from image_classification.device import Device

    distributed.die_with_torchrun()
    launch = distributed.read_launch()
    distributed.check_launch(
        launch, num_nodes=args.world_size, master_addr=args.addr, device_index=args.gpu_id)
    device = Device.select(args.device, launch.local_rank, args.gpu_id)
    from image_classification import failures, sharding  # import torch: after the device's import
    from image_classification.seed_record import record_seed

    if args.parallel == "fsdp":
        sharding.require_engine()
    device.configure(tf32=args.tf32, deterministic=args.deterministic)
    affinity.bind(args.gpu_affinity, launch.local_rank, launch.local_world_size)
    notes = [*notes, *distributed.init(launch, device, args.dist_backend)]
    with failures.explained(device, args.batch_size):
        for seed in args.seeds or [args.seed]:
            best, folder = run_seed(args, launch, device, seed, notes, interruption)
            if args.seeds and best is not None and launch.primary:
                print(record_seed(folder.parent, seed, best, args.recipe))
    distributed.shutdown()


def run_seed(
    args: argparse.Namespace, launch: Launch, device: Device, seed: int | None, notes: list[str],
    interruption: Interruption,
) -> tuple[float | None, Path]:
    """One whole run; returns the best top-1 in percent, if anything was validated, and where."""
    import torch

    from image_classification import distributed, evaluation, preflight, runtimes
    from image_classification.environment import describe
    from image_classification.metric_names import headline
    from image_classification.report.run_log import class_table
    from image_classification.validation import Validator
    from image_classification.workspace import tidy

    started, own = time.perf_counter(), argparse.Namespace(**vars(args))
    state, precision = open_run(own, launch, device, seed, interruption)
    args, logger = state.args, state.logger
    with tidy(state.workspace, run_files(args), args.check), logger, ExitStack() as cleanup:
        # ---- data and model
        splits = load_data(state)
        model = build_model(state, splits)
        settle_batch(state, model, splits)
        loaders = build_loaders(state, splits, cleanup)
        logger.parameters({**vars(args), "seed": state.seed, "num_classes": splits.num_classes,
                           "processes": launch.world_size, "environment": describe(device),
                           "amp_type": str(state.amp_dtype or "FP32").removeprefix("torch.")})
        logger.message(f"{launch.world_size} x {device}, {precision}, seed {state.seed}",
                       f"workspace {state.workspace}")
        logger.warning(*notes, *splits.warnings)
        validator = Validator(
            torch.nn.CrossEntropyLoss(), device=device, amp_dtype=state.amp_dtype, topk=args.topk,
            world_size=launch.world_size, max_batches=args.prof if args.prof > 0 else None,
            measure_latency=args.evaluate, epochs=1 if args.evaluate else args.epochs,
            print_freq=args.print_freq, logger=logger)
        # ---- evaluate or train
        if args.evaluate:
            way = runtimes.Runtime(args.runtime, model, device, state.amp_dtype, logger.message)
            best, row = evaluation.evaluate(
                way, validator, loaders["val"], splits.classes, args.benchmark, logger)
        else:
            trainer = build_trainer(state, model, loaders["train"], splits)
            preflight.check_ahead(
                trainer, loaders, state.files if args.save_checkpoints else None, logger,
                epochs=args.epochs, image_size=args.image_size, layout=state.memory_format,
                held=interruption.held, rehearses=args.jit != "script", explains=args.check)
            preflight.spread(
                trainer, partial(distributed.wrap, launch=launch, device=device,
                                 bucket_mib=args.bucket_mib),
                args.compile, logger, image_size=args.image_size, layout=state.memory_format)
            if args.check:
                return None, state.workspace
            best, row = build_epochs(state, trainer, validator, loaders, splits).run()
            logger.summary({"run.top1_best": best, "run.duration": time.perf_counter() - started})
        # ---- report
        if args.class_report and launch.primary:
            print(class_table(state.workspace, args.evaluate))
        what, seconds = "evaluated" if args.evaluate else "finished", time.perf_counter() - started
        logger.message(f"{what}: {headline(row, best)}{seconds:.1f} s, files in {state.workspace}",
                       "Experiment ended")
        return best, state.workspace


def open_run(
    args: argparse.Namespace, launch: Launch, device: Device, seed: int | None,
    interruption: Interruption,
) -> tuple[Run, str]:
    """Opens workspace, checkpoint and log; settles what the command line leaves open."""
    from image_classification import checkpoint_files, distributed
    from image_classification.logger import create_logger, new_run_id, terminal_logger
    from image_classification.workspace import open_workspace

    settle_dataset(args)
    wanted, use = choose_workspace(args, seed)
    workspace = open_workspace(wanted, traces=run_files(args), use=use, primary=launch.primary)
    skipped: list[str] = []
    files = checkpoint_files.CheckpointFiles(
        workspace, args.checkpoint_filename, args.gather_checkpoints)
    saved = checkpoint_files.load_resume(args.resume, files, arch=args.arch, say=skipped.append)
    settle_network(args, saved)
    if seed is None:
        seed = saved["seed"] if saved else distributed.shared_seed()
    amp_dtype, precision = None, "FP16 weights" if args.fp16 else "FP32"
    if args.amp:
        amp_dtype, precision = device.amp_dtype(args.amp_dtype)
    logger = terminal_logger(launch.primary) if args.check else create_logger(
        workspace=workspace, report_file=args.raport_file, primary=launch.primary, append=True,
        run_id=new_run_id(), tensorboard=args.tensorboard)
    logger.warning(*skipped)
    if args.resume == "auto" and saved is None:
        logger.message("--resume auto: there is no checkpoint yet, the training starts anew")
    return Run(args, launch, device, workspace, logger, saved, seed, amp_dtype,
               device.memory_format(args.memory_format, args.amp or args.fp16), files, interruption
               ), precision + device.caveat


def load_data(state: Run) -> Splits:
    """Indexes the images; checks train, val and the checkpoint's classes against each other."""
    from image_classification import data_sources, datasets

    args, data, saved = state.args, state.args.data, state.saved
    if args.data_backend == "synthetic":
        return data_sources.synthetic_splits(
            args.synthetic_size, args.num_classes or (saved["num_classes"] if saved else 1000))
    splits = data_sources.load(
        data, args.dataset, train=not args.evaluate, val=not args.training_only,
        val_share=args.val_split, layout=args.data_layout, num_classes=args.num_classes,
        say=state.logger.message, samples=DOWNLOADS,
        small_side=args.image_size if shows_small_images(args) else None,
        create=data == str(DOWNLOADS),
        lists=state.workspace if state.launch.primary and not args.check else None)
    return datasets.adopt_classes(splits, saved["classes"], "the checkpoint") if saved else splits


def settle_batch(state: Run, model: torch.nn.Module, splits: Splits) -> None:
    """Fills in batch size, images per optimizer step and learning rate."""
    from image_classification import batch_size, step_plan

    args, ranks = state.args, state.launch.world_size
    if args.batch_size == AUTO and state.saved is not None:
        args.batch_size = state.saved["config"].get("batch_size", AUTO)
    if args.batch_size == AUTO:
        args.batch_size = batch_size.fitting_batch_size(
            model, state.device, images=len(splits.train or ()) // ranks,
            group=args.optimizer_batch_size / ranks, image_size=args.image_size,
            amp_dtype=state.amp_dtype, layout=state.memory_format,
            copies=1 + (args.optimizer == "adamw") + (args.use_ema is not None),
            processes=state.launch.local_world_size)
    accumulation = step_plan.accumulation_steps(args.batch_size, ranks, args.optimizer_batch_size)
    args.optimizer_batch_size = args.batch_size * ranks * accumulation
    args.lr = 0.256 * args.optimizer_batch_size / 256 if args.lr is None else args.lr


def build_loaders(state: Run, splits: Splits, cleanup: ExitStack) -> dict[str, Loader]:
    """Creates the loaders of "train" and "val", as far as this run needs them."""
    import torch

    from image_classification import dataloaders
    from image_classification.bad_images import BadFileLog, BadImages

    args, launch, loaders = state.args, state.launch, {}
    args.data_backend, note = dataloaders.choose_backend(
        args.data_backend, policy(args), state.device.type, in_memory=splits.in_memory,
        cutout=args.cutout, grows=args.progressive_resize is not None)
    if args.workers is None:
        args.workers = 5 if args.data_backend == "pytorch" else affinity.default_threads(
            args.gpu_affinity, launch.local_world_size, computes=not state.device.is_accelerator)
    state.logger.message(note or f"images come from the {args.data_backend} loader")
    bad_files = BadFileLog(state.workspace, state.logger.warning)
    indices = (splits.train, splits.val)
    for split, index, preset in zip(("train", "val"), indices, presets(args), strict=True):
        if index is None or (args.evaluate if split == "train" else args.training_only):
            continue  # synthetic data has both splits in any case
        bad = BadImages(
            len(index), max_bad=args.max_bad, tolerated=split == "train" or args.allow_bad_val,
            seed=state.seed, report=bad_files.add, root=str(getattr(index, "root", "")))
        loaders[split] = dataloaders.create_loader(
            args.data_backend, index, preset, device=state.device, batch_size=args.batch_size,
            rank=launch.rank, world_size=launch.world_size, global_batch=args.optimizer_batch_size,
            seed=state.seed, workers=args.workers, prefetch=args.prefetch, bad=bad,
            memory_format=state.memory_format,
            dtype=torch.float16 if args.fp16 else state.amp_dtype or torch.float32)
        cleanup.callback(loaders[split].close)
        state.logger.warning(*loaders[split].notes)
    return loaders


def build_model(state: Run, splits: Splits) -> torch.nn.Module:
    """Builds the network with the checkpoint's or the given weights, on the device."""
    import torch

    from image_classification import compiling, distributed, freezing, recomputing
    from image_classification.pretrained import Weights, load_weights, starting_weights
    from models import create_model

    args, saved, logger = state.args, state.saved, state.logger
    given = None if saved else starting_weights(
        args.arch, args.pretrained_weights, published=args.pretrained or args.pretrained_optional,
        version=args.weights_version, folder=Path(args.weights_dir or PACKAGE_ROOT / "weights"),
        optional=args.pretrained_optional, say=logger.message, warn=logger.warning)
    if given is not None:
        args.bn_epsilon = given.bn_epsilon if args.bn_epsilon is None else args.bn_epsilon
        args.channels = given.channels if find_arch(args.arch).family == "resnet" else None
    args.from_scratch = saved["config"].get("from_scratch", False) if saved else given is None
    if args.from_scratch and not args.evaluate:
        args.freeze = freezing.without_weights(args.freeze, logger.warning)
    torch.manual_seed(state.seed)
    model = create_model(args.arch, splits.num_classes, **model_options(args))
    if saved is not None:
        averaged = args.evaluate and saved.get("state_dict_ema") is not None
        weights = saved["state_dict_ema" if averaged else "state_dict"]
        load_weights(model, Weights(weights, source=args.resume), min_matched=1.0)
        if averaged:
            logger.message("evaluating the averaged (EMA) weights")
    elif given is not None:
        report = load_weights(
            model, given, replace_head=not args.evaluate, classes=splits.classes,
            min_matched=args.min_matched)
        logger.message(*report.messages)
        logger.warning(*report.warnings)
    model = recomputing.recompute_blocks(model) if args.grad_checkpointing else model
    model = distributed.with_sync_batch_norm(model, state.device) if args.sync_bn else model
    dtype = torch.float16 if args.fp16 else torch.float32
    model = model.to(state.device.torch_device, dtype, memory_format=state.memory_format)
    return compiling.scripted(model, args.jit, state.device, state.amp_dtype)


def build_trainer(
    state: Run, model: torch.nn.Module, loader: Loader, splits: Splits
) -> Trainer:
    """Wires optimizer, schedule, scaler and EMA; restores their state."""
    from image_classification import checkpoint, losses, optimizers, sharding, step_plan
    from image_classification.ema import ModelEma
    from image_classification.freezing import Freezing
    from image_classification.training import Trainer

    args, device, launch = state.args, state.device, state.launch
    accumulation = args.optimizer_batch_size // (args.batch_size * launch.world_size)
    steps = step_plan.steps_per_epoch(
        loader.num_samples, args.optimizer_batch_size,
        [limit // accumulation for limit in (args.prof, args.iters) if limit > 0])
    state.logger.message(step_plan.describe_steps(
        steps, len(splits.train or ()), args.batch_size, launch.world_size, accumulation, args.lr))
    ema = None if args.use_ema is None else ModelEma(model, args.use_ema)
    if args.parallel == "fsdp":
        networks = [model] if ema is None else [model, ema.model]
        state.logger.message(sharding.shard(networks, device.type, launch.world_size))
    optimizer = optimizers.create_optimizer(
        args.optimizer, model, lr=args.lr, weight_decay=args.weight_decay, momentum=args.momentum,
        nesterov=args.nesterov, rmsprop_alpha=args.rmsprop_alpha, rmsprop_eps=args.rmsprop_eps,
        lars_eta=args.lars_eta, decay_all=args.bn_weight_decay, head_lr=args.head_lr,
        fused=device.prefers_fused_optimizers(state.amp_dtype) and not sharding.is_sharded(model))
    lr = optimizers.lr_policy(
        args.lr_schedule, args.lr, total_steps=steps * args.epochs,
        warmup_steps=round(steps * args.warmup), end_lr=args.end_lr, gamma=args.lr_gamma,
        milestones=[epoch / args.epochs for epoch in args.lr_milestones or ()] or None)
    trainer = Trainer(
        model, model, losses.training_loss(args.class_weights, splits, args.label_smoothing).to(
            device.torch_device), optimizer, lr, device=device, amp_dtype=state.amp_dtype,
        scaler=device.grad_scaler(state.amp_dtype, args.static_loss_scale,
                                  args.dynamic_loss_scale or args.static_loss_scale is None),
        num_batches=steps * accumulation, accumulation_steps=accumulation,
        clip_grad_norm=args.clip_grad_norm, mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix, freeze_bn=args.freeze_bn,
        freezing=Freezing(model, args.freeze, args.unfreeze_after),
        ema=ema, seed=state.seed, rank=launch.rank, world_size=launch.world_size,
        batch_images=args.batch_size * launch.world_size)
    if state.saved is not None:
        lines = checkpoint.changed_settings(state.saved, {**vars(args), "seed": state.seed})
        state.logger.warning(*lines, *trainer.load_state_dict(state.saved))
    return trainer


def build_epochs(
    state: Run, trainer: Trainer, validator: Validator, loaders: dict[str, Loader], splits: Splits
) -> EpochLoop:
    """Wires what trains epoch by epoch, with what its checkpoints say of the run."""
    from image_classification import checkpoint
    from image_classification.epochs import EpochLoop, Progress
    from image_classification.heartbeat import Heartbeat
    from image_classification.saver import Saver

    args, saver, beat = state.args, None, Heartbeat(state.launch.heartbeat).beat
    about = {
        "format": checkpoint.FORMAT, "arch": args.arch, "num_classes": splits.num_classes,
        "model_options": model_options(args), "seed": state.seed, "classes": splits.classes,
        "config": vars(args),
        "preprocessing": dict(zip(
            ("train", "val"), (preset.to_dict() for preset in presets(args)), strict=True)),
    }
    if args.save_checkpoints and state.launch.primary:
        state.files.sweep()
        saver = Saver(state.files, state.logger.warning, alive=beat)
    return EpochLoop(
        trainer, validator, loaders, Progress.of(state.saved), saver=saver, about=about,
        saves=args.save_checkpoints, interval=SaveInterval.parse(args.checkpoint_interval),
        epochs=args.epochs, run_epochs=args.run_epochs, patience=args.early_stopping_patience,
        print_freq=args.print_freq, interruption=state.interruption, beat=beat, logger=state.logger,
        name_sample=getattr(splits.train, "path", str),
        go_back=state.files.newest if args.on_divergence == "rollback" else None)


def main(argv: list[str]) -> int:
    """Runs the command line; user errors become one line each and an exit code."""
    try:
        with Interruption() as interruption:
            args, notes = parse_args(argv)
            if args.list_recipes:
                print_line(read_recipes(name := args.recipe or "").listing(name.rpartition(":")[2]))
                return 0
            if args.doctor:
                from image_classification.doctor import examination
                return examination.examine(PACKAGE_ROOT, os.environ)
            run(args, notes, interruption)
        return 0
    except UserError as error:
        return tell("main.py", error)
    except Stopped as stop:
        print(f"main.py: stopped by a signal; {stop.saved}", file=sys.stderr)
        return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
