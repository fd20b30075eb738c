# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Every option changes what the table says, every bad command line is explained."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from runs import ROOT, environment, write_images

pytest.register_assert_rewrite(
    "option_lab", "option_table_data", "option_table_device", "option_table_model",
    "option_table_runs", "option_table_training",
)
import option_table_data  # noqa: E402, F401
import option_table_device  # noqa: E402, F401
import option_table_model  # noqa: E402, F401
import option_table_runs  # noqa: E402, F401
import option_table_training  # noqa: E402, F401
from option_lab import TABLE, Lab, Outcome, narrow_networks  # noqa: E402

import main  # noqa: E402
from image_classification import option_types  # noqa: E402
from image_classification.errors import UsageError  # noqa: E402

OPTIONS = main.build_parser()._actions


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, Path, dict[tuple[str, ...], Outcome]]]:
    """A folder for all, the images, and the runs that entries share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("options")
    with narrow_networks():
        yield folder, write_images(folder / "images"), {}
    Lab(folder, folder, {}).close()
    torch.set_num_threads(threads)


@pytest.fixture
def lab(
    scene: tuple[Path, Path, dict[tuple[str, ...], Outcome]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    folder, images, store = scene
    lab = Lab(folder / "entry", images, store)
    lab.folder.mkdir()
    yield lab
    lab.close()


def spellings(action: argparse.Action) -> list[str]:
    return list(action.option_strings) or [str(action.metavar)]


# ---- the table ----


def test_every_option_has_one_entry() -> None:
    for action in OPTIONS:
        entries = [name for name in spellings(action) if name in TABLE]
        assert len(entries) == 1, f"{spellings(action)}: entries {entries}"


def test_every_entry_has_an_option_and_says_what_it_changes() -> None:
    known = {name for action in OPTIONS for name in spellings(action)}
    assert set(TABLE) <= known
    assert len(TABLE) == len(OPTIONS)
    assert all(entry.observable for entry in TABLE.values())


@pytest.mark.parametrize("option", TABLE)
def test_the_option_changes_what_the_table_says(option: str, lab: Lab) -> None:
    TABLE[option].check(lab)


# ---- other spellings ----


def refuses(kind: Callable[[str], object], text: str) -> bool:
    """Whether a type of options does not take a text."""
    try:
        kind(text)
    except argparse.ArgumentTypeError:
        return True
    return False


def example(action: argparse.Action) -> list[str]:
    """Values of an option that are not its default."""
    if action.nargs == 0:
        return []
    if action.choices:
        return [next(choice for choice in list(action.choices)[::-1] if choice != action.default)]
    if action.type is option_types.boolean:
        return [str(not action.default)]
    if isinstance(action.type, option_types.Number) or action.type is option_types.count_or_auto:
        # Few numbers serve a count and a share; which one does is what the option's type says.
        return ["0.25" if refuses(action.type, "3") else "3"] * (action.nargs or 1)  # type: ignore[operator]
    values = {option_types.numbers: "1,2", option_types.seeds: "1,2"}
    return [values.get(action.type, "somewhere")] * (action.nargs or 1)  # type: ignore[arg-type]


ALIASED = [action for action in OPTIONS[1:] if len(action.option_strings) > 1]


@pytest.mark.parametrize("action", ALIASED, ids=lambda action: action.dest)
def test_all_spellings_of_an_option_do_the_same(action: argparse.Action) -> None:
    parsed = []
    for name in action.option_strings:
        if not name.startswith("--no-"):
            args, problems = main.build_parser().parse_all(["DIR", name, *example(action)])
            assert not problems
            parsed.append(vars(args))
    assert all(one == parsed[0] for one in parsed)
    assert parsed[0][action.dest] != action.default


@pytest.mark.parametrize(
    "original, ours",
    [
        ("--mom 0.5", "--momentum 0.5"),
        ("--wd 0.5", "--weight-decay 0.5"),
        ("--checkpoint a.tar", "--checkpoint-filename a.tar"),
        ("--num_classes 7", "--num-classes 7"),
        ("--learning-rate 0.5", "--lr 0.5"),
        ("--weights file", "--pretrained-weights file"),
        ("--pretrained-from-file file", "--pretrained-weights file"),
        ("--last_bn_0_init True", "--zero-init-last-bn"),
        ("--last_bn_0_init False", ""),
        ("--conv-init fan_in", "--conv_init fan_in"),
        ("--fused-se False", "--fused_se False"),
        ("--gpu_id 0", "--gpu-id 0"),
        ("--device gpu", "--device cuda"),
        ("--data-backend syntetic", "--data-backend synthetic"),
        ("-j4 -b8 -p100", "--workers 4 --batch-size 8 --print-freq 100"),
        ("--augmentation None", "--augmentation none"),
        ("--gather-checkpoints", "--gather-checkpoints -1"),
        ("--pretrained-weights=", "--pretrained-weights="),
    ],
)
def test_spellings_of_the_original_programs(original: str, ours: str) -> None:
    theirs, same = (main.parse_args(["DIR", *line.split()])[0] for line in (original, ours))
    assert vars(theirs) == vars(same)


@pytest.mark.parametrize(
    "line, dest, value",
    [
        ("-c fanin", "conv_init", "fan_in"),
        ("-c grp-fanin", "conv_init", "fan_in"),
        ("-c classic", "conv_init", "fan_out"),
        ("-c grp-fanout", "conv_init", "fan_out"),
        ("", "conv_init", "fan_out"),
        ("--dummy_test", "data_backend", "synthetic"),
        ("--pyamp", "amp", True),
        ("--cnmix --opt_level O2", "amp", True),
        ("--cnmix --opt_level O0", "amp", False),
    ],
)
def test_names_for_a_choice_of_another_option(line: str, dest: str, value: object) -> None:
    assert getattr(main.parse_args(["DIR", *line.split()])[0], dest) == value


# ---- bad command lines ----


def problems(*argv: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        main.parse_args(list(argv))
    return str(caught.value).splitlines()


def test_all_problems_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--epochs many DIR --jit yes --hflip 2 --epohcs 3 --nesterov --optimizer adamw --amp=1"
    assert main.main([*argv.split(), "--crop-scale", "1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("main.py: error: ") for line in lines)
    found = [line.removeprefix("main.py: error: ") for line in lines]
    assert found[0] == "--epochs: expected a whole number, received 'many'"
    assert found[1].startswith("--jit: invalid choice: 'yes' (choose from ")
    assert found[2] == "--hflip: must be between 0 and 1, received 2"
    assert found[3:] == [
        "--amp: ignored explicit argument '1'",
        "--crop-scale: expected 2 arguments",
        "unknown argument '--epohcs'; did you mean --epochs?",
        "unknown argument '3'; see -h",
        "--nesterov is for --optimizer sgd; --no-nesterov turns it off",
    ]


@pytest.mark.parametrize(
    "line",
    ["--epochs x DIR", "-b x -c fanin DIR", "-bx DIR", "DIR --epochs --amp", "--lr a --lr b DIR"],
)
def test_a_bad_value_hides_nothing_else(line: str) -> None:
    """What stands behind it is still read: DIR is not called missing."""
    assert len(problems(*line.split())) == 1


@pytest.mark.parametrize(
    "line, text",
    [
        ("", "DIR is missing: give a data folder, sample:digits, or --data-backend synthetic"),
        ("sample:nothing", "unknown sample 'sample:nothing'; known: sample:digits"),
        ("DIR other", "unknown argument 'other'; see -h"),
        ("DIR --ep", "unknown argument '--ep'; did you mean --epochs?"),
        ("DIR --data other", "DIR is 'DIR' and --data is 'other'; give one of them"),
        ("DIR -c fanin --conv_init fan_out", "-c fanin contradicts --conv_init fan_out"),
        ("DIR --trt maybe", "--trt: expected True or False, received 'maybe'"),
        ("DIR --seeds 1,x", "--seeds: expected numbers like 0,1,2, received '1,x'"),
        ("DIR --batch-size 0", "--batch-size: must be at least 1, received 0"),
        ("DIR --sync-bn --jit script",
         "--sync-bn does not go with --jit script, which cannot hold it"),
        ("DIR --device npu --dist-backend gloo",
         "--dist-backend gloo does not serve device 'npu'; leave it out"),
        ("DIR -p 0", "--print-freq: must be at least 1, received 0"),
        ("DIR --topk 0", "--topk: must be at least 1, received 0"),
        ("DIR --prefetch 0", "--prefetch: must be at least 1, received 0"),
        ("DIR -j -1", "--workers: must be between 0 and 1024, received -1"),
        ("DIR --warmup -1", "--warmup: must be at least 0, received -1"),
        ("DIR --lr nan", "--lr: must be at least 0, received nan"),
        ("DIR --end-lr -1", "--end-lr: must be at least 0, received -1"),
        ("DIR --wd -1", "--weight-decay: must be at least 0, received -1"),
        ("DIR --mixup -1", "--mixup: must be at least 0, received -1"),
        ("DIR --gpu-id -1", "--gpu-id: must be at least 0, received -1"),
        ("DIR --epochs 0", "--epochs: must be at least 1, received 0"),
        ("DIR --num-classes 0", "--num-classes: must be at least 1, received 0"),
        ("DIR --image-size 0", "--image-size: must be between 1 and 16384, received 0"),
        ("DIR --val-resize 0", "--val-resize: must be between 1 and 16384, received 0"),
        ("DIR --world-size 0", "--world-size: must be at least 1, received 0"),
        ("DIR --run-epochs 0", "--run-epochs: must be at least 1 or -1, received 0"),
        ("DIR --prof 0", "--prof: must be at least 1 or -1, received 0"),
        ("DIR --iters -2", "--iters: must be at least 1 or -1, received -2"),
        ("DIR --optimizer-batch-size 0",
         "--optimizer-batch-size: must be at least 1 or -1, received 0"),
        ("DIR --early-stopping-patience 0",
         "--early-stopping-patience: must be at least 1 or -1, received 0"),
        ("DIR --gather-checkpoints -2",
         "--gather-checkpoints: must be at least 0 or -1, received -2"),
        ("DIR --label-smoothing 2", "--label-smoothing: must be between 0 and 1, received 2"),
        ("DIR --hflip -1", "--hflip: must be between 0 and 1, received -1"),
        ("DIR --rmsprop-alpha 2", "--rmsprop-alpha: must be between 0 and 1, received 2"),
        ("DIR --mom 1", "--momentum: must be at least 0 and below 1, received 1"),
        ("DIR --dropout 1", "--dropout: must be at least 0 and below 1, received 1"),
        ("DIR --use-ema 1", "--use-ema: must be at least 0 and below 1, received 1"),
        ("DIR --crop-scale 0 0.1", "--crop-scale: must be above 0 and at most 1, received 0"),
        ("DIR --crop-scale 0.5 0.1", "--crop-scale 0.5 0.1: needs MIN <= MAX"),
        ("DIR --synthetic-size 0 1", "--synthetic-size: must be at least 1, received 0"),
        ("DIR --clip-grad-norm 0", "--clip-grad-norm: must be above 0, received 0"),
        ("DIR --static-loss-scale 0", "--static-loss-scale: must be above 0, received 0"),
        ("DIR --rmsprop-eps 0", "--rmsprop-eps: must be above 0, received 0"),
        ("DIR --seed -1", "--seed: must be between 0 and 9223372036854775807, received -1"),
        ("DIR --seeds 1,1",
         "--seeds: needs different numbers between 0 and 9223372036854775807, received 1,1"),
        ("DIR --fp16", "--fp16 is for inference: add --evaluate, or train with --amp"),
        ("DIR --evaluate --resume x --training-only",
         "--evaluate and --training-only exclude each other"),
        ("DIR --evaluate --resume auto", "--evaluate needs the path: --resume PATH"),
        ("DIR --evaluate --weights x --seeds 1,2", "--seeds trains: drop --evaluate"),
        ("DIR --seed 1 --seeds 1,2", "--seed and --seeds exclude each other"),
        ("DIR --resume x --pretrained-weights y",
         "--resume brings its own weights: drop --pretrained and --pretrained-weights"),
        ("DIR --bucket-mib 0", "--bucket-mib: must be at least 1, received 0"),
        ("DIR --lars-eta 0 --optimizer lars", "--lars-eta: must be above 0, received 0"),
        ("DIR --nesterov --optimizer lars",
         "--nesterov is for --optimizer sgd; --no-nesterov turns it off"),
        ("DIR --nesterov --mom 0", "--nesterov needs --momentum above 0"),
        ("DIR --image-size 64 --val-resize 32",
         "--val-resize 32 is smaller than the validation's size 64"),
        ("DIR --seeds 1,2 --resume x",
         "--seeds starts several runs: it goes with --resume auto only"),
        ("DIR --training-only --early-stopping-patience 3",
         "--early-stopping-patience needs the validation that --training-only leaves out"),
        ("DIR --evaluate",
         "--evaluate would measure random weights: add --resume PATH or --pretrained-weights FILE"),
        ("DIR --fp16 --amp --evaluate --resume x", "--fp16 and --amp exclude each other; give one"),
        ("DIR --end-lr 0.1", "--end-lr is for --lr-schedule linear, cosine or exponential"),
        ("DIR --amp-dtype bfloat16", "--amp-dtype bfloat16 needs --amp"),
        ("DIR --device npu --tf32", "--tf32 is a switch of cuda, the device is npu"),
        ("DIR --checkpoint a/b", "--checkpoint-filename 'a/b': must be a name without folders"),
        ("DIR --raport-file=", "--raport-file '': must be a name without folders"),
        ("DIR --run-name ..", "--run-name '..': must be a name without folders"),
        ("DIR --checkpoint model_best.pth.tar",
         "--checkpoint-filename, --raport-file, model_best.pth.tar, benchmark.json, "
         "confusion.json, divergence.json, confusion_evaluation.json, metrics.jsonl, "
         "bad_files.txt, generations, tensorboard, train.txt, val.txt must differ"),
        ("DIR --checkpoint .last",
         "--checkpoint-filename '.last': no dot in front, and no .sha256 at the end"),
        ("DIR --raport-file a.sha256",
         "--raport-file 'a.sha256': no dot in front, and no .sha256 at the end"),
        ("DIR --data-backend dali-mlu",
         "--data-backend dali-mlu: DALI has no MLU version that can be installed; use fast"),
    ],
)  # fmt: skip
def test_a_bad_option_is_one_line(line: str, text: str) -> None:
    assert problems(*line.split()) == [text]


# ---- before torch ----


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which importing torch fails."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    return environment(PYTHONPATH=str(tmp_path), COLUMNS="100")


def run_without_torch(env: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "main.py"), *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_help_needs_no_torch_and_names_everything(without_torch: dict[str, str]) -> None:
    done = run_without_torch(without_torch, "-h")
    assert done.returncode == 0 and not done.stderr
    groups = [group.title for group in main.build_parser()._action_groups]
    missing = [title for title in groups[2:] if f"\n{title}:\n" not in done.stdout]
    assert not missing and len(groups) == 10
    words = done.stdout.replace(",", " ").replace("[", " ").replace("]", " ").split()
    names = {name for action in OPTIONS for name in spellings(action)}
    assert not names - set(words)
    assert "Exit codes: 0 done" in done.stdout


def test_a_bad_command_line_needs_no_torch(without_torch: dict[str, str]) -> None:
    done = run_without_torch(without_torch, "--lr", "fast", "--mixup", "-1")
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 3  # and DIR
    poisoned = run_without_torch(without_torch, "DIR", "--device", "cpu")
    assert "torch was imported" in poisoned.stderr  # the trap works


# ---- command lines of the programs that this one follows ----

MLU = (
    "--raport-file raport.json -j4 -p 100 --lr 2.048 --optimizer-batch-size 2048 --warmup 8 "
    "--arch resnet50 -c fanin --label-smoothing 0.1 --lr-schedule cosine --mom 0.875 "
    "--wd 3.0517578125e-05 --workspace ./ -b 128"
)
ON_MLU = "--training-only --dist-backend cncl --device mlu"
BENCHMARK = f"{MLU} --epochs 1 --seed 1 --prof 200 --iters 200"
NGC = (
    "--data-backend pytorch --lr 2.048 --optimizer-batch-size 2048 --warmup 8 --lr-schedule cosine "
    "--label-smoothing 0.1 --mom 0.875 --wd 3.0517578125e-05 -b 256 --mixup 0.2 --epochs 250"
)
# Every option of NVIDIA's parser for the ResNet family, with its default where it has one.
ALL_OF_NGC = (
    "--data-backend synthetic --interpolation bilinear --arch resnet50 --workers 5 --prefetch 2 "
    "--epochs 90 --run-epochs -1 --early-stopping-patience -1 --image-size 224 --batch-size 256 "
    "--optimizer-batch-size -1 --learning-rate 0.1 --lr-schedule step --end-lr 0 --warmup 0 "
    "--label-smoothing 0.0 --mixup 0.0 --optimizer sgd --momentum 0.9 --weight-decay 0.0001 "
    "--bn-weight-decay --rmsprop-alpha 0.9 --rmsprop-eps 0.001 --nesterov --print-freq 10 "
    "--static-loss-scale 1 --prof -1 --amp --seed 1 --gather-checkpoints 0 --training-only "
    "--raport-file experiment_raport.json --no-checkpoints --jit no --workspace ./ "
    "--checkpoint-filename checkpoint.pth.tar --memory-format nchw --use-ema 0.9999 "
    "--augmentation None --gpu-affinity none --topk 5 --num_classes 1000 --conv_init fan_in "
    "--last_bn_0_init False --trt False --fused_se True"
)


@pytest.mark.parametrize(
    "line",
    [
        f"{MLU} --epochs 90 {ON_MLU} --pyamp",
        f"{MLU} --epochs 90 {ON_MLU}",
        "--raport-file raport.json -j1 -p 100 --arch resnet50 -c fanin --workspace ./ -b 128 "
        "--epochs 91 --resume checkpoint.pth.tar --evaluate",
        *(f"{MLU} --epochs {epochs}" for epochs in (50, 90, 250)),
        f"{BENCHMARK} --dist-backend cncl --device mlu --cnmix --opt_level O1",
        f"{BENCHMARK} --dist-backend nccl --device gpu --pyamp",
        f"{BENCHMARK} --device mlu --resume resnet50v1_5/checkpoint.pth.tar",
        f"{BENCHMARK} --dummy_test --gather-checkpoints --num-classes 1000 --pretrained-weights=",
        *(f"--arch {arch} {NGC} --memory-format nhwc --amp --static-loss-scale 128 -p 20"
          for arch in ("resnet50", "resnext101-32x4d", "se-resnext101-32x4d")),
        f"{NGC} --arch resnet50 --epochs 90 --mixup 0.0 --workspace ./ --raport-file raport.json",
        f"{NGC} --augmentation autoaugment --use-ema 0.9999 --gather-checkpoints 5 --jit script",
        f"{NGC} --run-epochs 10 --resume /results/checkpoint_0.pth.tar -c fanin "
        "--checkpoint checkpoint_1.pth.tar --raport-file report_1.json",
        "--arch resnet50 --data-backend synthetic --epochs 1 --prof 100 --training-only "
        "--no-checkpoints -p 1 --gpu-affinity socket_unique_contiguous",
        "--arch resnet50 --evaluate --epochs 1 --pretrained-from-file nvidia_resnet50.pth "
        "-b 128 -p 1 --data-backend pytorch --topk 5 --trt True",
        f"{ALL_OF_NGC}",
    ],
)  # fmt: skip
def test_original_command_lines_are_understood(line: str, tmp_path: Path) -> None:
    args, _ = main.parse_args([str(tmp_path), *line.split()])
    assert args.data == str(tmp_path)


def test_the_recipe_of_the_original_scripts_arrives() -> None:
    args, notes = main.parse_args(["DIR", *f"{MLU} --epochs 90 {ON_MLU} --pyamp".split()])
    wanted = {
        "momentum": 0.875, "weight_decay": 3.0517578125e-05, "lr": 2.048, "warmup": 8.0,
        "workers": 4, "conv_init": "fan_in", "amp": True, "device": "mlu", "batch_size": 128,
        "optimizer_batch_size": 2048, "label_smoothing": 0.1, "raport_file": "raport.json",
    }  # fmt: skip
    assert {name: getattr(args, name) for name in wanted} == wanted
    assert notes == ["--pyamp is --amp here"]


def test_a_checkpoint_says_more_than_a_sample() -> None:
    saved = {
        "arch": "resnet18", "model_options": {},
        "preprocessing": {"train": {"image_size": 48}, "val": {
            "image_size": 64, "resize_size": 70, "interpolation": "bilinear"}},
    }  # fmt: skip
    fresh, _ = main.parse_args(["sample:digits"])
    trained, _ = main.parse_args(["sample:digits", "--evaluate", "--resume", "x", "--fp16"])
    for args, known, sizes in ((fresh, None, (32, 32, 32)), (trained, saved, (48, 64, 70))):
        args.dataset = "folder"
        main.settle_network(args, known)
        assert (args.image_size, args.val_size, args.val_resize) == sizes
    assert fresh.amp and not trained.amp
