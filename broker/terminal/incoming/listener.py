"""The callee's side of direct calls (fig. 13): who connects must show what the mediator announced.

Until a caller has proven itself it costs one connection, a kilobyte and a few seconds; whoever is
not expected is closed on without a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import ICallHandler
from broker.messages.framing import Body, Limits
from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Malformed, Message
from broker.messages.statements import CONNECTION_REQUESTED, PERMISSION_DENIED, REQUEST_ACCEPTED
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub, Trace
from broker.net.timers import DeadlineQueue
from broker.terminal.candidates import BACK, Candidate
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.channel.channel import Channel
from broker.terminal.channel.handshake import BODY_BYTES, Handshake, HandshakeFailed
from broker.terminal.channel.records import Records
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.registration.notices import PendingCall

#: Seconds in which a caller must have shown its REQUEST, and again its first record. After a lost
#: SYN what is lost next is repeated after 3 s, and after 6 s more (RFC 6298, 5.7).
HANDSHAKE_TIMEOUT: Final = 10.0
#: Seconds for which a REQUEST that overtook its announcement is held, and how many are.
HOLD_SECONDS: Final = 2.0
HELD_MOST: Final = 64
#: Handshakes that one session may have under way, along several ways.
HANDSHAKES: Final = 4
#: Connections that have proven nothing yet; one more is closed.
UNPROVEN_MOST: Final = 128
#: What a connection from outside may send before it is known.
OUTSIDE: Final = Limits(
    head=4 * 1024, lines=64, body=BODY_BYTES, output=4 * 1024, stalled=5.0, outstanding=1
)


class InboundListener:
    """All connections to the terminal's direct listener, and what they may become.

    :ivar handler: the application that takes calls; ``None`` takes none
    :ivar identifier: whom callers know the terminal as
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        identifier: str,
        expected: PendingCalls,
        calls: ActiveCalls,
        *,
        handler: ICallHandler | None,
        woken: Callable[[], object],
        began: Callable[[str], object],
        may_take: Callable[[], bool] = lambda: True,
        trace: Trace | None = None,
    ) -> None:
        """
        :param woken: called when somebody outside says that a connection is asked for (I26)
        :param began: told the session of each call that has begun
        :param may_take: whether one more call can be taken now
        """
        self.handler = handler
        self.exchange = ConnectionHub(
            clock,
            login_timeout=HANDSHAKE_TIMEOUT,
            unauthenticated=OUTSIDE,
            # Equal limits, but an object of its own: so it is known who has proven itself.
            authenticated=replace(OUTSIDE),
            trace=trace,
        )
        self._clock = clock
        self.identifier = identifier
        self._expected = expected
        self._calls = calls
        self._woken = woken
        self._began = began
        self._may_take = may_take
        self._unproven: set[InboundConnection] = set()
        self._attempts: dict[str, list[Channel]] = {}
        self._held: dict[str, list[InboundConnection]] = {}
        #: Told that somebody has come for a session, as a callee does whom we asked to (D7).
        self.came: Callable[[InboundConnection, str], object] = lambda door, session: (
            door.stream.abort()
        )
        self._holding: DeadlineQueue[InboundConnection] = DeadlineQueue(
            clock, HOLD_SECONDS, self._held_too_long
        )
        self._proving: DeadlineQueue[Channel] = DeadlineQueue(
            clock, HANDSHAKE_TIMEOUT, lambda channel: channel.abortConnection()
        )

    def door(self, stream: PeerConnection) -> InboundConnection:
        """The receiver of a new connection."""
        door = InboundConnection(stream, self)
        self._unproven.add(door)
        return door

    def factory(self) -> ConnectionFactory:
        """What makes the connections of a listener."""
        return _DoorFactory(self)

    def asked(self, session: str) -> bool:
        """Whether somebody has shown what opens a session, and is about to prove it."""
        return session in self._attempts

    @property
    def full(self) -> bool:
        """Whether as many connections as may be have proven nothing."""
        return len(self._unproven) >= UNPROVEN_MOST

    def stop(self) -> None:
        """Close whatever is no call yet, and leave no timer behind."""
        for door in list(self._unproven):
            door.stream.abort()
        self._held.clear()
        self._holding.stop()
        self._proving.stop()
        self.exchange.stop()

    # From the mediator's line.

    def expect(self, call: PendingCall) -> list[str]:
        """The mediator announces a call (S1301); a REQUEST that came before it goes on now.

        :return: the sessions that are expected no longer
        """
        gone = self._expected.add(call)
        for door in self._held.pop(call.session, ()):
            self._holding.discard(door)
            self.requested(door, call.session, door.body)
        return gone

    def leave(self, door: InboundConnection) -> None:
        """A connection is somebody else's to look after from now on."""
        self._unproven.discard(door)

    # From a door.

    def woken(self) -> None:
        """Somebody says that a connection is asked for: at most it makes us connect."""
        self._woken()

    def requested(self, door: InboundConnection, session: str, body: bytes) -> None:
        """A REQUEST came (S1303–S1306)."""
        call = self._expected.find(session, self._clock.seconds())
        if call is None:
            self._hold(door, session)
            return
        if len(self._attempts.get(session, ())) >= HANDSHAKES:
            door.stream.abort()
            return
        handshake = Handshake(session, call.caller, self.identifier, call.key, initiator=False)
        try:
            request = handshake.read(body)
        except HandshakeFailed:
            door.stream.abort()
            return
        if not self._admits(call, request):
            self.log.warn("A REQUEST in session {session} was denied", session=session)
            door.answer(session, handshake.write(Message(NOTIFY, PERMISSION_DENIED)))
            door.stream.close(linger=True)
            return
        accepted = Message(NOTIFY, REQUEST_ACCEPTED, Password=call.reply_password)
        door.answer(session, handshake.write(accepted))
        self._hand_over(door, call, handshake)

    def gone(self, door: InboundConnection) -> None:
        """A connection is gone."""
        self._unproven.discard(door)
        held = self._held.get(door.session)
        if held is not None and door in held:
            held.remove(door)
            self._holding.discard(door)
            if not held:
                del self._held[door.session]

    # Within.

    def _admits(self, call: PendingCall, request: Message) -> bool:
        return (
            request.verb == REQUEST
            and call.admits(request.get("Identifier") or "", request.get("Password") or "")
            and self.handler is not None
            and self._may_take()
        )

    def _hold(self, door: InboundConnection, session: str) -> None:
        if sum(map(len, self._held.values())) >= HELD_MOST:
            door.stream.abort()
            return
        self._held.setdefault(session, []).append(door)
        self._holding.add(door)

    def _held_too_long(self, door: InboundConnection) -> None:
        door.stream.abort()

    def _hand_over(self, door: InboundConnection, call: PendingCall, handshake: Handshake) -> None:
        channel = Channel(
            self._clock,
            Records(handshake.cipher()),
            identifier=self.identifier,
            peer=call.caller,
            session=call.session,
            opened=lambda: self._proven(door, channel, call),
            closed=lambda reason: self._closed(channel, call, reason),
            initiator=False,
            candidate=door.candidate,
        )
        self._attempts.setdefault(call.session, []).append(channel)
        self._proving.add(channel)
        door.stream.hand_over(channel)

    def _proven(
        self, door: InboundConnection, channel: Channel, call: PendingCall
    ) -> IProtocol | None:
        """The first record came: it is no replay, and the session is spent (I7)."""
        self._proving.discard(channel)
        self._unproven.discard(door)
        door.stream.authenticated()
        for other in self._attempts.pop(call.session, ()):
            if other is not channel:
                other.abortConnection()
        spent = self._expected.spend(call, self._clock.seconds())
        if not spent or self.handler is None or not self._may_take():
            return None  # another may have begun since this one's REQUEST was accepted
        self._began(call.session)
        self._calls.opened(channel)
        return self.handler.call(call.caller, call.session)

    def _closed(self, channel: Channel, call: PendingCall, reason: Failure) -> None:
        attempts = self._attempts.get(call.session, [])
        if channel in attempts:
            attempts.remove(channel)
            if not attempts:
                del self._attempts[call.session]
        self._proving.discard(channel)
        self._calls.closed(channel, reason)


