# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The classes of ImageNet's validation images, whose archive does not say them.

They are published in many forms; what a file is shows in its first line.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path, PurePosixPath

from image_classification.data_index import few
from image_classification.data_processing.mat_file import read_class_numbers
from image_classification.data_processing.tar_reader import tar_members
from image_classification.errors import DataError, UsageError, printable

DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
# In the order in which they are looked for.
KNOWN_FILES = (
    f"{DEVKIT}.tar.gz", DEVKIT, "LOC_val_solution.csv", "valprep.sh", GROUND_TRUTH, "val.txt",
    "val.txt.original",
)  # fmt: skip
FORMS = (
    f"{DEVKIT}.tar.gz or its folder; {GROUND_TRUTH} with --synsets; LOC_val_solution.csv; "
    "valprep.sh; lines 'image number' or 'image wnid'; a wnid per line"
)

WNID = re.compile(r"n[0-9]{8}")
_MAX_BYTES = 1 << 26
_IMAGE_NUMBER = re.compile(r"ILSVRC2012_val_([0-9]{8})")
# The forms of lines: image and wnid (valprep.sh moves the one into the folder of the other), those
# of Kaggle, image and number in the order of the sorted wnids, wnids or ILSVRC2012_IDs in the order
# of the images.
_LINE_FORMS = {
    "wnid": re.compile(r"(?:mv\s+)?(\S+)\s+(n[0-9]{8})/?"),
    "kaggle": re.compile(r"(\S+?),(n[0-9]{8})(?:\s.*)?"),
    "number": re.compile(r"(\S+)\s+([0-9]{1,7})"),
    "wnids": re.compile(r"()(n[0-9]{8})"),
    "ids": re.compile(r"()([0-9]{1,7})"),
}
_OTHER_LINES = re.compile(r"#.*|mkdir\s.*|ImageId,PredictionString|\s*")
_SYNSET_LINE = re.compile(r"(?:([0-9]{1,7})[\s,]+)?(n[0-9]{8})(?:[\s,]+([0-9]{1,7}))?(?:[\s,].*)?")


def find_val_labels(folder: Path) -> Path | None:
    """The first file (or folder) with labels of the validation images that is there."""
    paths = (folder / name for name in KNOWN_FILES)
    return next((path for path in paths if path.exists()), None)


def read_val_labels(
    source: Path, images: list[str], classes: list[str] | None, synsets: Path | None
) -> dict[str, str]:
    """Read the class of each validation image.

    Args:
        source: One of the forms in `FORMS`.
        images: Names of the image files.
        classes: The sorted classes of the training images, where they are known.
        synsets: A list of wnids, for sources with numbers only.

    Returns:
        Image -> class.

    Raises:
        DataError: Unreadable, in no known form, or the class of an image is not in it.
        UsageError: Numbers whose wnids are unknown.
    """
    truth, meta = _texts(source)
    found = _lines(truth.splitlines(), source)
    form, entries = found
    if form == "ids":
        ids = read_class_numbers(meta) if meta is not None else _ids(source, synsets)
        entries = [(image, ids.get(int(number), "")) for image, number in entries]
    elif form == "number":
        known = classes or _sorted_wnids(source, synsets)
        names = dict(enumerate(known))
        entries = [(image, names.get(int(number), "")) for image, number in entries]
    if form in ("ids", "wnids"):
        by_number = dict(enumerate((label for _, label in entries), start=1))
        labels = {image: by_number.get(_number(image, source), "") for image in images}
    else:
        by_stem = {PurePosixPath(image).stem: label for image, label in entries}
        # Kaggle leaves the ending out: a stem of a stem is the same.
        labels = {image: by_stem.get(PurePosixPath(image).stem, "") for image in images}
    if unknown := [image for image, label in labels.items() if not label]:
        raise DataError(
            f"{printable(source)}: no class for {len(unknown)} of {len(images)} validation images: "
            f"{few(unknown)}"
        )
    if form != "number" and (bad := [x for x in labels.values() if not WNID.fullmatch(x)]):
        raise DataError(f"{printable(source)}: not a WordNet id like n01440764: {few(bad)}")
    return labels


