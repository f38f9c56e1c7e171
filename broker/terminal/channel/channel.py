"""The encrypted channel of a call: a transport under an application's own protocol.

To the protocol it is what a TCP connection is to any Twisted protocol: it can be written to,
paused, half-closed and closed, takes a producer, and tells a clean end from a broken one. To the
connection under it, it is a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

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
from broker.terminal.channel.records import BadRecord, Records, RecordType
from broker.terminal.errors import Aborted, Truncated

#: Seconds for which the other side may take to end its own data once we want to close.
LINGER: Final = 10.0
#: The longest cause that is sent or believed, in bytes.
CAUSE_BYTES: Final = 512
#: Records handled before others have their turn: many small ones may come in one piece (I24).
RECORDS_A_TURN: Final = 256
#: What the other side is told when the application has failed.
APPLICATION_FAILED: Final = "the application failed"
_EARLY_END: Final = "the connection ended before the data did"


@implementer(
    IProtocol, IHalfCloseableProtocol, ITransport, IPushProducer, IConsumer, ISessionTransport
)
class Channel:
    """One side of the channel.

    :ivar identifier: whom this side is known as
    :ivar peer: whom it speaks with
    :ivar session: the session's identifier
    :ivar candidate: how the two reach each other, where that is known
    :ivar failed_candidates: the ways that did not lead there, on the caller's side
    :ivar protocol: the application's, once the channel is open
    :ivar disconnecting: it is closing

    An exception of the application's ends its call, which is told to both sides, and nothing else.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        records: Records,
        *,
        identifier: str,
        peer: str,
        session: str,
        opened: Callable[[], IProtocol | None],
        closed: Callable[[Failure], object],
        initiator: bool,
        candidate: Candidate | None = None,
        failed_candidates: Sequence[FailedCandidate] = (),
    ) -> None:
        """
        :param opened: asked for the application's protocol when the channel is open: for the
            initiator at once, for the responder when the other side has proven with its first
            record that this is no replay; ``None`` breaks the channel off
        :param closed: told when the channel is no more, after the protocol
        :param initiator: whether this side is the caller's, which sends the first record
        """
        self.identifier = identifier
        self.peer = peer
        self.session = session
        self.candidate = candidate
        self.failed_candidates = tuple(failed_candidates)
        self.protocol: IProtocol | None = None
        self.disconnecting = False
        self._clock = clock
        self._records = records
        self._opened = opened
        self._closed = closed
        self._initiator = initiator
        self._transport: Any = None
        self._addresses: tuple[IAddress, IAddress] | None = None  # the other side's and ours
        self._producer: Any = None  # the application's
        self._producing = False
        self._paused = False
        self._first: tuple[RecordType, bytes] | None = (
            None  # opened the channel, and is to be delivered
        )
        self._delivering: IDelayedCall | None = None  # the next turn of delivering
        self._lingering: IDelayedCall | None = None
        self._input_ended = False  # of the connection
        self._our_end = False
        self._their_end = False
        self._reason: Exception | None = None  # why it broke, where we know

    # From the connection under it.

    def makeConnection(self, transport: ITransport) -> None:
        """The handshake is over; what follows are records."""
        self._transport = transport
        self._addresses = (transport.getPeer(), transport.getHost())
        self.connectionMade()

    def connectionMade(self) -> None:
        """The initiator proves with an empty record, at once, that it holds the channel's keys."""
        if self._initiator:
            self._send(RecordType.DATA)
            self._open()

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        self._records.feed(data)
        self._deliver()

    def readConnectionLost(self) -> None:
        """The other side's connection ended: rightly so only after its data did."""
        self._input_ended = True
        self._deliver()

    def writeConnectionLost(self) -> None:
        """Required by the interface; a channel half-closes with a record of its own."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._transport = None
        for timer in (self._delivering, self._lingering):
            if timer is not None and timer.active():
                timer.cancel()
        if self._reason is not None:
            reason = Failure(self._reason)
        elif self._our_end and self._their_end and reason.check(ConnectionDone):
            reason = Failure(ConnectionDone("both sides ended their data"))
        else:
            reason = Failure(Truncated(_EARLY_END))
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            self._tell(protocol.connectionLost, reason)
        self._closed(reason)

    def _open(self) -> None:
        protocol: IProtocol | None = None
        try:
            protocol = self._opened()
        except Exception:
            self.log.failure("The application could not take a call")
        if protocol is None:
            self.abortConnection("the call is not taken")
        else:
            self.protocol = protocol
            self._tell(protocol.makeConnection, self)

    def _tell(self, told: Callable[..., object], *arguments: object) -> None:
        """Tell the application; what goes wrong there breaks off this call, and no other (I24)."""
        try:
            told(*arguments)
        except Exception:
            self.log.failure("The application failed in a call, which is broken off")
            self.abortConnection(APPLICATION_FAILED)

    def _deliver(self) -> None:
        try:
            for _ in range(RECORDS_A_TURN):
                if self._holds_back():
                    return
                record, self._first = self._first, None
                if record is None:
                    record = next(iter(self._records), None)
                if record is None:
                    if self._input_ended and not self._their_end:
                        self._break(Truncated(_EARLY_END))
                    return
                if self.protocol is None and not self._initiator and not self.disconnecting:
                    self._first = record
                    self._open()  # the first record: the session is spent
                else:
                    self._received(*record)
        except BadRecord as error:
            self._break(Truncated(str(error)))
        if not self._holds_back():
            self._transport.pauseProducing()
            self._delivering = self._clock.callLater(0, self._resume)

    def _holds_back(self) -> bool:
        return (
            self._paused
            or self._delivering is not None
            or self._transport is None
            or self._reason is not None
        )

    def _received(self, kind: RecordType, data: bytes) -> None:
        if kind is RecordType.ABORT:
            self._break(Aborted(data[:CAUSE_BYTES].decode("utf-8", "replace")))
        elif kind is RecordType.END:
            self._end_received()
        elif kind is RecordType.DATA and data:
            if self._their_end:
                self._break(Truncated("data after the end of data"))
            elif self.protocol is not None and not self.disconnecting:
                self._tell(self.protocol.dataReceived, data)

    def _end_received(self) -> None:
        if self._their_end:
            self._break(Truncated("a second end of data"))
            return
        self._their_end = True
        half_closeable: Any = IHalfCloseableProtocol(self.protocol, None)
        if self._our_end and (self.disconnecting or self.protocol is None):
            self._transport.loseConnection()
        elif half_closeable is not None:
            self._tell(half_closeable.readConnectionLost)
            self._close_when_both_ended()
        else:
            self.loseConnection()

    def _close_when_both_ended(self) -> None:
        if self._our_end and self._their_end and self._transport is not None:
            self.disconnecting = True
            self._transport.loseConnection()

    def _break(self, reason: Exception) -> None:
        """End the connection under it; the protocol is told why when that is done."""
        if self._transport is not None and self._reason is None:
            self._reason = reason
            self.disconnecting = True
            self._transport.abortConnection()

    def _send(self, kind: RecordType, data: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(self._records.seal(kind, data))

    # To the application's protocol: ITransport.

    def write(self, data: bytes) -> None:
        """Send data; what is written once the channel is closing is thrown away."""
        if not data or self._our_end or self._reason is not None:
            return
        if self._producing or not self.disconnecting:
            self._send(RecordType.DATA, bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send data in pieces."""
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """Say that our data has ended; the other side's may go on."""
        if not self._our_end and not self.disconnecting:
            self._our_end = True
            self._send(RecordType.END)
            self._close_when_both_ended()

    def loseConnection(self) -> None:
        """End our data, and the channel once the other side has ended its own.

        What the other side still sends is thrown away; it has ``LINGER`` seconds to end. With a
        producer registered, its data goes first.
        """
        if self.disconnecting or self._transport is None:
            return
        self.disconnecting = True
        if not self._producing:
            self._finish()

    def _finish(self) -> None:
        if not self._our_end:
            self._our_end = True
            self._send(RecordType.END)
        if self._transport is None:
            return
        if self._their_end:
            self._transport.loseConnection()
        else:
            self._linger(self._break, Truncated("the other side did not end its data"))
            self.resumeProducing()

    def _linger(self, then: Callable[..., object], *arguments: object) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = self._clock.callLater(LINGER, self._lingered, then, arguments)

    def _lingered(self, then: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self._lingering = None
        then(*arguments)

    def abortConnection(self, cause: str = "") -> None:
        """Break the call off, and tell the other side why."""
        if self._transport is None or self._reason is not None:
            return
        self._send(RecordType.ABORT, cause.encode("utf-8")[:CAUSE_BYTES])
        self._reason = Aborted(cause)
        self.disconnecting = True
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        self._linger(self._transport.abortConnection)
        if self._producing:
            self._producing = False
            producer, self._producer = self._producer, None
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
        if self._producing:
            raise RuntimeError("a producer is registered already")
        if self._transport is None or self._reason is not None:
            producer.stopProducing()
            return
        self._producing = True
        self._producer = producer
        self._transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """The application's producer has produced all."""
        if self._producing:
            self._producing = False
            self._producer = None
            if self._transport is not None:
                self._transport.unregisterProducer()
                if self.disconnecting and self._reason is None:
                    self._finish()

    # IPushProducer: the application's protocol governs what is delivered to it.

    def pauseProducing(self) -> None:
        """Deliver nothing more until told; the other side will be held up in its turn."""
        if self.disconnecting or self._transport is None:
            return
        if self._delivering is not None:
            self._delivering.cancel()
            self._delivering = None
        self._paused = True
        self._transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Deliver again, beginning in a later turn with what is here already."""
        if self._paused and self._delivering is None:
            self._delivering = self._clock.callLater(0, self._resume)

    def stopProducing(self) -> None:
        """The application wants no more."""
        self.loseConnection()

    def _resume(self) -> None:
        self._delivering = None
        self._paused = False
        self._deliver()
        if not self._holds_back():
            self._transport.resumeProducing()
