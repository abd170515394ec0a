"""The parser of the command line: argparse's, which says more about what it does not know."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn

__all__ = ["Parser"]

_FAILED = 2
_UNKNOWN_COMMAND = re.compile(r"argument (?:COMMAND|ACTION): invalid choice: '(.*?)' \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """Answers a missing COMMAND or ACTION with the help, which lists them, and takes options anywhere.

    What it parsed has the parser of the command as `parser`, to name options in messages.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.set_defaults(parser=self)
        self._is_mixing = False

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong, and how it is called."""
        if message.endswith((": COMMAND", ": ACTION")):
            self.print_help(sys.stderr)
            self.exit(_FAILED)
        unknown = _UNKNOWN_COMMAND.fullmatch(message)
        if unknown is not None:
            near = get_close_matches(unknown[1], re.findall(r"[\w-]+", unknown[2]), 1)
            message += f": did you mean {near[0]}?" if near else ""
        super().error(message)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse's; words that belong together may have options between them, unless `--` is there."""
        args = sys.argv[1:] if args is None else list(args)
        several = any(not action.option_strings and action.nargs in ("+", "*") for action in self._actions)
        # Where it mixes, argparse takes options behind `--` too.
        if self._is_mixing or not several or "--" in args:
            return super().parse_known_args(args, namespace)
        # argparse calls this method in it, from some versions of Python on.
        self._is_mixing = True
        try:
            return super().parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False

    def option_of(self, field: str) -> str:
        """The option that sets a field of the request; the field itself where none does."""
        short = field.removesuffix("_id").removesuffix("_tokens")
        options = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        return options.get(field) or options.get(short) or field
