# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the options for data and augmentation change."""

from __future__ import annotations

import importlib.util
import os
from typing import Any
from unittest import mock

from option_lab import SYNTHETIC, Lab, close, differ, shows
from runs import write_images

from image_classification import pytorch_loader
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


@shows("--data-backend", "where images come from: synthetic needs no folder")
def data_backend(lab: Lab) -> None:
    made = lab.run(*SYNTHETIC, directory=None)
    assert made.last["classes"] == ["0", "1", "2"]
    assert differ(made.batches[0], lab.base.batches[0])
    explicit = lab.run("--data-backend", "pytorch", "--no-checkpoints")
    assert not differ(explicit.batches[0], lab.base.batches[0])


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

        with mock.patch.object(BatchReader, "__getitem__", spy):
            done = lab.run("-j", number, "--prof", 2, "--training-only", "--no-checkpoints")
        losses[number] = done.value("train.loss")
        readers[number] = {int(path.name) for path in pids.iterdir()}
    assert readers[0] == {os.getpid()}
    assert len(readers[2]) == 2 and os.getpid() not in readers[2]
    assert losses[0] == losses[2]


@shows("--prefetch", "batches in flight per worker: the loader's setting, a note where memory ends")
def prefetch(lab: Lab) -> None:
    flags = ("-j", 1, "--training-only", "--no-checkpoints")
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


@shows("--mixup", "the loss of blended images")
def mixup(lab: Lab) -> None:
    mixed = lab.run("--mixup", 1, "--no-checkpoints")
    assert not differ(mixed.batches[0], lab.base.batches[0])  # they are mixed on the device
    assert mixed.value("train.loss") != lab.base.value("train.loss")
