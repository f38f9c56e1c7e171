"""The resolver inside the process that asks it."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from broker.interfaces import IResolver
from broker.resolver.whereabouts import Naming
from broker.tables.addresses import Address, AddressRefused, AddressTable, Place
from broker.wire.refusals import CalleeNotFound, RegistrationFailed

#: Seconds between two sweeps of what has expired.
PRUNE_INTERVAL = 60.0


@implementer(IResolver)
class LocalResolver:
    """An address table and the clock it goes by.

    :ivar naming: finds out what was registered by name
    """

    def __init__(
        self,
        clock: IReactorTime,
        table: AddressTable | None = None,
        naming: Naming | None = None,
    ) -> None:
        """
        :param naming: without it, IP addresses alone are taken
        """
        self.table = AddressTable() if table is None else table
        self.naming = Naming(clock) if naming is None else naming
        self._clock = clock
        self._pruning = LoopingCall(lambda: self.table.prune(clock.seconds()))
        self._pruning.clock = clock

    def start(self) -> None:
        """Begin to sweep what has expired."""
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stop(self) -> None:
        """Leave no timer behind."""
        if self._pruning.running:
            self._pruning.stop()
        self.naming.stop()

    async def register(self, identifier: str, address: Address) -> None:
        """Record an address; it holds until it is released."""
        if address.origin is None:
            self.naming.overtake(identifier)
        else:
            await self.naming.check(identifier, address)
        try:
            newest = self.table.register(identifier, address, held=True)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        if not newest:
            raise RegistrationFailed("a newer address is registered")

    def release(self, identifier: str, address: Address) -> None:
        """The connection that registered this address is gone."""
        self.table.release(identifier, address, self._clock.seconds())

    async def withdraw(self, identifier: str) -> None:
        """Forget an address."""
        self.naming.overtake(identifier)
        self.table.withdraw(identifier)

    async def kept(self, identifier: str) -> Place:
        """The address as it was registered."""
        place = self.table.lookup(identifier, self._clock.seconds())
        if place is None:
            raise CalleeNotFound
        return place

    async def lookup(self, identifier: str) -> Place:
        """Fig. 8: the address, or that there is none."""
        place = self.table.lookup(identifier, self._clock.seconds())
        if place is None:
            raise CalleeNotFound
        if place.address.origin is not None:
            return await self.find(identifier, place)
        return place

    async def find(self, identifier: str, place: Place) -> Place:
        """What stands behind an address that is no IP address, and in force still.

        :raises CalleeNotFound: nothing that may be told
        :raises ServiceUnavailable: it can't be found out now
        """
        while True:
            address = place.address
            if address.origin is None:
                return place
            told = await self.naming.told(identifier, address)
            now = self.table.lookup(identifier, self._clock.seconds())
            if now is None:
                raise CalleeNotFound
            if now.address is address:
                return Place(told, now.until)
            place = now  # it has registered anew meanwhile
