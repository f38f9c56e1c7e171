"""Messages over TCP or TLS: a thin Twisted protocol over the decoder.

A ``PeerConnection`` hands whole events to its receiver, joins everything sent to its peer in one
turn of the reactor into one write, and closes on a peer that does not read, does not log in, or
falls silent. What all connections of one role share is their ``ConnectionHub``.

A message comes in by ``dataReceived`` → the receiver's ``message_received``; it goes out by
``send``, and at the end of the turn by ``flush``, for each connection that ``hub.end`` names.
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

from broker.messages.framing import Body, Decoder, Event, Signal
from broker.messages.message import Malformed, Message
from broker.net.hub import ConnectionHub
from broker.net.per_source import source_of
from broker.net.socket_write import send_at_once
from broker.net.tls.errors import TlsFailed
from broker.net.tls.explain import explain
from broker.net.tls.transport import is_encrypted
from broker.states import StateTable

#: Events handled for one peer before the others have their turn.
EVENTS_A_TURN: Final = 64
#: Bytes that a peer is sent in its turn; then the others have theirs, and it must read first.
OUTPUT_A_TURN: Final = 65536

# States of a connection.
UNCONNECTED: Final = "unconnected"
OPEN: Final = "open"
HANDED_OVER: Final = "handed over"
CLOSING: Final = "closing"
LOST: Final = "lost"

# Events that lead from one to the next.
CONNECT: Final = "connect"
HAND_OVER: Final = "hand over"
CLOSE: Final = "close"
LOSE: Final = "lose"

STATES: Final = StateTable(
    "connection",
    UNCONNECTED,
    {
        UNCONNECTED: {CONNECT: OPEN, LOSE: LOST},
        OPEN: {HAND_OVER: HANDED_OVER, CLOSE: CLOSING, LOSE: LOST},
        # Another protocol has the input now. Messages may still be sent.
        HANDED_OVER: {CLOSE: CLOSING, LOSE: LOST},
        # Nothing is sent, and the peer's messages are thrown away; ``abort`` may follow ``close``.
        CLOSING: {HAND_OVER: CLOSING, CLOSE: CLOSING, LOSE: LOST},
        LOST: {},
    },
)

# What stands in the way of the peer's input: bits of ``PeerConnection._input``.
_HELD: Final = 1  # the receiver takes nothing for now
_DEFERRED: Final = 2  # what is left is handled in a later turn
_ENDED: Final = 4  # the peer has sent everything
_PAUSED: Final = _HELD | _DEFERRED


class Receiver(Protocol):
    """Handles the events of one connection."""

    def message_received(self, message: Message) -> None:
        """A whole head came; its body, if it has one, follows."""

    def body_received(self, body: Body) -> None:
        """A part of the body of the message received last came."""

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message; where that is fatal, answer and ``close(linger=True)``."""

    def input_ended(self) -> None:
        """The peer has sent everything: close once everything is answered."""

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""


