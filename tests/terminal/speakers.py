"""Applications' protocols for the tests, and two channels under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ICallHandler
from broker.terminal.channel.channel import Channel, ChannelParties
from broker.terminal.channel.records import Records
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Pair, connect_both
from tests.terminal.keys import CALLEE, CALLER, SESSION, shaken


class Plain(Protocol):
    """Keeps what it is told; knows no half-close.

    :ivar received: all data, in order
    :ivar made: how often its connection was made
    :ivar lost: why its connection was lost, each time
    """

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.made = 0
        self.lost: list[Failure] = []

    def connectionMade(self) -> None:
        self.made += 1

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.append(reason)

    @property
    def why(self) -> Exception:
        """Why it lost its connection, once."""
        assert len(self.lost) == 1, f"it was told {len(self.lost)} times"
        value = self.lost[0].value
        assert isinstance(value, Exception)
        return value


@implementer(IHalfCloseableProtocol)
class HalfCloseable(Plain):
    """Goes on sending when the other side's data has ended.

    :ivar ends: how often it was told that the other side's data has ended
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = 0

    def readConnectionLost(self) -> None:
        self.ends += 1

    def writeConnectionLost(self) -> None:
        """Nothing to do."""


class Echo(Plain):
    """Sends back what it gets."""

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.transport.write(data)


class Failing(Plain):
    """Fails where it is told to.

    :param where: the name of the method that fails
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def connectionMade(self) -> None:
        super().connectionMade()
        self._fail("connectionMade")

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self._fail("dataReceived")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self._fail("connectionLost")

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError("the application is wrong")


@implementer(IHalfCloseableProtocol)
class FailingAtTheEnd(Plain):
    """Fails when it is told that the other side's data has ended."""

    def readConnectionLost(self) -> None:
        raise RuntimeError("the application is wrong")

    def writeConnectionLost(self) -> None:
        """Nothing to do."""


class Maker(Factory):
    """Makes protocols, and keeps them.

    :ivar made: each of them, oldest first; ``None`` counts
    :ivar started: started and not stopped, so many times
    """

    noisy = False

    def __init__(self, protocol: Callable[[], Plain | None] = Plain) -> None:
        self._make = protocol
        self.made: list[Any] = []
        self.started = 0

    def doStart(self) -> None:
        self.started += 1

    def doStop(self) -> None:
        self.started -= 1

    def buildProtocol(self, addr: object) -> Plain | None:
        protocol = self._make()
        self.made.append(protocol)
        return protocol


@implementer(ICallHandler)
class Handler:
    """Takes calls, and keeps who called.

    :ivar calls: caller, session, protocol
    """

    def __init__(self, protocol: Callable[[], IProtocol | None] = Plain) -> None:
        self._make = protocol
        self.calls: list[tuple[str, str, Any]] = []

    def call(self, caller: str, session: str) -> IProtocol | None:
        """Take the call, with what this was made for."""
        protocol = self._make()
        self.calls.append((caller, session, protocol))
        return protocol


class Reports:
    """What a terminal reports of its sessions.

    :ivar begun: each session that began, in order
    :ivar ends: each that ended, and how
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ends: list[tuple[str, str]] = []

    def began(self, session: str) -> None:
        """A session began."""
        self.begun.append(session)

    def ended(self, session: str, how: str) -> None:
        """A session ended."""
        self.ends.append((session, how))


class Owner:
    """The owner of a channel: gives its application's protocol, and keeps how it ended.

    :ivar closed: why the channel is gone, each time
    """

    def __init__(self, opened: Callable[[], IProtocol | None]) -> None:
        self._opened = opened
        self.closed: list[Failure] = []

    def channel_opened(self, channel: Channel) -> IProtocol | None:
        """Give the protocol."""
        return self._opened()

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        """Note it."""
        self.closed.append(reason)


class _Side(Owner):
    def __init__(
        self, opened: Callable[[], IProtocol | None], closed: list[tuple[str, Failure]]
    ) -> None:
        super().__init__(opened)
        self._closed = closed

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        self._closed.append((channel.identifier, reason))


class Call:
    """A call in memory whose handshake is over: ``a`` is the caller's side.

    :ivar closed: how each channel ended, in order: whose, and why
    """

    def __init__(
        self,
        a: Callable[[], IProtocol | None],
        b: Callable[[], IProtocol | None],
        *,
        chunk: int | None = None,
        rekey: int = 65536,
        clock: FakeReactor | None = None,
    ) -> None:
        self.clock = clock or FakeReactor()
        self.closed: list[tuple[str, Failure]] = []
        caller, callee = shaken()
        self.a = self._channel(
            a, Records(caller.cipher(), rekey=rekey), CALLER, CALLEE, initiator=True
        )
        self.b = self._channel(
            b, Records(callee.cipher(), rekey=rekey), CALLEE, CALLER, initiator=False
        )
        near: Any = self.a
        far: Any = self.b
        self.pair: Pair = connect_both(near, far, self.clock, chunk=chunk)

    def _channel(
        self,
        opened: Callable[[], IProtocol | None],
        records: Records,
        identifier: str,
        peer: str,
        *,
        initiator: bool,
    ) -> Channel:
        parties = ChannelParties(identifier, peer, SESSION, initiator)
        return Channel(self.clock, records, parties, _Side(opened, self.closed))

    def pump(self) -> Call:
        """Run what is due, and move bytes until nothing moves."""
        settle(self.clock)
        self.pair.pump()
        return self
