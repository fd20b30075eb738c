# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint may hold: nothing in it is taken on trust."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from image_classification import checkpoint
from image_classification.augmentation import EvalPreset, TrainPreset
from image_classification.errors import CheckpointError
from image_classification.optimizers import OPTIMIZERS, create_optimizer, state_by_name
from models.common import CONV_INITS
from models.resnet import ResNet, SEBottleneck


def content(epoch: int = 1) -> dict[str, Any]:
    weights = {"w": torch.full((4,), float(epoch)), "v": torch.ones(2)}
    return {
        "epoch": epoch, "samples_done": 0, "arch": "resnet18", "num_classes": 2, "format": 1,
        "counters": {"step": 3, "skipped_steps": 0, "ema_updates": 3}, "seed": 5,
        "state_dict": weights, "state_dict_ema": weights, "amp": None,
        "optimizer": {"w": {"momentum_buffer": torch.ones(4)}},
        "best_prec1": 12.5, "best_epoch": 0, "classes": ["cat", "dog"],
        "model_options": {"conv_init": "fan_out", "zero_init_last_bn": False, "dropout": 0.0},
        "preprocessing": {"train": TrainPreset().to_dict(), "val": EvalPreset().to_dict()},
        "config": {"optimizer": "sgd", "lr": 0.1, "epochs": 90, "crop_scale": [0.08, 1.0]},
    }  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    """Writes a valid checkpoint with these entries instead; `...` leaves the entry out."""
    state = {key: value for key, value in {**content(), **changes}.items() if value is not ...}
    torch.save(state, path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("other", [{"w": torch.ones(1)}, [content()], torch.ones(2), None])
def test_bare_weights_are_no_training_checkpoint(tmp_path: Path, other: Any) -> None:
    torch.save(other, tmp_path / "weights.pth")
    text = refusal(tmp_path / "weights.pth")
    assert "not a training checkpoint" in text and "--pretrained-weights" in text


COUNTERS, SCALER = content()["counters"], dict.fromkeys(checkpoint._SCALER, 1)
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
HOSTILE: dict[str, list[Any]] = {
    "format": [2, "1", True],
    "arch": ["resnet5000", None, {"resnet18": 1}],
    "num_classes": [0, True, 2.0],
    "classes": [None, ["cat"], ["cat", 1], "ab", {"cat": 0, "dog": 1}, ENDLESS],
    "epoch": [-1, ENDLESS, 1.0, "1", True, 2**600, torch.tensor(1), None],
    "samples_done": [-1],
    "best_prec1": [math.nan, math.inf, -1, "12", 2**600, torch.tensor(12.5), True],
    "best_epoch": [None, -2, 2, 0.0],
    "seed": [None, -1, 2**63, 0.5, "1\n2", "\x1b[2J" * 1000],
    "preprocessing": [
        None, {}, ENDLESS, {"val": {}}, {"train": {}, "val": None},
        *({"train": {}, "val": bad} for bad in ({"image_size": 0}, {"image_size": 2.0}, {"a": 0})),
        *({"train": {name: bad}, "val": {}} for name, bad in (
            ("scale", 1), ("scale", [math.nan, 1]), ("interpolation", "nearest"), ("flip", "x"),
            ("image_size", 2**31))),
    ],
    "config": [
        {}, None, ENDLESS, {"optimizer": "lion"}, {"optimizer": ["sgd"]},
        *({"optimizer": "sgd"} | bad for bad in (
            {"lr": torch.ones(2)}, {"crop_scale": ENDLESS}, {"epochs": 2**600}, {1j: 1})),
    ],
    "model_options": [
        None, ["dropout"], {"depth": 3}, {"num_classes": 2}, {"dropout": 1}, {"dropout": math.nan},
        {"conv_init": "zeros"}, {"zero_init_last_bn": "yes"}, {"fused_se": True},
        *({"channels": bad} for bad in (64, [0] * 9, ["64"] * 9, [True] * 9)),
    ],
    "counters": [{}, None, 3, {"step": 3}, COUNTERS | {"step": -1}, COUNTERS | {"step": 1.5}],
    "state_dict": [
        {}, None, torch.ones(4), {"w": [1.0]}, {1: torch.ones(4)}, {"w": torch.ones(4).to_sparse()},
        {"w": torch.ones(4, device="meta")}, {"w": torch.ones(4, dtype=torch.complex64)},
        {"w": torch.ones(4, dtype=torch.uint8).view(torch.bits8)},
    ],
    "state_dict_ema": [{}, 1, {"w": torch.ones(4)}, {"w": torch.ones(4), "v": torch.ones(4)}],
    "optimizer": [
        None, {"w": torch.ones(4)}, {"u": {"momentum_buffer": torch.ones(4)}},
        {"w": {"momentum_buffer": torch.ones(3)}}, {"w": {"momentum_buffer": "ones"}},
    ],
    "amp": [1, {"scale": 2.0}, SCALER | {"scale": 0}, SCALER | {"scale": math.inf},
            SCALER | {"_growth_tracker": 2**31}, SCALER | {"growth_factor": -1.0}],
    "sums": [
        {"epoch": [0.0, *bad, 0.0], "ranks": [[0.0] * 5]} for bad in (
            (math.nan, 1), (math.inf, 1), (1, -1), (2**600, 1), (1,), (1, "1"))
    ] + [{"epoch": [0.0] * 4, "ranks": bad} for bad in (
            [], [[0.0] * 4], [[0.0] * 2 + [math.nan, 0.0, 0.0]], [[2**600] * 5])],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(k, v) for k in HOSTILE for v in HOSTILE[k]])
