"""What docs/configuration.md and docs/architecture.md have of the code is as it is now."""

from __future__ import annotations

import re
import shlex
from typing import Any, Final

import pytest

from broker.cli.main import make_parser
from broker.service.settings.options import RoleOptions
from tests.docs import architecture, options
from tests.docs.options import ROLES, commands, role_rows
from tests.mediator.test_path import IN_MOST, OUT_MOST

TEXT: Final = options.PAGE.read_text("utf-8")
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


@pytest.mark.parametrize("pages", [architecture, options])
def test_when_generated_again_then_nothing_changes(pages: Any) -> None:
    """Each option, room, module and state stands in the page as the code has it."""
    page = pages.PAGE.read_text("utf-8")
    assert "<!-- end -->" in page
    assert pages.updated(page) == page, f"run: .venv/bin/python -m {pages.__name__}"


class OptionsTests:
    """The tables of options and commands."""

    @pytest.mark.parametrize("role", ROLES, ids=lambda role: role.role)
    def test_when_a_role_has_an_option_then_the_page_lists_it(
        self, role: type[RoleOptions]
    ) -> None:
        """Each option of a role stands in one table, with its default and purpose."""
        table = "\n".join(role_rows(role))
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


class ArchitectureTests:
    """The map of the rooms, and the state tables."""

    def test_when_functions_are_counted_then_the_page_draws_as_many(self) -> None:
        """The way in and the way out have a line for each function that a message passes."""
        ways = re.findall(
            r"^```\nin (.*?)^\nout (.*?)^```", architecture.PAGE.read_text("utf-8"), re.M | re.S
        )
        assert [[way.count("\n") for way in drawn] for drawn in ways] == [[IN_MOST, OUT_MOST]]

    def test_when_a_state_table_is_drawn_then_each_state_is_there(self) -> None:
        """The picture for Graphviz has each state and transition."""
        for _, table in architecture.tables():
            dot = table.to_dot()
            assert all(f'"{a}" -> "{b}" [label="{event}"]' in dot for a, event, b in table.rows())
