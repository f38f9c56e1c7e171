"""The encrypted channel of a call: a transport under the application's own protocol.

To the protocol it behaves like a TCP connection under any Twisted protocol: it can be written to,
paused, half-closed and closed, takes a producer, and reports a clean end apart from a broken one.
To the connection under it, it is a protocol. How it half-closes and ends is the table in
``states``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ITransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ISessionTransport
from broker.terminal.candidates import Candidate, FailedCandidate
from broker.terminal.channel import states
from broker.terminal.channel.records import BadRecord, Records, RecordType
from broker.terminal.channel.states import STATES
from broker.terminal.errors import Aborted, Truncated

#: Seconds that the other side has to end its own data once we close.
LINGER: Final = 10.0
#: The longest cause of an abort that is sent or accepted, in bytes.
CAUSE_BYTES: Final = 512
#: Records handled in one turn of the reactor: many small ones may come in one piece (I24).
RECORDS_A_TURN: Final = 256
#: The causes that the other side is sent: the application raised, or gave no protocol.
APPLICATION_FAILED: Final = "the application failed"
NOT_TAKEN: Final = "the call is not taken"

_EARLY_END: Final = "the connection ended before the data did"
_NOT_ENDED: Final = "the other side did not end its data"


@dataclass(frozen=True, slots=True)
class ChannelParties:
    """Who speaks over a channel, in which session, and how the two are connected.

    :ivar identifier: this side's
    :ivar peer: the other side's
    :ivar session: the session's identifier
    :ivar initiator: whether this side is the caller, which sends the first record
    :ivar candidate: how the two are connected, where that is known
    :ivar failed_candidates: on the caller's side: what else was tried, and why it failed
    """

    identifier: str
    peer: str
    session: str
    initiator: bool
    candidate: Candidate | None = None
    failed_candidates: Sequence[FailedCandidate] = ()


class ChannelEvents(Protocol):
    """The owner of a channel."""

    def channel_opened(self, channel: Channel) -> IProtocol | None:
        """The channel is open: give the application's protocol, or ``None`` to break it off.

        For the initiator that is at once; for the responder, when the first record has proven that
        this is no replay.
        """

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        """The connection is gone; the application's protocol knows already."""


