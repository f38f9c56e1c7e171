"""``memory:``: a store for laboratories, which forgets everything when the process ends."""

from __future__ import annotations

from collections.abc import Sequence

from zope.interface import implementer

from broker.interfaces import Change, IStore, State
from broker.tables.disclosures import Disclosure
from broker.tables.grants import Randomness
from broker.tables.permits import PermitChange


@implementer(IStore)
class MemoryStore:
    """Keeps changes for as long as it lives; its epoch is new each time."""

    def __init__(self, randomness: Randomness) -> None:
        self._epoch = randomness(8).hex()
        self._permits: dict[str, PermitChange] = {}

    async def load(self) -> State:
        """All that was committed."""
        return State(self._epoch, tuple(self._permits.values()))

    async def commit(self, changes: Sequence[Change]) -> None:
        """Keep changes; nothing can fail."""
        for change in changes:
            if isinstance(change, PermitChange):
                self._permits[change.owner] = change
                if not change.accepted:
                    del self._permits[change.owner]

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        """Nothing yet."""
        return ()

    async def prune(self, before: int) -> int:
        """Nothing yet."""
        return 0

    async def stop(self) -> None:
        """There is nothing to close."""
