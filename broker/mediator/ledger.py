"""The ledger of disclosures: every address that is told leaves through here."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from broker.interfaces import IStore, StoreFailed
from broker.tables.addresses import Address
from broker.tables.disclosures import Disclosure
from broker.wire.conversation import Request
from broker.wire.refusals import ServiceUnavailable


class Ledger:
    """Keeps a record of each address told.

    :ivar first: a record is committed before its address leaves; else it is written behind it
    """

    def __init__(self, store: IStore, wall: Callable[[], float], *, first: bool = False) -> None:
        """
        :param wall: the time in seconds since 1970
        """
        self.first = first
        self._store = store
        self._wall = wall

    def record(
        self, whose: str, told: str, address: Address, session: str, basis: str, expires: int
    ) -> Disclosure:
        """The record of an address that is about to be told."""
        at = int(self._wall() * 1_000_000)
        return Disclosure(whose, told, address.host, address.port, session, basis, at, expires)

    async def commit(self, disclosure: Disclosure) -> None:
        """Keep a record; only then may its address leave.

        :raises ServiceUnavailable: it can't be kept
        """
        try:
            await self._store.commit([disclosure])
        except StoreFailed:
            raise ServiceUnavailable from None

    def check_room(self) -> None:
        """See that one more record can be written behind its address.

        :raises ServiceUnavailable: too many wait to be written already
        """

    def note(self, disclosure: Disclosure) -> None:
        """Have a record written behind its address, which leaves in this turn."""
        keeping = Deferred.fromCoroutine(self.commit(disclosure))
        keeping.addErrback(lambda _: None)

    async def answer(self, identifier: str, request: Request) -> None:
        """``QUERY`` / ``DISCLOSURES``: who was told where the asker is."""
        raise ServiceUnavailable

    def stop(self) -> None:
        """Hand over what waits to be written, and leave no timer behind."""
