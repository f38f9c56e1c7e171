"""Connections in memory.

``FakeTransport`` keeps the promises of a TCP connection that the product rests on: bytes written
wait in order until the peer reads them, a streaming producer is paused while too many wait, bytes
for a paused reader wait too, nothing is lost by ``loseConnection``, and ``connectionLost`` never
comes from within a call of the protocol's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    ITCPTransport,
)
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.framing import Body, Decoder, Limits
from broker.messages.message import Message
from tests.support.clock import ROUNDS, settle

AnyAddress = IPv4Address | IPv6Address | UNIXAddress
#: Bytes that one read of a socket gives at the most, as Twisted reads.
READ_BYTES: Final = 65536


def tcp_address(host: str, port: int) -> IPv4Address | IPv6Address:
    """The address that Twisted would give a TCP connection from or to this host."""
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


@implementer(ITCPTransport)
class FakeTransport:
    """One end of a TCP connection.

    :ivar sent: what the peer has read, and the test has not taken yet
    :ivar writes: each ``write`` by itself, in order
    :ivar on_write: called with the bytes of each ``write``
    :ivar reading: whether the protocol wants to be given bytes
    :ivar disconnecting: ``loseConnection`` was called
    :ivar disconnected: ``connectionLost`` was called
    :ivar aborted: ``abortConnection`` was called
    :ivar write_closed: the peer has seen the end of what the protocol sends
    :ivar no_delay: what ``setTcpNoDelay`` was last given, ``None`` before
    :ivar keep_alive: what ``setTcpKeepAlive`` was last given, ``None`` before
    """

    def __init__(
        self,
        protocol: IProtocol,
        clock: Clock,
        *,
        peer: AnyAddress | None = None,
        host: AnyAddress | None = None,
        peer_reads: bool = True,
    ) -> None:
        """
        :param peer_reads: the peer reads what is written at once; else it must be moved by
            ``take``, as ``Pair`` does, or by ``resume_reading_peer``
        """
        self.protocol = protocol
        self.clock = clock
        self.peer: AnyAddress = peer or tcp_address("127.0.0.1", 40000)
        self.host: AnyAddress = host or tcp_address("127.0.0.1", 1201)
        self.sent = bytearray()
        self.writes: list[bytes] = []
        self.on_write: Callable[[bytes], object] = lambda _: None
        self.unread = bytearray()  # written, and not yet read by the peer
        self.bufferSize = 65536
        self.connected = True
        self.reading: Any = True  # lest mypy think that it stays so
        self.disconnecting = False
        self.disconnected = False
        self.aborted = False
        self.write_closed = False
        self.no_delay: bool | None = None
        self.keep_alive: bool | None = None
        self.producer: Any = None
        self.streaming = False
        self._producer_paused = False
        self._peer_reads = peer_reads
        self._flushing = False
        self._write_closing = False
        self._incoming = bytearray()
        self._input_ended = False
        self._input_end_told = False
        self._delivering = False
        self._dying = False

    def start(self) -> None:
        """The connection stands."""
        self.protocol.makeConnection(self)

    # The protocol's side, as ITCPTransport has it.

    def write(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"a transport writes bytes, not {type(data).__name__}")
        if not data or not self.connected or self._dying or self.write_closed:
            return
        self.writes.append(data)
        self.on_write(data)
        self.unread += data
        if self.producer is not None and self.streaming and len(self.unread) > self.bufferSize:
            self._producer_paused = True
            self.producer.pauseProducing()
        self._flush()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = False
            self.disconnecting = True
            if self.write_closed:
                self.clock.callLater(0, self.lose, ConnectionDone())
            else:
                self.clock.callLater(0, self._written)

    def loseWriteConnection(self) -> None:
        self._write_closing = True
        self.clock.callLater(0, self._written)

    def abortConnection(self) -> None:
        if self.connected and not self._dying:
            self.aborted = True
            self.disconnecting = True
            self.reading = False
            self._dying = True
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        if not self.connected:
            producer.stopProducing()
            return
        self.producer = producer
        self.streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        self._producer_paused = False
        if self.connected and self.disconnecting and not self._dying:
            self.clock.callLater(0, self._written)

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True
            self.clock.callLater(0, self._deliver)

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> Any:
        return self.peer

    def getHost(self) -> Any:
        return self.host

    def setTcpNoDelay(self, enabled: Any) -> None:
        self.no_delay = bool(enabled)

    def getTcpNoDelay(self) -> bool:
        return bool(self.no_delay)

    def setTcpKeepAlive(self, enabled: Any) -> None:
        self.keep_alive = bool(enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.keep_alive)

    # The peer's and the test's side.

    def stop_reading_peer(self) -> None:
        """From now on the peer reads nothing."""
        self._peer_reads = False

    def resume_reading_peer(self) -> None:
        """The peer reads all there is, and goes on reading."""
        self._peer_reads = True
        self._flush()

    def take(self, most: int) -> bytes:
        """Bytes that the peer reads now, ``most`` of them at the most."""
        data = bytes(self.unread[:most])
        del self.unread[:most]
        if data:
            self._written()
        return data

    def receive(self, data: bytes) -> None:
        """Bytes arrive from the peer; they wait while the protocol doesn't want any."""
        self._incoming += data
        self._deliver()

    def end_input(self) -> None:
        """The peer sends nothing more, but reads on."""
        self._input_ended = True
        self._deliver()

    @property
    def waiting(self) -> int:
        """Bytes from the peer that the protocol has not been given."""
        return len(self._incoming)

    def lose(self, reason: Exception) -> None:
        """The connection is gone."""
        if self.disconnected:
            return
        self.connected = False
        self.disconnected = True
        self.reading = False
        self.unread.clear()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self.protocol.connectionLost(Failure(reason))

    # Inside.

    def _flush(self) -> None:
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._peer_reads and self.unread and not self._dying:
                self.sent += self.unread
                self.unread.clear()
                self._written()
        finally:
            self._flushing = False

    def _written(self) -> None:
        """Some bytes have gone; if they were the last, see what waited for that."""
        if self.unread or self.disconnected or self._dying:
            return
        if self.producer is not None and (not self.streaming or self._producer_paused):
            self._producer_paused = False
            self.producer.resumeProducing()
        elif self.disconnecting:
            self.clock.callLater(0, self.lose, ConnectionDone())
        elif self._write_closing and not self.write_closed:
            self.write_closed = True
            half: Any = IHalfCloseableProtocol(self.protocol, None)
            if half is not None:
                half.writeConnectionLost()

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        try:
            while self.reading and self._incoming:
                data = bytes(self._incoming[:READ_BYTES])
                del self._incoming[:READ_BYTES]
                self.protocol.dataReceived(data)
            if self.reading and self._input_ended and not self._input_end_told:
                self._input_end_told = True
                half: Any = IHalfCloseableProtocol(self.protocol, None)
                if half is None:
                    self.lose(ConnectionDone())
                else:
                    half.readConnectionLost()
        finally:
            self._delivering = False


