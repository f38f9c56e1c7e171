"""``memory:`` keeps the promises of every store, and forgets at the end of its process."""

from __future__ import annotations

import os

import pytest

from broker.interfaces import IStore
from broker.store import memory
from broker.store.memory import MemoryStore
from tests.store.contract import StoreContract, disclosure


class MemoryStoreTests(StoreContract):
    """The suite over the store in memory; a new process knows nothing, and shows it (A6)."""

    lasts = False

    def new(self) -> IStore:
        return MemoryStore(os.urandom)

    def reopened(self, store: IStore) -> IStore:
        return MemoryStore(os.urandom)

    def test_remembers_the_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its memory is bounded: the oldest disclosures make room for the newest (I15)."""
        monkeypatch.setattr(memory, "REMEMBERED_MOST", 3)
        store = self.new()
        self.commit(store, *map(disclosure, range(5)))
        assert [one.at for one in self.told(store)] == [4, 3, 2]
        assert self.result(store.prune(3)) == 1
        self.commit(store, *map(disclosure, range(5, 8)))
        assert [one.at for one in self.told(store)] == [7, 6, 5]
