# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The main job from the command line: train, validate, resume, evaluate, on one and two ranks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import ROOT, checkpoint, environment, rows, run_main, same, values, write_images

SMALL = ("--arch", "resnet18", "--image-size", 32, "-b", 4, "-j", 0, "--device", "cpu", "-p", 2,
         "--lr", 0.01, "--seed", 7)  # fmt: skip
# Everything that carries state from step to step.
STATEFUL = ("--use-ema", 0.9, "--mixup", 0.2, "--dropout", 0.2, "--optimizer-batch-size", 8,
            "--lr-schedule", "cosine", "--warmup", 1, "--label-smoothing", 0.1)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def straight(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs without a break."""
    workspace = tmp_path_factory.mktemp("runs") / "straight"
    run_main(images, *SMALL, *STATEFUL, "--epochs", 3, "--workspace", workspace)
    return workspace


def test_a_run_leaves_the_promised_files(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        "checkpoint.pth.tar", "model_best.pth.tar", "experiment_raport.json", "metrics.jsonl",
        "confusion.json", "checkpoint.pth.tar.sha256", "model_best.pth.tar.sha256", "generations",
    }  # fmt: skip
    saved = checkpoint(straight / "checkpoint.pth.tar")
    assert saved["epoch"] == 3 and saved["samples_done"] == 0
    assert saved["arch"] == "resnet18" and saved["num_classes"] == 3
    assert saved["classes"] == ["class_0", "class_1", "class_2"]
    assert saved["preprocessing"]["val"]["image_size"] == 32
    assert saved["config"]["mixup"] == 0.2 and saved["seed"] == 7
    assert set(saved["optimizer"]) <= set(saved["state_dict"])
    assert not any(name.startswith("module.") for name in saved["state_dict"])


def test_the_logs_agree_with_each_other(straight: Path) -> None:
    report = (straight / "experiment_raport.json").read_text().splitlines()
    records = [json.loads(line.removeprefix("DLLL ")) for line in report]
    logged = [record for record in records if record["type"] == "LOG"]
    epochs = [record["data"] for record in logged if record["step"] in ([0], [1], [2])]
    from_report = [data["val.top1"] for data in epochs if "val.top1" in data]
    assert from_report == values(straight, "epoch", "val.top1")
    assert logged[0]["step"] == "PARAMETER"
    seen, correct = values(straight, "epoch", "val.seen"), values(straight, "epoch", "val.correct")
    assert seen == [12, 12, 12]
    assert [100 * c / 12 for c in correct] == pytest.approx(from_report)
    # 24 images, 6 batches of 4, a log line every 2 of them
    assert [row["iteration"] for row in rows(straight, "train")] == [2, 4, 6] * 3


def test_the_confusion_matrix_is_that_of_the_best_epoch(straight: Path) -> None:
    found = json.loads((straight / "confusion.json").read_text())
    saved = checkpoint(straight / "model_best.pth.tar")
    assert (found["epoch"], found["top1"]) == (saved["best_epoch"], saved["best_prec1"])
    assert found["group"] == "val_ema" and found["classes"] == saved["classes"]
    correct = sum(count for target, predicted, count in found["confusion"] if target == predicted)
    assert sum(count for *_, count in found["confusion"]) == 12
    assert 100 * correct / 12 == pytest.approx(found["top1"])


def test_the_log_names_machine_and_software(straight: Path) -> None:
    (parameters,) = rows(straight, "parameter")
    found = parameters["data"]["environment"]
    assert found["device"] == "cpu" and found["threads"] == 1
    assert found["versions"]["torch"] == torch.__version__


def test_the_learning_rate_ends_at_its_end(straight: Path) -> None:
    assert values(straight, "epoch", "train.lr")[-1] == 0.0


def test_the_best_model_follows_the_average(straight: Path) -> None:
    averaged = values(straight, "epoch", "val_ema.top1")
    best = checkpoint(straight / "model_best.pth.tar")
    assert best["best_prec1"] == max(averaged)
    assert best["best_epoch"] == averaged.index(max(averaged)) == best["epoch"] - 1


@pytest.mark.parametrize("stages", [(1, 1, 1), (2, 1)])
def test_resuming_equals_the_uninterrupted_run(
    images: Path, straight: Path, tmp_path: Path, stages: tuple[int, ...]
) -> None:
    workspace, last = tmp_path / "resumed", 3
    for count in stages:
        done = run_main(images, *SMALL, *STATEFUL, "--epochs", 3, "--run-epochs", count,
                        "--workspace", workspace, "--resume", "auto")  # fmt: skip
        assert ("of 3 epochs are done; --resume auto goes on" in done.stdout) == (count < last)
        assert ("going on in epoch" in done.stdout) == (last < 3)
        last -= count
    assert last == 0
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        mine, theirs = checkpoint(workspace / name), checkpoint(straight / name)
        mine.pop("config"), theirs.pop("config")
        assert same(mine, theirs) == []
    assert values(workspace, "train", "train.loss") == values(straight, "train", "train.loss")


def test_a_finished_run_has_nothing_left_to_do(images: Path, straight: Path) -> None:
    before = (straight / "checkpoint.pth.tar").read_bytes()
    done = run_main(images, *SMALL, *STATEFUL, "--epochs", 3, "--workspace", straight,
                    "--resume", "auto")  # fmt: skip
    assert "nothing left to do: 3 of 3 epochs are done" in done.stdout
    assert (straight / "checkpoint.pth.tar").read_bytes() == before


def test_evaluation_is_one_pass_whatever_epochs_says(images: Path, straight: Path) -> None:
    best = straight / "model_best.pth.tar"
    workspace = straight.parent / "evaluated"
    done = run_main(images, "-b", 5, "-j", 0, "--device", "cpu", "--evaluate", "--resume", best,
                    "--epochs", 91, "--workspace", workspace)  # fmt: skip
    (summary,) = rows(workspace, "summary")
    data = summary["data"]
    assert data["val.seen"] == 12
    assert data["val.top1"] == pytest.approx(checkpoint(best)["best_prec1"])
    for name in ("at95", "at99", "at100"):
        assert data[f"val.compute_latency_{name}"] > 0
    assert "evaluating the averaged (EMA) weights" in done.stdout
    assert re.search(r"evaluated: top-1 [0-9.]+ % .* images/s, ", done.stdout)
    assert not (workspace / "checkpoint.pth.tar").exists()
    trained = json.loads((straight / "confusion.json").read_text())
    evaluated = json.loads((workspace / "confusion_evaluation.json").read_text())
    assert evaluated["epoch"] is None and evaluated["confusion"] == trained["confusion"]


def test_the_report_shows_the_run(straight: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "image_classification.report", str(straight), "--html", page]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    top1 = values(straight, "epoch", "val_ema.top1")
    assert f"{top1[-1]:.2f}" in done.stdout
    text = page.read_text("utf-8")
    assert text.count("<svg") == 4 and "class_2" in text and f"{max(top1):.2f} %" in text


def test_an_earlier_run_is_never_overwritten(images: Path, straight: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    done = run_main(images, *SMALL, "--epochs", 1, "--prof", 2, "--workspace", straight)
    assert {path.name: path.stat().st_mtime_ns for path in straight.iterdir()} == before
    assert (straight.with_name("straight-2") / "checkpoint.pth.tar").exists()
    assert "straight-2" in done.stdout


def test_two_ranks_see_the_same_samples(images: Path, tmp_path: Path) -> None:
    common = ("--arch", "resnet18", "--image-size", 32, "-j", 0, "--device", "cpu", "-p", 1,
              "--lr", 0.01, "--seed", 7, "--epochs", 2, "--freeze-bn", "--zero-init-last-bn")
    one, two = tmp_path / "one", tmp_path / "two"
    run_main(images, *common, "-b", 8, "--workspace", one)
    run_main(images, *common, "-b", 4, "--workspace", two, ranks=2)
    losses = values(one, "train", "train.loss"), values(two, "train", "train.loss")
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for metric in ("val.correct", "val.seen"):
        assert values(one, "epoch", metric) == values(two, "epoch", metric)
    confused = [json.loads((run / "confusion.json").read_text())["confusion"] for run in (one, two)]
    assert confused[0] == confused[1] and sum(count for *_, count in confused[0]) == 12
    assert (two / "GPU_1.log").exists()


def test_two_ranks_resume_bit_for_bit(images: Path, tmp_path: Path) -> None:
    common = (images, *SMALL, *STATEFUL, "--epochs", 2)
    run_main(*common, "--workspace", tmp_path / "straight", ranks=2)
    for _ in range(2):
        run_main(*common, "--run-epochs", 1, "--resume", "auto",
                 "--workspace", tmp_path / "resumed", ranks=2)  # fmt: skip
    mine = checkpoint(tmp_path / "resumed" / "checkpoint.pth.tar")
    theirs = checkpoint(tmp_path / "straight" / "checkpoint.pth.tar")
    mine.pop("config"), theirs.pop("config")
    assert same(mine, theirs) == []


def test_errors_have_their_exit_codes(images: Path, straight: Path, tmp_path: Path) -> None:
    cases = [
        ((tmp_path / "nowhere",), 3, "does not exist"),
        ((images, "--resume", tmp_path / "no.pth.tar"), 4, "no.pth.tar"),
        ((images, "--evaluate", "--resume", straight / "checkpoint.pth.tar",
          "--arch", "resnet50"), 4, "holds a resnet18"),
        ((images, "--num-classes", 5, "--workspace", tmp_path / "w"), 3, "--num-classes 5"),
        ((images, "-b", 99, "--workspace", tmp_path / "w"), 3, "fewer than one global batch"),
        ((images, "--lr", 1e9, "--optimizer", "adamw", *SMALL[:-2], "--lr", 1e30,
          "--workspace", tmp_path / "d", "--epochs", 2), 5, "not finite"),
    ]  # fmt: skip
    for arguments, code, text in cases:
        done = run_main(*arguments, "--device", "cpu", "-j", 0, expect=code)
        errors = [line for line in done.stderr.splitlines() if line.startswith("main.py: error")]
        assert len(errors) == 1 and text in errors[0], done.stderr
        assert "Traceback" not in done.stderr


def test_the_main_job_leaves_git_status_clean(images: Path) -> None:
    import subprocess

    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    status = ["git", "-C", str(ROOT), "status", "--porcelain"]
    before = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    run_main(images, *SMALL, "--epochs", 1, "--prof", 1, "--run-name", "git_status_test")
    after = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    assert before == after
    produced = ROOT / "models" / "git_status_test"
    assert (produced / "checkpoint.pth.tar").exists()
    import shutil

    shutil.rmtree(produced)


def test_a_resumed_run_stays_in_its_own_folder(images: Path, tmp_path: Path) -> None:
    """Neither --resume nor --evaluate without --workspace touches another run."""
    short = (*SMALL, "--iters", 2, "--training-only")
    first, second = ("--run-name", f"own-{tmp_path.name}"), tmp_path / "second"
    try:
        run_main(images, *short, *first, "--epochs", 1)
        run_main(images, *short, "--epochs", 2, "--run-epochs", 1, "--workspace", second)
        models = {path: path.read_bytes() for path in ROOT.glob(f"models/own-{tmp_path.name}*/*")
                  if path.is_file()}  # fmt: skip
        last = second / "checkpoint.pth.tar"
        run_main(images, *short, *first, "--epochs", 2, "--resume", last)
        run_main(images, *SMALL, "--evaluate", "--resume", last)
        assert checkpoint(last)["epoch"] == 2
        assert len(rows(second, "summary")) >= 2
        found = {path: path.read_bytes() for path in ROOT.glob(f"models/own-{tmp_path.name}*/*")
                  if path.is_file()}  # fmt: skip
        assert found == models and models
    finally:
        for folder in ROOT.glob(f"models/own-{tmp_path.name}*"):
            shutil.rmtree(folder)


def test_evaluation_takes_the_preprocessing_of_the_checkpoint(
    images: Path, tmp_path: Path
) -> None:
    run_main(images, *SMALL, "--epochs", 1, "--interpolation", "bicubic", "--val-resize", 50,
             "--workspace", tmp_path)  # fmt: skip
    plain = ("--image-size", 32, "-b", 4, "--device", "cpu", "--seed", 7, "--evaluate")
    run_main(images, *plain, "--resume", tmp_path / "checkpoint.pth.tar")
    other = tmp_path / "other"
    run_main(images, *plain, "--interpolation", "bilinear", "--workspace", other,
             "--resume", tmp_path / "checkpoint.pth.tar")  # fmt: skip
    trained = values(tmp_path, "epoch", "val.loss")[-1]
    assert values(tmp_path, "summary", "val.loss")[-1] == trained
    assert values(other, "summary", "val.loss")[-1] != trained


def test_a_run_that_has_stopped_early_is_done(images: Path, tmp_path: Path) -> None:
    flags = (*SMALL, "--lr", 0, "--early-stopping-patience", 1, "--epochs", 8, "--iters", 1,
             "--workspace", tmp_path)  # fmt: skip
    assert "early stop" in run_main(images, *flags).stdout
    saved = (tmp_path / "checkpoint.pth.tar").read_bytes()
    assert "nothing left to do: 2 of 8" in run_main(images, *flags, "--resume", "auto").stdout
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() == saved


def test_ctrl_c_saves_and_says_so(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py"), str(images), *map(str, SMALL), "--epochs",
               "500", "--workspace", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    while "Epoch: 1 " not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    first, second = errors.splitlines()
    assert first == "SIGINT: stopping after this step"
    assert re.fullmatch(r"main.py: stopped by a signal; saved in epoch \d+, .* goes on", second)
    assert rows(tmp_path, "message")[-1]["data"]["level"] == "error"


def test_one_image_per_batch_is_too_few_for_batch_norm(images: Path, tmp_path: Path) -> None:
    done = run_main(images, *SMALL, "-b", 1, "--workspace", tmp_path / "w", expect=2)
    assert done.stderr == (
        "main.py: error: --batch-size 1 leaves BatchNorm one value per channel at image size 32: "
        "use 2 or more\n"
    )