class Client:
    """A peer of a protocol under test, as a person at a telnet would be.

    Whatever it does is followed by all that is due at that moment; ``feed`` alone is not.

    :ivar protocol: the protocol under test
    :ivar transport: that protocol's transport
    """

    def __init__(self, transport: FakeTransport, protocol: Any) -> None:
        self.transport = transport
        self.protocol = protocol
        self._clock = transport.clock

    def feed(self, data: bytes) -> None:
        """Send bytes; nothing else happens yet."""
        self.transport.receive(data)

    def send(self, data: bytes | Message) -> None:
        """Send bytes, or a message."""
        self.feed(data.encode() if isinstance(data, Message) else data)
        settle(self._clock)

    def type(self, text: str) -> None:
        """Send text just as it is, so with the line ends of whoever types."""
        self.send(text.encode("utf-8"))

    def end_input(self) -> None:
        """Send nothing more, and read on."""
        self.transport.end_input()
        settle(self._clock)

    def vanish(self) -> None:
        """Be gone, without a word."""
        self.transport.lose(ConnectionLost())
        settle(self._clock)

    def bytes(self) -> bytes:
        """What was received so far and not looked at yet; nothing is made to happen for it."""
        data = bytes(self.transport.sent)
        self.transport.sent.clear()
        return data

    def text(self) -> str:
        """What was received, lines ending in LF."""
        settle(self._clock)
        return self.bytes().decode("utf-8").replace("\r\n", "\n")

    def received(self) -> list[Message]:
        """The messages that were received; anything else that was is an error of the test's."""
        settle(self._clock)
        messages, bodies = parse_all(self.bytes())
        assert not bodies, f"a body came: {bodies!r}"
        return messages

    # Any, lest mypy think that what was open once is open for ever.

    @property
    def closed(self) -> Any:
        """Whether the connection is gone."""
        settle(self._clock)
        return self.transport.disconnected

    @property
    def ended(self) -> Any:
        """Whether the other side has said that it sends nothing more."""
        settle(self._clock)
        return self.transport.disconnected or self.transport.write_closed


