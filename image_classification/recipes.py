# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: named sets of options in a YAML file, as words of a command line.

The words go in front of the user's own, so that the parser checks them like any others and what
the user says wins.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classification.errors import UsageError, printable, suggestion

_LARGEST_FILE = 1 << 20

Options = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A named set of options.

    Attributes:
        options: Values by the name of the option, without dashes in front.
        record: What it has reached, and where; empty where nothing is known.
        base: The recipe of which it is the form for a platform and precision; else empty.
    """

    options: Options
    record: str = ""
    base: str = ""

    @property
    def words(self) -> list[str]:
        """The options as words of a command line."""
        return to_words(self.options)


@dataclass(frozen=True)
class RecipeBook:
    """What a file of recipes holds.

    Attributes:
        source: The file.
        recipes: By name, in the order of the file.
        modes: Further options of launch.py, by the name of the mode.
    """

    source: str
    recipes: dict[str, Recipe]
    modes: dict[str, Options]

    def find(self, name: str) -> Recipe:
        """Returns a recipe.

        Raises:
            UsageError: There is none of this name.
        """
        if name not in self.recipes:
            raise UsageError(
                f"unknown recipe {printable(name, 60)!r} in {self.source}"
                f"{suggestion(name, self.recipes)}; --list-recipes prints all"
            )
        return self.recipes[name]

    def find_mode(self, name: str) -> Options:
        """Returns the options of a mode.

        Raises:
            UsageError: There is none of this name.
        """
        if name not in self.modes:
            known = ", ".join(self.modes)
            raise UsageError(f"unknown mode {printable(name, 60)!r}; known: {known}")
        return self.modes[name]

    def listing(self, name: str = "") -> str:
        """Describes a recipe with its options, or without a name all of them, for the terminal."""
        if name:
            recipe = self.find(name)
            return f"{_titled(name, recipe)}\n    {' '.join(recipe.words)}"
        lines = []
        for base, recipe in self.recipes.items():
            if not recipe.base:
                lines.append(_titled(base, recipe))
                forms = (name for name, form in self.recipes.items() if form.base == base)
                lines += textwrap.wrap(
                    ", ".join(forms), 96, initial_indent="    ", subsequent_indent="    ",
                    break_on_hyphens=False,
                )  # fmt: skip
        return "\n".join([*lines, "--list-recipes --recipe NAME shows the options of one"])


def _titled(name: str, recipe: Recipe) -> str:
    return name + (f"   [{recipe.record}]" if recipe.record else "")


def read(path: str | os.PathLike[str]) -> RecipeBook:
    """Reads a file of recipes; recipes.yml of this package explains its form.

    Raises:
        UsageError: The file cannot be read, is no YAML, or has another form; or PyYAML is missing.
    """
    source = os.fspath(path)
    content = _mapping(_load(Path(path)), source)
    platforms, precisions, modes = (
        {key: _options(value, f"{source}: {group}, {key}")
         for key, value in _mapping(content.get(group), f"{source}: {group}").items()}
        for group in ("platforms", "precisions", "modes")
    )  # fmt: skip
    recipes: dict[str, Recipe] = {}
    for name, entry in _mapping(content.get("recipes"), f"{source}: recipes").items():
        place = f"{source}: recipe {name}"
        entry = _mapping(entry, place)
        if unknown := sorted(set(entry) - {"options", "platforms", "record"}):
            raise UsageError(f"{place}: unknown {printable(str(unknown[0]), 60)!r}; known: options,"
                             " platforms, record")  # fmt: skip
        record = printable(str(entry.get("record", "")), 200)
        options = _options(entry.get("options"), place)
        recipes[name] = Recipe(options, record)
        for row, extra in _mapping(entry.get("platforms"), place).items():
            platform, _, precision = row.rpartition("-")
            if platform not in platforms or precision not in precisions:
                raise UsageError(f"{place}: {printable(row, 60)!r} is no <platform>-<precision> of "
                                 "the file's platforms and precisions")  # fmt: skip
            whole = {**precisions[precision], **platforms[platform], **options,
                     **_options(extra, place)}  # fmt: skip
            recipes[f"{name}-{row}"] = Recipe(whole, record, name)
    return RecipeBook(source, recipes, modes)


def to_words(options: Options) -> list[str]:
    """Writes options as words of a command line.

    Args:
        options: Values by name: true for a bare option, false for none, a list for several values.
    """
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, list):
            words += [option, *map(str, value)]
        elif value is True:
            words.append(option)
        elif value is not False:
            words.append(f"{option}={value}")
    return words


def _load(path: Path) -> object:
    try:
        import yaml
    except ImportError as error:
        raise UsageError("recipes need PyYAML: pip install pyyaml") from error
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise UsageError(f"{path}: more than {_LARGEST_FILE} bytes are no file of recipes")
        return yaml.safe_load(text)  # types of YAML alone: it builds no objects
    except OSError as error:
        raise UsageError(f"cannot read recipes: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{path} is no YAML: {printable(line, 200)}") from error


def _mapping(value: object, place: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{place}: needs names and values, holds {printable(repr(value), 60)}")
    return value


def _options(value: object, place: str) -> Options:
    options = _mapping(value, place)
    for name, one in options.items():
        values = one if isinstance(one, list) else [one]
        if not all(isinstance(single, str | int | float) for single in values):
            raise UsageError(f"{place}, {printable(name, 60)}: needs a text, a number, true, false "
                             f"or a list of them, holds {printable(repr(one), 60)}")  # fmt: skip
    return dict(options)
