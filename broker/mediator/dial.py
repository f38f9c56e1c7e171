"""Waking a terminal by dialling it at the address it registered.

What is said there is ``NOTIFY`` / ``Connection Requested.`` and nothing else: nothing is told to
whoever answers at that address, and nothing is believed of it (I26). Dialling is rare and short, so
that it is of no use to look for open ports with.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import (
    IProtocol,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ITrigger
from broker.tables.addresses import Address
from broker.wire.grammar import NOTIFY
from broker.wire.message import Message
from broker.wire.refusals import CalleeNotConnected
from broker.wire.statements import CONNECTION_REQUESTED
from broker.wire.timing import Deadlines

#: Seconds for which a dialled terminal may take to answer.
DIAL_TIMEOUT: Final = 3
#: Seconds in which one terminal is dialled once.
DIAL_INTERVAL: Final = 5.0
#: Dials under way at a time.
DIALS_MOST: Final = 64


class _Notice(Protocol):
    """Says the one thing there is to say, and closes."""

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(Message(NOTIFY, CONNECTION_REQUESTED).encode())
            self.transport.loseConnection()


class _Reactor(IReactorTCP, IReactorTime):
    """What dialling needs of a reactor."""


@implementer(ITrigger)
class Dialer:
    """Wakes terminals over TCP."""

    def __init__(self, reactor: _Reactor) -> None:
        self._reactor = reactor
        self._under_way: dict[str, Deferred[bool]] = {}
        self._recent: Deadlines[str] = Deadlines(reactor, DIAL_INTERVAL, lambda _: None)
        self._told: Deadlines[str] = Deadlines(reactor, DIAL_INTERVAL, lambda _: None)

    async def wake(self, identifier: str, address: Address) -> None:
        """Dial a terminal, unless that was done just now; who was told then may be on its way."""
        if not address.dialable:
            raise CalleeNotConnected
        dial = self._under_way.get(identifier)
        if dial is None:
            if identifier in self._told:
                return
            if identifier in self._recent:
                raise CalleeNotConnected
            if len(self._under_way) >= DIALS_MOST:
                raise CalleeNotConnected
            dial = self._dial(identifier, address)
        joined: Deferred[bool] = Deferred()
        dial.addBoth(_tell, joined)
        if not await joined:
            raise CalleeNotConnected

    def _dial(self, identifier: str, address: Address) -> Deferred[bool]:
        self._recent.add(identifier)
        made = TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
        endpoint: IStreamClientEndpoint = made(
            self._reactor, address.host, address.port, timeout=DIAL_TIMEOUT
        )
        connecting: Deferred[IProtocol] = endpoint.connect(Factory.forProtocol(_Notice))

        def over(result: object) -> bool:
            self._under_way.pop(identifier, None)
            if isinstance(result, Failure):
                return False
            self._told.add(identifier)
            return True

        dial: Deferred[bool] = connecting.addBoth(over)
        if not dial.called:
            self._under_way[identifier] = dial
        return dial

    def stop(self) -> None:
        """Leave no timer and no dial behind."""
        self._recent.stop()
        self._told.stop()
        for dial in list(self._under_way.values()):
            dial.cancel()


def _tell(told: bool, joined: Deferred[bool]) -> bool:
    if not joined.called:
        joined.callback(told)
    return told  # to the next who waits for this dial
