"""``memory:``: a store for tests and laboratories; it is gone when the process ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from zope.interface import implementer

from broker.interfaces import Change, IStore, State, StoreFailed
from broker.store.rows import DISCLOSURES_MOST
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.grants import Randomness
from broker.tables.groups import GroupChange
from broker.tables.permits import PermitChange

#: How many disclosures it remembers; then it drops the oldest (I15).
REMEMBERED_MOST: Final = 100_000


@implementer(IStore)
class MemoryStore:
    """Stores changes in memory; its epoch is new each time.

    Of the disclosures it stores the last 100,000.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._epoch = randomness(8).hex()
        self._permits: dict[str, PermitChange] = {}
        self._accounts: dict[str, AccountChange] = {}
        self._groups: dict[str, GroupChange] = {}
        self._disclosures: deque[Disclosure] = deque(maxlen=REMEMBERED_MOST)
        self._stopped = False

    async def load(self) -> State:
        """Return all that was committed, except the disclosures.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        return State(
            self._epoch,
            tuple(self._permits.values()),
            tuple(self._accounts.values()),
            tuple(self._groups.values()),
        )

    async def commit(self, changes: Sequence[Change]) -> None:
        """Store changes.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        for change in changes:
            match change:
                case Disclosure():
                    self._disclosures.append(change)
                case PermitChange():
                    self._permits[change.owner] = change
                    if change.is_default:
                        del self._permits[change.owner]
                case AccountChange():
                    self._accounts[change.identifier] = change
                    if change.verifier is None:
                        del self._accounts[change.identifier]
                case GroupChange():
                    self._groups[change.name] = change
                    if change.members is None:
                        del self._groups[change.name]

    async def disclosures(self, whose: str, before: int, most: int) -> Sequence[Disclosure]:
        """Return the disclosures of one terminal, the newest first; looks at every disclosure.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        found = [each for each in self._disclosures if each.owner == whose and each.at < before]
        found.reverse()  # Of two with the same time the later one goes first: the sort is stable.
        found.sort(key=lambda each: each.at, reverse=True)
        return found[: max(0, min(most, DISCLOSURES_MOST))]

    async def prune(self, before: int) -> int:
        """Delete the disclosures that are older than this; return how many.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        kept = [each for each in self._disclosures if each.at >= before]
        deleted = len(self._disclosures) - len(kept)
        self._disclosures = deque(kept, maxlen=REMEMBERED_MOST)
        return deleted

    async def stop(self) -> None:
        """Refuse whatever comes from now on."""
        self._stopped = True

    def _check_open(self) -> None:
        if self._stopped:
            raise StoreFailed("the store is closed")
