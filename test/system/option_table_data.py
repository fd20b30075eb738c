# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for data and augmentation change."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any
from unittest import mock

from cifar_archives import write_cifar10, write_cifar100
from option_lab import SYNTHETIC, Lab, close, differ, shows
from runs import write_images

from image_classification import pytorch_loader
from image_classification.fast_loader import loader
from image_classification.loader_worker import BatchReader

# ---- data ----


@shows("DIR", "the data folder: class names in the checkpoint")
def directory(lab: Lab) -> None:
    two = write_images(lab.folder / "two", classes=2)
    assert lab.base.last["classes"] == ["class_0", "class_1", "class_2"]
    assert lab.run(directory=two).last["classes"] == ["class_0", "class_1"]
    assert "does not exist" in lab.error(directory=lab.folder / "none", code=3)


@shows("--data", "the data folder, as DIR")
def data(lab: Lab) -> None:
    two = write_images(lab.folder / "two", classes=2)
    assert lab.run("--data", two, directory=None).last["classes"] == ["class_0", "class_1"]
    assert "give one of them" in lab.error("--data", two)


@shows("--dataset", "what DIR holds: CIFAR's archives or a folder")
def dataset(lab: Lab) -> None:
    root = lab.folder / "cifar"
    write_cifar100(root)
    write_cifar10(root)
    archive = root / "cifar-100-python"
    for name, data, first in (
        ("cifar100", root, "fine_0"), ("cifar10", root, "class 0"), ("auto", archive, "fine_0"),
    ):  # fmt: skip
        made = lab.run("--dataset", name, "-b", 8, directory=data)
        assert made.last["classes"][0] == first
        assert made.last["config"]["data_backend"] == "resident"
    assert "say which one with --dataset" in lab.error(directory=root, code=3)
    error = lab.error("--dataset", "folder", directory=root, code=3)
    assert "neither train/ nor train.txt" in error
    assert "leave --image-size" in lab.error("--image-size", 64, directory=archive)
    assert "reads image files" in lab.error("--data-backend", "pytorch", directory=archive)


@shows("--data-backend", "where images come from: synthetic needs no folder")
def data_backend(lab: Lab) -> None:
    made = lab.run(*SYNTHETIC, directory=None)
    assert made.last["classes"] == ["0", "1", "2"]
    assert differ(made.batches[0], lab.base.batches[0])
    fast, pytorch = (
        lab.run("--data-backend", name, "--no-checkpoints") for name in ("fast", "pytorch")
    )
    assert not differ(fast.batches[0], lab.base.batches[0])
    # The same crops, but for the rounding of two decoders.
    assert differ(fast.batches[0], pytorch.batches[0])
    assert (fast.batches[0] - pytorch.batches[0]).abs().mean() < 0.05


@shows("--dummy_test", "synthetic images, as --data-backend synthetic")
def dummy_test(lab: Lab) -> None:
    named = lab.run(*SYNTHETIC, "--no-checkpoints", directory=None)
    dummy = lab.run("--dummy_test", "--num-classes", 3, "--no-checkpoints", directory=None)
    assert dummy.value("train.loss") == named.value("train.loss")


@shows("--synthetic-size", "images per epoch of synthetic data: steps and val.seen")
def synthetic_size(lab: Lab) -> None:
    made = lab.run(*SYNTHETIC, "--synthetic-size", 9, 6, drop=("--prof",))
    assert made.last["counters"]["step"] == 2  # 9 images, 4 per step
    assert made.value("val.seen") == 6


@shows("--data-layout", "lists or folders: the classes found")
def data_layout(lab: Lab) -> None:
    both = write_images(lab.folder / "both")
    for split in ("train", "val"):
        lines = [f"class_{label}/{n}.jpg {label}\n" for label in range(2) for n in range(4)]
        (both / f"{split}.txt").write_text("".join(lines))
    assert lab.run(directory=both).last["num_classes"] == 2
    assert lab.run("--data-layout", "folder", directory=both).last["num_classes"] == 3
    assert "train.txt does not exist" in lab.error("--data-layout", "list", code=3)


@shows("--val-split", "which images are validated where there is no val")
def val_split(lab: Lab) -> None:
    flat = lab.folder / "flat"
    shutil.copytree(lab.images / "train", flat)
    made = lab.run("--val-split", 0.5, directory=flat, drop=("--prof",))
    whole = len([*flat.rglob("*.jpg")])
    assert made.value("val.seen") == whole / 2
    lists = [(made.workspace / name).read_text().splitlines()[1:] for name in ("train.txt",
             "val.txt")]  # fmt: skip
    assert len({*lists[0], *lists[1]}) == whole and len(lists[0]) == len(lists[1]) == whole / 2
    assert "holds neither train/" in lab.error(directory=flat, code=3)


@shows("--num-classes", "outputs of the classifier")
def num_classes(lab: Lab) -> None:
    made = lab.run("--data-backend", "synthetic", "--num-classes", 7)
    assert len(made.weights["fc.weight"]) == 7 and len(lab.base.weights["fc.weight"]) == 3
    text = lab.error("--num-classes", 7, code=3)
    assert "--num-classes 7" in text and "3 classes" in text


