"""What the operator can ask of a mediator: what it does at once, what it tells, what it refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from broker.interfaces import StoreFailed
from broker.mediator import admin as module
from broker.mediator.admin import AdminApi, Row
from broker.tables.accounts import AccountRefused
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupRefused
from broker.tables.permits import PermitChange
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    DENIED,
    DONE,
    TODAY,
    Scene,
    begin,
    query,
    register,
    terminate,
    with_store,
)
from tests.support.clock import result_of, settle

T = TypeVar("T")


def operator_of(scene: Scene) -> AdminApi:
    """The operator of a scene's mediator."""
    mediator = scene.mediator
    return AdminApi(mediator.context, mediator.accounts)


def told(act: Callable[..., Awaitable[Row]], *arguments: Any, **more: Any) -> list[Row]:
    """The rows of an act that lists something."""
    rows: list[Row] = []

    async def tell(row: Row) -> None:
        rows.append(row)

    result_of(act(*arguments, tell=tell, **more))
    return rows


def begun(act: Awaitable[T]) -> list[Any]:
    """What comes of an act that has to wait; empty until then."""

    async def done() -> T:
        return await act

    outcome: list[Any] = []
    Deferred.fromCoroutine(done()).addBoth(outcome.append)
    return outcome


class AccountTests:
    """Accounts and their names (A19, C1)."""

    def test_when_accounts_are_listed_then_each_has_names_groups_and_connections(self) -> None:
        """By identifier."""
        scene = Scene(accounts={"Ib": "secret", "Ia": "secret"})
        operator = operator_of(scene)
        assert result_of(operator.add_name("Ia", "taro")) == {}
        result_of(operator.create_group("@family", ["taro"]))
        scene.connect("b")
        scene.says("b", register("Ib", "Password:secret", "Address:127.0.0.1"), b=DONE)
        assert told(operator.list_accounts) == [
            {
                "identifier": "Ia",
                "names": ("taro",),
                "groups": ["@family"],
                "connections": 0,
                "reached": False,
            },
            {"identifier": "Ib", "names": (), "groups": [], "connections": 1, "reached": True},
        ]

    def test_when_an_account_is_added_and_reset_then_its_connections_end(self) -> None:
        scene = Scene(accounts={})
        operator = operator_of(scene)
        result_of(operator.add_account("Ib", "first"))
        scene.connect("b")
        scene.says("b", register("Ib", "Password:first"), b=DONE)
        result_of(operator.reset_account("Ib", "second"))
        assert scene.clients.pop("b").closed
        scene.connect("b")
        scene.says("b", register("Ib", "Password:second"), b=DONE)

    def test_when_an_account_is_removed_then_it_is_on_no_list_and_in_no_group(self) -> None:
        """The operator is told the number of those that it was on."""
        scene = Scene(accounts={"Ib": "secret", "If": "secret"})
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["If", "Ib"]))
        scene.connect("b")
        scene.says("b", register("Ib", "Password:secret", "Accept:Create If,Ic"), b=DONE)
        assert result_of(operator.remove_account("If")) == {"lists": 1, "groups": 1}
        assert told(operator.list_members, "@family") == [{"identifier": "Ib"}]
        assert [row["caller"] for row in told(operator.show_permits, "Ib")] == ["Ic"]

    def test_when_a_name_is_given_then_it_can_be_taken_back(self) -> None:
        """One that another has is refused."""
        operator = operator_of(Scene(accounts={"Ia": "secret", "Ib": "secret"}))
        result_of(operator.add_name("Ia", "taro"))
        with pytest.raises(AccountRefused, match="taro is already a name of Ia"):
            result_of(operator.add_name("Ib", "taro"))
        result_of(operator.remove_name("Ia", "taro"))
        result_of(operator.add_name("Ib", "taro"))
        assert [row["names"] for row in told(operator.list_accounts)] == [(), ("taro",)]


