"""Writes the option tables of docs/configuration.md: ``python -m tests.docs.options``.

A table stands between ``<!-- options: NAME -->`` and ``<!-- end -->``. The text around them is
written by hand.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from broker.cli.main import make_parser
from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions
from broker.service.settings.setting import Setting

#: Characters in a line of text.
WIDTH: Final = 158
PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROLES: Final[tuple[type[RoleOptions], ...]] = (
    mediator.Options,
    resolver.Options,
    terminal.Options,
)
_GENERATED: Final = re.compile(r"(<!-- options: (\S+) -->\n).*?(<!-- end -->\n)", re.S)


class Command(NamedTuple):
    """One command of ``broker``.

    :ivar name: its words, such as ``permit add``
    :ivar purpose: what it does
    :ivar arguments: what it takes that is no option, as its usage shows it
    :ivar options: its options, each as ``(--name VALUE, help)``
    """

    name: str
    purpose: str
    arguments: str
    options: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> str:
        """Which common options it shares: those about a mediator, the operator's, or none."""
        names = {shown.split()[0] for shown, _ in self.options}
        if "--mediator" in names:
            return "mediator"
        return "operator" if "--admin" in names else "local"


def role_rows(options: type[RoleOptions]) -> Iterator[str]:
    """The lines of the table of a role's options."""
    yield from ("| option | default | |", "|---|---|---|")
    for setting in options.settings:
        yield f"| `--{setting.name}` | {_default(setting)} | {_cell(_help(setting))} |"


def _default(setting: Setting) -> str:
    default = ", ".join(setting.default) if setting.repeatable else str(setting.default)
    return "" if setting.flag or default == "" else f"`{default}`"


def _help(setting: Setting) -> str:
    return setting.help + (" May be repeated." if setting.repeatable else "")


def commands() -> list[Command]:
    """All commands of ``broker``, as its parser has them."""
    return list(_commands(make_parser(), ()))


def _commands(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Command]:
    options = []
    arguments = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                if below.add_help:  # else it is an old name, which only tells the new one
                    yield from _commands(below, (*words, word))
            return
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        shown = _metavar(action)
        if action.option_strings:
            purpose = (action.help or "") % {"default": action.default}
            options.append((f"{action.option_strings[-1]} {shown}".strip(), _text(purpose)))
        else:
            arguments.append(shown)
    purpose = _text(parser.description)
    yield Command(" ".join(words), purpose, " ".join(arguments), tuple(options))


def _metavar(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if action.choices is not None:
        name = "|".join(map(str, action.choices))
    counts: dict[object, str] = {0: "", "?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}
    return counts.get(action.nargs, name)


def common_options(found: Iterable[Command], kind: str) -> tuple[tuple[str, str], ...]:
    """The options that at least half of the commands of a kind share, in their order."""
    those = [command for command in found if command.kind == kind]
    shared: dict[tuple[str, str], int] = {}
    for command in those:
        for option in command.options:
            shared[option] = shared.get(option, 0) + 1
    return tuple(option for option, times in shared.items() if 2 * times >= len(those))


def command_lines(found: list[Command]) -> Iterator[str]:
    """The reference of all commands: the common options, then each command with its own."""
    common = {kind: common_options(found, kind) for kind in ("mediator", "operator")}
    for kind, title in _COMMON.items():
        yield from (f"**{title}**", "", *_option_table(common[kind]), "")
    for command in found:
        shared = common.get(command.kind, ())
        yield from (f"#### `broker {command.name}`", "")
        purpose = f"{command.purpose} " if command.purpose else ""
        takes = f"{purpose}{_takes(command, shared)}".strip()
        yield textwrap.fill(takes, WIDTH, break_long_words=False, break_on_hyphens=False)
        yield ""
        own = [option for option in command.options if option not in shared]
        if own:
            yield from (*_option_table(own), "")


_COMMON: Final = {
    "mediator": "Common options of the commands that log in at a mediator:",
    "operator": "Common options of the operator's commands, which use the mediator's socket:",
}


def _takes(command: Command, shared: tuple[tuple[str, str], ...]) -> str:
    """What a command takes: its arguments, and which of the common options."""
    takes = [f"Arguments: `{command.arguments}`."] if command.arguments else []
    have = [option for option in shared if option in command.options]
    if len(have) < len(shared):
        names = ", ".join(f"`{shown.split()[0]}`" for shown, _ in have)
        takes.append(f"Of the common options it takes {names or 'none'}.")
    return " ".join(takes)


def _option_table(options: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield from ("| option | |", "|---|---|")
    for shown, purpose in options:
        yield f"| `{_cell(shown)}` | {_cell(purpose)} |"


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def updated(page: str) -> str:
    """A page with all its tables as the code has them now."""
    tables = {options.role: list(role_rows(options)) for options in ROLES}
    tables["commands"] = list(command_lines(commands()))

    def table(found: re.Match[str]) -> str:
        lines = "\n".join(tables[found[2]]).strip()
        return f"{found[1]}\n{lines}\n\n{found[3]}"

    return _GENERATED.sub(table, page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text("utf-8")), "utf-8")
