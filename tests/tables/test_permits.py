"""The permit table (fig. 4) against lists that are kept in the simplest way."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.messages.grammar import SECONDS_MOST, USES_MOST, edit
from broker.tables.permits import (
    ASK,
    EXPIRES_MOST,
    LINE_BYTES,
    LIST,
    LIST_BYTES_MOST,
    LIST_MOST,
    Limit,
    LimitedRejection,
    ListTooLong,
    PermitChange,
    PermitTable,
    as_edits,
    deleted_entries,
)

NAMES = ["Ia", "Ib", "Ic", "Id", "Ie", "If", "@family", "@work", "山田太郎", "taro@example.jp"]
#: Names that stand for identifiers.
ALIASES = {"taro": "Ia", "mother": "Ib"}
#: The groups of those who are in any.
GROUPS = {"Ic": ("@family", "@work"), "Id": ("@work",), "Ie": ("@nobody",)}
NOW = 1_800_000_000.0

owners = st.sampled_from(["Ia", "Ib", "Ic"])
names = st.sampled_from([*NAMES, *ALIASES])
limits = st.builds(
    lambda expires, uses: (
        (f";expires={expires}" if expires else "") + (f";uses={uses}" if uses else "")
    ),
    st.sampled_from([0, 0, 1, 60, 3600]),
    st.sampled_from([0, 0, 1, 2]),
)
entries = st.lists(st.tuples(names, st.just("") | limits).map("".join), max_size=5)
deleted = st.lists(names, min_size=1, max_size=5)
#: So many names at once that lists come to their limit.
crowds = st.integers(0, LIST_MOST + 1).map(lambda many: [f"t{n}" for n in range(many)])
edits = st.one_of(
    st.builds(lambda some: f"Create {','.join(some)}".strip(), entries),
    st.builds(lambda some: f"Add {','.join(some)}", entries.filter(bool)),
    st.builds(lambda some: f"Delete {','.join(some)}", deleted),
    st.builds(lambda some: f"Add {','.join(some)}", crowds.filter(bool)),
)
#: What happens: a list is edited, one use of an entry is had, or an entry goes; then time passes.
events = st.lists(
    st.tuples(
        owners,
        st.one_of(st.lists(edits, min_size=1, max_size=4), st.sampled_from(NAMES)),
        st.sampled_from([0, 0.5, 1, 59, 3600]),
    ),
    max_size=8,
)

#: An entry of the model: its name, when it expires, how many uses it has left.
Entry = tuple[str, float, float]
ENDLESS = float("inf")


def canonical(name: str) -> str:
    """The identifier that a name stands for."""
    return ALIASES.get(name, name)


def model(before: list[Entry], lines: list[str], now: float) -> list[Entry]:
    """What edits make of a list, without a thought for speed or size."""
    after = [entry for entry in before if entry[1] > now]
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "Create":
            after = []
        for text in rest.split(",") if rest else []:
            name, *some = text.split(";")
            told = dict(limit.split("=") for limit in some)
            until = now + int(told["expires"]) if "expires" in told else ENDLESS
            entry = (canonical(name), until, float(told.get("uses", ENDLESS)))
            places = [n for n, one in enumerate(after) if one[0] == entry[0]]
            if word == "Delete":
                after = [one for one in after if one[0] != entry[0]]
            elif places:
                after[places[0]] = entry
            else:
                after.append(entry)
    return after


def permitting(entries: list[Entry], caller: str, now: float) -> str | None:
    """The entry of a list that permits a caller."""
    standing = [name for name, until, _ in entries if until > now]
    for name in (caller, *GROUPS.get(caller, ())):
        if name in standing:
            return name
    return None


class PermitsTests:
    """Who may reach whom."""

    @settings(deadline=None, max_examples=100)
    @given(events)
    def test_as_the_model(self, every: list[tuple[str, list[str] | str, float]]) -> None:
        """After anything the lists are the model's, order kept; past a limit nothing changes.

        Who is on a list, or in a group on it, is permitted until its limit, nobody else is; and
        the changes alone make the same table (A1–A4, A6, A18, I3, I5).
        """
        table = PermitTable()
        kept: dict[str, PermitChange] = {}
        lists: dict[str, list[Entry]] = {}
        now = NOW
        for owner, what, seconds in every:
            before = lists.get(owner, [])
            if isinstance(what, str):  # an entry is used, or taken off
                after = [one for one in before if one[1] > now]
                used = next((one for one in after if one[0] == what), None)
                place = 0 if used is None else after.index(used)
                if used is not None and used[2] != ENDLESS:
                    change = table.prepare_use(owner, what, now)
                    less = [(used[0], used[1], used[2] - 1)] if used[2] > 1 else []
                    after[place : place + 1] = less
                else:
                    change = table.prepare_without(owner, what, now)
                    after = [one for one in after if one[0] != what]
            else:
                after = model(before, what, now)
                if len(after) > LIST_MOST:
                    with pytest.raises(ListTooLong):
                        table.prepare(owner, what, now, canonical)
                    continue
                change = table.prepare(owner, what, now, canonical)
            assert table.accepted(owner) == tuple(one[0] for one in before), "preparing changed it"
            fallen = table.apply(change)
            stays = [one[0] for one in after]
            assert list(fallen) == [one[0] for one in before if one[0] not in stays]
            lists[owner] = after
            kept[owner] = change
            now += seconds
            again = PermitTable(kept.values())
            for one in ("Ia", "Ib", "Ic"):
                expected = lists.get(one, [])
                for same in (table, again):
                    assert same.accepted(one) == tuple(entry[0] for entry in expected)
                    assert same.expires(one) == min((e[1] for e in expected), default=ENDLESS)
                    assert (one in same.counting_owners) == any(e[2] != ENDLESS for e in expected)
                    for name in NAMES:
                        found = permitting(expected, name, now)
                        assert same.permit_entry(one, name, GROUPS.get(name, ()), now) == found
                        assert same.is_in_force(one, name, now) == any(
                            entry[0] == name and entry[1] > now for entry in expected
                        )
        assert len(table) == sum(1 for accepted in lists.values() if accepted)

    def test_figures(self) -> None:
        """Fig. 3a–d, one after the other, give what the document says of them (A1–A4).

        What they say is written as they have it.
        """
        table = PermitTable()
        for changes, lines, expected in (
            ([("Create", ["Ib", "If"])], ["Create Ib,If"], ("Ib", "If")),
            ([("Add", ["Ic", "Ie"])], ["Add Ic,Ie"], ("Ib", "If", "Ic", "Ie")),
            ([("Delete", ["If"])], ["Delete If"], ("Ib", "Ic", "Ie")),
            (
                [("Add", ["If"]), ("Delete", ["Ib", "Ie"])],
                ["Add If", "Delete Ib,Ie"],
                ("Ic", "If"),
            ),
            ([("Create", ["Id"])], ["Create Id"], ("Id",)),
            ([("Create", [])], ["Create"], ()),
        ):
            assert [line for change, names in changes for line in as_edits(names, change)] == lines
            table.apply(table.prepare("Ia", lines, NOW))
            assert table.accepted("Ia") == expected

    @pytest.mark.parametrize(
        ("caller", "groups", "entry"),
        [
            pytest.param("Ia", (), "Ia", id="by name"),
            pytest.param("Ia", ("@family",), "Ia", id="who is permitted both ways is so by name"),
            pytest.param("Ic", ("@work", "@family"), "@family", id="a group is for its members"),
            pytest.param("Ic", ("@work",), None, id="of another group (A18)"),
            pytest.param("family", (), None, id="a group's name is none of a caller's (I4)"),
            *(
                pytest.param(name, (), None, id=f"no pattern, no prefix, case counts: {name} (I4)")
                for name in ("ia", "I", "Iab", "", "anyone")
            ),
            pytest.param("Ib", (), None, id="not even oneself (I3)"),
        ],
    )
    def test_entry(self, caller: str, groups: tuple[str, ...], entry: str | None) -> None:
        """Which entry of a list permits a caller; none of an empty list, nor of another's (I3).

        That Ib accepts Ia does not let Ib reach Ia (A9).
        """
        table = PermitTable([PermitChange("Ib", ("@family", "Ia", "*", ".*"))])
        assert table.permit_entry("Ib", caller, groups, NOW) == entry
        assert table.permit_entry("Ia", "Ib", (), NOW) is None
        table.apply(table.prepare("Ib", ["Create"], NOW))
        assert table.permit_entry("Ib", caller, groups, NOW) is None
        assert len(table) == 0

    def test_expired(self) -> None:
        """An entry permits until its time has come, whatever else has been done by then (I3)."""
        table = PermitTable()
        table.apply(table.prepare("Ib", ["Add Ia;expires=60,@family;expires=61"], NOW))
        for seconds, expected in ((0, "Ia"), (59.9, "Ia"), (60, "@family"), (61, None)):
            assert table.permit_entry("Ib", "Ia", ("@family",), NOW + seconds) == expected

    def test_a_limit_is_replaced(self) -> None:
        """Who is added again has the limit that he is added with; without one, none."""
        table = PermitTable()
        for line, limit in (
            ("Add Ia;expires=60;uses=1", Limit(NOW + 60, 1)),
            ("Add Ia;uses=5", Limit(None, 5)),
            ("Add Ia", None),
            ("Add Ia;expires=9", Limit(NOW + 9, None)),
        ):
            table.apply(table.prepare("Ib", [line], NOW))
            assert table.limit("Ib", "Ia") == limit
        assert not table.counting_owners

    def test_a_use_of_what_is_unlimited(self) -> None:
        """There is none to take."""
        with pytest.raises(ValueError, match="any number"):
            PermitTable([PermitChange("Ib", ("Ia",))]).prepare_use("Ib", "Ia", NOW)

    def test_the_limit_is_on_what_stands_after(self) -> None:
        """A full list takes one more where the same message makes room for it (A4, I15)."""
        table = PermitTable()
        full = ",".join(f"t{n}" for n in range(LIST_MOST))
        table.apply(table.prepare("Ia", [f"Create {full}"], NOW))
        with pytest.raises(ListTooLong):
            table.prepare("Ia", ["Add one-more"], NOW)
        change = table.prepare("Ia", ["Add one-more", "Delete t0"], NOW)
        assert len(change.accepted) == LIST_MOST
        assert change.accepted[-1] == "one-more"

    def test_bytes_are_limited_too(self) -> None:
        """A list that could not be told in one message is refused, by UTF-8 bytes (I15).

        The text of a limit is told with its entry, and counts.
        """
        fitting = [f"{n:03}" + "あ" * 41 for n in range(LIST_BYTES_MOST // 127)]  # 126 bytes each
        change = PermitTable().prepare("Ia", ["Create " + ",".join(fitting)], NOW)
        assert change.accepted == tuple(fitting)
        names = [f"{n:04}" + "x" * 46 for n in range(900)]
        PermitTable().prepare("Ia", ["Create " + ",".join(names)], NOW)
        limited = [f"{name};expires={SECONDS_MOST};uses={USES_MOST}" for name in names]
        for too_long in ([*fitting, "x" * 128], limited):
            with pytest.raises(ListTooLong, match="bytes"):
                PermitTable().prepare("Ia", ["Create " + ",".join(too_long)], NOW)

    def test_told(self) -> None:
        """What remains is told: seconds rounded up, uses; what has expired is not (¶32)."""
        table = PermitTable()
        line = "Create Ia,Ib;expires=60,Ic;uses=2,@work;expires=3600;uses=1"
        table.apply(table.prepare("Ix", [line], NOW + 0.3))
        assert as_edits(table.listing("Ix", NOW + 0.3)) == [line]
        later = ["Ia", "Ib;expires=1", "Ic;uses=2", "@work;expires=3541;uses=1"]
        assert table.listing("Ix", NOW + 59.9) == later
        assert table.listing("Ix", NOW + 60.3) == ["Ia", "Ic;uses=2", "@work;expires=3540;uses=1"]

    def test_told_as_it_can_be_read(self) -> None:
        """However the clock was set, what is told is what a terminal takes."""
        far = PermitChange("Ix", ("Ia",), (("Ia", Limit(NOW * 2, None)),))
        [told] = PermitTable([far]).listing("Ix", NOW)
        assert edit(f"Add {told}") == f"Add Ia;expires={SECONDS_MOST}"
        assert EXPIRES_MOST == SECONDS_MOST


def test_named() -> None:
    """Those that are deleted, there or not; everybody, where a list is made anew (A3)."""
    assert deleted_entries(["Add Ia,Ib;uses=1"]) == frozenset()
    some = deleted_entries(["Delete taro,@work", "Add Ic", "Delete Id"], canonical)
    assert some == frozenset(("Ia", "@work", "Id"))
    assert deleted_entries(["Delete Ia", "Create Ib"]) is None


@settings(deadline=None, max_examples=60)
@example([f"{n}" + "あ" * 40 for n in range(40)])
@given(st.lists(st.text("abあ", min_size=1, max_size=40), max_size=200, unique=True))
def test_round_trip(some: list[str]) -> None:
    """Applied to any list, the edits make this one, and each line fits its limit."""
    lines = as_edits(some)
    table = PermitTable([PermitChange("Ia", ("what", "was", "there"))])
    table.apply(table.prepare("Ia", lines, NOW))
    assert table.accepted("Ia") == tuple(some)
    assert lines[0].startswith("Create")
    assert all(len(line.encode()) <= LINE_BYTES for line in lines)


@pytest.mark.parametrize("change", ["Create", "Add", "Delete"])
def test_many(change: str) -> None:
    """What doesn't fit a line goes on several, and means the same."""
    names = [f"terminal-{count:04d}" for count in range(900)]
    table = PermitTable([PermitChange("Ib", (*names[::2], "Ix"))])
    lines = as_edits(names, change)
    assert len(lines) > 1
    assert all(len(f"Accept:{line}") <= 1024 for line in lines)
    after = table.prepare("Ib", [edit(line) for line in lines], NOW)
    expected = {"Create": {*names}, "Add": {*names, "Ix"}, "Delete": {"Ix"}}
    assert set(after.accepted) == expected[change]


