"""The network in memory: transports, a reactor and a mediator that move only when a test says so.

``FakeTransport`` keeps the promises of a TCP connection that the product rests on: bytes written
wait in order until the peer reads them, a streaming producer is paused while too many wait, bytes
for a paused reader wait too, nothing is lost by ``loseConnection``, and ``connectionLost`` never
comes from within a call of the protocol's own.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    TimeoutError,
    UserError,
)
from twisted.internet.interfaces import (
    IConnector,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory, DatagramProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IResolver, IStore, ITrigger
from broker.mediator.auth.login import PasswordLogin
from broker.mediator.auth.passwords import Cost, Passwords
from broker.mediator.auth.tokens import KEY_BYTES, Tokens
from broker.mediator.server import Mediator, steady
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.messages.framing import Body, Decoder, Limits
from broker.messages.message import Message
from broker.net.connection import ConnectionHub, StreamFactory
from broker.resolver.locations import LocalResolver
from broker.store.memory import MemoryStore
from broker.tables.accounts import AccountTable

T = TypeVar("T")

AnyAddress = IPv4Address | IPv6Address | UNIXAddress

#: Rounds after which a network that is still moving is said to be moving for ever.
ROUNDS: Final = 100_000
#: Bytes that one read of a socket gives at the most, as Twisted reads.
READ_BYTES: Final = 65536


def settle(clock: Clock) -> None:
    """Run everything that is due now, and what that makes due, without any time passing."""
    for _ in range(ROUNDS):
        now = clock.seconds()
        if not any(call.getTime() <= now for call in clock.getDelayedCalls()):
            return
        clock.advance(0)
    raise AssertionError("the clock never comes to rest")


def turn(clock: Clock) -> None:
    """Run what is due now, and leave what that makes due to the next turn, as a reactor does."""
    now = clock.seconds()
    for call in [call for call in clock.calls if call.getTime() <= now]:
        if call.active():
            clock.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


def advance(clock: Clock, seconds: float) -> None:
    """Let time pass, halting wherever something falls due, so that all happens at its time."""
    end = clock.seconds() + seconds
    for _ in range(ROUNDS):
        settle(clock)
        due = min((call.getTime() for call in clock.getDelayedCalls()), default=end)
        if due > end:
            break
        clock.rightNow = due
        if due == end:
            settle(clock)
            return
    clock.rightNow = end


def result_of(step: Awaitable[T]) -> T:
    """What a step gave that didn't have to wait; what it raised is raised here."""

    async def done() -> T:
        return await step

    doing = Deferred.fromCoroutine(done())
    assert doing.called, "this step has to wait for something"
    outcome: list[T] = []
    failed: list[Failure] = []
    doing.addCallbacks(outcome.append, failed.append)
    if failed:
        failed[0].raiseException()
    return outcome[0]


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

    # The protocol's side.

    def write(self, data: bytes) -> None:
        """Queue bytes for the peer."""
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
        """Queue several pieces for the peer."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Close once everything is written."""
        if self.connected and not self.disconnecting:
            self.reading = False
            self.disconnecting = True
            if self.write_closed:
                self.clock.callLater(0, self.lose, ConnectionDone())
            else:
                self.clock.callLater(0, self._written)

    def loseWriteConnection(self) -> None:
        """Send nothing more once everything is written; go on reading."""
        self._write_closing = True
        self.clock.callLater(0, self._written)

    def abortConnection(self) -> None:
        """Close at once; what is not read by now never is."""
        if self.connected and not self._dying:
            self.aborted = True
            self.disconnecting = True
            self.reading = False
            self._dying = True
            self.clock.callLater(0, self.lose, ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell a producer when to pause."""
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
        """Tell no producer any more."""
        self.producer = None
        self._producer_paused = False
        if self.connected and self.disconnecting and not self._dying:
            self.clock.callLater(0, self._written)

    def pauseProducing(self) -> None:
        """Read nothing more from the peer for now."""
        self.reading = False

    def resumeProducing(self) -> None:
        """Read again, from the next turn on."""
        if self.connected and not self.disconnecting:
            self.reading = True
            self.clock.callLater(0, self._deliver)

    def stopProducing(self) -> None:
        """The consumer of what is read has no more use for it."""
        self.loseConnection()

    def getPeer(self) -> Any:
        """Where the connection comes from."""
        return self.peer

    def getHost(self) -> Any:
        """Where it arrived."""
        return self.host

    def setTcpNoDelay(self, enabled: Any) -> None:
        """Nagle's algorithm, off or on."""
        self.no_delay = bool(enabled)

    def getTcpNoDelay(self) -> bool:
        """Whether Nagle's algorithm is off."""
        return bool(self.no_delay)

    def setTcpKeepAlive(self, enabled: Any) -> None:
        """TCP's own keepalive."""
        self.keep_alive = bool(enabled)

    def getTcpKeepAlive(self) -> bool:
        """Whether TCP's own keepalive is on."""
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

    # As the factory sees it.

    def stopConnecting(self) -> None:
        """The protocol gives up."""
        self._fail(UserError())

    def connect(self) -> None:
        """Dial again; nobody does that here."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Give up, made or not."""
        if not self.over:
            self.stopConnecting()

    def getDestination(self) -> Any:
        """Whom it dials."""
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
        """Send a datagram."""
        self.sent.append((packet, addr))

    def receive(self, packet: bytes, source: tuple[str, int]) -> None:
        """A datagram arrives."""
        self.protocol.datagramReceived(packet, source)

    def getHost(self) -> IPv4Address:
        """Where it is bound."""
        return self.address

    def stopListening(self) -> Deferred[None]:
        """Unbind."""
        self.listening = False
        self.protocol.doStop()
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done


class FakeReactor(MemoryReactorClock):
    """Twisted's reactor in memory, with a clock, dials that end as the test says, and UDP.

    :ivar dials: every connection that was asked for, oldest first
    :ivar datagrams: every UDP port that was bound, oldest first
    """

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
        """Dial; the test says what becomes of it, or time does."""
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
        """Bind a UDP port."""
        bound = FakeDatagramPort(protocol, port or 50000 + len(self.datagrams), interface)
        self.datagrams.append(bound)
        transport: Any = bound
        protocol.makeConnection(transport)
        return bound


class FakeMediator:
    """A mediator in full, and the network in memory around it.

    :ivar clock: its clock, and its reactor
    :ivar exchange: what its connections share
    :ivar factory: makes the protocol of a connection
    """

    def __init__(
        self,
        clock: FakeReactor,
        exchange: ConnectionHub,
        mediator: Mediator,
        store: IStore,
        resolver: IResolver,
        trigger: ITrigger,
    ) -> None:
        self.clock = clock
        self.exchange = exchange
        self.mediator = mediator
        self.store = store
        self.resolver = resolver
        self.trigger = trigger
        self.factory = StreamFactory(exchange, mediator.peer)

    def connect(self, host: str = "127.0.0.1", **addresses: Any) -> Client:
        """A terminal's connection, from this host; ``addresses`` as in ``fakes.connect``."""
        return connect(self.factory, self.clock, peer_host=host, **addresses)

    def advance(self, seconds: float) -> None:
        """Let time pass; everything happens at the time at which it falls due."""
        advance(self.clock, seconds)


class FakePool:
    """Threads that do their work when the test says so.

    :ivar jobs: what waits to be done, oldest first
    :ivar at_once: it is done as it comes
    :ivar started: ``start`` was called, and ``stop`` wasn't since
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.jobs: list[Callable[[], object]] = []
        self.at_once = at_once
        self.started = False

    def start(self) -> None:
        """Take work from now on."""
        self.started = True

    def stop(self) -> None:
        """Take no more."""
        self.started = False

    def callInThread(self, func: Callable[..., object], *args: Any) -> None:
        """Keep a job."""
        if self.at_once:
            func(*args)
        else:
            self.jobs.append(lambda: func(*args))

    def run(self, most: int = 1) -> None:
        """Do so many jobs, oldest first."""
        for _ in range(most):
            self.jobs.pop(0)()


#: Passwords that cost next to nothing to check.
CHEAP: Final = Cost(8, 1)


def cheap_passwords(seed: int = 1, **options: Any) -> Passwords:
    """Passwords that cost next to nothing; ``options`` are those of ``Passwords``."""
    return Passwords(random.Random(seed).randbytes, cost=CHEAP, **options)


def a_mediator(
    clock: FakeReactor | None = None,
    *,
    store: IStore | None = None,
    resolver: IResolver | None = None,
    trigger: ITrigger | None = None,
    seed: int = 1,
    exchange: dict[str, Any] | None = None,
    accounts: Mapping[str, str] | None = None,
    key: bytes = b"k" * KEY_BYTES,
    clear_text: bool = False,
    passwords: Passwords | None = None,
    **options: Any,
) -> FakeMediator:
    """A mediator with a resolver inside, a store in memory, and randomness that can be repeated.

    :param exchange: options of ``ConnectionHub``: ``login_timeout``, ``stranger``, ``known``,
        ``trace``
    :param accounts: identifiers and passwords; with them, and be it none, whoever connects must log
        in with a password or a token
    :param key: what its tokens are made with
    :param clear_text: take logins, and give out keys, in clear text to other machines too
    :param options: those of ``Mediator``
    """
    clock = clock or FakeReactor()
    reactor: Any = clock
    randomness = random.Random(seed).randbytes
    store = store or MemoryStore(randomness)
    state = result_of(store.load())
    if resolver is None:
        resolver = LocalResolver(clock)
    trigger = trigger or WakeUpDialer(reactor)
    if isinstance(trigger, WakeUpDialer):
        options.setdefault("dialer", trigger)
    shared = ConnectionHub(clock, **(exchange or {}))
    passwords = cheap_passwords(seed) if passwords is None else passwords
    if accounts is not None:
        table = AccountTable(state.accounts)
        now = steady(options.get("wall", time.time), clock)
        tokens = Tokens(key, state.epoch, now)
        options["accounts"] = table
        options["login"] = PasswordLogin(table, passwords, tokens, clock, clear_text=clear_text)
    options["clear_text"] = clear_text
    mediator = Mediator(
        shared, store, state, resolver, trigger, randomness, passwords=passwords, **options
    )
    for identifier, password in (accounts or {}).items():
        if mediator.accounts.table.get(identifier) is None:
            result_of(mediator.accounts.add(identifier, password))
    return FakeMediator(clock, shared, mediator, store, resolver, trigger)
