# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""What the processing of a data set has found: a page for people and a file for programs."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from image_classification.atomic_file import atomic_file
from image_classification.data_index import IMAGE_EXTENSIONS, ImageIndex, describe_imbalance, few
from image_classification.data_processing.duplicates import (
    equal_groups,
    members_of_groups,
    similar_pairs,
)
from image_classification.data_processing.examination import Findings, State
from image_classification.errors import UsageError, printable

TEXT_NAME, JSON_NAME = "data_report.txt", "data_report.json"
# Of each list in the file so many are named; the numbers count all.
_MOST_NAMED = 10_000
_SHOWN = 5
_ENDINGS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".ppm": "PPM", ".pgm": "PPM", ".bmp": "BMP",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip

Examined = tuple[ImageIndex, Findings]


@dataclass
class SplitSummary:
    """One split.

    Attributes:
        images: Number of readable images.
        per_class: How many of them each class has.
        short_sides: Smallest, median and largest short side in pixels.
        by_pillow: How many of them the fast loader leaves to Pillow.
        unreadable: Path and reason of the others.
        wrong_ending: Path and true format of those whose names say another format.
    """

    images: int
    per_class: dict[str, int]
    short_sides: list[int]
    by_pillow: int
    unreadable: list[list[str]]
    wrong_ending: list[list[str]]