class _DoorFactory(ConnectionFactory):
    """Makes connections as long as not too many of them have proven nothing."""

    def __init__(self, doors: InboundListener) -> None:
        super().__init__(doors.exchange, doors.door)
        self._doors = doors

    def buildProtocol(self, addr: IAddress | None) -> PeerConnection | None:
        return None if self._doors.full else super().buildProtocol(addr)


class InboundConnection:
    """One connection from outside, or to a caller that wants us to come, until it is a call."""

    __slots__ = ("_doors", "_only", "body", "candidate", "session", "stream")

    def __init__(self, stream: PeerConnection, doors: InboundListener) -> None:
        self.candidate: Candidate | None = None
        self.stream = stream
        self.session = ""
        self.body = b""
        self._doors = doors
        self._only = ""  # we have come for this session, and for no other

    def come(self, session: str, candidate: Candidate) -> None:
        """We have come, for one session; the caller speaks next, as in any call.

        Where it dials us besides, it knows for which; else it is told.
        """
        self._only = session
        self.candidate = candidate
        if candidate.method == BACK:
            self.stream.send(Message(NOTIFY, Session=session))

    def message_received(self, message: Message) -> None:
        """A head came: a REQUEST with its body to follow, or a mediator's wake-up."""
        if message.verb == NOTIFY and message.statement == CONNECTION_REQUESTED:
            self._doors.woken()
            self.stream.close()
        elif self.session or "Session" not in message.fields:
            self.stream.abort()
        elif message.verb == REQUEST and message.length:
            self._take(message.fields["Session"])
        elif message.verb == NOTIFY and not (message.statement or message.length or self._only):
            self.session = message.fields["Session"]
            self._doors.came(self, self.session)
        else:
            self.stream.abort()

    def _take(self, session: str) -> None:
        if self._only in ("", session):
            self.session = session
        else:
            self.stream.abort()

    def body_received(self, body: Body) -> None:
        """A part of the encrypted REQUEST came."""
        self.body += body.data
        if body.last:
            self._doors.requested(self, self.session, self.body)

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message: there is nothing to say to whoever sends that here."""
        self.stream.abort()

    def input_ended(self) -> None:
        """Nothing more comes, and nothing was shown."""
        self.stream.close()

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._doors.gone(self)

    def answer(self, session: str, body: bytes) -> None:
        """Send an answer of the handshake."""
        self.stream.send(Message(NOTIFY, Session=session, Length=len(body)))
        self.stream.write(body)
