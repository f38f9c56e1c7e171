"""The generated parts of docs/architecture.md are those that the code makes now."""

from __future__ import annotations

import re

from tests.docs.architecture import PAGE, tables, updated
from tests.mediator.test_path import IN_MOST, OUT_MOST


class ArchitectureTests:
    """The map of the rooms, and the state tables."""

    def test_when_generated_again_then_nothing_changes(self) -> None:
        """Each room, module and state stands there, and no other does."""
        page = PAGE.read_text("utf-8")
        assert "\nbroker/\n" in page
        assert " (initial) |" in page
        assert updated(page) == page, "run: .venv/bin/python -m tests.docs.architecture"

    def test_when_functions_are_counted_then_the_page_draws_as_many(self) -> None:
        """The way in and the way out have a line for each function that a message passes."""
        ways = re.findall(r"^```\nin (.*?)^\nout (.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
        assert [[way.count("\n") for way in drawn] for drawn in ways] == [[IN_MOST, OUT_MOST]]

    def test_when_a_state_table_is_drawn_then_each_state_is_there(self) -> None:
        """The picture for Graphviz has each state and transition."""
        for _, table in tables():
            dot = table.to_dot()
            assert all(f'"{a}" -> "{b}" [label="{event}"]' in dot for a, event, b in table.rows())