rejections = st.lists(
    st.tuples(
        st.sampled_from(["Create", "Add", "Delete"]),
        st.lists(st.sampled_from(["Ia", "Ic", "taro", "@g", "tel:+81"]), min_size=1, max_size=4),
    ),
    max_size=5,
)


class RejectedTests:
    """The list of those who are refused."""

    @given(st.lists(rejections, max_size=4))
    def test_as_edited(self, registrations: list[list[tuple[str, list[str]]]]) -> None:
        """It is what the edits make of it, in their order, each entry once (C5)."""
        table = PermitTable()
        expected: list[str] = []
        for edits in registrations:
            texts = [f"{word} {','.join(named)}" for word, named in edits]
            change = table.prepare("Ib", [], 0, reject=texts)
            assert table.rejected.get("Ib", ()) == tuple(expected), "preparing changed it"
            table.apply(change)
            for word, named in edits:
                if word == "Create":
                    expected = []
                if word == "Delete":
                    expected = [name for name in expected if name not in named]
                else:
                    expected += [name for name in named if name not in expected]
                expected = list(dict.fromkeys(expected))
            assert table.rejected.get("Ib", ()) == tuple(expected)
            assert table.rejects("Ib", ["Ia"]) == ("Ia" in expected)
            assert table.knows("Ib") == bool(expected)

    def test_entries(self) -> None:
        """A name is kept as the identifier that it stands for; nobody is refused for a time only.

        After it he would be accepted unasked.
        """
        change = PermitTable().prepare("Ib", [], 0, canonical, reject=["Create taro,Ix"])
        assert change.rejected == ("Ia", "Ix")
        for text in ("Create Ix;uses=1", "Add Ia,Ix;expires=9"):
            with pytest.raises(LimitedRejection):
                PermitTable().prepare("Ib", [], 0, reject=[text])

    def test_too_many(self) -> None:
        """It holds as many as the other list, and their bytes are counted together (I15)."""
        table = PermitTable()
        most = ",".join(f"I{n}" for n in range(1000))
        table.prepare("Ib", [f"Create {most}"], 0, reject=[f"Create {most}"])
        with pytest.raises(ListTooLong, match="1000"):
            table.prepare("Ib", [], 0, reject=[f"Create {most},Ix"])
        half = ",".join(f"{n:03}{'x' * 56}" for n in range(500))
        table.prepare("Ib", [f"Create {half}"], 0, reject=[f"Create {half}"])
        with pytest.raises(ListTooLong, match="60000"):
            table.prepare("Ib", [f"Create {half}"], 0, reject=[f"Create {half},I"])


