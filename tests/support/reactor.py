"""A reactor in memory: connections asked for, UDP ports bound."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectionRefusedError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import IConnector, IProtocol
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.clock import settle
from tests.support.transport import Client, FakeTransport, Pair, tcp_address


@implementer(IConnector)
class Dial:
    """A connection that a protocol wants made, until the test says what becomes of it.

    :ivar timeout: seconds after which nothing comes of it
    :ivar bind: from where it is made, as it was asked for
    :ivar over: it is made, refused, timed out or given up
    """

    def __init__(
        self,
        reactor: FakeReactor,
        host: str,
        port: int,
        factory: Any,
        timeout: float,
        bind: Any = None,
    ) -> None:
        assert timeout >= 0, "a reactor has no timer that was due before it was set"
        self.host = host
        self.port = port
        self.factory = factory
        self.timeout = timeout
        self.bind = bind
        self.over = False
        self._reactor = reactor
        self._timer = reactor.callLater(timeout, self._fail, TimeoutError())

    def accept(self, *, local_host: str = "127.0.0.1") -> Client:
        """Someone answers there: the other end of the connection."""
        transport = self._accept(local_host, peer_reads=True)
        settle(self._reactor)
        return Client(transport, transport.protocol)

    def join(self, other: IProtocol, *, chunk: int | None = None) -> Pair:
        """A protocol answers there."""
        near = self._accept("127.0.0.1", peer_reads=False, start=False)
        far = FakeTransport(other, self._reactor, peer=near.host, host=near.peer, peer_reads=False)
        pair = Pair(near, far, self._reactor, chunk)
        far.start()
        near.start()
        return pair

    def refuse(self, error: Exception | None = None) -> None:
        """Nobody answers there, or it fails with this."""
        self._fail(error or ConnectionRefusedError())
        settle(self._reactor)

    def _accept(self, local_host: str, *, peer_reads: bool, start: bool = True) -> FakeTransport:
        self._finish()
        peer = tcp_address(self.host, self.port)
        protocol = self.factory.buildProtocol(peer)
        transport = FakeTransport(
            protocol,
            self._reactor,
            peer=peer,
            host=tcp_address(local_host, 50000),
            peer_reads=peer_reads,
        )
        if start:
            transport.start()
        return transport

    def _finish(self) -> None:
        assert not self.over, "this dial is over"
        self.over = True
        if self._timer.active():
            self._timer.cancel()

    def _fail(self, error: Exception) -> None:
        self._finish()
        self.factory.clientConnectionFailed(self, Failure(error))

    # As the factory sees it (IConnector).

    def stopConnecting(self) -> None:
        self._fail(UserError())

    def connect(self) -> None:
        raise NotImplementedError

    def disconnect(self) -> None:
        if not self.over:
            self.stopConnecting()

    def getDestination(self) -> Any:
        return tcp_address(self.host, self.port)


class FakeDatagramPort:
    """A bound UDP port: what is written to it is kept, what arrives is handed over.

    :ivar sent: each datagram and where it went
    """

    def __init__(self, protocol: DatagramProtocol, port: int, interface: str) -> None:
        self.protocol = protocol
        self.address = IPv4Address("UDP", interface or "0.0.0.0", port)
        self.sent: list[tuple[bytes, tuple[str, int]]] = []
        self.listening = True

    def write(self, packet: bytes, addr: tuple[str, int]) -> None:
        self.sent.append((packet, addr))

    def receive(self, packet: bytes, source: tuple[str, int]) -> None:
        """A datagram arrives."""
        self.protocol.datagramReceived(packet, source)

    def getHost(self) -> IPv4Address:
        return self.address

    def stopListening(self) -> Deferred[None]:
        self.listening = False
        self.protocol.doStop()
        return succeed(None)


class FakeReactor(MemoryReactorClock):
    """Twisted's reactor in memory, with a clock, dials that end as the test says, and UDP.

    :ivar dials: every connection that was asked for, oldest first
    :ivar datagrams: every UDP port that was bound, oldest first
    :ivar cannot_listen: no UDP port can be had
    """

    datagram_port: type[FakeDatagramPort] = FakeDatagramPort
    cannot_listen = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dials: list[Dial] = []
        self.datagrams: list[FakeDatagramPort] = []

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: ClientFactory,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> Any:
        dial = Dial(self, host, port, factory, timeout, bindAddress)
        self.dials.append(dial)
        factory.doStart()
        factory.startedConnecting(dial)
        return dial

    def listenUDP(
        self,
        port: int,
        protocol: DatagramProtocol,
        interface: str = "",
        maxPacketSize: int = 8192,
    ) -> FakeDatagramPort:
        if self.cannot_listen:
            raise CannotListenError(interface, port, OSError(99, "no such address"))
        bound = self.datagram_port(protocol, port or 50000 + len(self.datagrams), interface)
        self.datagrams.append(bound)
        transport: Any = bound
        protocol.makeConnection(transport)
        return bound