class GroupTests:
    """Groups (A18)."""

    def test_when_members_are_added_and_removed_then_their_number_is_told(self) -> None:
        operator = operator_of(Scene())
        assert result_of(operator.create_group("@family", ["Ia", "Ic"])) == {"members": 2}
        assert result_of(operator.add_members("@family", ["If", "Ia"])) == {"members": 3}
        assert result_of(operator.remove_members("@family", ["Ic"])) == {"members": 2}
        assert told(operator.list_members, "@family") == [
            {"identifier": "Ia"},
            {"identifier": "If"},
        ]
        result_of(operator.create_group("@empty", []))
        assert told(operator.list_groups) == [
            {"group": "@family", "members": 2},
            {"group": "@empty", "members": 0},
        ]

    def test_when_a_member_is_given_by_name_then_its_identifier_is_in_the_group(self) -> None:
        """It is removed by either (C1)."""
        operator = operator_of(Scene(accounts={"Ia": "secret"}))
        result_of(operator.add_name("Ia", "taro"))
        result_of(operator.create_group("@family", ["taro", "Ia"]))
        assert told(operator.list_members, "@family") == [{"identifier": "Ia"}]
        assert result_of(operator.remove_members("@family", ["taro"])) == {"members": 0}

    def test_when_a_change_of_a_group_is_refused_then_nothing_has_changed(self) -> None:
        """Whatever it is (I5)."""
        operator = operator_of(Scene())
        result_of(operator.create_group("@family", ["Ia"]))
        for act, arguments, why in (
            (operator.create_group, ("@family", ["Ic"]), "there is a group @family already"),
            (operator.create_group, ("@other", ["@family"]), "only identifiers"),
            (operator.add_members, ("@none", ["Ic"]), "there is no group @none"),
            (operator.remove_members, ("@none", ["Ic"]), "there is no group @none"),
            (operator.remove_members, ("@family", ["Ia", "Ic"]), "Ic is not in @family"),
            (operator.delete_group, ("@none",), "there is no group @none"),
        ):
            doing: Any = act
            with pytest.raises(GroupRefused, match=why):
                result_of(doing(*arguments))
        with pytest.raises(GroupRefused, match="there is no group @none"):
            told(operator.list_members, "@none")
        assert told(operator.list_groups) == [{"group": "@family", "members": 1}]
        assert told(operator.list_members, "@family") == [{"identifier": "Ia"}]

    def test_when_a_member_is_removed_then_its_calls_end(self) -> None:
        """It is refused from then on (I1, I2)."""
        scene = Scene()
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["Ia"]))
        scene.on_line("b", "Accept:Create @family")
        scene.connect("a")
        scene.says("b", begin(scene.calls("a", "b")))
        assert result_of(operator.remove_members("@family", ["Ia"])) == {"members": 0}
        scene.reads(a=terminate(), b=terminate())
        scene.says("a", query("Ia", "Ib"), a=DENIED)
        result_of(operator.add_members("@family", ["Ia"]))
        scene.forget()
        scene.calls("a", "b")

    def test_when_a_group_is_deleted_then_it_is_on_no_list(self) -> None:
        """One of its name that is made later is another (I3)."""
        scene = Scene()
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["Ia", "Ic"]))
        scene.on_line("b", "Accept:Create @family")
        scene.on_line("f", "Accept:Create Ix,@family")
        assert result_of(operator.delete_group("@family")) == {"members": 2, "lists": 2}
        result_of(operator.create_group("@family", ["Ia"]))
        scene.new_says("a", query("Ia", "Ib"), DENIED)

    def test_when_two_add_to_a_group_at_once_then_neither_undoes_the_other(self) -> None:
        scene, store = with_store()
        operator = operator_of(scene)
        outcomes = begun(operator.create_group("@family", ["Ia"]))
        outcomes += (first := begun(operator.add_members("@family", ["Ic"])))
        second = begun(operator.add_members("@family", ["If"]))
        while store.pending:
            store.pending.pop(0).callback(None)
        assert (first, second) == ([{"members": 2}], [{"members": 3}])
        members = [row["identifier"] for row in told(operator.list_members, "@family")]
        assert members == ["Ia", "Ic", "If"]

    def test_when_a_group_changes_while_an_account_is_removed_then_it_stays_removed(self) -> None:
        """It does not come back with the group (I2)."""
        scene, store = with_store(accounts={})
        store.at_once = True
        operator = operator_of(scene)
        result_of(operator.add_account("Ia", "secret"))
        result_of(operator.create_group("@family", ["Ia"]))
        store.at_once = False
        removed = begun(operator.remove_account("Ia"))
        added = begun(operator.add_members("@family", ["Ic"]))
        while store.pending:
            store.pending.pop(0).callback(None)
        assert (removed, added) == ([{"lists": 0, "groups": 1}], [{"members": 1}])
        assert told(operator.list_members, "@family") == [{"identifier": "Ic"}]

    def test_when_the_store_fails_then_nothing_is_in_force(self) -> None:
        """The next act has its turn (I8)."""
        scene, store = with_store()
        operator = operator_of(scene)
        failing = begun(operator.create_group("@family", ["Ia"]))
        store.pending.pop().errback(StoreFailed("busy"))
        assert failing.pop().check(StoreFailed)
        assert told(operator.list_groups) == []
        store.at_once = True
        assert result_of(operator.create_group("@family", ["Ia"])) == {"members": 1}