@dataclass
class Summary:
    """Everything that is told at the end.

    Attributes:
        source: SOURCE.
        target: TARGET.
        classes: Class names; the position is the label.
        notes: One-line texts that are worth a look.
        val_share: Share of each class that was taken for val; None where val was there.
        seed: Of that split.
        splits: What is known of train and val.
        equal_in_train_and_val: Paths of equal files, some of which train and some val has.
        equal_in_classes: Likewise those under different classes.
        equal_in_class: Likewise those in one class of one split.
        similar_in_train_and_val: Pairs that look the same; None where that was not asked for.
    """

    source: str
    target: str
    classes: list[str]
    notes: list[str]
    val_share: float | None = None
    seed: int | None = None
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    equal_in_train_and_val: list[list[str]] = field(default_factory=list)
    equal_in_classes: list[list[str]] = field(default_factory=list)
    equal_in_class: list[list[str]] = field(default_factory=list)
    similar_in_train_and_val: list[list[str]] | None = None

    def add_split(self, index: ImageIndex, found: Findings) -> None:
        """Note counts, sizes and troubles of a split."""
        good = np.flatnonzero(found.good)
        counts = np.bincount(index.labels[good], minlength=len(self.classes)).tolist()
        sides = np.sort(found.sizes[good].min(axis=1))
        formats = zip(good.tolist(), found.formats[good].tolist(), strict=True)
        wrong = [
            [index.path(i), kind.decode()]
            for i, kind in formats
            if _format_by_name(index.path(i)) not in (None, kind.decode())
        ]
        self.splits[index.split] = SplitSummary(
            images=len(good),
            per_class=dict(zip(self.classes, counts, strict=True)),
            short_sides=[int(sides[0]), int(sides[len(sides) // 2]), int(sides[-1])],
            by_pillow=int((found.states == State.PILLOW).sum()),
            unreadable=[[index.path(i), reason] for i, reason in sorted(found.reasons.items())],
            wrong_ending=wrong,
        )
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty and index.split == "train":
            self.notes.append(f"{len(empty)} classes have no image in train: {few(empty)}")

    def note_other_files(self, index: ImageIndex) -> None:
        """Note the files of a split that are no images by their names, and so are not read."""
        if index.source != "folder":
            return
        endings = Counter(
            os.path.splitext(name)[1].lower() or "no ending"
            for name_of_class in index.classes
            for _, _, names in os.walk(index.root / name_of_class)
            for name in names
            if not name.startswith(".") and not name.lower().endswith(IMAGE_EXTENSIONS)
        )
        if endings:
            kinds = few([f"{count} {ending}" for ending, count in endings.most_common()])
            self.notes.append(
                f"{index.split}: {sum(endings.values())} files are no images by name: {kinds}"
            )

    def add_duplicates(self, examined: list[Examined]) -> None:
        """Note which files are equal, within a split and between both."""
        digests = np.concatenate([found.digests for _, found in examined])
        good = np.concatenate([found.good for _, found in examined])
        starts = np.cumsum([0, *(len(index) for index, _ in examined)])
        for members in members_of_groups(equal_groups(digests, good)):
            sides = (np.searchsorted(starts, members, side="right") - 1).tolist()
            images = [
                (examined[side][0], member - int(starts[side]))
                for side, member in zip(sides, members, strict=True)
            ]
            paths = [index.path(i) for index, i in images]
            if len({index.split for index, _ in images}) == 2:
                self.equal_in_train_and_val.append(paths)
            if len({int(index.labels[i]) for index, i in images}) > 1:
                self.equal_in_classes.append(paths)
            elif len({index.split for index, _ in images}) == 1:
                self.equal_in_class.append(paths)

    def add_similar(self, train: Examined, val: Examined) -> None:
        """Note which images of train and val look the same; equal files are not named again."""
        (index, found), (val_index, val_found) = train, val
        self.similar_in_train_and_val = [
            [index.path(i), val_index.path(j)]
            for i, j in similar_pairs(found.looks, val_found.looks)
            if (found.digests[i] != val_found.digests[j]).any()
        ]

    def lines(self) -> list[str]:
        """The summary for people."""
        lines = [line for name, part in self.splits.items() for line in _split_lines(name, part)]
        if self.val_share is not None:
            lines.append(f"val: {100 * self.val_share:g} % of each class, seed {self.seed}")
        for text, groups in (
            ("equal files in train and val (val is no measure for these)",
             self.equal_in_train_and_val),
            ("equal files under different classes (one label is wrong)", self.equal_in_classes),
            ("equal files within a class", self.equal_in_class),
            ("pairs in train and val look the same (have a look)",
             self.similar_in_train_and_val or []),
        ):  # fmt: skip
            if groups:
                lines.append(f"{len(groups)} {text}:")
                lines += _indented([_shown(group, self.target) for group in groups])
        if not (self.equal_in_train_and_val or self.equal_in_classes or self.equal_in_class):
            lines.append("no two files are equal")
        return lines + [f"note: {note}" for note in self.notes]

    def write(self, folder: Path) -> None:
        """Write both forms.

        Raises:
            UsageError: They cannot be written.
        """
        content = {"schema": 1, **asdict(self)}
        content["splits"] = {name: _capped(asdict(part)) for name, part in self.splits.items()}
        text = json.dumps(_capped(content), indent=1).encode("ascii")
        page = "\n".join([*self.lines(), ""]).encode("utf-8", "replace")
        for name, written in ((JSON_NAME, text), (TEXT_NAME, page)):
            try:
                with atomic_file(folder / name) as file:
                    file.write(written)
            except OSError as error:
                raise UsageError(f"{folder / name} cannot be written ({error.strerror})") from error


def _format_by_name(path: str) -> str | None:
    return _ENDINGS.get(os.path.splitext(path)[1].lower())


def _split_lines(name: str, part: SplitSummary) -> list[str]:
    counts = {label: count for label, count in part.per_class.items() if count}
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    small, middle, large = part.short_sides
    lines = [
        f"{name}: {part.images} images in {len(counts)} classes, {counts[least]} to {counts[most]} "
        f"per class; short side {small} to {large} px, half of them up to {middle}",
        f"{name}: {len(part.unreadable)} cannot be read, {len(part.wrong_ending)} have the ending "
        f"of another format, {part.by_pillow} are read by Pillow (slower)",
    ]
    lines += _indented([f"{printable(path)}: {printable(reason)}"
                        for path, reason in part.unreadable])  # fmt: skip
    lines += _indented([f"{printable(path)} is {kind}" for path, kind in part.wrong_ending])
    if (line := describe_imbalance(list(part.per_class.values()), [*part.per_class])) is not None:
        lines.append(f"{name}: {line}")
    return lines


def _indented(texts: list[str]) -> list[str]:
    more = [f"  ... and {len(texts) - _SHOWN} more, see {JSON_NAME}"] if len(texts) > _SHOWN else []
    return [f"  {text}" for text in texts[:_SHOWN]] + more


def _shown(group: list[str], target: str) -> str:
    """The first and the last of equal files: of both splits, where both have some."""
    first, last = (printable(os.path.relpath(path, target)) for path in (group[0], group[-1]))
    return f"{first} = {last}" + (f" and {len(group) - 2} more" if len(group) > 2 else "")


def _capped(content: dict) -> dict:
    """Long lists cut, with their full length beside them."""
    cut = {}
    for key, value in content.items():
        named = isinstance(value, list) and key != "classes"
        cut[key] = value[:_MOST_NAMED] if named else value
        if named and key not in ("notes", "short_sides"):
            cut[f"{key}_count"] = len(value)
    return cut
