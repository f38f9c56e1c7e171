"""Waking a terminal by a TCP connection to the address it registered; testing reachability.

What is sent there is ``NOTIFY`` / ``Connection Requested.`` and nothing else. What answers at
that address learns nothing, and nothing that it says is believed (I26). Dials are rare and short,
so that they can't be used to scan for open ports.
"""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IReactorTCP, IReactorTime
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

#: Seconds in which a dialled terminal must answer.
DIAL_TIMEOUT: Final = 3
#: Seconds in which one terminal is dialled once.
DIAL_INTERVAL: Final = 5.0
#: Dials in progress at a time.
DIALS_MOST: Final = 64
#: Reachability tests in progress at a time. They have a limit of their own, so that they never keep
#: a terminal from being woken.
TESTS_MOST: Final = 16


class _NoticeProtocol(Protocol):
    """Sends the notice, and closes."""

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(Message(NOTIFY, CONNECTION_REQUESTED).encode())
            self.transport.loseConnection()


class _NoticeFactory(Factory):
    """Makes one, without a line in the log."""

    noisy = False
    protocol = _NoticeProtocol


class _TcpReactor(IReactorTCP, IReactorTime):
    """What dialling needs of a reactor."""


@implementer(ITrigger)
class WakeUpDialer:
    """Wakes terminals over TCP."""

    def __init__(self, reactor: _TcpReactor) -> None:
        self._reactor = reactor
        self._dials: dict[str, Deferred[bool]] = {}  # in progress, by identifier
        self._dialled: DeadlineQueue[str] = DeadlineQueue(reactor, DIAL_INTERVAL, _forget)
        self._notified: DeadlineQueue[str] = DeadlineQueue(reactor, DIAL_INTERVAL, _forget)
        self._tests: set[Deferred[bool]] = set()

    async def wake(self, identifier: str, address: Contact) -> None:
        """Dial a terminal, unless that was done within ``DIAL_INTERVAL``.

        One that was notified then may be about to connect, and is waited for.
        """
        if not address.dialable:
            raise CalleeNotConnected
        dial = self._dials.get(identifier)
        if dial is None:
            if identifier in self._notified:
                return
            if identifier in self._dialled or len(self._dials) >= DIALS_MOST:
                raise CalleeNotConnected
            dial = self._dial(identifier, address)
        joined: Deferred[bool] = Deferred()
        dial.addBoth(_pass_on, joined)
        if not await joined:
            raise CalleeNotConnected

    def _dial(self, identifier: str, address: Contact) -> Deferred[bool]:
        """Dial a terminal; fires with whether it was notified."""
        self._dialled.add(identifier)

        def ended(result: object) -> bool:
            self._dials.pop(identifier, None)
            if isinstance(result, Failure):
                return False
            self._notified.add(identifier)
            return True

        dial: Deferred[bool] = self._notify(address.host, address.port).addBoth(ended)
        if not dial.called:
            self._dials[identifier] = dial
        return dial

    async def reaches(self, host: str, port: int) -> bool:
        """Whether a connection to there is accepted within ``DIAL_TIMEOUT``; it is closed at once.

        Cancelled, it counts as not accepted.

        :raises TooManyRequests: too many are being tested
        """
        if len(self._tests) >= TESTS_MOST:
            raise TooManyRequests
        test = self._notify(host, port).addCallbacks(lambda _: True, lambda _: False)
        self._tests.add(test)
        try:
            return await test
        finally:
            self._tests.discard(test)

    def _notify(self, host: str, port: int) -> Deferred[IProtocol]:
        """Connect, and send the notice."""
        endpoint = endpoint_at(self._reactor, host, port, DIAL_TIMEOUT)
        connecting: Deferred[IProtocol] = endpoint.connect(_NoticeFactory())
        return connecting

    def stop(self) -> None:
        """Leave no timer and no dial behind."""
        self._dialled.stop()
        self._notified.stop()
        for dial in [*self._dials.values(), *self._tests]:
            dial.cancel()


def _forget(identifier: str) -> None:
    """An interval is over: that a terminal is in no queue says it all."""


def _pass_on(notified: bool, joined: Deferred[bool]) -> bool:
    """Pass the result of a dial on to one who waits for it, and to the next."""
    if not joined.called:
        joined.callback(notified)
    return notified
