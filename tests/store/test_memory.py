"""``memory:`` keeps the promises of every store, and forgets at the end of its process."""

from __future__ import annotations

import os

from broker.interfaces import IStore
from broker.store.memory import MemoryStore
from broker.tables.permits import PermitChange
from tests.fakes import result_of
from tests.store.contract import StoreContract, permits_of


class MemoryStoreTests(StoreContract):
    """The suite over the store in memory."""

    def new(self) -> IStore:
        return MemoryStore(os.urandom)

    def reopened(self, store: IStore) -> IStore:
        return MemoryStore(os.urandom)

    def test_forgets(self) -> None:
        """A new process knows nothing, and shows it by another epoch."""
        store = self.new()
        result_of(store.commit([PermitChange("Ia", ("Ib",))]))
        again = self.reopened(store)
        assert permits_of(result_of(again.load())) == {}
        assert result_of(again.load()).epoch != result_of(store.load()).epoch