def parse_all(data: bytes) -> tuple[list[Message], bytes]:
    """The messages in some bytes, and their bodies joined; all must be whole."""
    decoder = Decoder(Limits())
    decoder.feed(data)
    messages: list[Message] = []
    bodies = b""
    while (event := decoder.next_event()) is not None:
        if isinstance(event, Message):
            messages.append(event)
        elif isinstance(event, Body):
            bodies += event.data
        else:
            pytest.fail(f"{event!r} in {data!r}")
    assert not decoder.pending, f"an unfinished message in {data!r}"
    return messages, bodies


_ports = itertools.cycle(range(40000, 60000))


def connect(
    factory: IProtocolFactory | Callable[[], IProtocol],
    clock: Clock,
    *,
    peer_host: str = "127.0.0.1",
    peer_port: int = 0,
    host: str = "127.0.0.1",
    port: int = 1201,
) -> Client:
    """Connect a client to a protocol that a factory, or a function, makes.

    :raises ConnectError: the factory doesn't want the connection
    """
    peer = tcp_address(peer_host, peer_port or next(_ports))
    making: Any = factory
    is_factory = IProtocolFactory.providedBy(factory)
    protocol = making.buildProtocol(peer) if is_factory else making()
    if protocol is None:
        raise ConnectError
    transport = FakeTransport(protocol, clock, peer=peer, host=tcp_address(host, port))
    transport.start()
    settle(clock)
    return Client(transport, protocol)


class Pair:
    """Two protocols joined: what one writes the other receives, when ``pump`` is called.

    :ivar moved: bytes that have gone from ``a`` to ``b``, and from ``b`` to ``a``
    """

    def __init__(
        self, a: FakeTransport, b: FakeTransport, clock: Clock, chunk: int | None = None
    ) -> None:
        self.a = a
        self.b = b
        self.clock = clock
        self.chunk = chunk
        self.moved = [0, 0]
        self._cut: set[FakeTransport] = set()
        #: Called with which end (0 for ``a``) sent which bytes; gives what arrives instead.
        self.tamper: Callable[[int, bytes], bytes] | None = None

    def pump(self) -> None:
        """Move bytes, and run what is due, until nothing moves any more."""
        for _ in range(ROUNDS):
            if not self.step():
                return
        raise AssertionError("two protocols never come to rest")

    def step(self) -> bool:
        """Move one piece each way, then run what is due; say whether anything moved."""
        moved = self._move(0, self.a, self.b)
        moved = self._move(1, self.b, self.a) or moved
        settle(self.clock)
        return moved or self._tell_ends()

    def cut(self) -> None:
        """The connection breaks: both sides lose it, and what is on its way is gone."""
        self.a.lose(ConnectionLost())
        self.b.lose(ConnectionLost())
        settle(self.clock)

    def _move(self, which: int, sender: FakeTransport, receiver: FakeTransport) -> bool:
        if not receiver.reading and not receiver.disconnecting:
            return False
        data = sender.take(self.chunk or READ_BYTES)
        if not data:
            return False
        self.moved[which] += len(data)
        if self.tamper is not None:
            data = self.tamper(which, data)
        if not receiver.disconnecting:
            receiver.receive(data)
        return True

    def _tell_ends(self) -> bool:
        told = False
        for sender, receiver in ((self.a, self.b), (self.b, self.a)):
            if sender in self._cut or receiver.disconnected:
                continue
            if sender.aborted:
                self._cut.add(sender)
                receiver.lose(ConnectionLost())
                told = True
            elif sender.disconnected or sender.write_closed:
                self._cut.add(sender)
                receiver.end_input()
                told = True
        settle(self.clock)
        return told


def connect_both(
    a: IProtocol,
    b: IProtocol,
    clock: Clock,
    *,
    chunk: int | None = None,
    a_address: AnyAddress | None = None,
    b_address: AnyAddress | None = None,
) -> Pair:
    """Join two protocols; ``a`` is the one that dialled.

    :param chunk: bytes that arrive at a time; one by one with 1
    """
    near = a_address or tcp_address("127.0.0.1", 40000)
    far = b_address or tcp_address("127.0.0.1", 1203)
    pair = Pair(
        FakeTransport(a, clock, peer=far, host=near, peer_reads=False),
        FakeTransport(b, clock, peer=near, host=far, peer_reads=False),
        clock,
        chunk,
    )
    pair.b.start()
    pair.a.start()
    return pair