class PermitTests:
    """Who may call (A6)."""

    def test_when_permits_are_shown_then_each_caller_has_its_entry(self) -> None:
        """And what is left of that."""
        scene = Scene()
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["Ia", "Ic"]))
        result_of(operator.create_group("@empty", []))
        entries = "Ia;expires=3600;uses=2,@family;uses=5,@empty,@none,If;expires=10"
        scene.new_says("b", register("Ib", f"Accept:Create {entries}"), DONE)
        scene.passes(60)
        assert told(operator.show_permits, "Ib") == [
            {"caller": "Ia", "entry": "Ia", "expires": 3540, "uses": 2},
            {"caller": "Ia", "entry": "@family", "expires": None, "uses": 5},
            {"caller": "Ic", "entry": "@family", "expires": None, "uses": 5},
            {"caller": None, "entry": "@empty", "expires": None, "uses": None, "group": "empty"},
            {"caller": None, "entry": "@none", "expires": None, "uses": None, "group": "none"},
        ]

    def test_when_the_terminal_rejects_a_caller_then_it_is_not_shown(self) -> None:
        """Whatever the list says (C5)."""
        scene = Scene()
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["Ia", "Ic"]))
        lists = ("Accept:Create @family,If,Ig", "Reject:Create Ic,If")
        scene.new_says("b", register("Ib", *lists), DONE)
        assert [row["caller"] for row in told(operator.show_permits, "Ib")] == ["Ia", "Ig"]

    def test_when_the_terminal_is_asked_each_time_then_no_caller_is_shown(self) -> None:
        """Its list is not in force (C3)."""
        scene = Scene()
        operator = operator_of(scene)
        scene.new_says("b", register("Ib", "Accept:Create Ia", "Policy:Ask"), DONE)
        rows: list[Row] = []

        async def tell(row: Row) -> None:
            rows.append(row)

        end = result_of(operator.show_permits("Ib", tell))
        assert (end, rows) == ({"identifier": "Ib", "entries": 0, "policy": "Ask"}, [])

    def test_when_a_list_is_longer_than_a_line_then_it_is_shown_whole(self) -> None:
        names = tuple(f"terminal-{n}" for n in range(500))
        scene, _ = with_store(PermitChange("Ib", names))
        rows = told(operator_of(scene).show_permits, "Ib")
        assert tuple(row["caller"] for row in rows) == names

    def test_when_a_list_is_asked_for_by_name_then_it_is_that_of_the_identifier(self) -> None:
        """One without a list accepts no caller (C1)."""
        scene = Scene(accounts={"Ib": "secret"})
        operator = operator_of(scene)
        result_of(operator.add_name("Ib", "hanako"))
        scene.connect("b")
        scene.says("b", register("Ib", "Password:secret", "Accept:Create Ia"), b=DONE)
        rows: list[Row] = []

        async def tell(row: Row) -> None:
            rows.append(row)

        end = result_of(operator.show_permits("hanako", tell))
        assert end == {"identifier": "Ib", "entries": 1}
        assert [row["caller"] for row in rows] == ["Ia"]
        assert told(operator.show_permits, "Ix") == []