def test_entries_that_no_training_writes_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    text = refusal(write(tmp_path / "bad.pth.tar", **{key: value}))
    early = torch.__version__ < "2.6" and "refused to load" in text  # before the entries are seen
    assert early or (f": {key} is " in text and "expected" in text)
    assert text.isprintable() and len(text) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("key", sorted(content()))
def test_every_entry_but_four_is_required(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "short.pth.tar", **{key: ...})
    if key in ("format", "samples_done", "state_dict_ema", "amp"):
        assert key not in checkpoint.load(path)
    else:
        assert f"not a training checkpoint of this package (no {key})" in refusal(path)


@pytest.mark.parametrize("rest", [{}, {"num_classes": ..., "seed": ..., "config": ...}])
def test_cambricons_checkpoints_are_told_from_damaged_ones(
    tmp_path: Path, rest: dict[str, Any]
) -> None:
    path = write(tmp_path / "theirs.pth.tar", arch=("resnet50", "classic", 1000, False), **rest)
    text = refusal(path)
    assert "checkpoint2model.py" in text and "--pretrained-weights" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": 0, "best_prec1": None, "best_epoch": -1, "state_dict_ema": None},
        {"sums": {"epoch": [math.inf, 1, 8, math.nan], "ranks": [[math.nan, 0.0, 1.0, 0.0, 4]]}},
        {"best_prec1": 0}, {"best_prec1": 100.0}, {"seed": 2**63 - 1}, {"amp": {}},
        {"amp": SCALER}, {"optimizer": {}}, {"optimizer": {"w": {}}},
        {"optimizer": {"w": {"momentum_buffer": None}}},
        {"arch": "se-resnext101-32x4d", "model_options": {"se_as_conv": True, "fused_se": False}},
        {"config": {"optimizer": "sgd", "max_bad": math.inf, "seeds": (1, 2), "data": None}},
    ],
)  # fmt: skip
def test_what_trainings_write_is_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint.load(write(tmp_path / "good.pth.tar", **changes))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_optimizer_state_is_whole_or_refused(tmp_path: Path, name: str, momentum: float) -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    optimizer = create_optimizer(name, layer, lr=0.1, weight_decay=0, momentum=momentum)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = state_by_name(optimizer)
    changes = {
        "config": {"optimizer": name, "momentum": momentum}, "state_dict": layer.state_dict(),
        "state_dict_ema": None, "optimizer": state,
    }  # fmt: skip
    path = write(tmp_path / "good.pth.tar", **changes)
    assert checkpoint.load(path)["optimizer"].keys() == {"0.weight", "0.bias"}
    for key in () if name == "sgd" else list(state["0.bias"]):
        for other in ({}, {key: None}, {key: "1"}):
            damaged = {k: v for k, v in state["0.bias"].items() if k != key} | other
            if not damaged:
                continue  # no steps yet, which is no damage
            write(path, **changes | {"optimizer": {**state, "0.bias": damaged}})
            assert "optimizer is a dict of 2" in refusal(path)


def test_the_models_options_are_those_of_the_network() -> None:
    se = {"fused_se": True, "se_as_conv": True}
    good = {"conv_init": "fan_in", "zero_init_last_bn": True, "dropout": 0.5}
    pruned = {"channels": [8] * 5 + [16] * 4}
    for network, names, others in (
        (ResNet, set(good | pruned), {"variant", "num_classes", "se_options"}),
        (SEBottleneck, set(se), {"in_channels", "width", "out_channels", "stride", "groups"}),
    ):
        assert inspect.signature(network).parameters.keys() - others == names
    assert checkpoint._is_model_options(good | se, {"arch": "se-resnext101-32x4d"})
    assert checkpoint._is_model_options(good | pruned, {"arch": "resnet50"})
    for value in CONV_INITS:
        assert checkpoint._is_model_options(good | {"conv_init": value}, {"arch": "resnet50"})


def settings() -> dict[str, Any]:
    """The options of a run as main.py has them when it compares."""
    args, _ = main.parse_args(["--data-backend", "synthetic", "--optimizer", "rmsprop"])
    main.settle_network(args, None)
    return vars(args) | {"lr": 0.1, "optimizer_batch_size": 256}


