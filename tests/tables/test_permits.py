"""The permit table (fig. 4) against lists that are kept in the simplest way."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.tables.permits import (
    LINE_BYTES,
    LIST_BYTES_MOST,
    LIST_MOST,
    ListTooLong,
    PermitChange,
    PermitTable,
    as_edits,
)
from broker.wire.grammar import edit

NAMES = ["Ia", "Ib", "Ic", "Id", "Ie", "If", "@family", "山田太郎", "taro@example.jp"]

owners = st.sampled_from(["Ia", "Ib", "Ic"])
names = st.lists(st.sampled_from(NAMES), max_size=5)
#: So many names at once that lists come to their limit.
crowds = st.integers(0, LIST_MOST + 1).map(lambda many: [f"t{n}" for n in range(many)])
edits = st.one_of(
    st.builds(lambda some: f"Create {','.join(some)}".strip(), names),
    st.builds(lambda some: f"Add {','.join(some)}", names.filter(bool)),
    st.builds(lambda some: f"Delete {','.join(some)}", names.filter(bool)),
    st.builds(lambda some: f"Add {','.join(some)}", crowds.filter(bool)),
)
changes = st.lists(st.tuples(owners, st.lists(edits, min_size=1, max_size=4)), max_size=8)


def model(before: list[str], lines: list[str]) -> list[str]:
    """What edits make of a list, without a thought for speed or limits."""
    after = list(before)
    for line in lines:
        word, _, rest = line.partition(" ")
        some = rest.split(",") if rest else []
        if word == "Create":
            after = []
        for name in some:
            if word == "Delete":
                after = [one for one in after if one != name]
            elif name not in after:
                after.append(name)
    return after


def table_of(**lists: str) -> PermitTable:
    """A table that holds these lists."""
    return PermitTable(
        PermitChange(owner, tuple(accepted.split(","))) for owner, accepted in lists.items()
    )


class PermitsTests:
    """Who may reach whom."""

    @settings(deadline=None, max_examples=60)
    @given(changes)
    def test_edits_as_the_model(self, every: list[tuple[str, list[str]]]) -> None:
        """After any edits the lists are the model's, order kept; past a limit nothing changes.

        And who is on a list is permitted, nobody else is (A1–A4, A6, I3, I5).
        """
        table = PermitTable()
        lists: dict[str, list[str]] = {}
        for owner, lines in every:
            before = lists.get(owner, [])
            after = model(before, lines)
            if len(after) > LIST_MOST:
                with pytest.raises(ListTooLong):
                    table.prepare(owner, lines)
            else:
                change = table.prepare(owner, lines)
                assert table.accepted(owner) == tuple(before), "preparing changed the list"
                withdrawn = table.apply(change)
                assert list(withdrawn) == [name for name in before if name not in after]
                lists[owner] = after
            for one in ("Ia", "Ib", "Ic"):
                expected = lists.get(one, [])
                assert table.accepted(one) == tuple(expected)
                for name in NAMES:
                    assert table.permits(one, name) == (name in expected)
        assert len(table) == sum(1 for accepted in lists.values() if accepted)

    def test_figures(self) -> None:
        """Fig. 3a–d, one after the other, give what the document says of them (A1–A4)."""
        table = PermitTable()
        for lines, expected in (
            (["Create Ib,If"], ("Ib", "If")),
            (["Add Ic,Ie"], ("Ib", "If", "Ic", "Ie")),
            (["Delete If"], ("Ib", "Ic", "Ie")),
            (["Add If", "Delete Ib,Ie"], ("Ic", "If")),
            (["Create Id"], ("Id",)),
        ):
            table.apply(table.prepare("Ia", lines))
            assert table.accepted("Ia") == expected

    def test_nobody_is_permitted_by_default(self) -> None:
        """No list, an empty list, and one's own identifier permit nobody (I3)."""
        table = table_of(Ib="Ia")
        table.apply(table.prepare("Ib", ["Create"]))
        assert not table.permits("Ib", "Ia")
        assert not table.permits("Ix", "Ia")
        assert not table.permits("Ia", "Ia")
        assert len(table) == 0

    def test_equality_only(self) -> None:
        """An entry is no pattern, no prefix, and heeds case (I4)."""
        table = table_of(Ib="Ia,*,.*")
        assert table.permits("Ib", "Ia")
        assert not any(table.permits("Ib", name) for name in ("ia", "I", "Iab", "", "anyone"))

    def test_a_permit_has_a_direction(self) -> None:
        """That Ib accepts Ia does not let Ib reach Ia (A9)."""
        table = table_of(Ib="Ia")
        assert table.permits("Ib", "Ia")
        assert not table.permits("Ia", "Ib")

    def test_the_limit_is_on_what_stands_after(self) -> None:
        """A full list takes one more where the same message makes room for it (A4, I15)."""
        table = PermitTable()
        full = ",".join(f"t{n}" for n in range(LIST_MOST))
        table.apply(table.prepare("Ia", [f"Create {full}"]))
        with pytest.raises(ListTooLong):
            table.prepare("Ia", ["Add one-more"])
        change = table.prepare("Ia", ["Add one-more", "Delete t0"])
        assert len(change.accepted) == LIST_MOST
        assert change.accepted[-1] == "one-more"

    def test_bytes_are_limited_too(self) -> None:
        """A list that could not be told in one message is refused, by UTF-8 bytes (I15)."""
        table = PermitTable()
        names = [f"{n:03}" + "あ" * 41 for n in range(LIST_BYTES_MOST // 127)]  # 126 bytes each
        table.apply(table.prepare("Ia", ["Create " + ",".join(names)]))
        with pytest.raises(ListTooLong):
            table.prepare("Ia", ["Add " + "x" * 128])
        assert table.accepted("Ia") == tuple(names)


class AsEditsTests:
    """A list told as edits, the way ``QUERY`` / ``PERMITS`` answers."""

    @settings(deadline=None, max_examples=60)
    @example([f"{n}" + "あ" * 40 for n in range(40)])
    @given(st.lists(st.text("abあ", min_size=1, max_size=40), max_size=200, unique=True))
    def test_round_trip(self, some: list[str]) -> None:
        """Applied to any list, the edits make this one, and each line fits its limit."""
        lines = as_edits(some)
        table = table_of(Ia="what,was,there")
        table.apply(table.prepare("Ia", lines))
        assert table.accepted("Ia") == tuple(some)
        assert lines[0].startswith("Create")
        assert all(len(line.encode()) <= LINE_BYTES for line in lines)


class EditsTests:
    """The edits that name many (fig. 3a–c)."""

    @pytest.mark.parametrize(
        ("change", "names", "expected"),
        [
            ("Create", ["Ib", "If"], ["Create Ib,If"]),
            ("Create", [], ["Create"]),
            ("Add", ["Ic", "Ie"], ["Add Ic,Ie"]),
            ("Delete", ["If"], ["Delete If"]),
        ],
    )
    def test_few(self, change: str, names: list[str], expected: list[str]) -> None:
        """As the figures have them."""
        assert as_edits(names, change) == expected

    @pytest.mark.parametrize("change", ["Create", "Add", "Delete"])
    def test_many(self, change: str) -> None:
        """What doesn't fit a line goes on several, and means the same."""
        names = [f"terminal-{count:04d}" for count in range(900)]
        table = PermitTable()
        before = table.prepare("Ib", as_edits([*names[::2], "Ix"]))
        table.apply(before)
        lines = as_edits(names, change)
        assert len(lines) > 1
        assert all(len(f"Accept:{line}") <= 1024 for line in lines)
        after = table.prepare("Ib", [edit(line) for line in lines])
        expected = {
            "Create": set(names),
            "Add": {*names, "Ix"},
            "Delete": {"Ix"},
        }[change]
        assert set(after.accepted) == expected
