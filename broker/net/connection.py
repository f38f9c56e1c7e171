"""Messages over TCP or TLS: the thin Twisted protocol over the decoder.

A ``PeerConnection`` hands whole events to its receiver, joins what goes to its peer in one turn of
the reactor into one write, and closes on a peer that does not read, does not log in, or falls
silent. What all connections of one role share is their ``ConnectionHub``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
)
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.framing import Body, Decoder, Signal
from broker.messages.message import Malformed, Message
from broker.net.hub import ConnectionHub
from broker.net.per_source import source_of
from broker.net.socket_write import send_at_once
from broker.net.tls.errors import TlsFailed
from broker.net.tls.explain import explain
from broker.net.tls.transport import is_encrypted

#: Events handled for one peer before the others have their turn.
EVENTS_A_TURN: Final = 64
#: Bytes that a peer is sent in its turn, before the others have theirs and it must have read.
OUTPUT_A_TURN: Final = 65536


class Receiver(Protocol):
    """Who makes sense of one stream's events."""

    def message_received(self, message: Message) -> None:
        """A whole head came; its body, if it has one, follows."""

    def body_received(self, body: Body) -> None:
        """A part came of the body of the message received last."""

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message; where that is fatal, answer and ``close(linger=True)``."""

    def input_ended(self) -> None:
        """The peer sends nothing more: close once everything is answered."""

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class PeerConnection:
    """One connection's messages.

    :ivar transport: the connection, ``None`` once it is lost
    :ivar receiver: who gets the events
    """

    __slots__ = (
        "__weakref__",
        "_closing",
        "_ended",
        "_exchange",
        "_held",
        "_out",
        "_plain",
        "_raw",
        "_stalled",
        "_waiting",
        "_yielded",
        "decoder",
        "receiver",
        "source",
        "transport",
    )

    def __init__(
        self,
        exchange: ConnectionHub,
        receiver: Callable[[PeerConnection], Receiver],
        source: str | None = None,
    ) -> None:
        self.source = source
        self.transport: Any = None  # a TCP or TLS connection
        self.decoder = Decoder(exchange.unauthenticated)
        self._exchange = exchange
        self._out: list[bytes] | None = None
        self._waiting = 0  # bytes in there
        self._stalled = -1  # bytes written since the peer stopped reading
        self._held = False  # the receiver wants no more for now
        self._yielded = False  # more is to be handled in a later turn
        self._ended = False  # the peer's input has ended
        self._closing = False  # what the peer still sends is thrown away
        self._raw: Any = None  # the protocol that the connection was handed over to
        self._plain = False  # a plain TCP transport, whose socket can be written at once
        self.receiver: Receiver = receiver(self)

    # From the transport.

    def makeConnection(self, transport: Any) -> None:
        """The connection stands."""
        self.transport = transport
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self._plain = isinstance(transport, Connection) and not getattr(transport, "TLS", False)
        self._buffer(self.decoder.limits.output)
        transport.registerProducer(self, True)
        if self._exchange.logins is not None:
            self._exchange.logins.add(self)

    def connectionMade(self) -> None:
        """Nothing more than ``makeConnection``; required by the interface."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._raw is not None:
            self._raw.dataReceived(data)
            return
        if self._closing:
            return
        self.decoder.feed(data)
        if not self._held and not self._yielded:
            self._take()

    def readConnectionLost(self) -> None:
        """The peer sends nothing more, but reads on."""
        self._ended = True
        if self._raw is not None:
            self._raw.readConnectionLost()
            return
        if self._closing:
            self._lose()
            return
        if not self._held and not self._yielded:
            self._take()

    def writeConnectionLost(self) -> None:
        """We send nothing more; required by the interface."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.transport = None
        self._out = None
        exchange = self._exchange
        why = explain(reason.value) if reason.value is not None else None
        if why is not None:
            exchange.tls_failed(self.source, why)
            reason = Failure(TlsFailed(why))
        self._logged_in()
        exchange.silences.discard(self)
        exchange.stalls.discard(self)
        exchange.early_stalls.discard(self)
        if self.source is not None:
            exchange.sources.closed(
                self.source, authenticated=self.decoder.limits is exchange.authenticated
            )
        exchange.begin()
        try:
            try:
                if self._raw is not None:
                    self._raw.connectionLost(reason)
            finally:
                self.receiver.connection_lost(reason)
        finally:
            exchange.end()

    # From the receiver.

    def send(self, message: Message) -> None:
        """Send a message with the others of this turn."""
        if self._exchange.trace is not None:
            self._exchange.trace(self, ">", message)
        self.write(message.encode())

    def send_early(self, message: Message) -> None:
        """Send a message, and keep one's place among those who are written to in this turn."""
        if self._out is None:
            self.send(message)
            return
        if self._exchange.trace is not None:
            self._exchange.trace(self, ">", message)
        data = message.encode()
        self._out.append(data)
        self._waiting += len(data)

    def write(self, data: bytes) -> None:
        """Send bytes with the others of this turn."""
        if self.transport is None or self._closing:
            return
        if self._out is None:
            self._out = [data]
        else:
            self._out.append(data)
        self._waiting += len(data)
        self._exchange.written(self)

    def flush(self) -> None:
        """Write what has come together."""
        if self._out is None:
            return
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out = None
        self._waiting = 0
        transport = self.transport
        if transport is None:
            return
        if self._plain:
            data = send_at_once(transport, data)
            if not data:
                return
        if self._stalled >= 0:
            self._stalled += len(data)
            if self._stalled > self.decoder.limits.output:
                self.abort()
                return
        transport.write(data)

    def authenticated(self) -> None:
        """The peer has said who it is: the wider limits hold from here on."""
        if self.decoder.limits is self._exchange.authenticated:
            return
        self._logged_in()
        self.decoder.limits = self._exchange.authenticated
        if self.source is not None:
            self._exchange.sources.authenticated(self.source)
        if self.transport is not None:
            self._buffer(65536)

    def hold(self) -> None:
        """Hand over nothing more until ``go_on``: what the peer sends meanwhile stays with it."""
        if not self._held:
            self._held = True
            self._read(False)

    def go_on(self) -> None:
        """Hand over again."""
        if self._held:
            self._held = False
            self._later()

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the connection to another protocol: what follows on it is not messages.

        :param protocol: provides ``IHalfCloseableProtocol`` too; the receiver is still told when
            the connection is lost
        """
        self.flush()
        self.resumeProducing()
        self._logged_in()
        self._exchange.silences.discard(self)
        rest = self.decoder.take_rest()
        self._raw = protocol
        self._held = False
        self._read(True)
        self._buffer(65536)
        self.transport.unregisterProducer()
        protocol.makeConnection(self.transport)
        if rest:
            protocol.dataReceived(rest)
        if self._ended:
            IHalfCloseableProtocol(protocol).readConnectionLost()

    def close(self, *, linger: bool = False) -> None:
        """Send what there is, then close; a peer that doesn't read is cut off after a while.

        :param linger: the peer is still sending; read that away first, else the reset that answers
            it would take with it what we sent last
        """
        if self.transport is None or self._closing:
            return
        self.flush()
        self._closing = True
        self._logged_in()
        self._exchange.stalls.add(self)
        if linger and self._plain and not self._ended:
            self.transport.unregisterProducer()  # else a paused one keeps the output open
            self.transport.loseWriteConnection()
        else:
            self._lose()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self._out = None
            self._closing = True
            self.transport.abortConnection()

    @property
    def connected(self) -> bool:
        """Whether what is sent may still arrive."""
        return self.transport is not None and not self._closing

    @property
    def untraced(self) -> bool:
        """Whether nobody looks at the messages that pass."""
        return self._exchange.trace is None

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return is_encrypted(self.transport)

    # From the transport, as its producer: whether the peer reads (Twisted has no cap of its own).

    def pauseProducing(self) -> None:
        """Much is waiting to be read by the peer."""
        if self._stalled < 0:
            self._stalled = 0
            if self.decoder.limits is self._exchange.unauthenticated:
                self._exchange.early_stalls.add(self)
            else:
                self._exchange.stalls.add(self)

    def resumeProducing(self) -> None:
        """The peer has read it."""
        self._stalled = -1
        self._exchange.early_stalls.discard(self)
        if not self._closing:
            self._exchange.stalls.discard(self)

    def stopProducing(self) -> None:
        """The connection is going; ``connectionLost`` follows."""

    # Events.

    def _take(self) -> None:
        exchange = self._exchange
        decoder = self.decoder
        receiver = self.receiver
        exchange.begin()
        try:
            for _ in range(EVENTS_A_TURN):
                if self._held or self._closing or self.transport is None:
                    return
                event = decoder.next_event()
                if event is None:
                    self._drained()
                    return
                if event.__class__ is Message:
                    if exchange.trace is not None:
                        exchange.trace(self, "<", event)
                    receiver.message_received(event)
                elif isinstance(event, Body):
                    receiver.body_received(event)
                elif isinstance(event, Malformed):
                    receiver.malformed_received(event)
                elif event is Signal.KEEPALIVE:
                    exchange.silences.add(self)
                    self.write(b"\r\n")
                if self._waiting > OUTPUT_A_TURN:
                    break
            self._later()
        except Exception:
            # One peer's input never ends another's connection (I24); what was not foreseen is ours
            # to mend, so it goes to the log whole.
            exchange.log.failure("A connection was closed: its input could not be handled")
            self.abort()
        finally:
            exchange.end()

    def _drained(self) -> None:
        """Nothing whole is left of what came."""
        if self._raw is not None:
            return
        if self._ended:
            self._input_ended()
        elif self in self._exchange.silences:
            self._exchange.silences.add(self)

    def _input_ended(self) -> None:
        truncated = self.decoder.truncated()
        if truncated is not None:
            self.receiver.malformed_received(truncated)
        else:
            self.receiver.input_ended()

    def _logged_in(self) -> None:
        if self._exchange.logins is not None:
            self._exchange.logins.discard(self)

    def _later(self) -> None:
        """Go on in a later turn; until then, read nothing more."""
        if self.transport is not None and not self._yielded:
            self._yielded = True
            self._read(False)
            self._exchange.clock.callLater(0, self._resume)

    def _resume(self) -> None:
        self._yielded = False
        if self.transport is not None:
            self._take()
            if not self._yielded and not self._held and self._raw is None:
                self._read(True)

    def _read(self, wanted: bool) -> None:
        if self.transport is not None and not self._ended:
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _buffer(self, size: int) -> None:
        """Set how much output may wait before we are paused; a read gives no more at a time."""
        if self._plain:
            self.transport.bufferSize = size
        elif is_encrypted(self.transport):
            self.transport.transport.bufferSize = size  # of the connection below

    def _lose(self) -> None:
        if self.transport is not None:
            if is_encrypted(self.transport):
                self._read(True)  # TLS ends once the peer's own end has been read
            self.transport.unregisterProducer()
            self.transport.loseConnection()


@implementer(IProtocolFactory)
class ConnectionFactory:
    """Makes a stream for each connection, as long as its source has not too many."""

    def __init__(
        self, exchange: ConnectionHub, receiver: Callable[[PeerConnection], Receiver]
    ) -> None:
        self.exchange = exchange
        self.receiver = receiver

    def buildProtocol(self, addr: IAddress | None) -> PeerConnection | None:
        """One stream a connection; none, and so a closed connection, for a source at its limit."""
        source = source_of(addr)
        if source is not None and not self.exchange.sources.opened(source):
            return None
        return PeerConnection(self.exchange, self.receiver, source)

    def doStart(self) -> None:
        """Required by the interface."""

    def doStop(self) -> None:
        """Required by the interface."""
