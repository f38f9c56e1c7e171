"""docs/configuration.md lists the options that the roles and the command take."""

from __future__ import annotations

import re
import shlex
from typing import Final

import pytest

from broker.cli.main import make_parser
from broker.service.settings.options import RoleOptions
from tests.docs.options import PAGE, ROLES, commands, role_rows, updated

TEXT: Final = PAGE.read_text("utf-8")
_COMMAND: Final = re.compile(
    r"^\s*broker ((?:login|logout|permit|disclosures|register|call|backup|ca|account|group"
    r"|who-knows|check-config) .*?)(?:\s{2,}.*)?$",
    re.M,
)
#: The kinds of commands among the examples.
SHOWN: Final = {
    *("login", "logout", "disclosures", "register", "call", "backup", "who-knows", "check-config"),
    *(f"permit {change}" for change in ("create", "add", "delete", "list", "reject", "unreject")),
    *("permit policy", "permit show", "ca init", "account add", "account list", "group create"),
}


class OptionsTests:
    """The tables, which ``python -m tests.docs.options`` writes."""

    def test_when_generated_again_then_nothing_changes(self) -> None:
        """The page is as the code has it: names, defaults and purposes."""
        assert updated(TEXT) == TEXT, "run: .venv/bin/python -m tests.docs.options"

    @pytest.mark.parametrize("options", ROLES, ids=lambda options: options.role)
    def test_when_a_role_has_an_option_then_the_page_lists_it(
        self, options: type[RoleOptions]
    ) -> None:
        """Each option of a role stands in one table, with its default and purpose."""
        table = "\n".join(role_rows(options))
        assert TEXT.count(f"\n{table}\n") == 1

    def test_when_a_command_exists_then_the_page_lists_it(self) -> None:
        """Each command has a heading of its own."""
        listed = re.findall(r"^#### `broker (.*)`$", TEXT, re.M)
        assert listed == [command.name for command in commands()]

    def test_when_a_command_is_shown_then_it_is_understood(self) -> None:
        """Each ``broker`` command among the examples is one that it takes; each kind is shown."""
        shown = _COMMAND.findall(TEXT)
        kinds = set()
        for line in shown:
            arguments = shlex.split(line.partition(" <")[0], comments=True)
            parsed = make_parser().parse_args(arguments)
            kinds.add(f"{parsed.command} {getattr(parsed, 'change', '')}".strip())
        assert kinds == SHOWN