@shows("--workers", "processes that read images")
def workers(lab: Lab) -> None:
    read = BatchReader.__getitem__
    losses, readers = {}, {}
    for number in (0, 2):
        pids = lab.folder / f"readers{number}"
        pids.mkdir()

        def spy(reader: BatchReader, request: Any, pids: Any = pids) -> Any:
            (pids / str(os.getpid())).touch()
            return read(reader, request)

        flags = ("--data-backend", "pytorch", "--prof", 2, "--training-only", "--no-checkpoints")
        with mock.patch.object(BatchReader, "__getitem__", spy):
            done = lab.run("-j", number, *flags)
        losses[number] = done.value("train.loss")
        readers[number] = {int(path.name) for path in pids.iterdir()}
    assert readers[0] == {os.getpid()}
    assert len(readers[2]) == 2 and os.getpid() not in readers[2]
    assert losses[0] == losses[2]
    with mock.patch.object(loader, "NativeDecoder", wraps=loader.NativeDecoder) as spied:
        lab.run("-j", 3, *flags, "--data-backend", "fast")
    assert spied.call_args.args[0] == 3


@shows("--max-bad", "how many unreadable images end the run")
def max_bad(lab: Lab) -> None:
    images = write_images(lab.folder / "bad")
    paths = sorted((images / "train").rglob("*.jpg"))[:11]
    for path in paths:
        path.write_bytes(b"no image")
    flags = ("--training-only", "--no-checkpoints")
    text = lab.error(*flags, "--epochs", 9, "--prof", 9, directory=images, code=3)
    assert "11 of 24 images cannot be read, more than the 10 that --max-bad allows" in text
    done = lab.run(*flags, "--max-bad", 0.5, "--prof", 9, directory=images)
    listed = (done.workspace / "bad_files.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in listed} == {str(path) for path in paths}
    assert "another image takes its place" in done.out


@shows("--allow-bad-val", "whether an unreadable validation image ends the run")
def allow_bad_val(lab: Lab) -> None:
    images = write_images(lab.folder / "bad_val")
    bad = sorted((images / "val").rglob("*.jpg"))[0]
    bad.write_bytes(b"no image")
    assert f"cannot read image {bad}" in lab.error(directory=images, code=3)
    done = lab.run("--allow-bad-val", directory=images)
    assert str(bad) in (done.workspace / "bad_files.txt").read_text()


@shows("--prefetch", "batches in flight per worker: the loader's setting, a note where memory ends")
def prefetch(lab: Lab) -> None:
    flags = ("-j", 1, "--training-only", "--no-checkpoints", "--data-backend", "pytorch")
    free = 5 * 4 * (3 * 32 * 32 + 8)  # five batches: two are elsewhere, three fit
    notes, factors = {}, {}
    for number in (3, 8):
        with (
            mock.patch.object(pytorch_loader, "shared_memory_free", lambda: free),
            mock.patch.object(pytorch_loader, "DataLoader", wraps=pytorch_loader.DataLoader) as spy,
        ):
            notes[number] = "prefetch reduced" in lab.run(*flags, "--prefetch", number).out
        factors[number] = spy.call_args.kwargs["prefetch_factor"]
    assert notes == {3: False, 8: True} and factors == {3: 3, 8: 3}
    with mock.patch.object(pytorch_loader, "DataLoader", wraps=pytorch_loader.DataLoader) as spy:
        lab.run(*flags, "--prefetch", 1)
    assert spy.call_args.kwargs["prefetch_factor"] == 1


# ---- augmentation ----


@shows("--image-size", "height and width of the images")
def image_size(lab: Lab) -> None:
    assert lab.base.batches[0].shape == (4, 3, 32, 32)
    made = lab.run("--image-size", 48)
    assert made.batches[0].shape == (4, 3, 48, 48)
    assert made.last["preprocessing"]["val"]["image_size"] == 48
    assert made.last["preprocessing"]["val"]["resize_size"] == 80


@shows("--val-resize", "the view of validation images: val.loss, not train.loss")
def val_resize(lab: Lab) -> None:
    made = lab.run("--val-resize", 32)
    assert made.last["preprocessing"]["val"]["resize_size"] == 32
    assert made.value("val.loss") != lab.base.value("val.loss")
    assert made.value("train.loss") == lab.base.value("train.loss")
    assert "--val-resize 32" in lab.error("--val-resize", 32, drop=("--image-size",))


@shows("--val-size", "the size of validation images alone, kept by the checkpoint")
def val_size(lab: Lab) -> None:
    made = lab.run("--val-size", 48)
    assert made.batches[0].shape[-1] == 32
    sizes = {"train": 32, "val": 48}
    assert {split: preset["image_size"] for split, preset in
            made.last["preprocessing"].items()} == sizes  # fmt: skip
    assert made.last["preprocessing"]["val"]["resize_size"] == 80
    assert made.value("val.loss") != lab.base.value("val.loss")
    assert made.value("train.loss") == lab.base.value("train.loss")
    file = made.workspace / "checkpoint.pth.tar"
    again = lab.run("--evaluate", "--resume", file, drop=("--image-size",))
    assert again.value("val.loss", "summary") == made.value("val.loss")
    more = lab.run("--resume", file, "--epochs", 2, drop=("--image-size",))
    assert more.batches[0].shape[-1] == 32
    assert more.last["preprocessing"]["val"]["image_size"] == 48
    assert "--val-resize 40" in lab.error("--val-size", 48, "--val-resize", 40)
    text = lab.error("--val-size", 48, "--data-backend", "resident")
    assert "images in memory have one size, 32" in text


@shows("--interpolation", "pixels of resized images")
def interpolation(lab: Lab) -> None:
    bicubic, triangular = (
        lab.run("--interpolation", name, "--no-checkpoints") for name in ("bicubic", "triangular")
    )
    assert differ(bicubic.batches[0], lab.base.batches[0])
    assert not differ(triangular.batches[0], lab.base.batches[0])


@shows("--crop-scale", "what training images show")
def crop_scale(lab: Lab) -> None:
    whole = lab.run("--crop-scale", 1, 1, "--hflip", 0)
    assert whole.last["preprocessing"]["train"]["scale"] == [1.0, 1.0]
    assert differ(whole.batches[0], lab.shared("--hflip", "0").batches[0])


@shows("--hflip", "mirrored training images")
def hflip(lab: Lab) -> None:
    never, always = lab.shared("--hflip", "0"), lab.run("--hflip", 1, "--no-checkpoints")
    assert close(always.batches[0], never.batches[0].flip(-1))
    assert differ(always.batches[0], never.batches[0])
    assert always.value("train.loss") != never.value("train.loss")


@shows("--augmentation", "pixels of training images")
def augmentation(lab: Lab) -> None:
    if importlib.util.find_spec("torchvision") is None:
        assert "needs torchvision" in lab.error("--augmentation", "autoaugment")
        return
    made = lab.run("--augmentation", "autoaugment")
    assert differ(made.batches[0], lab.base.batches[0])
    assert made.last["preprocessing"]["train"]["policy"] == "autoaugment"
    assert made.last["preprocessing"]["val"] == lab.base.last["preprocessing"]["val"]


@shows("--randaugment", "how many operations RandAugment does, and how strongly")
def randaugment(lab: Lab) -> None:
    assert "is for --augmentation randaugment" in lab.error("--randaugment", 1, 5)
    assert "needs 1..16 operations" in lab.error("--augmentation", "randaugment",
                                                 "--randaugment", 0, 9)  # fmt: skip
    if importlib.util.find_spec("torchvision") is not None:
        flags = ("--augmentation", "randaugment", "--no-checkpoints")
        weak, strong = (
            lab.run(*flags, "--randaugment", *pair).batches[0] for pair in ((1, 1), (4, 30))
        )
        assert differ(weak, lab.base.batches[0]) and differ(weak, strong)


@shows("--random-erasing", "rectangles of training images: exactly the mean")
def random_erasing(lab: Lab) -> None:
    erased = lab.run("--random-erasing", 1, "--no-checkpoints").batches[0]
    holes = (erased == 0).all(dim=1)  # [N, H, W]
    assert holes.any(dim=(1, 2)).all()
    kept = ~holes[:, None].expand_as(erased)
    assert not differ(erased[kept], lab.base.batches[0][kept])


@shows("--progressive-resize", "the size of training images: grows over the epochs")
def progressive_resize(lab: Lab) -> None:
    made = lab.run("--image-size", 64, "--progressive-resize", 32, "--epochs", 2)
    assert [batch.shape[2] for batch in made.batches] == [32, 64]
    assert "multiple of 32 up to image size 32" in lab.error("--progressive-resize", 64)


@shows("--cutout", "a square of the mean colour in images that are in memory")
def cutout(lab: Lab) -> None:
    root = write_cifar100(lab.folder)
    whole = lab.run("-b", 8, directory=root).batches[0]
    holed = lab.run("-b", 8, "--cutout", 12, directory=root).batches[0]
    hole = (whole != holed).any(dim=1)  # [N, H, W]
    assert hole.any(dim=(1, 2)).all() and hole.sum() <= 8 * 12 * 12
    assert holed.permute(0, 2, 3, 1)[hole].abs().max() < 0.01
    assert "needs images in memory" in lab.error("--cutout", 4)


@shows("--mixup", "the loss of blended images")
def mixup(lab: Lab) -> None:
    mixed = lab.run("--mixup", 1, "--no-checkpoints")
    assert not differ(mixed.batches[0], lab.base.batches[0])  # they are mixed on the device
    assert mixed.value("train.loss") != lab.base.value("train.loss")


@shows("--cutmix", "the loss of images with parts of others")
def cutmix(lab: Lab) -> None:
    cut = lab.run("--cutmix", 1, "--no-checkpoints")
    assert not differ(cut.batches[0], lab.base.batches[0])  # they are mixed on the device
    mixed = lab.run("--mixup", 1, "--no-checkpoints")
    losses = {run.value("train.loss") for run in (cut, mixed, lab.base)}
    assert len(losses) == 3