@implementer(
    IProtocol, IHalfCloseableProtocol, ITransport, IPushProducer, IConsumer, ISessionTransport
)
class Channel:
    """One side of the channel.

    An exception in the application ends its own call, with a cause for both sides, and nothing
    else (I24).

    :ivar parties: who speaks here, and how the two are connected
    :ivar protocol: the application's, while the channel is open
    :ivar state: one of ``states``
    """

    log = Logger()

    def __init__(
        self, clock: IReactorTime, records: Records, parties: ChannelParties, events: ChannelEvents
    ) -> None:
        self.parties = parties
        self.protocol: IProtocol | None = None
        self.state = STATES.initial
        self._clock = clock
        self._records = records
        self._events = events
        self._transport: Any = None
        self._addresses: tuple[IAddress, IAddress] | None = None  # the other side's and ours
        self._producer: Any = None  # the application's
        self._paused = False  # by the application
        self._first: tuple[RecordType, bytes] | None = None  # the record that opened the channel
        # No Timers: with their callbacks these would keep a closed channel in a reference cycle.
        self._turn: IDelayedCall | None = None  # the next one in which records are handled
        self._lingering: IDelayedCall | None = None
        self._reason: Exception | None = None  # why it broke, where we know

    # For the application's protocol: ISessionTransport.

    @property
    def identifier(self) -> str:
        """This side's identifier."""
        return self.parties.identifier

    @property
    def peer(self) -> str:
        """The other side's identifier, proven by the session's credentials."""
        return self.parties.peer

    @property
    def session(self) -> str:
        """The session's identifier."""
        return self.parties.session

    @property
    def candidate(self) -> Candidate | None:
        """How the two are connected, where that is known."""
        return self.parties.candidate

    @property
    def failed_candidates(self) -> tuple[FailedCandidate, ...]:
        """What else was tried, and why it failed, on the caller's side."""
        return tuple(self.parties.failed_candidates)

    @property
    def disconnecting(self) -> bool:
        """Whether it is closing."""
        return self.state in states.DISCONNECTING

    # From the connection under it.

    def makeConnection(self, transport: ITransport) -> None:
        """The handshake is over; what follows are records."""
        self._transport = transport
        self._addresses = (transport.getPeer(), transport.getHost())
        self.connectionMade()

    def connectionMade(self) -> None:
        """The initiator proves with an empty record, at once, that it holds the channel's keys."""
        if self.parties.initiator:
            self._send(RecordType.DATA)
            self._open()

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived."""
        self._records.feed(data)
        self._deliver()

    def readConnectionLost(self) -> None:
        """The connection's input ended: a clean end only if the other side's END came before."""
        self._records.feed_eof()
        self._deliver()

    def writeConnectionLost(self) -> None:
        """Required by the interface; a channel half-closes with a record of its own."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        clean = self.state == states.CLOSING and reason.check(ConnectionDone)
        self._advance(states.LOSE)
        self._transport = None
        for timer in (self._turn, self._lingering):
            if timer is not None and timer.active():
                timer.cancel()
        if self._reason is not None:
            reason = Failure(self._reason)
        elif clean:
            reason = Failure(ConnectionDone("both sides ended their data"))
        else:
            reason = Failure(Truncated(_EARLY_END))
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            self._notify(protocol.connectionLost, reason)
        self._events.channel_closed(self, reason)

    # Records, and what they mean.

    def _advance(self, event: str) -> None:
        self.state = STATES.advance(self.state, event)

    def _open(self) -> None:
        """The first record is sent, or came: the session is spent (I7)."""
        self._advance(states.PROVE)
        protocol: IProtocol | None = None
        try:
            protocol = self._events.channel_opened(self)
        except Exception:
            self.log.failure("The application could not take a call")
        if protocol is None:
            self.abortConnection(NOT_TAKEN)
        else:
            self.protocol = protocol
            self._notify(protocol.makeConnection, self)

    def _notify(self, method: Callable[..., object], *arguments: object) -> None:
        """Call the application; an exception there breaks off this call, and no other (I24)."""
        try:
            method(*arguments)
        except Exception:
            self.log.failure("The application failed in a call, which is broken off")
            self.abortConnection(APPLICATION_FAILED)

    def _deliver(self) -> None:
        """Handle the records that are here, a bounded number in one turn."""
        try:
            for _ in range(RECORDS_A_TURN):
                if self._holds_back():
                    return
                record, self._first = self._first, None
                if record is None:
                    record = next(iter(self._records), None)
                if record is None:
                    if self._records.eof and self.state not in states.ENDED_BY_THEM:
                        self._break(Truncated(_EARLY_END))
                    return
                if self.state == states.HANDSHAKEN:
                    self._first = record  # it may carry data: delivered once the protocol is there
                    self._open()
                else:
                    self._received(*record)
        except BadRecord as error:
            self._break(Truncated(str(error)))
        if not self._holds_back():
            self._transport.pauseProducing()
            self._turn = self._clock.callLater(0, self._resume)

    def _holds_back(self) -> bool:
        return self._paused or self._turn is not None or self.state in states.OVER

    def _received(self, kind: RecordType, data: bytes) -> None:
        if kind is RecordType.ABORT:
            self._break(Aborted(data[:CAUSE_BYTES].decode("utf-8", "replace")))
        elif kind is RecordType.END:
            self._end_received()
        elif kind is RecordType.DATA and data:
            if self.state in states.ENDED_BY_THEM:
                self._break(Truncated("data after the end of data"))
            elif self.state in states.DELIVERS and self.protocol is not None:
                self._notify(self.protocol.dataReceived, data)

    def _end_received(self) -> None:
        """The other side has ended its data: a half-close, unless we have ended ours."""
        if self.state in states.ENDED_BY_THEM:
            self._break(Truncated("a second end of data"))
            return
        lingering = self.state == states.LINGERING  # the application has closed already
        self._advance(states.THEY_END)
        half_closeable: Any = IHalfCloseableProtocol(self.protocol, None)
        if half_closeable is not None and not lingering:
            self._notify(half_closeable.readConnectionLost)
        elif self.state == states.THEY_ENDED:
            self.loseConnection()  # as TCP does for a protocol that knows no half-close
            return
        if self.state == states.CLOSING:
            self._transport.loseConnection()

    def _end(self, event: str) -> None:
        """End our data, as far as it has not ended; then close, or wait for the other side's END.

        :param event: ``WE_END``, ``CLOSE``, ``CLOSE_AFTER`` or ``DRAINED``
        """
        sends = self.state in states.SENDS
        self._advance(event)
        if self.state in (states.DRAINING, states.DRAINING_LAST):
            return  # what the producer still has goes first
        if sends:
            self._send(RecordType.END)
        if self.state == states.CLOSING:
            self._transport.loseConnection()
        elif self.state == states.LINGERING:
            self._linger()
            self.resumeProducing()  # else a paused application would not see the other side's END

    def _linger(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = self._clock.callLater(LINGER, self._lingered)

    def _lingered(self) -> None:
        """The other side had its time: to end its data, or to read why the call was broken off."""
        self._lingering = None
        if self.state == states.BROKEN:
            self._transport.abortConnection()
        else:
            self._break(Truncated(_NOT_ENDED))

    def _break(self, reason: Exception) -> None:
        """End the connection under it; the protocol is told why when that is done."""
        if self._transport is not None and self.state not in states.OVER:
            self._reason = reason
            self._advance(states.BREAK)
            self._transport.abortConnection()

    def _send(self, kind: RecordType, data: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(self._records.seal(kind, data))

    # For the application's protocol: ITransport.

    def write(self, data: bytes) -> None:
        """Send data; what is written once our data has ended is thrown away."""
        if data and self.state in states.SENDS:
            self._send(RecordType.DATA, bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send data in pieces."""
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """Half-close: our data has ended; the other side's may go on."""
        if STATES.allows(self.state, states.WE_END):
            self._end(states.WE_END)

    def loseConnection(self) -> None:
        """End our data, and the channel once the other side has ended its own.

        What the other side still sends is thrown away; it has ``LINGER`` seconds to end. With a
        producer registered, its data goes first.
        """
        if self._transport is not None and not self.disconnecting:
            self._end(states.CLOSE if self._producer is None else states.CLOSE_AFTER)

    def abortConnection(self, cause: str = "") -> None:
        """Break the call off, and tell the other side why."""
        if self._transport is None or self.state in states.OVER:
            return
        self._send(RecordType.ABORT, cause.encode("utf-8")[:CAUSE_BYTES])
        self._reason = Aborted(cause)
        self._advance(states.BREAK)
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        self._linger()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def getPeer(self) -> IAddress:
        """Where the other side is, or was."""
        return self._known_addresses()[0]

    def getHost(self) -> IAddress:
        """Where this side is, or was."""
        return self._known_addresses()[1]

    def _known_addresses(self) -> tuple[IAddress, IAddress]:
        if self._addresses is None:
            raise RuntimeError("the channel is not connected yet")
        return self._addresses

    # IConsumer: the connection's own buffer governs the application's producer.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let the connection pause and resume an application's producer.

        :raises RuntimeError: there is one already
        """
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        if self._transport is None or self.state in states.OVER:
            producer.stopProducing()
            return
        self._producer = producer
        self._transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """The application's producer has produced all."""
        if self._producer is None:
            return
        self._producer = None
        if self._transport is not None:
            self._transport.unregisterProducer()
            if STATES.allows(self.state, states.DRAINED):
                self._end(states.DRAINED)

    # IPushProducer: the application's protocol governs what is delivered to it.

    def pauseProducing(self) -> None:
        """Deliver nothing until it is resumed; TCP then slows the other side down."""
        if self.disconnecting or self._transport is None:
            return
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._paused = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Deliver again, beginning in a later turn with what is here already."""
        if self._paused and self._turn is None:
            self._turn = self._clock.callLater(0, self._resume)

    def stopProducing(self) -> None:
        """The application takes no data from now on: close."""
        self.loseConnection()

    def _resume(self) -> None:
        self._turn = None
        self._paused = False
        self._deliver()
        if not self._holds_back():
            self._transport.resumeProducing()
