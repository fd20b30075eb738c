# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers, weight-decay groups and learning-rate schedules.

A schedule is a pure function of the optimizer step: nothing about it needs saving, and a resumed
run continues on the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from image_classification import sharding
from image_classification.lars import LARS
from image_classification.rmsprop_tf import RMSpropTF
from models.common import head_name

LR_SCHEDULES = ("step", "linear", "cosine", "exponential")
OPTIMIZERS = ("sgd", "adamw", "rmsprop", "rmsprop-tf", "lars")

# Where "exponential" ends, as a part of the base rate, if nobody says where.
_EXPONENTIAL_END = 1e-3

# Fractions of the training at which "step" divides the rate by 10: epochs 30, 60 and 80 of 90.
STEP_MILESTONES = (30 / 90, 60 / 90, 80 / 90)

_NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    head: str | None = None,
    head_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Splits the parameters into a decayed and an undecayed group, each with and without the head.

    Normalisation layers (found by type, so that those of the shortcuts are included) and biases
    are not decayed, as in Goyal et al. 2017 (arXiv:1706.02677, section 5.3).

    Args:
        model: The network, without a DistributedDataParallel wrapper.
        weight_decay: L2 coefficient of the decayed group, >= 0.
        decay_all: Decay every parameter (`--bn-weight-decay`).
        head: Name of the module that has a learning rate of its own; None: all have the same.
        head_scale: That rate as a multiple of the others'.

    Returns:
        Groups with keys "params", "names", "weight_decay" and "lr_scale".
    """
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = {
        (decay, scale): {} for scale in (1.0, head_scale) for decay in (weight_decay, 0.0)
    }
    for module_name, module in model.named_modules():
        scale = head_scale if head is not None and module_name == head else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, _NORMALIZATION) or name == "bias"
            group = groups[0.0 if plain and not decay_all else weight_decay, scale]
            group[f"{module_name}.{name}" if module_name else name] = parameter
    return [
        {
            "params": list(group.values()), "names": list(group), "weight_decay": decay,
            "lr_scale": scale,
        }
        for (decay, scale), group in groups.items()
        if group
    ]  # fmt: skip


def create_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    rmsprop_alpha: float = 0.9,
    rmsprop_eps: float = 1e-3,
    lars_eta: float = 1e-3,
    decay_all: bool = False,
    head_lr: float | None = None,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """Builds the optimizer over the model's parameter groups.

    Args:
        name: One of `OPTIMIZERS`.
        model: The network whose parameters are trained.
        lr: Initial learning rate; the schedule overwrites it before each step.
        weight_decay: L2 coefficient, >= 0.
        momentum: Momentum of sgd, rmsprop and lars; beta1 of adamw.
        nesterov: Nesterov momentum (sgd).
        rmsprop_alpha: Smoothing constant of rmsprop.
        rmsprop_eps: Added to the denominator of rmsprop; in rmsprop-tf under its root.
        lars_eta: Length of a step of lars at rate 1 as a share of the length of the weights.
        decay_all: Decay normalisation parameters and biases too.
        head_lr: Initial learning rate of the classifier, which keeps its ratio to `lr`; None: `lr`.
        fused: One kernel for all parameters (sgd and adamw, devices that have it).

    Returns:
        The optimizer.

    Raises:
        ValueError: Unknown name.
    """
    groups = parameter_groups(
        model, weight_decay, decay_all=decay_all,
        head=None if head_lr is None else head_name(model),
        head_scale=1.0 if head_lr is None else head_lr / lr,
    )  # fmt: skip
    extra = {"fused": True} if fused else {}
    if name == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, **extra)
        _start_momentum(sgd)
        return sgd
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), **extra)
    if name in ("rmsprop", "rmsprop-tf"):
        kind = torch.optim.RMSprop if name == "rmsprop" else RMSpropTF
        return kind(groups, lr=lr, alpha=rmsprop_alpha, eps=rmsprop_eps, momentum=momentum)
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum, eta=lars_eta)
    raise ValueError(f"unknown optimizer {name!r}; known: {', '.join(OPTIMIZERS)}")


def lr_policy(
    schedule: str,
    base_lr: float,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    end_lr: float = 0.0,
    milestones: Sequence[float] | None = None,
    gamma: float = 0.1,
) -> Callable[[int], float]:
    """Builds the learning rate as a function of the optimizer step.

    The warm-up rises linearly and reaches `base_lr` once, at step `warmup_steps - 1`; linear,
    cosine and exponential reach `end_lr` exactly at the last step.

    Args:
        schedule: "step", "linear", "cosine" (arXiv:1608.03983, one cycle) or "exponential" (the
            same factor in each step).
        base_lr: Peak learning rate.
        total_steps: Optimizer steps of the whole training, >= 1.
        warmup_steps: Optimizer steps of the warm-up, included in `total_steps`.
        end_lr: Rate of the last step; exponential takes a thousandth of `base_lr` for 0.
        milestones: Where "step" falls by `gamma`, as parts of the training; None: epochs 30, 60
            and 80 of 90.

    Returns:
        `lr(step)` for step = 0 ... total_steps - 1; later steps get the rate of the last one.

    Raises:
        ValueError: Unknown schedule.
    """
    if schedule not in LR_SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(LR_SCHEDULES)}")
    if schedule == "exponential" and not end_lr:
        end_lr = base_lr * _EXPONENTIAL_END
    peak = max(warmup_steps - 1, 0)
    falling_steps = max(total_steps - 1 - peak, 1)
    falls = [max(round(total_steps * part), 1) for part in milestones or STEP_MILESTONES]
    curves: dict[str, Callable[[float], float]] = {
        "linear": lambda part: base_lr + (end_lr - base_lr) * part,
        "cosine": lambda part: end_lr + (base_lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * part)),
        "exponential": lambda part: base_lr * (end_lr / base_lr) ** part if base_lr else 0.0,
    }

    def lr(step: int) -> float:
        if step < warmup_steps:
            return base_lr * (step + 1) / warmup_steps
        if schedule == "step":
            return base_lr * gamma ** sum(step >= fall for fall in falls)
        part = (step - peak) / falling_steps
        return end_lr if part >= 1.0 else curves[schedule](part)

    return lr


def state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Returns the optimizer's state (momentum buffers, ...) keyed by parameter name, on the CPU.

    The tensors are whole; all ranks call it.
    """
    return {
        name: {
            key: sharding.whole(value.detach()).cpu() if isinstance(value, torch.Tensor) else value
            for key, value in optimizer.state.get(parameter, {}).items()
        }
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def load_state_by_name(
    optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Any]]
) -> list[str]:
    """Restores what `state_by_name` returned; hyper-parameters stay those of the command line.

    Args:
        optimizer: Optimizer over the same parameters.
        state: State keyed by parameter name.

    Returns:
        Names of parameters without an entry in `state`; empty when everything was restored.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    restored = optimizer.state_dict()  # groups with today's hyper-parameters
    restored["state"] = {
        index: {key: _strided_like(parameter, value) for key, value in state[name].items()}
        for index, (name, parameter) in enumerate(parameters.items())
        if state.get(name)
    }
    optimizer.load_state_dict(restored)
    _start_momentum(optimizer)
    return [name for name in parameters if name not in state]


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives fused SGD zeros where it has no momentum yet.

    torch allocates the buffers in the first step, and leaves them unset where that is left out.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["fused"] and group["momentum"] else ():
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _strided_like(parameter: torch.Tensor, value: Any) -> Any:
    """Gives a buffer of the parameter's shape its memory format, or spreads it over the ranks."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    if sharding.is_spread(parameter):
        return sharding.spread_like(parameter, value)
    return torch.empty_like(parameter, dtype=value.dtype, device="cpu").copy_(value)
