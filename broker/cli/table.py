"""The words of the commands' table: a command, its arguments, and groups of either.

Each module of this package has a ``COMMAND`` or several; ``main`` puts them together. To add one,
write its function and its row. The parser is argparse's.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping
from textwrap import fill
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from broker.messages.grammar import identifier

#: Columns of a description: argparse does not fold it, so that the lines of the examples stay.
WIDTH: Final = 95

#: Does what a command is for; what goes wrong is raised, and ``main`` makes the exit status of it.
Run = Callable[[Namespace], None]

EXIT_STATUS: Final = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 the server can't be reached, 4 refused (the cause is
on standard error), 130 interrupted
"""
#: For commands that only work on files.
EXIT_STATUS_OF_FILES: Final = "exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted\n"


class WrongUsage(Exception):
    """The arguments do not go together; the text says why."""


class Value(NamedTuple):
    """What the text of an argument stands for.

    :ivar metavar: what the help text calls it
    :ivar parse: makes the value of the text, or raises ``ValueError`` with a cause
    :ivar noun: what the text should have been, for the error
    """

    metavar: str
    parse: Callable[[str], object] = str
    noun: str = "value"

    def __call__(self, text: str) -> object:
        """The value, as argparse asks for it."""
        try:
            return self.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no {self.noun}: {error}") from None


FILE: Final = Value("FILE")
ID: Final = Value("ID", identifier, "identifier")


class Argument:
    """An argument of a command: an option with a value, an option without (a flag), or a word."""

    def __init__(self, name: str, purpose: str, value: Value | None = None, **options: Any) -> None:
        """
        :param purpose: what it is for, in the help text
        :param options: what else ``ArgumentParser.add_argument`` takes
        """
        self._name = name
        self._options: dict[str, Any] = {"help": purpose, **options}
        if value is not None:
            self._options |= {"metavar": value.metavar, "type": value}
        elif name.startswith("--") and "choices" not in options:
            self._options["action"] = "store_true"

    def add_to(self, parser: Any) -> None:
        """Add it to a parser, or to a group of one."""
        parser.add_argument(self._name, **self._options)


class OneOf:
    """Arguments of which at most one may be given, or exactly one."""

    def __init__(self, *arguments: Argument, required: bool = False) -> None:
        self._arguments = arguments
        self._required = required

    def add_to(self, parser: Any) -> None:
        """Add them to a parser."""
        group = parser.add_mutually_exclusive_group(required=self._required)
        for argument in self._arguments:
            argument.add_to(group)


class Section:
    """Arguments with a heading of their own in the help text."""

    def __init__(self, heading: str, description: str, *arguments: Argument) -> None:
        self._heading = (heading, description)
        self._arguments = arguments

    def add_to(self, parser: Any) -> None:
        """Add them to a parser."""
        group = parser.add_argument_group(*self._heading)
        for argument in self._arguments:
            argument.add_to(group)


class Command:
    """A command."""

    def __init__(
        self,
        name: str,
        brief: str,
        run: Run,
        *arguments: Argument | OneOf | Section,
        more: str = "",
        epilog: str = EXIT_STATUS,
    ) -> None:
        """
        :param brief: what it does, for the list of commands
        :param more: what else its own help text says, after ``brief``
        :param epilog: how its help text ends
        """
        self._help = (name, brief, more, epilog)
        self._defaults = {"run": run}
        self._arguments = arguments

    def add_to(self, commands: Any) -> None:
        """Add it to the subparsers of a parser."""
        # No abbreviations: --password is not an option, and must not mean --password-file.
        parser = _add_parser(commands, *self._help, allow_abbrev=False)
        for argument in self._arguments:
            argument.add_to(parser)
        parser.set_defaults(**self._defaults)


class CommandGroup:
    """A command that has commands of its own."""

    def __init__(
        self,
        name: str,
        brief: str,
        *commands: Command | CommandGroup,
        more: str = "",
        epilog: str = "",
        dest: str = "change",
        renamed: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """
        :param dest: the attribute of the parsed arguments that holds which of them was chosen
        :param renamed: old names of commands, and what each is called now: using one is an error
        """
        self._help = (name, brief, more, epilog)
        self._commands = commands
        self._dest = dest
        self._renamed = renamed

    def add_to(self, commands: Any) -> None:
        """Add it, and its commands, to the subparsers of a parser."""
        parser = _add_parser(commands, *self._help)
        changes = parser.add_subparsers(dest=self._dest, metavar="change", required=True)
        for command in self._commands:
            command.add_to(changes)
        name = self._help[0]
        for old, new in self._renamed.items():
            _add_renamed(changes, f"{name} {old}", f"{name} {new}")
        changes.choices = _Choices(changes.choices, self._renamed)


def _add_parser(
    commands: Any, name: str, brief: str, more: str, epilog: str, **options: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=fill(f"{brief[0].upper()}{brief[1:]}. {more}", WIDTH),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    return parser


class _Choices(dict[str, argparse.ArgumentParser]):
    """The commands that a wrong one is answered with: old names are known, and not offered."""

    def __init__(
        self, commands: Mapping[str, argparse.ArgumentParser], hidden: Collection[str]
    ) -> None:
        super().__init__(commands)
        self._hidden = hidden

    def __iter__(self) -> Iterator[str]:
        return (name for name in super().__iter__() if name not in self._hidden)


def _add_renamed(commands: Any, old: str, new: str) -> None:
    def refuse(arguments: Namespace) -> None:
        raise WrongUsage(f"{old} is now called {new}")

    # With a prefix that no argument has, options too are taken as plain words, and none is wrong
    # before the new name can be told.
    parser = commands.add_parser(old.rsplit(maxsplit=1)[-1], add_help=False, prefix_chars="\0")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    parser.set_defaults(run=refuse)
