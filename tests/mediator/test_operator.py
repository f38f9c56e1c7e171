"""What the operator can ask of a mediator: what it does at once, what it tells, what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.interfaces import StoreFailed
from broker.mediator import admin as module
from broker.mediator.admin import AdminApi, Row
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupRefused
from tests.mediator.conftest import Logged
from tests.mediator.scene import DONE, TODAY, Scene, SlowStore, register, with_store
from tests.support.clock import begun, result_of


class Desk:
    """An operator at work on a scene.

    :ivar store: the store of the scene, if it does as the test says
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.store: Any = scene.broker.store
        self.admin = AdminApi(scene.context, scene.mediator.accounts)

    def does(self, act: str, *arguments: Any) -> Row:
        """Do what is done at once; the end of its answer."""
        outcome: Row = result_of(getattr(self.admin, act)(*arguments))
        return outcome

    def begins(self, act: str, *arguments: Any) -> list[Any]:
        """Begin an act; what comes of it, as soon as there is something."""
        return begun(getattr(self.admin, act)(*arguments))

    def lists(self, act: str, *arguments: Any, **more: Any) -> tuple[list[Row], Row]:
        """The rows of an act that lists something, and the end of its answer."""
        rows: list[Row] = []

        async def tell(row: Row) -> None:
            rows.append(row)

        end = result_of(getattr(self.admin, act)(*arguments, tell=tell, **more))
        return rows, end

    def rows(self, act: str, *arguments: Any, **more: Any) -> list[Row]:
        """The rows alone."""
        return self.lists(act, *arguments, **more)[0]

    def members(self) -> list[object]:
        """Who is in ``@family``."""
        return [row["identifier"] for row in self.rows("list_members", "@family")]

    def keeps_all(self) -> None:
        """The store keeps all that it is given."""
        while self.store.pending:
            self.store.pending.pop(0).callback(None)


def a_desk(*family: str, **options: Any) -> Desk:
    """An operator who has made the group ``@family``, if it has members."""
    desk = Desk(Scene(**options))
    if family:
        desk.does("create_group", "@family", family)
    return desk


def a_slow_desk(**options: Any) -> Desk:
    """An operator whose store takes its time."""
    return Desk(with_store(**options)[0])


class AccountTests:
    """Accounts and their names (A19, C1)."""

    def test_when_accounts_are_listed_then_each_has_names_groups_and_connections(self) -> None:
        """By identifier."""
        desk = a_desk(accounts={"Ib": "secret", "Ia": "secret"})
        assert desk.does("add_name", "Ia", "taro") == {}
        desk.does("create_group", "@family", ["taro"])
        desk.scene.new_says("b", register("Ib", "Password:secret", "Address:127.0.0.1"), DONE)
        desk.scene.new_says("b2", register("Ib", "Password:secret"), DONE)
        fields = ("identifier", "names", "groups", "connections", "reached")
        expected = [("Ia", ("taro",), ["@family"], 0, False), ("Ib", (), [], 2, True)]
        assert desk.lists("list_accounts") == (
            [dict(zip(fields, row, strict=True)) for row in expected],
            {"accounts": 2},
        )

    def test_when_an_account_is_removed_then_it_is_on_no_list_and_in_no_group(self) -> None:
        """The operator is told the number of those that it was on."""
        desk = a_desk("If", "Ib", accounts={"Ib": "secret", "If": "secret"})
        lines = ("Password:secret", "Accept:Create If,Ic")
        desk.scene.new_says("b", register("Ib", *lines), DONE)
        assert desk.does("remove_account", "If") == {"lists": 1, "groups": 1}
        assert desk.members() == ["Ib"]
        assert [row["caller"] for row in desk.rows("show_permits", "Ib")] == ["Ic"]


#: Changes of groups that are refused where ``@family`` has the member Ia.
REFUSED: Final = [
    ("create_group", ("@family", ["Ic"]), "there is a group @family already"),
    ("create_group", ("@other", ["@family"]), "only identifiers"),
    ("add_members", ("@none", ["Ic"]), "there is no group @none"),
    ("remove_members", ("@none", ["Ic"]), "there is no group @none"),
    ("remove_members", ("@family", ["Ia", "Ic"]), "Ic is not in @family"),
    ("delete_group", ("@none",), "there is no group @none"),
    ("list_members", ("@none", None), "there is no group @none"),
]