class Ledger:
    """A store of disclosures alone.

    :ivar asked: how many were asked for each time
    """

    def __init__(self, kept: Sequence[Disclosure]) -> None:
        self.kept = sorted(kept, key=lambda one: one.at)
        self.asked: list[int] = []

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        """The newest first; what is of one moment always in the same order."""
        self.asked.append(most)
        found = [one for one in self.kept if one.owner == whose and one.at < before]
        return found[: -most - 1 : -1]


def disclosure(number: int, at: int) -> Disclosure:
    """One of many."""
    return Disclosure("Ib", "Ia", "127.0.0.1", 1203, f"S{number}", "Ia", at, 3600)


class WhoKnowsTests:
    """Who was told an address."""

    def test_when_addresses_were_told_then_each_record_is_listed(self) -> None:
        """When, to which terminal, which address, by what entry; the newest first."""
        scene = Scene()
        operator = operator_of(scene)
        result_of(operator.create_group("@family", ["Ic"]))
        scene.on_line("b", "Accept:Create Ia,@family", port=1300)
        scene.connect("a", "c")
        first = scene.calls("a", "b", "1", port=1300)
        scene.passes(1.5)
        second = scene.calls("c", "b", "2", port=1300)
        rows = told(operator.who_knows, "Ib")
        assert rows == [
            {
                "at": "2027-01-15T08:00:01.500000Z",
                "told": "Ic",
                "address": "127.0.0.1",
                "port": 1300,
                "entry": "@family",
                "session": second,
                "until": "2027-01-15T09:00:01.500000Z",
            },
            {
                "at": "2027-01-15T08:00:00.000000Z",
                "told": "Ia",
                "address": "127.0.0.1",
                "port": 1300,
                "entry": "Ia",
                "session": first,
                "until": "2027-01-15T09:00:00.000000Z",
            },
        ]
        assert told(operator.who_knows, "Ia") == []
        assert told(operator.who_knows, "Ib", since=TODAY + 1) == rows[:1]
        assert told(operator.who_knows, "Ib", most=1) == rows[:1]

    def test_when_a_record_waits_to_be_written_then_it_is_listed_too(self, logged: Logged) -> None:
        """Where it can't be written that is said (I3)."""
        scene, store = with_store()
        store.at_once = store.slow_ledger = True
        operator = operator_of(scene)
        scene.on_line("b", "Accept:Create Ia")
        scene.connect("a")
        session = scene.calls("a", "b")
        assert [row["session"] for row in told(operator.who_knows, "Ib")] == [session]
        store.at_once = False
        scene.forget()
        scene.calls("a", "b")
        asking = begun(operator.who_knows("Ib", tell=lambda _: succeed(None)))
        store.pending.pop().errback(StoreFailed("busy"))
        assert asking.pop().check(StoreFailed)
        assert len(logged.failures()) == 1
        store.at_once = True

    @given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 12), st.integers(1, 45))
    def test_when_many_are_of_one_moment_then_each_is_listed_once(
        self, moments: list[int], since: int, most: int
    ) -> None:
        """Few are held at a time."""
        store: Any = Ledger(
            [disclosure(n, at * 1_000_000) for n, at in enumerate(moments)],
        )
        scene = Scene()
        settle(scene.clock)
        context = replace(scene.context, store=store)
        operator = AdminApi(context, scene.mediator.accounts)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "PAGE", 4)
            rows = told(operator.who_knows, "Ib", since=since, most=most)
        expected = [one.session for one in reversed(store.kept) if one.at >= since * 1_000_000]
        assert [row["session"] for row in rows] == expected[:most]
        ties = max((moments.count(moment) for moment in moments), default=0)
        assert max(store.asked) <= 4 + ties
