# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ JPEG decoder against Pillow, and against files that are not what they should be."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from image_classification.augmentation import EvalPreset, TrainPreset, center_crop_boxes
from image_classification.fast_loader.native import (
    CROP,
    NativeDecoder,
    Status,
    kernel_names,
)
from image_classification.image_reading import eval_pixels, train_pixels

pytestmark = pytest.mark.skipif(not kernel_names(), reason="the fast loader is not built")

Box = tuple[int, int, int, int]


@pytest.fixture(scope="module", params=kernel_names())
def decoder(request) -> Iterator[NativeDecoder]:
    opened = NativeDecoder(2, request.param)
    yield opened
    opened.close()


def picture(width: int, height: int, seed: int = 0, patch: int = 12) -> Image.Image:
    """Smooth patches of colour with some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    shape = (max(height // patch, 2), max(width // patch, 2), 3)
    small = rng.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def crop_of(box, bounds, flip: bool = False, bicubic: bool = False) -> NDArray[np.void]:
    return np.array((box, bounds, int(bicubic), int(flip)), dtype=CROP)


def decode(
    decoder: NativeDecoder, files: list[bytes], crops: list, size: int
) -> tuple[NDArray[np.uint8], list[Status]]:
    batch = decoder.load_bytes(files)
    batch.wait()
    output = np.zeros((len(files), size, size, 3), dtype=np.uint8)
    batch.decode(np.stack(crops), batch.statuses != Status.OK, output)
    batch.wait()
    statuses = [Status(status) for status in batch.statuses]
    batch.free()
    return output, statuses


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).mean())


VARIANTS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "optimised": {"subsampling": 2, "optimize": True},
    "restart rows": {"subsampling": 2, "restart_marker_rows": 1},
    "restart blocks": {"subsampling": 0, "restart_marker_blocks": 3},
    "quality 100": {"subsampling": 0, "quality": 100},
    "quality 30": {"subsampling": 1, "quality": 30},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bicubic", [False, True], ids=["bilinear", "bicubic"])
def test_training_crops_equal_pillows(decoder, variant: str, bicubic: bool) -> None:
    data = jpeg(picture(203, 149), **VARIANTS[variant])
    boxes: list[Box] = [
        (0, 0, 203, 149), (7, 9, 120, 130), (100, 60, 203, 149), (64, 64, 96, 80), (31, 0, 44, 149),
    ]  # fmt: skip
    crops = [crop_of(box, box, i % 2 == 1, bicubic) for i, box in enumerate(boxes)]
    output, statuses = decode(decoder, [data] * len(boxes), crops, 48)
    assert statuses == [Status.OK] * len(boxes)
    preset = TrainPreset(image_size=48, interpolation="bicubic" if bicubic else "bilinear")
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    for i, box in enumerate(boxes):
        assert difference(output[i], train_pixels(reference, box, i % 2 == 1, preset)) < 0.8


def test_enlarged_bicubic_crops_equal_pillows_to_their_edges(decoder) -> None:
    """Beside an edge a single bicubic weight exceeds 1."""
    data = jpeg(picture(90, 70, patch=5), subsampling=0)
    boxes: list[Box] = [(0, 0, 20, 20), (11, 7, 44, 40), (60, 50, 90, 70), (3, 3, 60, 69)]
    crops = [crop_of(box, box, bicubic=True) for box in boxes]
    output, statuses = decode(decoder, [data] * len(boxes), crops, 48)
    assert statuses == [Status.OK] * len(boxes)
    reference = Image.open(io.BytesIO(data))
    preset = TrainPreset(48, interpolation="bicubic")
    for ours, box in zip(output, boxes, strict=True):
        theirs = train_pixels(reference, box, False, preset)
        assert difference(ours, theirs) < 0.8
        for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            assert difference(ours[edge], theirs[edge]) < 1.2


def test_440_equals_pillow(decoder) -> None:
    """Pillow does not write it; the blocks of a square 4:2:2 file, placed otherwise, make one."""
    data = bytearray(jpeg(picture(208, 208, patch=26), subsampling=1))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x21
    data[frame + 11] = 0x12
    boxes: list[Box] = [(0, 0, 208, 208), (7, 9, 120, 130), (100, 60, 203, 149), (31, 0, 44, 149)]
    crops = [crop_of(box, box) for box in boxes]
    output, statuses = decode(decoder, [bytes(data)] * len(boxes), crops, 48)
    assert statuses == [Status.OK] * len(boxes)
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    for ours, box in zip(output, boxes, strict=True):
        assert difference(ours, train_pixels(reference, box, False, TrainPreset(48))) < 0.8


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_validation_crops_of_any_size_equal_pillows(decoder, mode: str, subsampling: int) -> None:
    sizes = [(40, 40), (41, 63), (63, 41), (16, 300), (300, 17), (8, 8), (9, 7), (1, 1), (2, 90)]
    preset = EvalPreset(image_size=20, resize_size=24)
    files, crops, expected = [], [], []
    for width, height in sizes:
        image = picture(width, height).convert(mode)
        files.append(jpeg(image, **({"subsampling": subsampling} if mode == "RGB" else {})))
        box = center_crop_boxes(width, height, 20, 24)[0]
        crops.append(crop_of(box, (0, 0, width, height)))
        reference = Image.open(io.BytesIO(files[-1])).convert("RGB")
        expected.append(eval_pixels(reference, preset))
    output, statuses = decode(decoder, files, crops, 20)
    assert statuses == [Status.OK] * len(sizes)
    for size, ours, theirs in zip(sizes, output, expected, strict=True):
        # libjpeg does not interpolate colours of less than three samples a line.
        assert difference(ours, theirs) < (1.0 if min(size) > 4 else 1.5), size


@pytest.mark.parametrize("factor", [7, 13, 25])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_large_images_are_reduced_while_they_are_decoded(decoder, factor, subsampling) -> None:
    size = 20
    width, height = size * factor + 13, size * factor + 5
    data = jpeg(picture(width, height, patch=4 * factor), subsampling=subsampling)
    box = (0, 0, width, height)
    output, statuses = decode(decoder, [data], [crop_of(box, box)], size)
    reference = Image.open(io.BytesIO(data)).convert("RGB")
    assert statuses == [Status.OK]
    assert difference(output[0], train_pixels(reference, box, False, TrainPreset(size))) < 1.0


def test_every_instruction_set_gives_the_same_bytes() -> None:
    files = [jpeg(picture(150, 110, i), **options) for i, options in enumerate(VARIANTS.values())]
    crops = [crop_of((3, 5, 140, 99), (3, 5, 140, 99), i % 2 == 0) for i in range(len(files))]
    results = []
    for name in kernel_names():
        opened = NativeDecoder(1, name)
        results.append(decode(opened, files, crops, 40)[0])
        opened.close()
    assert results[0].any()
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_the_number_of_threads_changes_nothing() -> None:
    files = [jpeg(picture(60 + i, 50, i)) for i in range(40)]
    crops = [crop_of((0, 0, 60, 50), (0, 0, 60, 50)) for _ in files]
    outputs = []
    for threads in (1, 2, 5):
        opened = NativeDecoder(threads)
        outputs.append(decode(opened, files, crops, 32)[0])
        opened.close()
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])


def other_formats() -> dict[str, bytes]:
    image, found = picture(40, 30), {}
    found["progressive"] = jpeg(image, progressive=True)
    found["CMYK"] = jpeg(image.convert("CMYK"))
    found["kept RGB"] = jpeg(image, keep_rgb=True)
    for name in ("PNG", "BMP", "GIF", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, name)
        found[name] = buffer.getvalue()
    return found


@pytest.mark.parametrize("name", other_formats())
def test_what_is_beyond_the_scope_says_so(decoder, name: str) -> None:
    output, statuses = decode(
        decoder, [other_formats()[name]], [crop_of((0, 0, 40, 30), (0, 0, 40, 30))], 16
    )
    assert statuses == [Status.UNSUPPORTED]
    assert not output.any()


def test_truncated_files(decoder) -> None:
    data = jpeg(picture(64, 48))
    lengths = list(range(0, len(data) - 2, max(1, len(data) // 97)))
    crops = [crop_of((0, 0, 64, 48), (0, 0, 64, 48))] * len(lengths)
    _, statuses = decode(decoder, [data[:length] for length in lengths], crops, 16)
    assert set(statuses) <= {Status.TRUNCATED, Status.CORRUPT}


@pytest.mark.parametrize("subsampling, restart", [(0, 0), (2, 2)])
def test_damaged_files_end_in_a_status(decoder, subsampling: int, restart: int) -> None:
    data = jpeg(picture(48, 40), subsampling=subsampling, restart_marker_blocks=restart)
    rng = np.random.default_rng(1)
    files = []
    for position in range(2, len(data)):  # each byte once, and some places many at a time
        damaged = bytearray(data)
        damaged[position] = rng.integers(0, 256)
        if position % 7 == 0:
            damaged[position : position + 9] = rng.bytes(9)
        files.append(bytes(damaged))
    crops = [crop_of((5, 3, 45, 38), (5, 3, 45, 38), i % 2 == 0) for i in range(len(files))]
    _, statuses = decode(decoder, files, crops, 16)
    assert Status.OK in statuses and Status.CORRUPT in statuses


def test_a_header_that_lies_about_the_size_is_cheap(decoder) -> None:
    data = bytearray(jpeg(picture(48, 40)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    box = (0, 0, 65535, 65535)
    _, statuses = decode(decoder, [bytes(data)], [crop_of(box, box)], 16)
    assert statuses == [Status.TRUNCATED]


@pytest.mark.parametrize(
    "box, bounds",
    [
        ((0, 0, 41, 30), (0, 0, 41, 30)),
        ((-1, 0, 40, 30), (-1, 0, 40, 30)),
        ((5, 5, 5, 20), (5, 5, 5, 20)),
        ((0, 0, 40, 30), (2, 0, 40, 30)),
        ((np.nan, 0, 40, 30), (0, 0, 40, 30)),
        ((0, 0, np.inf, 30), (0, 0, 40, 30)),
    ],
)
def test_crops_outside_the_image_are_refused(decoder, box, bounds) -> None:
    _, statuses = decode(decoder, [jpeg(picture(40, 30))], [crop_of(box, bounds)], 16)
    assert statuses == [Status.BAD_CROP]


def test_files_that_cannot_be_read(decoder, tmp_path) -> None:
    (tmp_path / "empty.jpg").touch()
    paths = [tmp_path / "missing.jpg", tmp_path, tmp_path / "empty.jpg"]
    batch = decoder.load([str(path).encode() for path in paths])
    batch.wait()
    assert batch.statuses.tolist() == [Status.CANNOT_READ, Status.CANNOT_READ, Status.TRUNCATED]
    assert batch.errors.tolist()[:2] == [2, 21]  # ENOENT, EISDIR
    batch.free()


def test_arguments_that_would_write_elsewhere_are_refused(decoder) -> None:
    batch = decoder.load_bytes([jpeg(picture(40, 30))])
    crops, skip = np.zeros(1, dtype=CROP), np.zeros(1, dtype=bool)
    for output in (
        np.zeros((2, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 16, 3), np.uint8)[:, :, ::2], np.zeros((1, 8, 8, 4), np.uint8),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="output must be uint8"):
            batch.decode(crops, skip, output)
    with pytest.raises(ValueError, match="1 crops"):
        batch.decode(np.zeros(2, dtype=CROP), skip, np.zeros((1, 8, 8, 3), np.uint8))
    batch.free()
    batch.free()


def test_absurd_numbers_of_threads() -> None:
    for threads in (0, 100_000):
        with pytest.raises(RuntimeError, match=f"cannot start {threads} threads"):
            NativeDecoder(threads)


def test_unknown_kernels() -> None:
    with pytest.raises(RuntimeError, match=r"kernels mmx; known: .*plain"):
        NativeDecoder(1, "mmx")


@pytest.mark.parametrize("packed", [False, True])
def test_the_size_is_found_behind_long_metadata(decoder, tmp_path, packed: bool) -> None:
    """Files are read in parts first; colour profiles and previews come before the size."""
    segment = b"\xff\xe2\xff\xf0" + bytes(0xFFEE)
    data = jpeg(picture(40, 30))
    content = data[:2] + 5 * segment + data[2:]
    path = str(tmp_path / "file.jpg")
    (tmp_path / "file.jpg").write_bytes(content)
    if packed:
        (tmp_path / "s.pack").write_bytes(b"before" + content + b"after")
        path = f"{tmp_path}/s.pack@6+{len(content)}"
    batch = decoder.load([path.encode()])
    batch.wait()
    assert (batch.widths[0], batch.heights[0], batch.statuses[0]) == (40, 30, Status.OK)
    output = np.empty((1, 8, 8, 3), dtype=np.uint8)
    batch.decode(np.array([crop_of((0, 0, 40, 30), (0, 0, 40, 30))]), np.zeros(1, bool), output)
    batch.wait()
    batch.free()
    expected = train_pixels(Image.open(io.BytesIO(data)), (0, 0, 40, 30), False, TrainPreset(8))
    assert np.abs(output[0].astype(int) - expected).mean() < 1.0


def test_a_file_that_changes_between_the_stages(decoder, tmp_path) -> None:
    path = tmp_path / "file.jpg"
    for content, status in ((jpeg(picture(20, 30)), Status.BAD_CROP), (None, Status.CANNOT_READ)):
        path.write_bytes(jpeg(picture(40, 30)))
        batch = decoder.load([bytes(path)])
        batch.wait()
        path.unlink() if content is None else path.write_bytes(content)
        output = np.empty((1, 8, 8, 3), dtype=np.uint8)
        crops = np.array([crop_of((0, 0, 40, 30), (0, 0, 40, 30))])
        batch.decode(crops, np.zeros(1, bool), output)
        batch.wait()
        assert batch.statuses[0] == status
        batch.free()
