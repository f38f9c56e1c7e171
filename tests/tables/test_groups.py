"""The groups against sets of names that are kept in the simplest way (A18)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.tables.groups import (
    GROUPS_AN_IDENTIFIER,
    GROUPS_MOST,
    MEMBERS_MOST,
    GroupChange,
    GroupRefused,
    GroupTable,
)

NAMES = ["Ia", "Ib", "Ic", "山田太郎"]
GROUPS = ["@family", "@work", "@会社"]

changes = st.lists(
    st.tuples(st.sampled_from(GROUPS), st.none() | st.lists(st.sampled_from(NAMES), max_size=6)),
    max_size=12,
)


@settings(deadline=None, max_examples=100)
@given(changes)
def test_as_the_model(every: list[tuple[str, list[str] | None]]) -> None:
    """After any changes both ways of asking give the same, and the store's rows give it again.

    An empty group stays, a deleted one doesn't (A18).
    """
    table = GroupTable()
    model: dict[str, list[str]] = {}
    for name, members in every:
        before = model.get(name, [])
        change = table.prepare(name, members)
        assert list(table.members(name) or ()) == before, "preparing changed the group"
        after = list(dict.fromkeys(members or ()))
        assert list(table.apply(change)) == [one for one in before if one not in after]
        model.pop(name, None)
        if members is not None:
            model[name] = after
        again = GroupTable(GroupChange(*row) for row in _rows(table))
        for same in (table, again):
            assert len(same) == len(model)
            assert sorted(same.names()) == sorted(model)
            for one in GROUPS:
                expected = tuple(model[one]) if one in model else None
                assert same.members(one) == expected
            for one in NAMES:
                groups = [group for group, inside in model.items() if one in inside]
                assert sorted(same.of(one)) == sorted(groups)


@pytest.mark.parametrize(
    ("name", "members"),
    [("family", ["Ia"]), ("@", ["Ia"]), ("", None), ("@family", ["@work"]), ("@family", [""])],
)
def test_refused(name: str, members: list[str] | None) -> None:
    """A group's name begins with @, and it holds identifiers alone, no group (I3)."""
    with pytest.raises(GroupRefused):
        GroupTable().prepare(name, members)


def test_groups_are_bounded() -> None:
    """There are so many groups and no more; those that are there may change (I15)."""
    table = GroupTable(GroupChange(f"@{n}", ()) for n in range(GROUPS_MOST))
    with pytest.raises(GroupRefused, match="at most 10000 groups"):
        table.prepare("@one-more", [])
    table.prepare("@0", ["Ia"])
    table.apply(table.prepare("@0", None))
    table.prepare("@one-more", [])


def test_members_are_bounded() -> None:
    """A group holds so many and no more, each counted once (I15)."""
    names = [f"t{n}" for n in range(MEMBERS_MOST)]
    GroupTable().prepare("@family", [*names, *names])
    with pytest.raises(GroupRefused, match="has at most"):
        GroupTable().prepare("@family", [*names, "one-more"])


def test_groups_of_one_are_bounded() -> None:
    """An identifier is in so many groups and no more, and may stay in them (I15)."""
    table = GroupTable(GroupChange(f"@{n}", ("Ia",)) for n in range(GROUPS_AN_IDENTIFIER))
    with pytest.raises(GroupRefused, match="is in at most"):
        table.prepare("@one-more", ["Ib", "Ia"])
    table.prepare("@0", ["Ib", "Ia"])


def _rows(table: GroupTable) -> list[tuple[str, tuple[str, ...]]]:
    return [(name, table.members(name) or ()) for name in table.names()]
