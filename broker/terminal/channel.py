"""The encrypted channel of a call: a transport under an application's own protocol.

To the protocol it is what a TCP connection is to any Twisted protocol: it can be written to,
paused, half-closed and closed, takes a producer, and tells a clean end from a broken one. To the
connection under it, it is a protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ISessionTransport
from broker.terminal.errors import Aborted, Truncated
from broker.terminal.records import BadRecord, Kind, Records

#: Seconds for which the other side may take to end its own data once we want to close.
LINGER: Final = 10.0
#: The longest cause that is sent or believed, in bytes.
CAUSE_BYTES: Final = 512


@implementer(
    IProtocol, IHalfCloseableProtocol, ITransport, IPushProducer, IConsumer, ISessionTransport
)
class Channel:
    """One side of the channel.

    :ivar identifier: whom this side is known as
    :ivar peer: whom it speaks with
    :ivar session: the session's identifier
    :ivar protocol: the application's, once the channel is open
    :ivar disconnecting: it is closing
    """

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
        self.protocol: IProtocol | None = None
        self.disconnecting = False
        self._clock = clock
        self._records = records
        self._opened = opened
        self._closed = closed
        self._initiator = initiator
        self._transport: Any = None
        self._producing = False
        self._paused = False
        self._delivering: IDelayedCall | None = None
        self._lingering: IDelayedCall | None = None
        self._our_end = False
        self._their_end = False
        self._reason: Exception | None = None  # why it broke, where we know

    # From the connection under it.

    def makeConnection(self, transport: ITransport) -> None:
        """The handshake is over; what follows are records."""
        self._transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        """The initiator proves with an empty record, at once, that it holds the channel's keys."""
        if self._initiator:
            self._send(Kind.DATA)
            self._open()

    def dataReceived(self, data: bytes) -> None:
        """Bytes came."""
        self._records.feed(data)
        self._deliver()

    def readConnectionLost(self) -> None:
        """The other side's connection ended: rightly so only after its data did."""
        if self._transport is not None and not self._their_end:
            self._break(Truncated("the connection ended before the data did"))

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
        elif self._our_end and self._their_end:
            reason = Failure(ConnectionDone("both sides ended their data"))
        else:
            reason = Failure(Truncated("the connection ended before the data did"))
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(reason)
        self._closed(reason)

    def _open(self) -> None:
        protocol = self._opened()
        if protocol is None:
            self.abortConnection("the call is not taken")
        else:
            self.protocol = protocol
            protocol.makeConnection(self)

    def _deliver(self) -> None:
        if self._holds_back():
            return
        try:
            for kind, data in self._records:
                self._received(kind, data)
                if self._holds_back():
                    return
        except BadRecord as error:
            self._break(Truncated(str(error)))

    def _holds_back(self) -> bool:
        return self._paused or self._transport is None or self._reason is not None

    def _received(self, kind: Kind, data: bytes) -> None:
        if self.protocol is None and not self._initiator and not self.disconnecting:
            self._open()  # the first record: the session is spent
        if kind is Kind.ABORT:
            self._break(Aborted(data[:CAUSE_BYTES].decode("utf-8", "replace")))
        elif kind is Kind.END:
            self._end_received()
        elif kind is Kind.DATA and data:
            if self._their_end:
                self._break(Truncated("data after the end of data"))
            elif self.protocol is not None and not self.disconnecting:
                self.protocol.dataReceived(data)

    def _end_received(self) -> None:
        self._their_end = True
        half_closeable: Any = IHalfCloseableProtocol(self.protocol, None)
        if self._our_end and (self.disconnecting or self.protocol is None):
            self._transport.loseConnection()
        elif half_closeable is not None:
            half_closeable.readConnectionLost()
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

    def _send(self, kind: Kind, data: bytes = b"") -> None:
        if self._transport is not None:
            self._transport.write(self._records.seal(kind, data))

    # To the application's protocol: ITransport.

    def write(self, data: bytes) -> None:
        """Send data."""
        if data and not self._our_end and (self._producing or not self.disconnecting):
            self._send(Kind.DATA, bytes(data))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """Send data in pieces."""
        self.write(b"".join(data))

    def loseWriteConnection(self) -> None:
        """Say that our data has ended; the other side's may go on."""
        if not self._our_end and not self.disconnecting:
            self._our_end = True
            self._send(Kind.END)
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
            self._send(Kind.END)
        if self._transport is None:
            return
        if self._their_end:
            self._transport.loseConnection()
        else:
            self._lingering = self._clock.callLater(
                LINGER, self._break, Truncated("the other side did not end its data")
            )
            self.resumeProducing()

    def abortConnection(self, cause: str = "") -> None:
        """Break the call off, and tell the other side why."""
        if self._transport is None or self._reason is not None:
            return
        self._send(Kind.ABORT, cause.encode("utf-8")[:CAUSE_BYTES])
        self._reason = Aborted(cause)
        self.disconnecting = True
        self._transport.unregisterProducer()
        self._transport.loseConnection()
        self._lingering = self._clock.callLater(LINGER, self._abort_connection)

    def _abort_connection(self) -> None:
        if self._transport is not None:
            self._transport.abortConnection()

    def getPeer(self) -> IAddress:
        """Where the other side is."""
        address: IAddress = self._transport.getPeer()
        return address

    def getHost(self) -> IAddress:
        """Where this side is."""
        address: IAddress = self._transport.getHost()
        return address

    # IConsumer: the connection's own buffer governs the application's producer.

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let the connection pause and resume an application's producer."""
        if self._transport is None:
            producer.stopProducing()
            return
        self._producing = True
        self._transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """The application's producer has produced all."""
        if self._producing:
            self._producing = False
            if self._transport is not None:
                self._transport.unregisterProducer()
                if self.disconnecting and self._reason is None:
                    self._finish()

    # IPushProducer: the application's protocol governs what is delivered to it.

    def pauseProducing(self) -> None:
        """Deliver nothing more until told; the other side will be held up in its turn."""
        if not self._paused and not self.disconnecting and self._transport is not None:
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
        if not self._paused and self._transport is not None:
            self._transport.resumeProducing()
