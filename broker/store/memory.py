"""``memory:``: a store for laboratories, which forgets everything when the process ends."""

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

#: How many disclosures it remembers; beyond them the oldest goes (I15).
REMEMBERED_MOST: Final = 100_000


@implementer(IStore)
class MemoryStore:
    """Keeps changes for as long as it lives; its epoch is new each time.

    Of the disclosures it keeps the last 100,000.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._epoch = randomness(8).hex()
        self._permits: dict[str, PermitChange] = {}
        self._accounts: dict[str, AccountChange] = {}
        self._groups: dict[str, GroupChange] = {}
        self._disclosures: deque[Disclosure] = deque(maxlen=REMEMBERED_MOST)
        self._stopped = False

    async def load(self) -> State:
        """All that was committed, but for the disclosures.

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
        """Keep changes.

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
        """What was told of one terminal, the newest first; looks at every disclosure.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        found = [one for one in self._disclosures if one.whose == whose and one.at < before]
        found.reverse()  # of two of one time the later one comes first
        found.sort(key=lambda one: one.at, reverse=True)
        return found[: max(0, min(most, DISCLOSURES_MOST))]

    async def prune(self, before: int) -> int:
        """Drop the disclosures that are older than this.

        :raises StoreFailed: it is closed
        """
        self._check_open()
        kept = [one for one in self._disclosures if one.at >= before]
        gone = len(self._disclosures) - len(kept)
        self._disclosures = deque(kept, maxlen=REMEMBERED_MOST)
        return gone

    async def stop(self) -> None:
        """There is nothing to close; from now on nothing is taken."""
        self._stopped = True

    def _check_open(self) -> None:
        if self._stopped:
            raise StoreFailed("the store is closed")