class KeptTests:
    """What else changes leaves them as they are."""

    CHANGE = PermitChange("Ib", ("Ia",), (), ("Ix", "@g"), ASK)

    def test_by_every_change(self) -> None:
        """By an edit, by what expires, and by whoever is taken off the list."""
        table = PermitTable([self.CHANGE])
        for change in (
            table.prepare("Ib", ["Add Ic;uses=1"], 0),
            table.prepare_unexpired("Ib", 0),
            table.prepare_without("Ib", "Ia", 0),
            table.prepare_without("Ib", "Ix", 0),
        ):
            assert (change.rejected, change.policy) == (("Ix", "@g"), ASK)
        table.apply(table.prepare("Ib", ["Add Ic;uses=1"], 0))
        used = table.prepare_use("Ib", "Ic", 0)
        assert (used.accepted, used.rejected, used.policy) == (("Ia",), ("Ix", "@g"), ASK)

    def test_default(self) -> None:
        """Who says nothing has the policy of the list, refuses nobody, and is not kept."""
        table = PermitTable([self.CHANGE])
        assert table.ask_owners == {"Ib"}
        change = table.prepare("Ib", ["Create"], 0, reject=["Create"], policy=LIST)
        assert change.is_default
        table.apply(change)
        assert not table.knows("Ib")
        assert (table.policy("Ib"), table.ask_owners) == (LIST, set())
        assert not self.CHANGE.is_default
        assert not PermitChange("Ib", (), (), ("Ix",)).is_default
        assert not PermitChange("Ib", (), (), (), ASK).is_default