def _texts(source: Path) -> tuple[str, bytes | None]:
    """The list of labels, and meta.mat where it is there."""
    meta: bytes | None = None
    if source.name.endswith((".tar.gz", ".tgz")):
        found = _devkit_members(source)
        truth, meta = found.get(GROUND_TRUTH), found.get(META)
        if truth is None or meta is None:
            missing = META if truth is not None else GROUND_TRUTH
            raise DataError(f"{printable(source)} holds no data/{missing}; get it again")
    else:
        folder = source / "data" if (source / "data").is_dir() else source
        path = folder / GROUND_TRUTH if source.is_dir() else source
        truth = _content(path)
        if path.name == GROUND_TRUTH and (path.parent / META).is_file():
            meta = _content(path.parent / META)
    return truth.decode("utf-8-sig", "replace"), meta


def _devkit_members(path: Path) -> dict[str, bytes]:
    """The two files that matter, out of the packed development kit."""
    try:
        with gzip.open(path) as packed:
            content = packed.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{printable(path)} cannot be read ({printable(str(reason))})") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{printable(path)} is larger than any development kit; get it again")
    members = tar_members(io.BytesIO(content), path.name)
    return {
        PurePosixPath(member.name).name: content[member.offset : member.offset + member.size]
        for member in members
        if member.kind == "file" and PurePosixPath(member.name).parent.name == "data"
    }


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from error
    if len(content) > _MAX_BYTES:
        raise DataError(
            f"{printable(path)} is larger than any list of labels: is it the right one?"
        )
    return content


def _lines(lines: list[str], source: Path) -> tuple[str, list[tuple[str, str]]]:
    """The form of a list, and image ("" in ordered lists) and label of each line."""
    form, entries = "", []
    for number, line in enumerate(map(str.strip, lines), start=1):
        names = [form] if form else list(_LINE_FORMS)
        matches = ((name, _LINE_FORMS[name].fullmatch(line)) for name in names)
        form, match = next(((name, m) for name, m in matches if m), (form, None))
        if match is not None:
            entries.append((match[1], match[2]))
        elif not _OTHER_LINES.fullmatch(line):
            kind = "in no known form" if not form else "unlike the lines before it"
            raise DataError(
                f"{printable(source)}, line {number}: {kind}: {printable(line, 80)}; known: {FORMS}"
            )
    if not entries:
        raise DataError(f"{printable(source)} holds no labels; known: {FORMS}")
    return form, entries


def _number(image: str, source: Path) -> int:
    match = _IMAGE_NUMBER.match(image)
    if match is None:
        raise DataError(
            f"{printable(source)} has labels in the order of the images, but {printable(image)} "
            "has no number like ILSVRC2012_val_00000001.JPEG"
        )
    return int(match[1])


def _synset_lines(path: Path) -> list[tuple[int | None, str]]:
    """Number (None where it has none) and wnid of each line."""
    entries = []
    lines = _content(path).decode("utf-8-sig", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _SYNSET_LINE.fullmatch(line.strip())
        if match is not None:
            key = match[1] or match[3]
            entries.append((None if key is None else int(key), match[2]))
        elif line.strip():
            raise DataError(
                f"{printable(path)}, line {number}: expected a wnid like n02119789, with or "
                f"without its number and words; the line: {printable(line, 80)}"
            )
    return entries


def _ids(source: Path, synsets: Path | None) -> dict[int, str]:
    """ILSVRC2012_ID -> wnid, of the user's list."""
    if synsets is None:
        raise UsageError(
            f"{printable(source)} holds ILSVRC2012_IDs, whose classes are in {META} of {DEVKIT}: "
            "put that file beside it, or give --synsets FILE with their wnids, ID 1 first"
        )
    entries = _synset_lines(synsets)
    wnids = [wnid for _, wnid in entries]
    if all(number is not None for number, _ in entries):
        return {number: wnid for number, wnid in entries if number is not None}
    if wnids == sorted(wnids):
        raise UsageError(
            f"--synsets {printable(synsets)} is sorted by wnid, but ILSVRC2012_IDs are not (ID 1 "
            "is n02119789, kit fox): every label would be wrong; give a list in their order, or "
            f"{META} beside {GROUND_TRUTH}"
        )
    return dict(enumerate(wnids, start=1))


def _sorted_wnids(source: Path, synsets: Path | None) -> list[str]:
    """What label numbers mean where the training images are not there to tell."""
    if synsets is None:
        raise UsageError(
            f"{printable(source)} holds label numbers, and without training images nothing says "
            "their classes: give --synsets FILE with all wnids"
        )
    return sorted({wnid for _, wnid in _synset_lines(synsets)})
