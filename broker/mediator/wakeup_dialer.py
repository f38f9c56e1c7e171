"""Waking a terminal by dialling it at the address it registered; trying whether one can be reached.

What is said there is ``NOTIFY`` / ``Connection Requested.`` and nothing else: nothing is told to
whoever answers at that address, and nothing is believed of it (I26). Dialling is rare and short, so
that it is of no use to look for open ports with.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IReactorTCP,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ITrigger
from broker.messages.errors import CalleeNotConnected, TooManyRequests
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import CONNECTION_REQUESTED
from broker.net.endpoints import endpoint_at
from broker.net.timers import DeadlineQueue
from broker.tables.locations import Contact

#: Seconds for which a dialled terminal may take to answer.
DIAL_TIMEOUT: Final = 3
#: Seconds in which one terminal is dialled once.
DIAL_INTERVAL: Final = 5.0
#: Dials under way at a time.
DIALS_MOST: Final = 64
#: Ports being tried at a time, which are counted by themselves: they keep nobody from being woken.
TRIES_MOST: Final = 16


class _Notice(Protocol):
    """Says the one thing there is to say, and closes."""

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(Message(NOTIFY, CONNECTION_REQUESTED).encode())
            self.transport.loseConnection()


class _Notices(Factory):
    """Makes one, and says nothing of that in the log."""

    noisy = False
    protocol = _Notice


class _Reactor(IReactorTCP, IReactorTime):
    """What dialling needs of a reactor."""


@implementer(ITrigger)
class WakeUpDialer:
    """Wakes terminals over TCP."""

    def __init__(self, reactor: _Reactor) -> None:
        self._reactor = reactor
        self._under_way: dict[str, Deferred[bool]] = {}
        self._recent: DeadlineQueue[str] = DeadlineQueue(reactor, DIAL_INTERVAL, lambda _: None)
        self._told: DeadlineQueue[str] = DeadlineQueue(reactor, DIAL_INTERVAL, lambda _: None)
        self._tries: set[Deferred[bool]] = set()

    async def wake(self, identifier: str, address: Contact) -> None:
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

    def _dial(self, identifier: str, address: Contact) -> Deferred[bool]:
        self._recent.add(identifier)
        connecting = self._notify(address.host, address.port)

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

    async def reaches(self, host: str, port: int) -> bool:
        """Whether a connection to there stands within ``DIAL_TIMEOUT``; it is closed at once.

        Cancelled, it has not stood.

        :raises TooManyRequests: too many are being tried
        """
        if len(self._tries) >= TRIES_MOST:
            raise TooManyRequests
        trying = self._notify(host, port).addCallbacks(lambda _: True, lambda _: False)
        self._tries.add(trying)
        try:
            return await trying
        finally:
            self._tries.discard(trying)

    def _notify(self, host: str, port: int) -> Deferred[IProtocol]:
        """Connect, and say that a connection is asked for."""
        endpoint = endpoint_at(self._reactor, host, port, DIAL_TIMEOUT)
        connecting: Deferred[IProtocol] = endpoint.connect(_Notices())
        return connecting

    def stop(self) -> None:
        """Leave no timer and no dial behind."""
        self._recent.stop()
        self._told.stop()
        for dial in [*self._under_way.values(), *self._tries]:
            dial.cancel()


def _tell(told: bool, joined: Deferred[bool]) -> bool:
    if not joined.called:
        joined.callback(told)
    return told  # to the next who waits for this dial
