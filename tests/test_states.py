"""State tables: what they allow, what they refuse, and the picture of them."""

from __future__ import annotations

import pytest

from broker.states import StateTable, UnexpectedEvent

DOOR = StateTable(
    "door",
    "closed",
    {
        "closed": {"open": "open", "remove": "gone"},
        "open": {"open": "open", "close": "closed"},
        "gone": {},
    },
)


class StateTableTests:
    """``StateTable``"""

    def test_advance(self) -> None:
        """An event leads to the state that its row says, perhaps the same one."""
        assert DOOR.initial == "closed"
        assert DOOR.advance("closed", "open") == "open"
        assert DOOR.advance("open", "open") == "open"
        assert DOOR["open"] == {"open": "open", "close": "closed"}
        assert DOOR.allows("open", "close")

    @pytest.mark.parametrize("state", ["closed", "gone", "no state"])
    def test_unexpected_event(self, state: str) -> None:
        """What a row does not have is an error that names the object, the event and the state."""
        assert not DOOR.allows(state, "close")
        with pytest.raises(UnexpectedEvent, match=f"door: 'close' in state '{state}'"):
            DOOR.advance(state, "close")

    def test_frozen(self) -> None:
        """A row that is read can't be changed, and the table does not keep what it was made of."""
        table = {"one": {"go": "two"}, "two": {}}
        states = StateTable("number", "one", table)
        table["one"]["go"] = "three"
        assert states.advance("one", "go") == "two"
        with pytest.raises(TypeError):
            states["one"]["go"] = "three"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("table", "why"),
        [
            ({"one": {"go": "two"}}, "'two' has no row"),
            ({"two": {}}, "'one' has no row"),
            ({"one": {}, "two": {"go": "one"}}, "'two' is never reached"),
        ],
    )
    def test_checked_when_made(self, table: dict[str, dict[str, str]], why: str) -> None:
        """A table with a state that has no row, or that nothing leads to, is refused."""
        with pytest.raises(ValueError, match=f"number: the state {why}"):
            StateTable("number", "one", table)

    def test_rows_and_picture(self) -> None:
        """Every transition stands in the rows and in the picture; final states are marked."""
        assert (list(DOOR), len(DOOR)) == (["closed", "open", "gone"], 3)
        assert [state for state in DOOR if DOOR.is_final(state)] == ["gone"]
        assert DOOR.rows() == [
            ("closed", "open", "open"),
            ("closed", "remove", "gone"),
            ("open", "open", "open"),
            ("open", "close", "closed"),
        ]
        assert DOOR.to_dot() == (
            'digraph "door" {\n'
            '  "" [shape=none]; "" -> "closed";\n'
            '  "gone" [peripheries=2];\n'
            '  "closed" -> "open" [label="open"];\n'
            '  "closed" -> "gone" [label="remove"];\n'
            '  "open" -> "open" [label="open"];\n'
            '  "open" -> "closed" [label="close"];\n'
            "}\n"
        )