@implementer(IProtocol, IHalfCloseableProtocol, IPushProducer)
class PeerConnection:
    """One connection's messages, in and out.

    :ivar decoder: its input, and the limits in force
    :ivar receiver: what handles its events
    :ivar source: the source that it counts for, ``None`` where it counts for none (I15)
    :ivar transport: the TCP or TLS transport, ``None`` before it is made and once it is lost
    """

    __slots__ = (
        "__weakref__",
        "_hub",
        "_input",
        "_out",
        "_plain",
        "_protocol",
        "_stalled",
        "_state",
        "_unflushed",
        "decoder",
        "receiver",
        "source",
        "transport",
    )

    def __init__(
        self,
        hub: ConnectionHub,
        receiver: Callable[[PeerConnection], Receiver],
        source: str | None = None,
    ) -> None:
        """
        :param receiver: makes the receiver of this connection
        """
        self.source = source
        self.transport: Any = None
        self.decoder = Decoder(hub.unauthenticated)
        self._hub = hub
        self._state = STATES.initial
        self._input = 0  # bits: held, deferred, ended
        self._out: list[bytes] | None = None
        self._unflushed = 0  # bytes in there
        self._stalled = -1  # bytes written since the peer stopped reading
        self._protocol: Any = None  # that the connection was handed over to
        self._plain = False  # a plain TCP transport, whose socket can be written at once
        self.receiver: Receiver = receiver(self)

    # Called by the transport.

    def makeConnection(self, transport: Any) -> None:
        """The connection is established."""
        self._state = STATES.advance(self._state, CONNECT)
        self.transport = transport
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self._plain = isinstance(transport, Connection) and not getattr(transport, "TLS", False)
        self._set_buffer(self.decoder.limits.output)
        transport.registerProducer(self, True)
        if self._hub.logins is not None:
            self._hub.logins.add(self)

    def connectionMade(self) -> None:
        """Required by the interface; ``makeConnection`` has done everything."""

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived: hand over the events that they complete.

        Without any (``b""``) it goes on with what arrived before.
        """
        if self._state is not OPEN:
            self._pass_on(data)
            return
        decoder = self.decoder
        decoder.feed(data)
        if self._input & _PAUSED:
            return
        hub = self._hub
        receiver = self.receiver
        hub.begin()
        try:
            for _ in range(EVENTS_A_TURN):
                event = decoder.next_event()
                if event is None:
                    self._drained()
                    return
                if event.__class__ is Message:
                    if hub.trace is not None:
                        hub.trace(self, "<", event)
                    receiver.message_received(event)
                else:
                    self._other_event(event)
                if self._input & _HELD or self._state is not OPEN:
                    return
                if self._unflushed > OUTPUT_A_TURN:
                    break
            self._defer()
        except Exception:
            # One peer's input never ends another's connection (I24). An exception that gets here
            # is a bug of ours, so the whole of it goes to the log.
            hub.log.failure("A connection was closed: its input could not be handled")
            self.abort()
        finally:
            for connection in hub.end():
                connection.flush()

    def readConnectionLost(self) -> None:
        """The peer has sent everything, but still reads."""
        self._input |= _ENDED
        if self._protocol is not None:
            self._protocol.readConnectionLost()
        elif self._state is CLOSING:
            self._lose()
        else:
            self.dataReceived(b"")

    def writeConnectionLost(self) -> None:
        """Required by the interface."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._state = STATES.advance(self._state, LOSE)
        self.transport = None
        self._out = None
        hub = self._hub
        why = explain(reason.value) if reason.value is not None else None
        if why is not None:
            hub.tls_failed(self.source, why)
            reason = Failure(TlsFailed(why))
        self._stop_login_timer()
        hub.silences.discard(self)
        hub.stalls.discard(self)
        hub.early_stalls.discard(self)
        if self.source is not None:
            authenticated = self.decoder.limits is hub.authenticated
            hub.sources.closed(self.source, authenticated=authenticated)
        hub.begin()
        try:
            try:
                if self._protocol is not None:
                    self._protocol.connectionLost(reason)
            finally:
                self.receiver.connection_lost(reason)
        finally:
            for connection in hub.end():
                connection.flush()

    # Called by the receiver.

    def send(self, message: Message) -> None:
        """Send a message together with the others of this turn."""
        hub = self._hub
        if hub.trace is not None:
            hub.trace(self, ">", message)
        # ``write``, without a call of its own: every message passes here.
        if self._state is not OPEN and self._state is not HANDED_OVER:
            return
        data = message.encode()
        if self._out is None:
            self._out = [data]
        else:
            self._out.append(data)
        self._unflushed += len(data)
        hub.written(self)

    def send_early(self, message: Message) -> None:
        """Send a message without moving this connection to the end of those written to.

        So the order of the flushes does not change (see ``ConnectionHub.written``).
        """
        if self._out is None:
            self.send(message)
            return
        if self._hub.trace is not None:
            self._hub.trace(self, ">", message)
        data = message.encode()
        self._out.append(data)
        self._unflushed += len(data)

    def write(self, data: bytes) -> None:
        """Send bytes together with the others of this turn."""
        if self._state is not OPEN and self._state is not HANDED_OVER:
            return
        if self._out is None:
            self._out = [data]
        else:
            self._out.append(data)
        self._unflushed += len(data)
        self._hub.written(self)

    def flush(self) -> None:
        """Write what was collected in this turn."""
        out = self._out
        if out is None:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        self._out = None
        self._unflushed = 0
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
        """The peer has logged in: the wider limits hold from here on."""
        hub = self._hub
        if self.decoder.limits is hub.authenticated:
            return
        self._stop_login_timer()
        self.decoder.limits = hub.authenticated
        if self.source is not None:
            hub.sources.authenticated(self.source)
        if self.transport is not None:
            self._set_buffer(65536)

    def hold(self) -> None:
        """Hand over no events until ``go_on``; what the peer sends waits on its side."""
        if not self._input & _HELD:
            self._input |= _HELD
            self._read(False)

    def go_on(self) -> None:
        """Hand over events again."""
        if self._input & _HELD:
            self._input &= ~_HELD
            self._defer()

    def hand_over(self, protocol: IProtocol) -> None:
        """Give the connection to another protocol: what follows on it is not messages.

        :param protocol: provides ``IHalfCloseableProtocol`` too; the receiver still learns when
            the connection is lost
        """
        self.flush()
        self.resumeProducing()
        self._stop_login_timer()
        self._hub.silences.discard(self)
        rest = self.decoder.take_rest()
        self._state = STATES.advance(self._state, HAND_OVER)
        self._protocol = protocol
        self._input &= ~_HELD
        self._read(True)
        self._set_buffer(65536)
        self.transport.unregisterProducer()
        protocol.makeConnection(self.transport)
        if rest:
            protocol.dataReceived(rest)
        if self._input & _ENDED:
            IHalfCloseableProtocol(protocol).readConnectionLost()

    def close(self, *, linger: bool = False) -> None:
        """Send what was collected, then close; a peer that does not read is cut off after a while.

        :param linger: the peer is still sending: read that away first. Otherwise TCP answers it
            with a reset, which would discard what we sent last.
        """
        if not self.connected:
            return
        self.flush()
        self._state = STATES.advance(self._state, CLOSE)
        self._stop_login_timer()
        self._hub.stalls.add(self)
        if linger and self._plain and not self._input & _ENDED:
            self.transport.unregisterProducer()  # a paused one would keep the output open
            self.transport.loseWriteConnection()
        else:
            self._lose()

    def abort(self) -> None:
        """Close at once, without sending what was collected."""
        if self.transport is not None:
            self._out = None
            self._state = STATES.advance(self._state, CLOSE)
            self.transport.abortConnection()

    @property
    def connected(self) -> bool:
        """Whether what is sent may still arrive."""
        return self._state is OPEN or self._state is HANDED_OVER

    @property
    def untraced(self) -> bool:
        """Whether no trace looks at the messages that pass."""
        return self._hub.trace is None

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return is_encrypted(self.transport)

    # Called by the transport, as its producer. It tells whether the peer reads: Twisted itself
    # sets no limit to what may wait.

    def pauseProducing(self) -> None:
        """Much is waiting to be read by the peer."""
        if self._stalled < 0:
            self._stalled = 0
            hub = self._hub
            early = self.decoder.limits is hub.unauthenticated
            (hub.early_stalls if early else hub.stalls).add(self)

    def resumeProducing(self) -> None:
        """The peer has read it."""
        self._stalled = -1
        self._hub.early_stalls.discard(self)
        if self._state is not CLOSING:
            self._hub.stalls.discard(self)

    def stopProducing(self) -> None:
        """The connection is going; ``connectionLost`` follows."""

    # Inside.

    def _pass_on(self, data: bytes) -> None:
        """What comes after ``hand_over`` is the other protocol's; after ``close``, no one's."""
        if self._protocol is not None:
            self._protocol.dataReceived(data)

    def _other_event(self, event: Event) -> None:
        """Handle what is no message."""
        if event.__class__ is Body:
            self.receiver.body_received(event)
        elif isinstance(event, Malformed):
            self.receiver.malformed_received(event)
        elif event is Signal.KEEPALIVE:
            self._hub.silences.add(self)
            self.write(b"\r\n")

    def _drained(self) -> None:
        """No whole event is left of what came."""
        if self._input & _ENDED:
            truncated = self.decoder.truncated()
            if truncated is not None:
                self.receiver.malformed_received(truncated)
            else:
                self.receiver.input_ended()
        elif self in self._hub.silences:
            self._hub.silences.add(self)

    def _stop_login_timer(self) -> None:
        if self._hub.logins is not None:
            self._hub.logins.discard(self)

    def _defer(self) -> None:
        """Go on in a later turn, and read nothing until then."""
        if self.transport is not None and not self._input & _DEFERRED:
            self._input |= _DEFERRED
            self._read(False)
            self._hub.clock.callLater(0, self._resume)

    def _resume(self) -> None:
        self._input &= ~_DEFERRED
        if self._state is OPEN:
            self.dataReceived(b"")
        if not self._input & _PAUSED and self._protocol is None:
            self._read(True)  # also where it is closing: what the peer still sends is read away

    def _read(self, wanted: bool) -> None:
        if self.transport is not None and not self._input & _ENDED:
            if wanted:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _set_buffer(self, size: int) -> None:
        """Set how much output may wait before we are paused; also the most that one read gives."""
        if self._plain:
            self.transport.bufferSize = size
        elif is_encrypted(self.transport):
            self.transport.transport.bufferSize = size  # of the TCP connection below

    def _lose(self) -> None:
        if self.transport is not None:
            if is_encrypted(self.transport):
                self._read(True)  # TLS ends once the peer's own end has been read
            self.transport.unregisterProducer()
            self.transport.loseConnection()


@implementer(IProtocolFactory)
class ConnectionFactory:
    """Makes the protocol of each connection, unless its source has too many.

    :ivar hub: what the connections share
    :ivar receiver: makes the receiver of each
    """

    def __init__(self, hub: ConnectionHub, receiver: Callable[[PeerConnection], Receiver]) -> None:
        self.hub = hub
        self.receiver = receiver

    def buildProtocol(self, addr: IAddress | None) -> PeerConnection | None:
        """The protocol of a connection; ``None`` closes it: its source is at its limit."""
        source = source_of(addr)
        if source is not None and not self.hub.sources.opened(source):
            return None
        return PeerConnection(self.hub, self.receiver, source)

    def doStart(self) -> None:
        """Required by the interface."""

    def doStop(self) -> None:
        """Required by the interface."""
