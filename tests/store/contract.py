"""What every store promises (IStore): one suite, to be run over each; and numbered commits.

A store's own tests are a subclass of ``StoreContract`` that says how the store is made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

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


LIMITED: Final = PermitChange(
    "Ia",
    ("Ib", "Ic", "Id", "Ie"),
    (("Ib", Limit(1763726400.125)), ("Id", Limit(None, 3)), ("Ie", Limit(0, 1))),
)


#: What a store holds, to be compared: the last change of each list, account and group, by kind and
#: name, if anything is left after it.
Held = dict[tuple[str, str], Change]


def held_of(state: State) -> Held:
    """What is in a state, where each stands once, and nothing that need not be kept."""
    every: list[Change] = [*state.permits, *state.accounts, *state.groups]
    held = made_of(every)
    assert len(held) == len(every)
    return held


def made_of(done: Iterable[Change]) -> Held:
    """What a store should hold after changes, told independently of any store."""
    held: Held = {}
    for change in done:
        match change:
            case PermitChange():
                name, gone = change.owner, change.is_default
                change = replace(change, limits=tuple(sorted(change.limits)))
            case AccountChange():
                name, gone = change.identifier, change.verifier is None
            case GroupChange():
                name, gone = change.name, change.members is None
            case _:
                continue
        held.pop((type(change).__name__, name), None)
        if not gone:
            held[type(change).__name__, name] = change
    return held


def told_of(done: Iterable[Change], whose: str, before: int, most: int) -> list[Disclosure]:
    """What should be told of one terminal after changes."""
    found = [
        (change.at, number, change)
        for number, change in enumerate(done)
        if isinstance(change, Disclosure) and change.owner == whose and change.at < before
    ]
    found.sort(key=lambda one: one[:2], reverse=True)
    return [change for _, _, change in found[: max(most, 0)]]


# Numbered commits show by what is found after a crash how far a store had come. Commit ``n`` sets
# two lists, an account and a group to ``n``: which ones follows from the number, and so does which
# of them it takes away. It also adds a disclosure, at the time ``n``. So what a store holds tells
# which commits those were, and whether one is held by half.

#: How many pairs of lists there are.
PAIRS: Final = 40
#: Whose addresses they tell.
TOLD: Final = "Ib"
#: How many disclosures are looked at; a store tells no more at once.
TOLD_MOST: Final = 10_000


def commit_of(number: int) -> list[Change]:
    """The changes of one commit."""
    pair = number * 17 % PAIRS  # all of them in turn
    text = str(number)
    limits = ((text, Limit(number, number)),) if number % 2 else ()
    return [
        PermitChange(f"left{pair}", (text,), limits),
        AccountChange(f"I{pair}", None if number % 3 == 0 else text, f"{number:016x}", (text,)),
        PermitChange(f"right{pair}", (text,)),
        GroupChange(f"@{pair}", None if number % 5 == 0 else (text,)),
        disclosure(number, TOLD),
    ]


def commits_in(state: State, told: Sequence[Disclosure]) -> int:
    """How many commits a store holds: all up to one number, and nothing of a later one.

    :param told: the newest of what it tells of ``TOLD``, up to ``TOLD_MOST``
    :raises AssertionError: it is no serial order of whole commits (I9)
    """
    last = told[0].at if told else 0
    expected: list[Change] = []
    for number in range(max(1, last - PAIRS + 1), last + 1):
        expected += commit_of(number)
    assert held_of(state) == made_of(expected)
    assert list(told) == [
        disclosure(number, TOLD) for number in range(last, max(0, last - TOLD_MOST), -1)
    ]
    return last


class StoreContract:
    """The promises; a subclass gives ``new`` and ``reopened``.

    :ivar lasts: what is kept outlasts the process
    """

    lasts = True

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
        assert held_of(state) == {}
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
        assert self.held(other) == {}
        assert self.told(other) == []
        self.result(one.prune(EVER))
        assert self.result(one.load()).epoch == before
        assert self.result(other.load()).epoch != before

    def check(self, commits: Sequence[Sequence[Change]], time: int = EVER, most: int = 100) -> None:
        """See that a new store holds after commits what it should, and prune it."""
        store = self.new()
        done: list[Change] = []
        for commit in commits:
            self.commit(store, *commit)
            done += commit
            assert self.held(store) == made_of(done)
        whose = {change.owner for change in done if isinstance(change, Disclosure)} | {"Iz"}
        for one in whose:
            assert self.told(store, one) == told_of(done, one, EVER, 100)
            assert self.told(store, one, time, most) == told_of(done, one, time, most)
        old = [change for change in done if isinstance(change, Disclosure) and change.at < time]
        assert self.result(store.prune(time)) == len(old)
        assert self.result(store.prune(time)) == 0
        left = [change for change in done if change not in old]
        for one in whose:
            assert self.told(store, one) == told_of(left, one, EVER, 100)
        assert self.held(store) == made_of(done)

    @pytest.mark.parametrize(
        "commits",
        [
            pytest.param(
                [
                    [
                        disclosure(1),
                        PermitChange("Ia", ("Ic",)),
                        GroupChange("@family", None),
                        AccountChange("Ib", "two", "1" * 16),
                        AccountChange("Ia", None),
                        PermitChange("Ia", ("Ib", "@family"), (("Ib", Limit(9.5, 2)),)),
                        PermitChange("Ib", ("Ia", "Ic")),
                        AccountChange("Ia", "one", "0" * 16, ("anna",)),
                        GroupChange("@family", ("Ia", "Ib")),
                        AccountChange("Ib", None),
                        disclosure(1),
                    ],
                    [],
                ],
                id="one commit of all kinds: the later of two is kept, of disclosures both (I9)",
            ),
            pytest.param(
                [[LIMITED], [replace(LIMITED, limits=())]],
                id="an entry keeps its limits, and loses them with a list that has none",
            ),
            pytest.param(
                [
                    [GroupChange("@a", ()), GroupChange("@b", ("Ia",))],
                    [GroupChange("@b", None), GroupChange("@c", None)],
                    [GroupChange("@\0", ("\0",))],
                ],
                id="an empty group is there; one that is deleted is not",
            ),
            pytest.param(
                [
                    [
                        AccountChange("Ia", "$argon2id$v", "0123456789abcdef", ("anna", "山田")),
                        AccountChange("Ib", "$argon2id$w", "f" * 16),
                    ],
                    [AccountChange("Ia", "$argon2id$another", "b" * 16, ("taro",))],
                    [AccountChange("Ia", None, "b" * 16, ("taro",))],
                    [AccountChange("Ia", "$argon2id$x", "a" * 16)],
                ],
                id="an account is kept with its names; removed, nothing is left of it (A19, C1)",
            ),
            *(
                pytest.param(
                    [
                        [
                            PermitChange("x" + name, (name, "b"), ((name, Limit(1.5, 2)),)),
                            PermitChange("x", ("a",)),
                            AccountChange("x" + name, "v" + name, "0" * 16, (name, "b")),
                            AccountChange("x", "v", "1" * 16),
                            GroupChange("@x" + name, (name, "b")),
                            GroupChange("@x", ("a",)),
                            Disclosure("x" + name, name, name, 1, name, name, 1, 1),
                            disclosure(1, "x"),
                        ]
                    ],
                    id=f"a text comes back as it was, and is no other's: {name!a} (I4)",
                )
                for name in ("", '"],["', "' OR 1=1 --", "\n", "𠮷", "é")
            ),
        ],
    )
    def test_holds(self, commits: Sequence[Sequence[Change]]) -> None:
        """What a store holds after these."""
        self.check(commits)

    def test_most_of_all(self) -> None:
        """However many are asked for, there is a cap (I15)."""
        store = self.new()
        self.commit(store, *map(disclosure, range(10_050)))
        found = self.told(store, most=2**40)
        assert [one.at for one in found] == list(range(10_049, 49, -1))

    def test_next_process(self) -> None:
        """The next process finds every acknowledged change and the epoch, or neither (A6, I8)."""
        store = self.new()
        self.commit(store, *commit_of(1), GroupChange("@a", ()))
        self.commit(store, *commit_of(PAIRS + 1), PermitChange("Ix", ("Ib",)))
        self.commit(store, PermitChange("Ix", ()))
        before, told = self.result(store.load()), self.told(store)
        again = self.reopened(store)
        after = self.result(again.load())
        assert (after.epoch == before.epoch) is self.lasts
        assert held_of(after) == (held_of(before) if self.lasts else {})
        assert self.told(again) == (told if self.lasts else [])

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
        max_examples=60,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(
        st.lists(st.lists(changes, max_size=4), max_size=6),
        st.integers(0, 4) | st.integers(0, 2**53) | st.sampled_from([EVER, 2**70, -(2**70)]),
        st.integers(-1, 5),
    )
    def test_as_the_model(self, commits: list[list[Change]], time: int, most: int) -> None:
        """After any commits it holds the last of everything, order kept, nothing empty (A6).

        The newest disclosures come first, of one time the latest kept; no more than are asked for.
        What was told at that very time, or later, is not told of. What is older is pruned, whosever
        it is; what is not, and all else, stays.
        """
        self.check(commits, time, most)
