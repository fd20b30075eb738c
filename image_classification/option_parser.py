# SPDX-FileCopyrightText: The image classification package authors
# SPDX-License-Identifier: Apache-2.0
"""The command line parser of the programs: every problem at once, one line each."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, NoReturn

from image_classification.errors import UsageError


class OptionParser(argparse.ArgumentParser):
    """Collects all problems of a command line instead of stopping at the first.

    Options are written out in full; a problem is one line.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, exit_on_error=False, **settings)

    # Whether options may stand between positional arguments.
    intermixed = False

    def parse_all(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses what can be parsed.

        Args:
            argv: The words of the command line.

        Returns:
            The options, empty if nothing could be parsed, and one line per bad or unknown argument.
        """
        rest, problems = list(argv), []
        parse = self.parse_known_intermixed_args if self.intermixed else self.parse_known_args
        while True:
            try:
                args, unknown = parse(rest)
            except argparse.ArgumentError as error:
                written = str(error.argument_name).split("/")
                name = next((word for word in written if word.startswith("--")), written[0])
                problems.append(f"{name}: {error.message}")
                if not self._drop(rest, written):
                    return argparse.Namespace(), problems
                continue
            return args, list(dict.fromkeys(problems + [self._unknown(word) for word in unknown]))

    def _unknown(self, word: str) -> str:
        name = word.split("=")[0]
        options = list(self._option_string_actions) if name.startswith("-") else []
        near = [option for option in options if option.startswith(name)]
        # What begins like the word need not be as similar as what does not: --bach, --batch-size.
        alike = difflib.get_close_matches(name, options, n=5, cutoff=0.5)
        near = near or [option for option in alike if option.startswith(name[:4])]
        near = near or difflib.get_close_matches(name, options, n=1, cutoff=0.7)
        return f"unknown argument {word!r}; " + (f"did you mean {near[0]}?" if near else "see -h")

    def _drop(self, words: list[str], names: list[str]) -> bool:
        """Removes the last use of an option and its values, and no more, in place."""
        options = self._option_string_actions
        for index in range(len(words) - 1, -1, -1):
            if words[index].split("=")[0] in names or words[index][:2] in names:
                if names[0] not in options:  # it belongs to a subcommand
                    return False
                number, end = options[names[0]].nargs, index + 1
                number = number if isinstance(number, int) else 1
                while words[index] in names and end < len(words) and end - index <= number:
                    if words[end].split("=")[0] in options or words[end][:2] in options:
                        break
                    end += 1
                del words[index:end]
                return True
        return False

    def parse_or_raise(self, argv: list[str] | None) -> argparse.Namespace:
        """Parses a command line (None: the program's).

        Raises:
            UsageError: One line per bad or unknown argument.
        """
        args, problems = self.parse_all(sys.argv[1:] if argv is None else argv)
        if problems:
            raise UsageError("\n".join(problems))
        return args

    def error(self, message: str) -> NoReturn:
        """Called by argparse for problems that no single option is to blame for."""
        raise UsageError(message)
