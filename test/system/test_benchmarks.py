# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run at a tiny size and leave a table and a JSON file; no speed is asserted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import ROOT, nursery, write_images

import main
from benchmarks import budgets, finetune, measure, train_contenders, train_step, trainings
from image_classification import compiling
from image_classification.device import Device
from image_classification.distributed import read_launch
from image_classification.errors import DivergedError
from image_classification.interruption import Interruption
from image_classification.seed_record import record_seed

TINY = ("--device", "cpu", "--arch", "resnet18", "--image-size", "32", "--batch-size", "2",
        "--rounds", "1", "--steps", "1", "--warmup", "1", "--together")  # fmt: skip
TIMM = importlib.util.find_spec("timm") is not None
MIXED = Device.select("cpu").amp_dtype()[0] is not None


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Every contender that is not compiled, which takes a minute: printed and written."""
    pytest.importorskip("torchvision")
    path = tmp_path_factory.mktemp("results") / "new" / "step.json"
    script = ROOT / "benchmarks" / "train_step.py"
    plain = [name for name in train_contenders.NAMES if "compile" not in name]
    done = nursery().run(script, *TINY, "--json", path, "--contenders", *plain, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert [entry.name for entry in path.parent.iterdir()] == ["step.json"]
    return done.stdout, json.loads(path.read_text())


def test_the_table_has_a_row_for_every_contender_that_runs(
    whole: tuple[str, dict[str, Any]],
) -> None:
    printed, record = whole
    header, rule, *body = [cells(line) for line in printed.splitlines() if line.startswith("|")]
    assert header[1:3] == ["img/s", "min-max"] and "torchvision fp32 nchw" in header[3]
    assert set("".join(rule)) == {"-"}
    left_out = ["nvidia", "compile", *([] if TIMM else ["timm"]), *([] if MIXED else ["amp"])]
    names = [name for name in train_contenders.NAMES.values()
             if not any(word in name for word in left_out)]  # fmt: skip
    assert [row[0] for row in body] == names
    rates = {row[0]: float(row[1]) for row in body}
    for contender in record["contenders"]:
        rate = contender["images_per_second"]["median"]
        assert rates[contender["name"]] == pytest.approx(rate, abs=0.051) and rate > 0
    assert ("timm fp32: left out" in printed) is not TIMM
    assert ("ours --amp: left out: FP32 instead of" in printed) is not MIXED
    for one, other in train_contenders.PAIRS:
        shown = f"same precision and layout, {one} / {other}: " in printed
        assert shown is ({one, other} <= set(names))


def test_the_file_says_what_ran_where(whole: tuple[str, dict[str, Any]]) -> None:
    record = whole[1]
    assert record["benchmark"] == "train_step" and record["schema"] == measure.SCHEMA
    found = record["environment"]
    assert found["device"] == "cpu" and found["threads"] == 1 and found["cpu"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["command"].startswith("python benchmarks/train_step.py --device cpu --arch")
    assert record["settings"]["image_size"] == 32 and record["settings"]["rounds"] == 1
    for contender in record["contenders"]:
        (only,) = contender["rounds"]
        assert only["images"] == 2 and only["seconds"] > 0 and only["facts"]["loss"] > 0
        assert only["images_per_second"] == pytest.approx(2 / only["seconds"])
    by_name = {contender["name"]: contender for contender in record["contenders"]}
    assert by_name["ours"]["settings"] == "float32, nhwc"
    assert by_name["torchvision fp32 nchw"]["settings"] == "float32, nchw"
    for pair in train_contenders.PAIRS:
        assert len({by_name[name]["settings"] for name in pair if name in by_name}) <= 1
    ratios = {(entry["of"], entry["to"]): entry["median"] for entry in record["ratios"]}
    ours, peer = (by_name[name]["rounds"][0]["seconds"] for name in train_contenders.PAIRS[0])
    assert ratios[train_contenders.PAIRS[0]] == pytest.approx(peer / ours)
    assert {pair for pair in train_contenders.PAIRS if set(pair) <= set(by_name)} <= set(ratios)


@pytest.mark.parametrize("problem", [None, "no compiler here"])
def test_compiled_contenders_train_what_the_compiler_makes(
    problem: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    names = ["ours-compile", *(["timm-compile"] if TIMM else [])]
    compiled = []

    def compile_(network: torch.nn.Module, **how: Any) -> torch.nn.Module:
        network.register_forward_hook(lambda *_: compiled.append(type(network).__module__))
        return network

    monkeypatch.setattr(compiling, "obstacle", lambda device: problem)
    monkeypatch.setattr(torch, "compile", compile_)
    path = tmp_path / "step.json"
    words = [*TINY, "--contenders", "ours", *names, "--json", str(path)]
    assert train_step.main(words) == 0
    ran = [contender["name"] for contender in json.loads(path.read_text())["contenders"]]
    shown = [train_contenders.NAMES[name] for name in ("ours", *names)]
    assert ran == (shown if problem is None else shown[:1])
    assert len(compiled) == (0 if problem else 4 * len(names))  # warm-up, two untimed, one timed
    if problem:
        assert "ours --compile: left out: no compiler here" in capsys.readouterr().out


def test_on_a_cpu_each_contender_has_its_own_process(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    path, words = tmp_path / "step.json", [word for word in TINY if word != "--together"]
    names = ["ours", "torchvision-hand", "nvidia-amp"]
    done = nursery().run(ROOT / "benchmarks" / "train_step.py", *words, "--json", path,
                         "--contenders", *names, timeout=280)  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    record = json.loads(path.read_text())
    shown = [train_contenders.NAMES[name] for name in names]
    assert [contender["name"] for contender in record["contenders"]] == shown[:2]
    assert all(one["rounds"][0]["facts"]["loss"] > 0 for one in record["contenders"])
    assert record["left_out"] == {shown[2]: "float16 is for accelerators"}


def test_a_network_that_a_peer_lacks_is_measured_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step.json"
    arguments = [*TINY, "--contenders", "ours", "torchvision-fp32", "--json", str(path)]
    arguments[arguments.index("resnet18")] = "se-resnext101-32x4d"
    assert train_step.main(arguments) == 0
    assert "torchvision fp32 nchw: left out" in capsys.readouterr().out
    assert [entry["name"] for entry in json.loads(path.read_text())["contenders"]] == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--rounds", "0"], "received 0"), (["--contenders", "no-such"], "no-such")],
)
def test_a_bad_option_is_a_usage_error(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_step.main(arguments)
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--amp"]])
def test_ours_is_wired_like_the_main_program(flags: list[str], tmp_path: Path) -> None:
    """The benchmark must not drift away from what main.py runs by default."""
    device = Device.select("cpu")
    setup = train_contenders.set_up(device, 32, 4, amp=bool(flags))
    ours = train_contenders.build_trainer("resnet18", device, setup)
    args, _ = main.parse_args(
        ["--data-backend", "synthetic", "--arch", "resnet18", "--image-size", "32", "-b", "4",
         "--device", "cpu", "--workspace", str(tmp_path / "run"), *flags])  # fmt: skip
    state, _ = main.open_run(args, read_launch(), device, 0, Interruption())
    with state.logger, contextlib.ExitStack() as cleanup:
        splits = main.load_data(state)
        model = main.build_model(state, splits)
        main.settle_batch(state, model, splits)
        loader = main.build_loaders(state, splits, cleanup)["train"]
        theirs = main.build_trainer(state, model, loader, splits)
        images, _ = next(iter(loader))
    assert signature(ours) == signature(theirs)
    assert images.dtype == setup.images.dtype and images.stride() == setup.images.stride()


def signature(trainer: Any) -> list[Any]:
    """Everything about a trainer that a step's work depends on."""
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in trainer.optimizer.param_groups
    ]
    weights = [(name, w.dtype, w.stride()) for name, w in trainer.model.named_parameters()]
    scheduled = [trainer.lr(step) for step in (0, 10, 10**6, 10**7)]
    return [
        type(trainer.optimizer), groups, weights, scheduled, trainer.amp_dtype,
        trainer.scaler.is_enabled(), trainer.criterion.label_smoothing, trainer.clip_grad_norm,
        trainer.accumulation_steps, trainer.mixup_alpha, trainer.ema, trainer.freeze_bn,
        trainer.num_batches, trainer.world_size, trainer.forward is trainer.model,
    ]  # fmt: skip