# What may differ without bending the course: where the run is, how it is computed, what is shown.
ELSEWHERE = {
    "directory", "dataset", "dummy_test", "synthetic_size", "data_layout", "num_classes", "workers",
    "prefetch", "max_bad", "allow_bad_val", "arch", "model_config", "trt", "fused_se",
    "pretrained_weights", "jit", "grad_checkpointing", "compile", "runtime", "benchmark", "device",
    "gpu_id", "pyamp", "cnmix", "opt_level", "fp16",
    "memory_format", "deterministic", "gpu_affinity", "parallel", "bucket_mib", "dist_backend",
    "world_size", "addr",
    "run_epochs", "on_divergence", "early_stopping_patience", "seeds", "optimizer", "check",
    "recipe", "list_recipes", "pretrained", "pretrained_optional", "weights_dir", "weights_version",
    "min_matched", "channels", "from_scratch", "class_report", "doctor", "evaluate",
    "training_only", "topk", "workspace", "run_name", "resume", "save_checkpoints",
    "checkpoint_filename", "gather_checkpoints", "checkpoint_interval", "raport_file",
    "print_freq", "tensorboard",
}  # fmt: skip
COMPARED = (*checkpoint._COURSE, *checkpoint._INITIAL)


def test_every_option_of_main_is_compared_or_known_not_to_matter() -> None:
    options = settings().keys()
    assert set(COMPARED) <= options, "checkpoint.py compares what is no option"
    assert options <= {*COMPARED, *ELSEWHERE}, "new options: into _COURSE, or into this test's list"


def test_an_unchanged_run_changes_nothing() -> None:
    now = settings()
    saved: dict[str, Any] = {"config": settings() | {"crop_scale": (0.08, 1.0)}, "seed": 5}
    assert checkpoint.changed_settings(saved, now) == []
    assert checkpoint.changed_settings(saved, now | {"seed": 5}) == []
    saved["config"]["optimizer"] = now["optimizer"] = "sgd"  # which has no such options:
    others = {"rmsprop_alpha": 0.5, "rmsprop_eps": 1, "lars_eta": 1}
    assert checkpoint.changed_settings(saved, now | others) == []


@pytest.mark.parametrize("name", COMPARED)
def test_changed_settings_are_named(name: str) -> None:
    saved, now = {"config": settings(), "seed": 5}, settings()
    if name.startswith("lars_"):
        saved["config"]["optimizer"] = now["optimizer"] = "lars"
    now[name] = [0.2, 0.9] if name == "crop_scale" else 77
    (line,) = checkpoint.changed_settings(saved, now)
    was = saved["seed"] if name == "seed" else saved["config"][name]
    note = "; the checkpoint's weights stay" if name in checkpoint._INITIAL else ""
    assert line == f"resuming with {name} {now[name]}, it was {was}{note}"


def test_settings_that_a_checkpoint_lacks_are_said_in_one_line(tmp_path: Path) -> None:
    config = settings() | {"optimizer": "sgd"}
    saved = {"config": {k: v for k, v in config.items() if k not in ("lr", "hflip")}, "seed": 5}
    assert checkpoint.changed_settings(saved, config) == [
        "the checkpoint does not say its lr, hflip: this run's apply"
    ]
    for saved in ({}, {"config": {}}, {"config": None}):
        with pytest.raises(CheckpointError, match="with an unknown optimizer, --optimizer is sgd"):
            checkpoint.changed_settings(saved, config)


@pytest.mark.parametrize(
    ("config", "options", "now", "text"),
    [
        ({"optimizer": "sgd"}, {}, {"optimizer": "adamw"}, "with sgd, --optimizer is adamw"),
        ({"optimizer": "sgd"}, {}, {"optimizer": "lars"}, "with sgd, --optimizer is lars"),
        ({"optimizer": "lars"}, {}, {"optimizer": "sgd"}, "with lars, --optimizer is sgd"),
        ({"momentum": 0.0}, {}, {"momentum": 0.9}, "without momentum, --momentum is 0.9"),
        ({}, {"se_as_conv": True}, {"trt": False}, "with --trt True, --trt is False"),
    ],
)
def test_optimizer_state_that_cannot_go_on_is_refused(
    config: dict[str, Any], options: dict[str, Any], now: dict[str, Any], text: str
) -> None:
    saved = {"config": settings() | config, "model_options": options, "seed": 5}
    with pytest.raises(CheckpointError, match=f"{text}; use the same, or start anew"):
        checkpoint.changed_settings(saved, settings() | now)


def test_a_snapshot_does_not_change_with_the_weights() -> None:
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    plain, number = torch.ones(3), torch.tensor(2)
    copied = checkpoint.snapshot({"a": {"b": weight}, "c": 3, "d": plain, "e": number})
    assert copied["c"] == 3 and copied["a"]["b"].is_contiguous() and copied["a"]["b"].equal(weight)
    plain.zero_()
    number.zero_()
    assert copied["d"].equal(torch.ones(3)) and copied["e"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_found(bad: float) -> None:
    assert checkpoint.is_finite(content())
    for part in ("state_dict", "state_dict_ema"):
        state = content()
        state[part] = {**state[part], "w": torch.tensor([1.0, bad])}
        assert not checkpoint.is_finite(state)
    assert checkpoint.is_finite({**content(), "state_dict_ema": None})