class GroupTests:
    """Groups (A18); what becomes of calls as they change is in test_groups.py."""

    def test_when_members_are_added_and_removed_then_their_number_is_told(self) -> None:
        """By name or identifier, each once; of a deleted group the lists, too (C1)."""
        desk = a_desk("Ia", accounts={"Ia": "secret"})
        desk.does("add_name", "Ia", "taro")
        for act, members, count in (
            ("add_members", ["Ic", "taro"], 2),
            ("add_members", ["If", "Ia"], 3),
            ("remove_members", ["Ic"], 2),
        ):
            assert desk.does(act, "@family", members) == {"members": count}
        assert desk.members() == ["Ia", "If"]
        assert desk.does("remove_members", "@family", ["taro"]) == {"members": 1}
        desk.does("create_group", "@empty", [])
        groups = [{"group": "@family", "members": 1}, {"group": "@empty", "members": 0}]
        assert desk.lists("list_groups") == (groups, {"groups": 2})
        desk.scene.new_says("a", register("Ia", "Password:secret", "Accept:Add @family"), DONE)
        assert desk.does("delete_group", "@family") == {"members": 1, "lists": 1}
        assert desk.rows("list_groups") == groups[1:]

    @pytest.mark.parametrize(("act", "arguments", "why"), REFUSED)
    def test_when_a_change_of_a_group_is_refused_then_nothing_has_changed(
        self, act: str, arguments: tuple[Any, ...], why: str
    ) -> None:
        """Whatever it is (I5)."""
        desk = a_desk("Ia")
        with pytest.raises(GroupRefused, match=why):
            desk.does(act, *arguments)
        assert desk.rows("list_groups") == [{"group": "@family", "members": 1}]
        assert desk.members() == ["Ia"]

    def test_when_two_add_to_a_group_at_once_then_neither_undoes_the_other(self) -> None:
        """What fails is not in force, and the next act has its turn (I8)."""
        desk = a_slow_desk()
        failing = desk.begins("create_group", "@family", ["Ix"])
        made = desk.begins("create_group", "@family", ["Ia"])
        desk.store.pending.pop().errback(StoreFailed("busy"))
        assert failing.pop().check(StoreFailed)
        assert desk.rows("list_groups") == []
        added = [desk.begins("add_members", "@family", [name]) for name in ("Ic", "If")]
        desk.keeps_all()
        assert [made, *added] == [[{"members": count}] for count in (1, 2, 3)]
        assert desk.members() == ["Ia", "Ic", "If"]

    def test_when_a_group_changes_while_an_account_is_removed_then_it_stays_removed(self) -> None:
        """It does not come back with the group (I2)."""
        desk = a_slow_desk(accounts={})
        desk.store.at_once = True
        desk.does("add_account", "Ia", "secret")
        desk.does("create_group", "@family", ["Ia"])
        desk.store.at_once = False
        removed = desk.begins("remove_account", "Ia")
        added = desk.begins("add_members", "@family", ["Ic"])
        desk.keeps_all()
        assert (removed, added) == ([{"lists": 0, "groups": 1}], [{"members": 1}])
        assert desk.members() == ["Ic"]


LONG: Final = [f"terminal-{n}" for n in range(500)]
#: What Ib registers, and the callers that are shown a minute later, with the end of the answer.
#: A row has the caller, its entry, and what is left of that: seconds and uses.
PERMITS: Final[dict[str, tuple[list[str], list[tuple[Any, ...]], Row]]] = {
    # Each caller has its entry, and what is left of that.
    "limits and groups": (
        ["Accept:Create Ia;expires=3600;uses=2,@family;uses=5,@empty,@none,If;expires=10"],
        [
            ("Ia", "Ia", 3540, 2),
            ("Ia", "@family", None, 5),
            ("Ic", "@family", None, 5),
            (None, "@empty", None, None, "empty"),
            (None, "@none", None, None, "none"),
        ],
        {"entries": 4},
    ),
    # Whatever the list says (C5).
    "the terminal rejects some": (
        ["Accept:Create @family,If,Ig", "Reject:Create Ic,If"],
        [("Ia", "@family", None, None), ("Ig", "Ig", None, None)],
        {"entries": 3},
    ),
    # The list is not in force (C3).
    "the terminal is asked each time": (
        ["Accept:Create Ia", "Policy:Ask"],
        [],
        {"entries": 0, "policy": "Ask"},
    ),
    "longer than a line": (
        ["Accept:Create", *(f"Add {','.join(LONG[n : n + 50])}" for n in range(0, 500, 50))],
        [(name, name, None, None) for name in LONG],
        {"entries": len(LONG)},
    ),
    # A terminal without a list accepts no caller.
    "no list": ([], [], {"entries": 0}),
}