def test_ratios_compare_within_a_round() -> None:
    """The machine slows down by half between the rounds: that must not widen the ratio."""
    rounds = [{"images_per_second": rate, "peak_memory": None} for rate in (100.0, 50.0, 200.0)]
    halved = [{"images_per_second": rate, "peak_memory": 2**31} for rate in (50.0, 25.0, 50.0)]
    found = measure.Comparison(
        [measure.Result("a", "", None, rounds), measure.Result("b", "", 0, halved)], {})
    assert found.ratio("b", "a") == measure.Spread(0.5, 0.25, 0.5)
    rows = [cells(line) for line in found.table("a").splitlines()]
    assert rows[2] == ["a", "100.0", "50.0-200.0", "1.00 (1.00-1.00)", "-"]
    assert rows[3] == ["b", "50.0", "25.0-50.0", "0.50 (0.25-0.50)", "2.00 GiB"]


@pytest.mark.parametrize("path", ["/proc/nothing/y.json", "."])
def test_a_result_that_cannot_be_written_is_told_first(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_step.main([*TINY, "--json", path])
    assert f"--json: {path} cannot be written" in capsys.readouterr().err


def test_a_diverged_network_is_not_measured() -> None:
    with pytest.raises(DivergedError, match="nan"):
        train_contenders.finite(float("nan"))


def test_a_result_never_replaces_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    device = Device.select("cpu")
    first = measure.result_path("train_step", "2026-01-31", device)
    assert first.name.startswith("2026-01-31-cpu-") and first.name.endswith("-train_step.json")
    measure.write_json(first, {"a": 1})
    second = measure.result_path("train_step", "2026-01-31", device)
    assert second.stem == f"{first.stem}-2" and json.loads(first.read_text()) == {"a": 1}


def test_the_loader_benchmark(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    path = tmp_path / "loader.json"
    command = [
        ROOT / "benchmarks" / "loader.py", tmp_path / "images",
        "--device", "cpu", "--arch", "resnet18", "--image-size", "32", "--batch-size", "2",
        "--rounds", "1", "--steps", "1", "--memory-epochs", "2", "--json", path,
    ]  # fmt: skip
    done = nursery().run(*command, timeout=280)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    names = {cells(line)[0] for line in done.stdout.splitlines() if line.startswith("|")}
    assert {"pillow", "ours plain", "DataLoader", "fast", "loader alone", "network alone",
            "both"} <= names  # fmt: skip
    record = json.loads(path.read_text())
    assert record["errors"]["ours"]["mean"] < 1.0
    assert 0 < record["memory"]["first_epoch_mib"] <= record["memory"]["peak_mib"]
    rounds = [entry for part in ("core", "end_to_end", "network") for entry in record[part]]
    assert all(entry["rounds"][0]["images"] == 2 for entry in rounds)


def test_the_overhead_benchmark(tmp_path: Path) -> None:
    target = tmp_path / "overhead.json"
    flags = ["--device", "cpu", "--arch", "resnet18", "--image-size", "32", "--batch-size", "2"]
    done = nursery().run(
        ROOT / "benchmarks/reliability_overhead.py", *flags, "--rounds", "1", "--steps", "1",
        "--saves", "1", "--json", target, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| all of it |" in done.stdout and "a save blocks for " in done.stdout
    record = json.loads(target.read_text())
    assert set(record["ratios"]) == {"guarded", "all of it"} and record["save"]["blocked_s"]


def test_the_worth_of_pretrained_weights_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The division and the table; `train` alone is replaced, three trainings take a minute."""
    data, record = write_images(tmp_path, classes=5) / "train", tmp_path / "found.json"
    (data / ".process_data").mkdir()
    (data / "class_0/notes.txt").touch()
    seen: dict[str, list[str]] = {}

    def train(folder: Path, workspace: Path, *flags: str) -> tuple[float, float, str]:
        links = [path for path in folder.rglob("*") if path.is_file()]
        assert len({path.resolve() for path in links}) == len(links)
        names = [path.relative_to(folder).parent.as_posix() for path in sorted(links)]
        seen[workspace.name] = names
        return 50.0 + len(seen), 2.0, "before\nclass  images\na  3\n\nfinished: 51 %\n"

    monkeypatch.setattr(finetune, "train", train)
    words = [str(data), "--device", "cpu", "--seeds", "2", "--json", str(record)]
    small = ["--val", "6", "--pretraining", "10", "1", "--images", "15"]
    assert finetune.main([*words, *small]) == 0
    told = capsys.readouterr().out
    assert "fine-tuned | 53.50 +/- 0.71 | 2.00 +/- 0.00" in told
    assert "gain: 0.00 +/- 1.41 points" in told and told.rstrip().endswith("class  images\na  3")
    assert seen.pop("base") == [
        f"{split}/class_{label}"
        for split, count in (("train", 5), ("val", 3)) for label in (0, 1) for _ in range(count)
    ]  # fmt: skip
    assert [*seen] == ["from scratch0", "fine-tuned0", "fine-tuned1", "from scratch1"]
    assert {(*names,) for names in seen.values()} == {(
        *(f"train/class_{label}" for label in (2, 3, 4) for _ in range(5)),
        *(f"val/class_{label}" for label in (2, 3, 4) for _ in range(2)),
    )}  # fmt: skip
    assert json.loads(record.read_text())["gain"] == [1.0, -1.0]

    assert finetune.main(words) == 3
    assert "class_0 has 8 images for 500 in val and 5000 in train" in capsys.readouterr().err
    assert finetune.main([*words, *small[:-1], "2"]) == 3
    assert "class_2 has 8 images for 2 in val and 0 in train" in capsys.readouterr().err
    assert finetune.main([str(tmp_path), *words[1:]]) == 3
    assert "holds 2 class folders, 4 are needed" in capsys.readouterr().err


def test_recipes_by_budget_are_compared_with_a_plain_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands and table; `trainings.train` alone is replaced, four trainings take minutes."""
    settings, record = [], tmp_path / "found.json"

    def train(data: str, workspace: Path, *flags: str) -> str:
        args, problems = main.parse_args([data, *flags])
        settings.append((args, problems))
        for seed in args.seeds:
            (workspace / f"seed{seed}").mkdir(parents=True)
            rows = [{"type": "epoch", "data": {"train.epoch_time": 2.0 + seed}}] * args.epochs
            text = "".join(f"{json.dumps(row)}\n" for row in rows)
            (workspace / f"seed{seed}/metrics.jsonl").write_text(text)
            line = record_seed(workspace, seed, 50.0 + seed, args.recipe)
        return line

    monkeypatch.setattr(trainings, "train", train)
    words = ["--device", "cpu", "--seeds", "2", "--budgets", "16", "250", "--json", str(record)]
    assert budgets.main(words) == 0
    told = capsys.readouterr().out
    assert cells(told.splitlines()[-4]) == ["16", "recipe", "50.50 +/- 0.71", "40.00 +/- 11.31"]
    assert [args.recipe for args, _ in settings] == ["resnet50-16", None, "resnet50-250", None]
    for args, problems in settings:
        assert not problems and args.optimizer_batch_size == budgets.STEP
        grows = (64 if args.recipe else None, 96, 96)
        assert (args.progressive_resize, args.image_size, args.val_size) == grows
        assert (args.use_ema, args.label_smoothing) == (0.99 if args.recipe else None, 0.1)
    assert [args.lr_schedule for args, _ in settings] == ["linear", "cosine", "cosine", "cosine"]
    assert json.loads(record.read_text())["runs"]["plain, 250 epochs"]["mean"] == 50.5


def test_all_benchmarks_in_one_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    done = nursery().run(ROOT / "benchmarks" / "run.py", "--quick", "--device", "cpu",
                         "--parts", "memory", "--json", path, timeout=280)  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    memory = json.loads(path.read_text())["parts"]["memory"]
    assert memory["record"]["bytes"].keys() >= {"default", "--grad-checkpointing"}
    assert "| --grad-checkpointing " in memory["printed"] and memory["printed"] in done.stdout


def test_the_runtimes_of_one_network(tmp_path: Path) -> None:
    path = tmp_path / "runtimes.json"
    done = nursery().run(
        ROOT / "benchmarks" / "runtimes.py", "--device", "cpu", "--arch", "resnet18",
        "--image-size", 32, "--batch-sizes", 1, 2, "--rounds", 1, "--images", 2, "--json", path,
        "--contenders", "torchvision", "eager", "folded", "tensorrt-amp", "--together",
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    for size in ("1", "2"):
        rates = {row["name"]: row["images_per_second"]["median"]
                 for row in json.loads(path.read_text())["batches"][size]}  # fmt: skip
        assert rates.keys() == {"torchvision eager fp32 nchw", "ours eager", "ours folded"}
        assert min(rates.values()) > 0 and f"batches of {size}, cpu" in done.stdout
    assert "ours tensorrt --amp: left out: " in done.stdout
