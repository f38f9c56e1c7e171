"""What every store promises (IStore): one suite, to be run over each.

A store's own tests are a subclass of ``StoreContract`` that says how the store is made.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from broker.interfaces import IStore, State
from broker.tables.permits import PermitChange
from tests.fakes import result_of

owners = st.sampled_from(["Ia", "Ib", "山田太郎 大阪府門真市"])
accepted = st.lists(st.sampled_from(["Ia", "Ib", "@family", "tel:+81669081121"]), unique=True)
changes = st.builds(PermitChange, owners, accepted.map(tuple))

T = TypeVar("T")


def permits_of(state: State) -> dict[str, tuple[str, ...]]:
    """The lists of a state; each owner stands in it once."""
    lists = {change.owner: change.accepted for change in state.permits}
    assert len(lists) == len(state.permits)
    return lists


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

    def test_interface(self) -> None:
        """It is an IStore in name and in deed."""
        assert verifyObject(IStore, self.new())

    def test_empty(self) -> None:
        """A new store holds nothing, and has an epoch that a message can carry."""
        state = self.result(self.new().load())
        assert permits_of(state) == {}
        assert 1 <= len(state.epoch) <= 64
        assert state.epoch.isascii()
        assert state.epoch.replace("-", "").replace(".", "").isalnum()

    def test_epochs(self) -> None:
        """The epoch stays while nothing is lost, and no two stores share one (A6)."""
        one, other = self.new(), self.new()
        before = self.result(one.load()).epoch
        self.result(one.commit([PermitChange("Ia", ("Ib",))]))
        assert self.result(one.load()).epoch == before
        assert self.result(other.load()).epoch != before

    def test_one_commit_of_many(self) -> None:
        """All changes of a commit are kept; of two for one owner, the later (I9)."""
        store = self.new()
        self.result(
            store.commit(
                [
                    PermitChange("Ia", ("Ib",)),
                    PermitChange("Ib", ("Ia", "Ic")),
                    PermitChange("Ia", ("Ic",)),
                ]
            )
        )
        assert permits_of(self.result(store.load())) == {"Ia": ("Ic",), "Ib": ("Ia", "Ic")}

    def test_nothing_to_commit(self) -> None:
        """An empty commit changes nothing."""
        store = self.new()
        self.result(store.commit([]))
        assert permits_of(self.result(store.load())) == {}

    def test_apart(self) -> None:
        """What is committed to one store is in no other."""
        one, other = self.new(), self.new()
        self.result(one.commit([PermitChange("Ia", ("Ib",))]))
        assert permits_of(self.result(other.load())) == {}

    def test_next_process(self) -> None:
        """The next process finds every acknowledged change, or else an epoch that is new (A6)."""
        store = self.new()
        self.result(store.commit([PermitChange("Ia", ("Ib", "Ic"))]))
        before = self.result(store.load())
        after = self.result(self.reopened(store).load())
        assert after.epoch != before.epoch or permits_of(after) == permits_of(before)

    # One test for several stores is what a suite is.
    @settings(
        deadline=None,
        max_examples=40,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(st.lists(st.lists(changes, max_size=4), max_size=6))
    def test_as_the_model(self, commits: list[list[PermitChange]]) -> None:
        """After any commits it holds each owner's last list, order kept, and no empty one (A6)."""
        store = self.new()
        model: dict[str, tuple[str, ...]] = {}
        for commit in commits:
            self.result(store.commit(commit))
            for change in commit:
                model[change.owner] = change.accepted
            held = permits_of(self.result(store.load()))
            assert held == {owner: names for owner, names in model.items() if names}
