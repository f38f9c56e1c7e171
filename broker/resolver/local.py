"""The resolver inside the process that asks it."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from broker.interfaces import IResolver
from broker.tables.addresses import Address, AddressRefused, AddressTable, Place
from broker.wire.refusals import CalleeNotFound, RegistrationFailed

#: Seconds between two sweeps of what has expired.
PRUNE_INTERVAL = 60.0


@implementer(IResolver)
class LocalResolver:
    """An address table and the clock it goes by."""

    def __init__(self, clock: IReactorTime, table: AddressTable | None = None) -> None:
        self.table = AddressTable() if table is None else table
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

    async def register(self, identifier: str, address: Address) -> None:
        """Record an address; it holds until it is released."""
        try:
            self.table.register(identifier, address, held=True)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None

    def release(self, identifier: str, address: Address) -> None:
        """The connection that registered this address is gone."""
        self.table.release(identifier, address, self._clock.seconds())

    async def withdraw(self, identifier: str) -> None:
        """Forget an address."""
        self.table.withdraw(identifier)

    async def lookup(self, identifier: str) -> Place:
        """Fig. 8: the address, or that there is none."""
        place = self.table.lookup(identifier, self._clock.seconds())
        if place is None:
            raise CalleeNotFound
        return place
