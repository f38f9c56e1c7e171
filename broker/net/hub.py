"""What the connections of one role share: limits, deadlines, and one write a peer and turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.messages.framing import AUTHENTICATED, UNAUTHENTICATED, Limits
from broker.messages.message import Message
from broker.net.log_limit import LogLimit
from broker.net.per_source import PerSourceLimits
from broker.net.timers import DeadlineQueue

#: A peer that sends keepalives is gone when it has been silent for twice this many seconds.
SILENCE: Final = 100.0
#: Seconds between two log lines about failed handshakes, which any stranger can cause (I15).
HANDSHAKE_LOG_INTERVAL: Final = 1.0


class HubMember(Protocol):
    """A connection as its hub, and a trace, see it.

    :ivar transport: the TCP or TLS transport, ``None`` once the connection is lost
    :ivar receiver: what handles its events
    """

    transport: Any
    receiver: Any

    def __hash__(self) -> int: ...

    def flush(self) -> None:
        """Write what has been collected in this turn."""

    def abort(self) -> None:
        """Close at once."""


#: Called with a connection, ``<`` (in) or ``>`` (out), and the message.
Trace = Callable[[HubMember, str, Message], None]


class ConnectionHub:
    """What the connections of one role share: a clock, the writes of this turn, deadlines, a trace.

    13 attributes: a queue for each kind of deadline, since each has a length of its own.

    :ivar unauthenticated: the limits of a peer before login
    :ivar authenticated: its limits after login
    :ivar trace: called for each message in (``<``) and out (``>``), or ``None``
    :ivar logins: connections that must log in; ``None`` where we dial, and so know the peer
    :ivar stalls: connections whose peer must read what we sent, or be closed
    :ivar early_stalls: as ``stalls``, for peers that have not logged in
    :ivar silences: connections whose peer sends keepalives, and so must keep sending
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        login_timeout: float | None = 10.0,
        unauthenticated: Limits = UNAUTHENTICATED,
        authenticated: Limits = AUTHENTICATED,
        trace: Trace | None = None,
    ) -> None:
        """
        :param login_timeout: seconds in which a peer must log in; ``None`` where it need not
        """
        self.clock = clock
        self.unauthenticated = unauthenticated
        self.authenticated = authenticated
        self.trace = trace
        self.logins = None if login_timeout is None else _cut_off(clock, login_timeout)
        self.stalls = _cut_off(clock, authenticated.stalled)
        self.early_stalls = _cut_off(clock, unauthenticated.stalled)
        self.silences = _cut_off(clock, 2 * SILENCE)
        self.sources = PerSourceLimits()
        self._written: dict[HubMember, None] = {}
        self._turns = 0
        self._scheduled = False
        self._handshake_log = LogLimit(clock, HANDSHAKE_LOG_INTERVAL)

    @classmethod
    def of_client(cls, clock: IReactorTime, *, trace: Trace | None = None) -> ConnectionHub:
        """For connections that we open: the peer is known, and has the wider limits at once."""
        return cls(clock, login_timeout=None, unauthenticated=AUTHENTICATED, trace=trace)

    def written(self, connection: HubMember) -> None:
        """Note that a connection has something to send at the end of this turn.

        The connection written to last is flushed last: a callee has its credentials (S1208) before
        the caller learns where to connect (S1210).
        """
        self._written.pop(connection, None)
        self._written[connection] = None
        if not self._turns and not self._scheduled:
            self._scheduled = True
            self.clock.callLater(0, self._flush_later)

    def begin(self) -> None:
        """A turn begins: bytes have come in."""
        self._turns += 1

    def end(self) -> Iterable[HubMember]:
        """The turn ends: give the connections to flush now, one write for each peer.

        Whatever is written while they are flushed leaves in the reactor's next turn.
        """
        self._turns -= 1
        if self._turns or not self._written:
            return ()
        written, self._written = self._written, {}
        return written

    def stop(self) -> None:
        """Close every connection that has not logged in, and leave no timer behind."""
        for connection in list(self.logins or ()):
            connection.abort()
        for deadlines in (self.logins, self.stalls, self.early_stalls, self.silences):
            if deadlines is not None:
                deadlines.stop()

    def tls_failed(self, source: str | None, why: str) -> None:
        """Log why TLS ended a peer's connection.

        Only on the server's side: where we dialled, the caller of the connection reports it.
        """
        if self.logins is None:
            return
        suppressed = self._handshake_log.admit()
        if suppressed is not None:
            where = source or "this machine"
            self.log.info(
                "TLS with {where} failed: {why}{more}", where=where, why=why, more=suppressed
            )

    def _flush_later(self) -> None:
        """Flush what was written outside of any turn."""
        self._scheduled = False
        self.begin()
        for connection in self.end():
            connection.flush()


def _cut_off(clock: IReactorTime, seconds: float) -> DeadlineQueue[HubMember]:
    """Deadlines that close a connection when they pass."""
    return DeadlineQueue(clock, seconds, lambda connection: connection.abort())