class PermitTests:
    """Who may call (A6)."""

    @pytest.mark.parametrize("case", PERMITS)
    def test_when_permits_are_shown_then_each_caller_has_its_entry(self, case: str) -> None:
        """By identifier or name (C1)."""
        lines, expected, end = PERMITS[case]
        desk = a_desk("Ia", "Ic", accounts={"Ib": "secret"})
        desk.does("add_name", "Ib", "hanako")
        desk.does("create_group", "@empty", [])
        desk.scene.new_says("b", register("Ib", "Password:secret", *lines), DONE)
        desk.scene.passes(60)
        fields = ("caller", "entry", "expires", "uses", "group")
        rows = [dict(zip(fields, row, strict=False)) for row in expected]
        for name in ("Ib", "hanako"):
            assert desk.lists("show_permits", name) == (rows, {"identifier": "Ib", **end})


class Ledger(SlowStore):
    """A store that notes how many disclosures were asked for each time."""

    def __init__(self, told: Iterable[Disclosure]) -> None:
        super().__init__()
        self.told = sorted(told, key=lambda one: one.at)
        self.asked: list[int] = []

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        """The newest first; what is of one moment always in the same order."""
        self.asked.append(most)
        return await super().disclosures(whose, before, most)


def disclosure(number: int, at: int) -> Disclosure:
    """One of many."""
    return Disclosure("Ib", "Ia", "127.0.0.1", 1203, f"S{number}", "Ia", at, 3600)


class WhoKnowsTests:
    """Who was told an address."""

    def test_when_addresses_were_told_then_each_record_is_listed(self) -> None:
        """When, to which terminal, which address, by what entry; the newest first."""
        desk = a_desk("Ic")
        scene = desk.scene
        scene.on_line("b", "Accept:Create Ia,@family", port=1300)
        scene.connect("a", "c")
        first = scene.calls("a", "b", "1", port=1300)
        scene.passes(1.5)
        second = scene.calls("c", "b", "2", port=1300)
        rows = [
            {
                "at": f"2027-01-15T08:00:0{seconds}Z",
                "told": told,
                "address": "127.0.0.1",
                "port": 1300,
                "entry": entry,
                "session": session,
                "until": f"2027-01-15T09:00:0{seconds}Z",
            }
            for seconds, told, entry, session in (
                ("1.500000", "Ic", "@family", second),
                ("0.000000", "Ia", "Ia", first),
            )
        ]
        assert desk.lists("who_knows", "Ib") == (rows, {"identifier": "Ib", "told": 2})
        assert desk.rows("who_knows", "Ia") == []
        assert desk.rows("who_knows", "Ib", since=TODAY + 1) == rows[:1]
        assert desk.rows("who_knows", "Ib", most=1) == rows[:1]

    def test_when_a_record_waits_to_be_written_then_it_is_listed_too(self, logged: Logged) -> None:
        """Where it can't be written that is said (I3)."""
        desk = a_slow_desk()
        scene, store = desk.scene, desk.store
        store.at_once = store.slow_ledger = True
        scene.on_line("b", "Accept:Create Ia")
        scene.connect("a")
        session = scene.calls("a", "b")
        assert [row["session"] for row in desk.rows("who_knows", "Ib")] == [session]
        store.at_once = False
        scene.forget()
        scene.calls("a", "b")
        asking = desk.begins("who_knows", "Ib", None)
        store.pending.pop().errback(StoreFailed("busy"))
        assert asking.pop().check(StoreFailed)
        assert len(logged.failures()) == 1
        store.at_once = True

    @given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 12), st.integers(1, 45))
    def test_when_many_are_of_one_moment_then_each_is_listed_once(
        self, moments: list[int], since: int, most: int
    ) -> None:
        """Few are held at a time."""
        store = Ledger(disclosure(n, at * 1_000_000) for n, at in enumerate(moments))
        desk = a_desk(store=store)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "PAGE", 4)
            rows = desk.rows("who_knows", "Ib", since=since, most=most)
        expected = [one.session for one in reversed(store.told) if one.at >= since * 1_000_000]
        assert [row["session"] for row in rows] == expected[:most]
        ties = max((moments.count(moment) for moment in moments), default=0)
        assert max(store.asked) <= 4 + ties
