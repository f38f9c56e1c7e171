"""The options that README.md lists are those that the roles and the command take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Final

import pytest

from broker.cli.main import make_parser
from broker.service import mediator, resolver, terminal
from broker.service.settings.options import RoleOptions
from broker.service.settings.values import Setting

README: Final = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
ROLES: Final[tuple[type[RoleOptions], ...]] = (
    mediator.Options,
    resolver.Options,
    terminal.Options,
)
_COMMAND: Final = re.compile(
    r"^\s*broker ((?:login|logout|permit|disclosures|register|call|backup|ca|account|group"
    r"|who-knows|check-config) .*?)(?:\s{2,}.*)?$",
    re.M,
)


def section(heading: str) -> str:
    """The text under a heading, up to the next of any level."""
    _, found, rest = README.partition(f"\n{heading}\n")
    assert found, f"README.md has no section {heading!r}"
    return rest.partition("\n#")[0]


def row(setting: Setting) -> str:
    """The line of the table that tells of a setting."""
    default = ", ".join(setting.default) if setting.repeatable else str(setting.default)
    shown = "" if setting.flag or default == "" else f"`{default}`"
    repeated = " May be repeated." if setting.repeatable else ""
    return f"| `--{setting.name}` | {shown} | {setting.help}{repeated} |"


class OptionsTests:
    """The tables of options."""

    @pytest.mark.parametrize("options", ROLES, ids=lambda options: options.role)
    def test_table(self, options: type[RoleOptions]) -> None:
        """Each option of a role stands there with its default and purpose, and no other does."""
        rows = [
            line
            for line in section(f"### `twistd -n {options.role}`").splitlines()
            if line.startswith("| `--")
        ]
        assert rows == [row(setting) for setting in options.settings]

    def test_commands(self) -> None:
        """Each ``broker`` command that is shown is one that it understands."""
        shown = _COMMAND.findall(README)
        kinds = set()
        for line in shown:
            arguments = shlex.split(line.partition(" <")[0], comments=True)
            parsed = make_parser().parse_args(arguments)
            kinds.add((parsed.command, getattr(parsed, "change", "")))
        assert kinds == {
            ("login", ""),
            ("logout", ""),
            ("disclosures", ""),
            ("permit", "create"),
            ("permit", "add"),
            ("permit", "delete"),
            ("permit", "list"),
            ("permit", "refuse"),
            ("permit", "relent"),
            ("permit", "policy"),
            ("register", ""),
            ("call", ""),
            ("backup", ""),
            ("ca", "init"),
            ("account", "add"),
            ("account", "list"),
            ("group", "create"),
            ("permit", "show"),
            ("who-knows", ""),
            ("check-config", ""),
        }
