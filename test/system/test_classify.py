# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""classify.py and checkpoint2model.py as their users run them, and the same in Python."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_classification.augmentation import IMAGENET_MEAN, IMAGENET_STD, EvalPreset, TrainPreset
from image_classification.errors import CheckpointError, DataError, UsageError
from image_classification.inference import Classifier, find_images, load_classifier
from models import create_model

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["blue", "green", "red"]
COLOURS = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}


def run(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=120,
    )


@dataclasses.dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`run` without a process of its own, which would spend seconds importing torch."""

    def call(script: str, *arguments: object) -> Result:
        main = importlib.import_module(script.removesuffix(".py")).main
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


def colour_model() -> dict[str, torch.Tensor]:
    """A ResNet-18 whose classifier is fitted to name the colour of a plain image."""
    model = create_model("resnet18", 3).eval()
    images = torch.stack(
        [torch.tensor(COLOURS[name], dtype=torch.float32).view(3, 1, 1) for name in CLASSES]
    ).expand(-1, -1, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        features = model((images - mean) / std)  # [3, 512]
        weight = torch.linalg.lstsq(features, 4.0 * torch.eye(3)).solution.T  # [3, 512]
    return {**model.state_dict(), "fc.weight": weight.contiguous(), "fc.bias": torch.zeros(3)}


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    torch.manual_seed(0)
    weights = colour_model()
    # The averaged weights name another colour, so that outputs show which were used.
    averaged = {**weights, "fc.weight": weights["fc.weight"].roll(1, dims=0)}
    return {
        "epoch": 2,
        "arch": "resnet18",
        "num_classes": 3,
        "state_dict": weights,
        "state_dict_ema": averaged,
        "best_prec1": 91.5,
        "classes": CLASSES,
        "preprocessing": {
            "train": TrainPreset(image_size=32).to_dict(),
            "val": EvalPreset(image_size=32, resize_size=36).to_dict(),
        },
        "model_options": {"conv_init": "fan_in", "zero_init_last_bn": False, "dropout": 0.0},
        "config": {"lr": 0.1},
    }


@pytest.fixture
def checkpoint(tmp_path: Path, content: dict[str, Any]) -> Path:
    path = tmp_path / "model_best.pth.tar"
    torch.save({key: value for key, value in content.items() if key != "state_dict_ema"}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    Image.new("RGB", (50, 40), COLOURS["red"]).save(folder / "a.png")
    Image.new("RGBA", (40, 60), (*COLOURS["green"], 255)).save(folder / "inner" / "b.PNG")
    Image.new("RGB", (64, 64), COLOURS["blue"]).convert("P").save(folder / "c.png")
    Image.new("RGB", (9, 9)).save(folder / ".hidden" / "d.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def names_in_order(folder: Path) -> list[str]:
    return [str(folder / name) for name in ("a.png", "c.png", "inner/b.PNG")]


# ---- the command ----


def test_prints_the_path_and_then_the_best_classes(checkpoint: Path, photos: Path) -> None:
    result = run("classify.py", "--checkpoint", checkpoint, "--topk", 2, photos / "a.png")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == str(photos / "a.png")
    assert lines[1].startswith("red: ") and lines[1].endswith("%")
    assert len(lines) == 3
    best, second = (float(line.split(": ")[1].rstrip("%")) for line in lines[1:])
    assert best > 80 > 20 > second


def test_folder_to_csv_with_an_unreadable_file_listed(checkpoint: Path, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    output = photos.parent / "preds.csv"
    result = run("classify.py", photos, "--resume", checkpoint, "--cpu", "--precision", "fp32",
                 "--batch-size", 2, "--output", output)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "1 of 4 images could not be read" in result.stderr
    assert "3 images classified" in result.stdout
    rows = list(csv.DictReader(output.open(newline="")))
    assert [row["path"] for row in rows if row["rank"] == "1"] == names_in_order(photos)
    assert [row["class"] for row in rows if row["rank"] == "1"] == ["red", "blue", "green"]
    for path in names_in_order(photos):  # all three classes: --topk 5 is more than there are
        probabilities = [float(row["probability"]) for row in rows if row["path"] == path]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
    assert rows[-1]["path"] == str(photos / "broken.jpg")
    assert "cannot read image" in rows[-1]["error"]
    assert rows[-1]["class"] == ""


def test_json_lines_keep_odd_names(
    call: Callable[..., Result], content: dict[str, Any], photos: Path
) -> None:
    checkpoint, output = photos / "c.pth", photos / "preds.jsonl"
    torch.save({**content, "classes": ["b,l\nue", "gr\u00fcn", "\x1b[31mred"]}, checkpoint)
    odd = os.fsencode(photos) + b"/\xff odd.png"
    Path(os.fsdecode(odd)).write_bytes((photos / "a.png").read_bytes())
    arguments = ["--no-ema", "--topk", 1, "--checkpoint", checkpoint, os.fsdecode(odd)]
    result = call("classify.py", *arguments, "--output", output, photos / "gone.png")
    assert result.returncode == 0, result.stderr
    first, last = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    assert (first["path"], first["classes"]) == (os.fsdecode(odd), ["\x1b[31mred"])
    assert first["probabilities"][0] > 0.8
    assert last["path"].endswith("gone.png") and "No such file" in last["error"]

    printed = call("classify.py", *arguments).stdout
    assert "\x1b" not in printed  # a class name must not steer the terminal
    assert "?[31mred" in printed


def test_averaged_weights_are_used_where_there_are_some(
    call: Callable[..., Result], content: dict[str, Any], photos: Path
) -> None:
    checkpoint = photos / "c.pth"
    torch.save(content, checkpoint)
    best = {}
    for flags in ((), ("--ema",), ("--no-ema",)):
        result = call("classify.py", "--checkpoint", checkpoint, photos / "a.png", *flags)
        best[flags] = result.stdout.splitlines()[1].split(":")[0]
    assert best == {(): "blue", ("--ema",): "blue", ("--no-ema",): "red"}


def test_bare_weights_with_nvidia_spellings(
    call: Callable[..., Result], content: dict[str, Any], photos: Path
) -> None:
    weights, names = photos / "weights.pth", photos / "names.json"
    torch.save({f"module.{n}": v for n, v in content["state_dict"].items()}, weights)
    arguments = ["--arch", "resnet18", "--pretrained-from-file", weights, "--precision", "AMP",
                 "--image-size", 32, "--image", photos / "a.png"]  # fmt: skip
    result = call("classify.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("2: ")
    names.write_text(json.dumps(CLASSES))
    result = call("classify.py", *arguments, "--class-names", names)
    assert result.stdout.splitlines()[1].startswith("red: ")


def test_wrong_paths_give_their_exit_codes_and_one_line(
    call: Callable[..., Result], checkpoint: Path, photos: Path
) -> None:
    image, output = photos / "a.png", photos / "preds.csv"
    output.write_text("from an earlier run")
    damaged = photos / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:2000])
    for arguments, code, text in [
        ((image, "--checkpoint", photos / "none.pth"), 4, "No such file"),
        ((image, "--checkpoint", damaged), 4, "truncated or damaged"),
        ((image, "--checkpoint", checkpoint, "--ema"), 4, "no EMA weights"),
        ((image, "--checkpoint", checkpoint, "--arch", "resnet50"), 4, "holds a resnet18"),
        ((photos / "none.png", "--checkpoint", checkpoint, "--output", output), 3, "none of the"),
        ((photos / ".hidden" / "..", photos / "inner" / "..", "--checkpoint", checkpoint,
          "--class-names", photos / "none.txt"), 3, "none.txt"),
    ]:  # fmt: skip
        result = call("classify.py", *arguments, "--device", "cpu")
        assert result.returncode == code, (arguments, result.stderr)
        assert text in result.stderr.splitlines()[-1], result.stderr
        assert "Traceback" not in result.stderr
        assert ("none.png: No such file or directory; check the path" in result.stderr) == (
            photos / "none.png" in arguments
        )
    assert output.read_text() == "from an earlier run"
    assert [path.name for path in photos.iterdir() if path.suffix == ".tmp"] == []


def poison_torch(folder: Path) -> str:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_help_and_wrong_options_need_no_torch(tmp_path: Path) -> None:
    path = poison_torch(tmp_path)
    for script in ("classify.py", "checkpoint2model.py"):
        result = run(script, "-h", PYTHONPATH=path)
        assert result.returncode == 0, result.stderr
        assert "exit codes" in result.stdout
    result = run("classify.py", "--topk", "0", "--arch", "resnet5", "--output", "x.txt", "--cpu",
                 "--device", "npu", PYTHONPATH=path)  # fmt: skip
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert all(line.startswith("classify.py: error: ") for line in lines)
    for text in ("no image", "no network", "--topk", "did you mean", ".csv or .jsonl", "--cpu"):
        assert text in result.stderr
    assert len(lines) == 6
    # An abbreviation would change its meaning when an option is added.
    result = run("classify.py", "--check", "c.pth", "a.png", PYTHONPATH=path)
    assert result.returncode == 2
    assert "--check" in result.stderr


# ---- checkpoint2model.py ----


def test_checkpoint2model_writes_bare_weights(
    call: Callable[..., Result], content: dict[str, Any], tmp_path: Path
) -> None:
    source, target = tmp_path / "checkpoint.pth.tar", tmp_path / "weights.pth"
    state = {f"module.{name}": value for name, value in content["state_dict"].items()}
    torch.save({**content, "state_dict": state}, source)
    result = run("checkpoint2model.py", "--checkpoint-path", source, "--weight-path", target)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "Loaded resnet18, acc : 91.5\n"
        f"classify.py --weights {target} --arch resnet18 --image-size 32 --val-resize 36 "
        "--interpolation bilinear\n"
    )
    weights = torch.load(target, weights_only=True)
    torch.testing.assert_close(weights, content["state_dict"], rtol=0, atol=0)

    result = call("checkpoint2model.py", "--checkpoint-path", source, "--weight-path", target,
                  "--ema")  # fmt: skip
    assert result.returncode == 0
    averaged = torch.load(target, weights_only=True)
    assert torch.equal(averaged["fc.weight"], content["state_dict_ema"]["fc.weight"])


def test_bare_weights_lose_epsilon_but_their_user_is_told(
    call: Callable[..., Result], content: dict[str, Any], photos: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "checkpoint.pth.tar", tmp_path / "weights.pth"
    options = {**content["model_options"], "bn_epsilon": 1.0}
    torch.save({**content, "state_dict_ema": None, "model_options": options}, source)
    result = call("checkpoint2model.py", "--checkpoint-path", source, "--weight-path", target)
    line = result.stdout.splitlines()[-1]
    assert line.endswith("--interpolation bilinear --bn-epsilon 1")
    flags = ["--topk", 1, photos / "a.png", "--cpu", "--precision", "fp32"]
    whole = call("classify.py", "--checkpoint", source, *flags)
    bare = call(*line.split(), *flags)
    assert whole.returncode == bare.returncode == 0, whole.stderr + bare.stderr
    chances = [re.findall(r"\d+\.\d+", made.stdout) for made in (whole, bare)]
    assert chances[0] == chances[1] != []
    other = call(*line.split()[:-2], *flags)
    assert re.findall(r"\d+\.\d+", other.stdout) != chances[0]


def test_checkpoint2model_errors_leave_the_old_file(
    call: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    target = tmp_path / "weights.pth"
    target.write_text("old")
    for source, destination, flags, code, text in [
        (checkpoint, target, ["--ema"], 4, "no EMA weights"),
        (tmp_path / "none.pth", target, [], 4, "No such file"),
        (checkpoint, checkpoint, [], 2, "choose another name"),
        (checkpoint, tmp_path / "none" / "weights.pth", [], 2, "cannot be written"),
    ]:
        result = call("checkpoint2model.py", "--checkpoint-path", source, "--weight-path",
                     destination, *flags)  # fmt: skip
        assert result.returncode == code, result.stderr
        assert text in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name, "weights.pth"]


# ---- the same in Python ----


def test_predict_takes_paths_and_images_in_any_mode(checkpoint: Path, photos: Path) -> None:
    classifier = load_classifier(checkpoint, device="cpu")
    red = Image.new("RGB", (33, 70), COLOURS["red"])
    images = [
        photos / "a.png",
        red,
        red.convert("CMYK"),
        red.convert("RGBA"),
        str(photos / "c.png"),
    ]
    predictions = classifier.predict(images, topk=1, batch_size=2)
    assert [p.classes for p in predictions] == [["red"]] * 4 + [["blue"]]
    assert [p.path for p in predictions] == [str(photos / "a.png"), *[None] * 3, str(images[4])]
    grey = classifier.predict([Image.new("L", (32, 32), 128)])[0]
    assert sorted(grey.classes) == CLASSES
    assert sum(grey.probabilities) == pytest.approx(1)


def test_predictions_equal_torchvision_preprocessing(checkpoint: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    noise = np.random.default_rng(0).integers(0, 256, (57, 41, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((90, 130), Image.Resampling.BICUBIC)
    mean, std = (tuple(v / 255 for v in values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    prepare = transforms.Compose([
        transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])  # fmt: skip
    model = create_model("resnet18", 3).eval()
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    with torch.inference_mode():
        expected = model(prepare(image)[None]).softmax(1)[0]
    prediction = load_classifier(checkpoint, "cpu").predict([image])[0]
    found = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    # One rounding to 8 bits instead of two may differ by one step in a few pixels.
    assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=0.01)


def test_precisions_agree(checkpoint: Path, photos: Path) -> None:
    results = {}
    for precision in ("fp32", "amp", "fp16"):
        prediction = load_classifier(checkpoint, "cpu", precision).predict([photos / "a.png"])[0]
        results[precision] = dict(zip(prediction.classes, prediction.probabilities, strict=True))
    for result in results.values():
        assert result == pytest.approx(results["fp32"], abs=0.02)
    assert results["fp16"] != results["fp32"]  # it did compute in half precision


def test_unreadable_images_raise_unless_they_are_collected(checkpoint: Path, photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    classifier = load_classifier(checkpoint, "cpu")
    images = [photos / "a.png", photos / "bad.png", photos / "c.png"]
    with pytest.raises(DataError, match=r"bad\.png"):
        classifier.predict(images)
    failures: list[tuple[str, str]] = []
    found = list(classifier.stream(images, 1, 1, lambda *failure: failures.append(failure)))
    assert [p.path for p in found] == [str(images[0]), str(images[2])]
    assert [path for path, _ in failures] == [str(images[1])]


def test_a_long_list_is_classified_in_order_and_lazily(checkpoint: Path) -> None:
    classifier = load_classifier(checkpoint, "cpu")
    wanted = [CLASSES[index] for index in np.random.default_rng(0).integers(0, 3, 37)]
    taken: list[str] = []

    def images() -> Any:
        for name in wanted:
            taken.append(name)
            yield Image.new("RGB", (20, 20), COLOURS[name])

    stream = classifier.stream(images(), topk=1, batch_size=4)
    first = next(stream)
    assert len(taken) < len(wanted)
    assert [first.classes[0], *(p.classes[0] for p in stream)] == wanted


def test_image_size_keeps_the_margin(checkpoint: Path) -> None:
    preset = load_classifier(checkpoint, "cpu", image_size=64).preset
    assert (preset.image_size, preset.resize_size) == (64, 68)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": ["a", "b"]}, "3 outputs, but there are 2"),
        ({"classes": [1, 2, 3]}, "not a list of names"),
        ({"model_options": {"depth": 3}}, "model_options"),
        ({"preprocessing": {"val": {"image_size": -1}}}, "image_size"),
        ({"preprocessing": {"val": {"sharpen": 1}}}, "unknown keys"),
        ({"arch": "resnet34"}, "does not fit"),
        ({"state_dict": {"fc.weight": torch.tensor(1.0)}, "state_dict_ema": None}, "fc.weight"),
    ],
)
def test_inconsistent_checkpoints_are_refused(
    change: dict[str, Any], text: str, content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({**content, **change}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=text):
        load_classifier(tmp_path / "c.pth", "cpu")


def test_usage_errors_in_python(checkpoint: Path, content: dict[str, Any]) -> None:
    bare = checkpoint.parent / "weights.pth"
    torch.save(content["state_dict"], bare)
    with pytest.raises(UsageError, match="which network"):
        load_classifier(bare, "cpu")
    with pytest.raises(UsageError, match="fp32, amp, fp16"):
        load_classifier(checkpoint, "cpu", "int8")
    classifier: Classifier = load_classifier(checkpoint, "cpu")
    with pytest.raises(UsageError, match="at least 1"):
        classifier.predict([], topk=0)
    assert classifier.predict([]) == []


def test_find_images_skips_what_is_hidden_and_survives_loops(photos: Path) -> None:
    (photos / "inner" / "loop").symlink_to(photos, target_is_directory=True)
    assert find_images([photos]) == names_in_order(photos)
    assert find_images([photos / "notes.txt"]) == [str(photos / "notes.txt")]
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        find_images([photos / "empty"])
