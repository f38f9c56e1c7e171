"""What every store promises (IStore): one suite, to be run over each.

A store's own tests are a subclass of ``StoreContract`` that says how the store is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import ASK, LIST, Limit, PermitChange
from tests.support.clock import result_of

#: Later than anything that is told of.
EVER: Final = 2**62

#: What no identifier may hold anyway, and SQLite takes for a text's end, is left out.
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
owners = st.sampled_from(["Ia", "Ib", "山田太郎 大阪府門真市"]) | texts
names = st.sampled_from(["Ia", "Ib", "@family", "tel:+81669081121"]) | texts
untils = st.none() | st.floats(0, 1e11) | st.integers(0, 10**11)
limits = st.none() | st.builds(Limit, untils, st.none() | st.integers(1, 1_000_000))


def _change_of(
    owner: str, entries: list[tuple[str, Limit | None]], rejected: list[str], policy: str
) -> PermitChange:
    limited = tuple((name, limit) for name, limit in entries if limit is not None)
    accepted = tuple(name for name, _ in entries)
    return PermitChange(owner, accepted, limited, tuple(rejected), policy)


permits = st.builds(
    _change_of,
    owners,
    st.lists(st.tuples(names, limits), max_size=5, unique_by=lambda entry: entry[0]),
    st.lists(names, max_size=2, unique=True),
    st.sampled_from([LIST, LIST, ASK, "Password"]),
)
accounts = st.builds(
    AccountChange,
    owners,
    st.none() | texts,
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.lists(names, max_size=3, unique=True).map(tuple),
)
groups = st.builds(
    GroupChange,
    st.sampled_from(["@family", "@家族"]) | texts.map("@{}".format),
    st.none() | st.lists(names, max_size=5, unique=True).map(tuple),
)
disclosures = st.builds(
    Disclosure,
    owner=st.sampled_from(["Ia", "Ib", "山田太郎 大阪府門真市"]),
    recipient=owners,
    host=st.sampled_from(["192.0.2.1", "2001:db8::1"]),
    port=st.integers(1, 65535),
    session=texts,
    basis=names,
    at=st.integers(0, 4) | st.integers(0, 2**53),
    expires=st.integers(1, 86400),
)
changes = permits | accounts | groups | disclosures

T = TypeVar("T")


def disclosure(number: int, whose: str = "Ib", at: int | None = None) -> Disclosure:
    """A disclosure that differs from others by its number, which is also when it was."""
    when = number if at is None else at
    return Disclosure(whose, "Ia", "192.0.2.1", 5060, str(number), "@family", when, 30)


class Held(NamedTuple):
    """What a store holds, to be compared: each list, account and group by what it is called."""

    permits: dict[str, tuple[tuple[str, ...], dict[str, Limit]]]
    policies: dict[str, tuple[str, tuple[str, ...]]]
    accounts: dict[str, AccountChange]
    groups: dict[str, GroupChange]


def held_of(state: State) -> Held:
    """What is in a state, where each stands once."""
    held = Held(
        {one.owner: (one.accepted, dict(one.limits)) for one in state.permits if one.accepted},
        {
            one.owner: (one.policy, one.rejected)
            for one in state.permits
            if one.rejected or one.policy != LIST
        },
        {change.identifier: change for change in state.accounts},
        {change.name: change for change in state.groups},
    )
    assert len(held.permits.keys() | held.policies.keys()) == len(state.permits)
    assert len(held.accounts) == len(state.accounts)
    assert len(held.groups) == len(state.groups)
    return held


def made_of(done: Iterable[Change]) -> Held:
    """What a store should hold after changes, told independently of any store."""
    held = Held({}, {}, {}, {})
    for change in done:
        match change:
            case PermitChange():
                held.permits[change.owner] = (change.accepted, dict(change.limits))
                held.policies[change.owner] = (change.policy, change.rejected)
            case AccountChange():
                held.accounts[change.identifier] = change
            case GroupChange():
                held.groups[change.name] = change
    return Held(
        {owner: kept for owner, kept in held.permits.items() if kept[0]},
        {owner: kept for owner, kept in held.policies.items() if kept != (LIST, ())},
        {whose: kept for whose, kept in held.accounts.items() if kept.verifier is not None},
        {name: kept for name, kept in held.groups.items() if kept.members is not None},
    )


def told_of(done: Iterable[Change], whose: str, before: int, most: int) -> list[Disclosure]:
    """What should be told of one terminal after changes."""
    found = [
        (change.at, number, change)
        for number, change in enumerate(done)
        if isinstance(change, Disclosure) and change.owner == whose and change.at < before
    ]
    found.sort(key=lambda one: one[:2], reverse=True)
    return [change for _, _, change in found[:most]]


class StoreContract:
    """The promises; a subclass gives ``new`` and ``reopened``."""

    def result(self, step: Awaitable[T]) -> T:
        """What a step gives; a subclass whose store takes time waits for it."""
        return result_of(step)

    def new(self) -> IStore:
        """A store that never held anything, apart from every other."""
        raise NotImplementedError

    def reopened(self, store: IStore) -> IStore:
        """The same store as the next process finds it."""
        raise NotImplementedError

    def held(self, store: IStore) -> Held:
        """What a store holds."""
        return held_of(self.result(store.load()))

    def told(
        self, store: IStore, whose: str = "Ib", before: int = EVER, most: int = 100
    ) -> list[Disclosure]:
        """What a store tells of one terminal."""
        return list(self.result(store.disclosures(whose, before, most)))

    def commit(self, store: IStore, *done: Change) -> None:
        """Commit changes, and wait."""
        self.result(store.commit(done))

    def test_interface(self) -> None:
        """It is an IStore in name and in deed."""
        assert verifyObject(IStore, self.new())

    def test_empty(self) -> None:
        """A new store holds nothing, and has an epoch that a message can carry."""
        store = self.new()
        state = self.result(store.load())
        assert held_of(state) == ({}, {}, {}, {})
        assert self.told(store) == []
        assert self.result(store.prune(EVER)) == 0
        assert 1 <= len(state.epoch) <= 64
        assert state.epoch.isascii()
        assert state.epoch.replace("-", "").replace(".", "").isalnum()

    def test_epochs(self) -> None:
        """The epoch stays while nothing is lost; two stores share neither it nor a change (A6)."""
        one, other = self.new(), self.new()
        before = self.result(one.load()).epoch
        self.commit(one, PermitChange("Ia", ("Ib",)), disclosure(1))
        assert self.held(other) == ({}, {}, {}, {})
        assert self.told(other) == []
        self.result(one.prune(EVER))
        assert self.result(one.load()).epoch == before
        assert self.result(other.load()).epoch != before

    def test_one_commit_of_all_kinds(self) -> None:
        """Changes of different kinds are one commit; of two for one thing, the later is kept (I9).

        Each disclosure is, two that are the same included. An empty commit changes nothing.
        """
        store = self.new()
        kept: list[Change] = [
            PermitChange("Ia", ("Ib", "@family"), (("Ib", Limit(9.5, 2)),)),
            PermitChange("Ib", ("Ia", "Ic")),
            AccountChange("Ia", "one", "0" * 16, ("anna",)),
            GroupChange("@family", ("Ia", "Ib")),
        ]
        self.commit(
            store,
            disclosure(1),
            PermitChange("Ia", ("Ic",)),
            GroupChange("@family", None),
            AccountChange("Ib", "two", "1" * 16),
            AccountChange("Ia", None),
            *kept,
            AccountChange("Ib", None),
            disclosure(1),
        )
        self.commit(store)
        assert self.held(store) == made_of(kept)
        assert self.told(store) == [disclosure(1), disclosure(1)]

    def test_limits(self) -> None:
        """An entry keeps the limits that it has, and loses them with the list that has none."""
        store = self.new()
        limited = PermitChange(
            "Ia",
            ("Ib", "Ic", "Id", "Ie"),
            (("Ib", Limit(1763726400.125)), ("Id", Limit(None, 3)), ("Ie", Limit(0, 1))),
        )
        self.commit(store, limited)
        assert self.held(store) == made_of([limited])
        free = replace(limited, limits=())
        self.commit(store, free)
        assert self.held(store) == made_of([free])

    def test_groups(self) -> None:
        """A group that is empty is there; one that is deleted is not, as if it had never been."""
        store = self.new()
        self.commit(store, GroupChange("@a", ()), GroupChange("@b", ("Ia",)))
        assert self.held(store).groups == {
            "@a": GroupChange("@a", ()),
            "@b": GroupChange("@b", ("Ia",)),
        }
        self.commit(store, GroupChange("@b", None), GroupChange("@c", None))
        assert self.held(store).groups == {"@a": GroupChange("@a", ())}
        strange = GroupChange("@\0", ("\0",))
        self.commit(store, strange)
        assert self.held(store).groups["@\0"] == strange

    def test_accounts(self) -> None:
        """An account is kept with its names; removed, nothing is left of it (A19, C1)."""
        store = self.new()
        account = AccountChange("Ia", "$argon2id$v", "0123456789abcdef", ("anna", "山田太郎"))
        self.commit(store, account, AccountChange("Ib", "$argon2id$w", "f" * 16))
        assert self.held(store).accounts["Ia"] == account
        account = AccountChange("Ia", "$argon2id$another", "b" * 16, ("taro",))
        self.commit(store, account)
        assert self.held(store).accounts["Ia"] == account
        self.commit(store, replace(account, verifier=None))
        assert set(self.held(store).accounts) == {"Ib"}
        again = AccountChange("Ia", "$argon2id$x", "a" * 16)
        self.commit(store, again)
        assert self.held(store).accounts["Ia"] == again

    def test_newest_first(self) -> None:
        """Disclosures of one terminal are told the newest first; of one time, the latest kept."""
        store = self.new()
        for one in (disclosure(5), disclosure(7), disclosure(6), disclosure(8, at=5)):
            self.commit(store, one)
        self.commit(store, disclosure(9, "Ic"))
        sessions = [one.session for one in self.told(store)]
        assert sessions == ["7", "6", "8", "5"]
        assert self.told(store, "Ic") == [disclosure(9, "Ic")]
        assert self.told(store, "Ia") == []

    def test_before(self) -> None:
        """What was told at that very time, or later, is not told of."""
        store = self.new()
        self.commit(store, *map(disclosure, range(5)))
        assert [one.at for one in self.told(store, before=3)] == [2, 1, 0]
        assert self.told(store, before=0) == []
        assert len(self.told(store, before=2**70)) == 5
        assert self.told(store, before=-(2**70)) == []
        assert self.result(store.prune(-(2**70))) == 0
        assert self.result(store.prune(2**70)) == 5

    def test_most(self) -> None:
        """No more are told of than were asked for, and those are the newest."""
        store = self.new()
        self.commit(store, *map(disclosure, range(5)))
        assert [one.at for one in self.told(store, most=2)] == [4, 3]
        assert self.told(store, most=0) == []
        assert self.told(store, most=-1) == []

    def test_most_of_all(self) -> None:
        """However many are asked for, there is a cap (I15)."""
        store = self.new()
        self.commit(store, *map(disclosure, range(10_050)))
        found = self.told(store, most=2**40)
        assert [one.at for one in found] == list(range(10_049, 49, -1))

    def test_prune(self) -> None:
        """What is older goes, whosever it is; what is not, and all else, stays."""
        store = self.new()
        lasting: list[Change] = [PermitChange("Ib", ("Ia",)), GroupChange("@a", ("Ia",))]
        self.commit(store, *lasting, *map(disclosure, range(5)), disclosure(1, "Ic"))
        assert self.result(store.prune(3)) == 4
        assert [one.at for one in self.told(store)] == [4, 3]
        assert self.told(store, "Ic") == []
        assert self.result(store.prune(3)) == 0
        assert self.held(store) == made_of(lasting)

    def test_next_process(self) -> None:
        """The next process finds every acknowledged change, or else an epoch that is new (A6)."""
        store = self.new()
        self.commit(
            store,
            PermitChange("Ia", ("Ib", "Ic"), (("Ic", Limit(9, 1)),)),
            AccountChange("Ia", "one", "0" * 16, ("anna",)),
            GroupChange("@a", ()),
            disclosure(1),
        )
        before, told = self.result(store.load()), self.told(store)
        again = self.reopened(store)
        after = self.result(again.load())
        same = held_of(after) == held_of(before) and self.told(again) == told
        assert after.epoch != before.epoch or same

    def test_stopped(self) -> None:
        """Stopped, it takes nothing and tells nothing; stopped again, it is as well."""
        store = self.new()
        self.commit(store, disclosure(1))
        self.result(store.stop())
        self.result(store.stop())
        steps: Sequence[Awaitable[object]] = (
            store.load(),
            store.commit([disclosure(2)]),
            store.disclosures("Ib", EVER, 1),
            store.prune(EVER),
        )
        for step in steps:
            with pytest.raises(StoreFailed, match="closed"):
                self.result(step)

    # One test for several stores is what a suite is.
    @settings(
        deadline=None,
        max_examples=40,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(
        st.lists(st.lists(changes, max_size=4), max_size=6),
        st.integers(0, 4) | st.integers(0, 2**53),
        st.integers(0, 5),
    )
    def test_as_the_model(self, commits: list[list[Change]], time: int, most: int) -> None:
        """After any commits it holds the last of everything, order kept, nothing empty (A6).

        Each disclosure is there until it is pruned.
        """
        store = self.new()
        done: list[Change] = []
        for commit in commits:
            self.commit(store, *commit)
            done += commit
            assert self.held(store) == made_of(done)
        whose = {change.owner for change in done if isinstance(change, Disclosure)}
        for one in whose:
            assert self.told(store, one) == told_of(done, one, EVER, 100)
            assert self.told(store, one, time, most) == told_of(done, one, time, most)
        old = [change for change in done if isinstance(change, Disclosure) and change.at < time]
        assert self.result(store.prune(time)) == len(old)
        left = [change for change in done if change not in old]
        for one in whose:
            assert self.told(store, one) == told_of(left, one, EVER, 100)
        assert self.held(store) == made_of(done)
