# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Two results of run.py: what has become slower than the spread of its measurements.

A machine is faster in one hour than in another. Where a table has peers, whose code is the same in
both results, what they gained or lost is the machine's and is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from benchmarks.environment import machine
from benchmarks.measure import Spread, markdown_table
from image_classification.errors import DataError

_PEERS = ("torchvision", "timm", "nvidia", "pillow", "opencv", "nvimgcodec", "dali", "dataloader")
_LEAST = 0.02  # what one measurement cannot tell apart


class Figure(NamedTuple):
    """A measured figure.

    Attributes:
        part: Which table it is from.
        name: Its row.
        speed: Its spread, the larger the better: a rate, or 1 / seconds or 1 / bytes.
    """

    part: str
    name: str
    speed: Spread


def figures(result: dict[str, Any]) -> list[Figure]:
    """Lists what a result of run.py holds."""
    return [
        figure
        for part, entry in result["parts"].items()
        for figure in _figures(part, entry.get("record", {}))
    ]


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, list[str]]:
    """Compares two results of run.py.

    Returns:
        A table, and the rows that have become slower than the spread, or are gone.

    Raises:
        DataError: They are of different machines, or no part was measured in the same way.
    """
    require_same_machine(old["environment"], new["environment"])
    alike = [part for part in new["parts"]
             if (way := _way(new, part)) is not None and way == _way(old, part)]  # fmt: skip
    unlike = ", ".join(part for part in new["parts"] if part not in alike)
    if not alike:
        raise DataError(f"--compare: no part is measured there in the same way, of {unlike}")
    old, new = ({**one, "parts": {part: one["parts"][part] for part in alike}}
                for one in (old, new))
    before, after = ({(figure.part, figure.name): figure.speed for figure in figures(one)}
                     for one in (old, new))  # fmt: skip
    changes = {key: after[key].median / before[key].median for key in after if key in before}
    rows, slower = [["figure", "new / old", "peers'", "spread", ""]], []
    for (part, name), change in changes.items():
        if _is_peer(name):
            continue
        theirs = [one for other, one in changes.items() if other[0] == part and _is_peer(other[1])]
        drift = median(theirs) if theirs else 1.0
        spread = max(_width(after[part, name]), _width(before[part, name]), _LEAST)
        verdict = "slower" if change / drift < 1.0 - spread else ""
        slower += [f"{part}: {name}"] if verdict else []
        rows.append([f"{part}: {name}", f"{change:.2f}", f"{drift:.2f}" if theirs else "-",
                     f"{spread:.0%}", verdict])  # fmt: skip
    gone = [f"{part}: {name}" for part, name in before
            if (part, name) not in after and not _is_peer(name)]  # fmt: skip
    lines = [markdown_table(rows), ""]
    lines += [f"not measured there in the same way: {unlike}"] if unlike else []
    lines.append(f"slower than the spread: {', '.join(slower) or 'nothing'}")
    lines += [f"gone: {', '.join(gone)}"] if gone else []
    lines += _other_versions(old, new)
    return "\n".join(lines), slower + gone


def require_same_machine(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises DataError where two results' environments are not of the same machine."""
    if machine(old) != machine(new):
        raise DataError(f"--compare: that result is of {machine(old)}; this is {machine(new)}")


def _way(result: dict[str, Any], part: str) -> tuple[str, str] | None:
    """How a part was measured: its command, and on which images; None: it was not."""
    entry = result["parts"].get(part, {})
    if "record" not in entry:
        return None
    command = entry["command"]
    return command, result["settings"].get("images", "") if "DIR" in command.split() else ""


def _other_versions(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    then, now = (one["environment"]["versions"] for one in (old, new))
    changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now
               if now[name] != then.get(name)]  # fmt: skip
    return [f"other versions: {', '.join(changed)}"] if changed else []


def _figures(path: str, record: Any) -> Iterator[Figure]:
    """Walks through a record: rows with images per second, seconds with a spread, bytes."""
    if isinstance(record, list):
        for entry in record:
            if isinstance(entry, dict) and isinstance(entry.get("images_per_second"), dict):
                yield Figure(path, entry["name"], _spread(entry["images_per_second"]))
    if not isinstance(record, dict):
        return
    for name, entry in record.items():
        if name == "seconds" and isinstance(entry, dict):
            for row, found in entry.items():
                yield Figure(path, row, _inverse(_spread(found)))
        elif name == "bytes" and isinstance(entry, dict):
            for row, size in entry.items():
                yield Figure(path, row, _inverse(Spread(size, size, size)))
        elif name != "environment":
            inner = path if name in ("contenders", "batches") else f"{path}/{name}"
            yield from _figures(inner, entry)


def _spread(found: dict[str, float]) -> Spread:
    return Spread(found["median"], found["low"], found["high"])


def _inverse(spread: Spread) -> Spread:
    tiny = 1e-9
    return Spread(1 / max(spread.median, tiny), 1 / max(spread.high, tiny),
                  1 / max(spread.low, tiny))  # fmt: skip


def _width(spread: Spread) -> float:
    """How far the worst round is from the median, as a share."""
    return 1.0 - spread.low / spread.median


def _is_peer(name: str) -> bool:
    return name.lower().startswith(_PEERS)
