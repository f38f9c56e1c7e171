"""The callee's side of direct calls (fig. 13): a caller must show what the mediator announced.

Until a caller has proven itself it costs one connection, a kilobyte and a few seconds; one that is
not expected is closed without a byte.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

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
from broker.terminal.channel.channel import Channel, ChannelParties
from broker.terminal.channel.handshake import BODY_BYTES, Handshake, HandshakeFailed
from broker.terminal.channel.records import Records
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.registration.notices import PendingCall

#: Seconds in which a caller must have shown its REQUEST, and again its first record. After a lost
#: SYN what is lost next is repeated after 3 s, and after 6 s more (RFC 6298, 5.7).
HANDSHAKE_TIMEOUT: Final = 10.0
#: Seconds for which a connection is held that came before the mediator's word about its session,
#: and how many are at a time.
HOLD_SECONDS: Final = 2.0
HELD_MOST: Final = 64
#: Handshakes that one session may have under way, by several candidates.
HANDSHAKES: Final = 4
#: Connections that have proven nothing yet; one more is closed.
UNPROVEN_MOST: Final = 128
#: What a connection from outside may send before it is known.
OUTSIDE: Final = Limits(
    head=4 * 1024, lines=64, body=BODY_BYTES, output=4 * 1024, stalled=5.0, outstanding=1
)


class InboundEvents(Protocol):
    """The terminal behind a listener."""

    def has_room(self) -> bool:
        """Whether one more call can be taken now."""
        ...

    def woken(self) -> None:
        """A notice from outside says that the mediator waits for a connection.

        It proves nothing: at most it may make the terminal connect (I26).
        """

    def began(self, session: str) -> None:
        """A call has begun."""

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """A callee has connected, for a call of ours (D7): it waits for our REQUEST."""


class InboundListener:
    """All connections to the terminal's direct listener, until each is a call.

    :ivar handler: the application that takes calls; ``None`` takes none
    :ivar identifier: the terminal's, as callers know it
    :ivar hub: what these connections share
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        identifier: str,
        pending: PendingCalls,
        calls: ActiveCalls,
        events: InboundEvents,
        *,
        handler: ICallHandler | None,
        trace: Trace | None = None,
    ) -> None:
        """
        :param pending: the calls that are expected
        :param calls: where the calls are counted that are open
        """
        self.handler = handler
        self.identifier = identifier
        self.hub = ConnectionHub(
            clock,
            login_timeout=HANDSHAKE_TIMEOUT,
            unauthenticated=OUTSIDE,
            authenticated=replace(
                OUTSIDE
            ),  # equal limits, another object: tells the proven ones apart
            trace=trace,
        )
        self._clock = clock
        self._pending = pending
        self._calls = calls
        self._events = events
        self._unproven: set[InboundConnection] = set()
        self._proving: dict[str, list[Channel]] = {}  # by session, until their first record
        self._held = HeldConnections(clock)
        self._proof_timeouts: DeadlineQueue[Channel] = DeadlineQueue(
            clock, HANDSHAKE_TIMEOUT, Channel.abortConnection
        )

    # For the terminal.

    def factory(self) -> ConnectionFactory:
        """What makes the connections of a listening port."""
        return _InboundFactory(self)

    def accept(self, connection: PeerConnection) -> InboundConnection:
        """The receiver of a new connection; also of one that we have dialled for a caller."""
        inbound = InboundConnection(connection, self)
        self._unproven.add(inbound)
        return inbound

    @property
    def full(self) -> bool:
        """Whether as many connections as may be have proven nothing."""
        return len(self._unproven) >= UNPROVEN_MOST

    def is_proving(self, session: str) -> bool:
        """Whether a caller has shown a session's credentials, and must send its first record."""
        return session in self._proving

    def expect(self, call: PendingCall) -> list[str]:
        """The mediator announces a call (S1301); a REQUEST that was held for it goes on now.

        :return: the sessions that are not expected from now on
        """
        dropped = self._pending.add(call)
        for inbound in self._held.take(call.session):
            self.requested(inbound)
        return dropped

    def hand_off(self, inbound: InboundConnection) -> None:
        """A connection is no concern of the listener's from now on: a callee that dialled back."""
        self._unproven.discard(inbound)

    def stop(self) -> None:
        """Close all that is no call yet, and leave no timer behind."""
        self._held.stop()
        for inbound in list(self._unproven):
            inbound.connection.abort()
        self._proof_timeouts.stop()
        self.hub.stop()

    # From a connection.

    def woken(self) -> None:
        """A wake-up notice came."""
        self._events.woken()

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """A callee says for which of our calls it has connected."""
        self._events.connected_back(inbound, session)

    def requested(self, inbound: InboundConnection) -> None:
        """A REQUEST is complete (S1303–S1306)."""
        session = inbound.session
        call = self._pending.find(session, self._clock.seconds())
        if call is None:  # it may be ahead of its announcement
            self._held.hold(inbound)
            return
        if len(self._proving.get(session, ())) >= HANDSHAKES:
            inbound.connection.abort()
            return
        handshake = Handshake(session, call.caller, self.identifier, call.key, initiator=False)
        try:
            request = handshake.read(inbound.body)
        except HandshakeFailed:
            inbound.connection.abort()
            return
        if not self._admits(call, request):
            self.log.warn("Refused a REQUEST in session {session}", session=session)
            inbound.answer(handshake.write(Message(NOTIFY, PERMISSION_DENIED)))
            inbound.connection.close(linger=True)
            return
        accepted = Message(NOTIFY, REQUEST_ACCEPTED, Password=call.reply_password)
        inbound.answer(handshake.write(accepted))
        self._hand_over(inbound, call, handshake)

    def gone(self, inbound: InboundConnection) -> None:
        """A connection is gone."""
        self._unproven.discard(inbound)
        self._held.discard(inbound)

    # The proof: a caller's first record.

    def _admits(self, call: PendingCall, request: Message) -> bool:
        fields = request.fields
        return (
            request.verb == REQUEST
            and call.admits(fields.get("Identifier", ""), fields.get("Password", ""))
            and self.handler is not None
            and self._events.has_room()
        )

    def _hand_over(
        self, inbound: InboundConnection, call: PendingCall, handshake: Handshake
    ) -> None:
        parties = ChannelParties(
            self.identifier, call.caller, call.session, False, inbound.candidate
        )
        inbound.call = call
        channel = Channel(self._clock, Records(handshake.cipher()), parties, inbound)
        self._proving.setdefault(call.session, []).append(channel)
        self._proof_timeouts.add(channel)
        inbound.connection.hand_over(channel)

    def proven(
        self, inbound: InboundConnection, channel: Channel, call: PendingCall
    ) -> IProtocol | None:
        """The first record came: it is no replay, and the session is spent (I7)."""
        self._proof_timeouts.discard(channel)
        self._unproven.discard(inbound)
        inbound.connection.authenticated()
        for other in self._proving.pop(call.session, ()):
            if other is not channel:
                other.abortConnection()
        spent = self._pending.spend(call, self._clock.seconds())
        # Checked again: another call may have begun since this REQUEST was accepted.
        if not spent or self.handler is None or not self._events.has_room():
            return None
        self._events.began(call.session)
        self._calls.opened(channel)
        return self.handler.call(call.caller, call.session)

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        """A channel is gone, proven or not."""
        proving = self._proving.get(channel.session, [])
        if channel in proving:
            proving.remove(channel)
            if not proving:
                del self._proving[channel.session]
        self._proof_timeouts.discard(channel)
        self._calls.closed(channel, reason)


class _InboundFactory(ConnectionFactory):
    """Makes connections as long as not too many of them have proven nothing."""

    def __init__(self, listener: InboundListener) -> None:
        super().__init__(listener.hub, listener.accept)
        self._listener = listener

    def buildProtocol(self, addr: IAddress | None) -> PeerConnection | None:
        return None if self._listener.full else super().buildProtocol(addr)


class InboundConnection:
    """One connection from a caller, until it is a call.

    Or from a callee that connects back to us; or one that we have made to a caller, as a callee
    that dials back.

    :ivar connection: the connection
    :ivar session: what it is for, once the other side has named it
    :ivar body: the part of the encrypted REQUEST that has arrived
    :ivar candidate: how it was made, if we have dialled it
    :ivar call: the call that it has proven to be, once its REQUEST is accepted
    """

    __slots__ = ("_listener", "_only", "body", "call", "candidate", "connection", "session")

    def __init__(self, connection: PeerConnection, listener: InboundListener) -> None:
        self.connection = connection
        self.session = ""
        self.body = b""
        self.candidate: Candidate | None = None
        self.call: PendingCall | None = None
        self._listener = listener
        self._only = ""  # we have dialled for this session, and for no other

    def dialled(self, session: str, candidate: Candidate) -> None:
        """We have dialled, for one session; the caller speaks next, as in any call.

        By hole punching the caller knows the session, since it dials too; else it is named here.
        """
        self._only = session
        self.candidate = candidate
        if candidate.method == BACK:
            self.connection.send(Message(NOTIFY, Session=session))

    def answer(self, body: bytes) -> None:
        """Send an answer of the handshake."""
        self.connection.send(Message(NOTIFY, Session=self.session, Length=len(body)))
        self.connection.write(body)

    # From the connection.

    def message_received(self, message: Message) -> None:
        """A head came: a REQUEST with its body to follow, a callee's session, or a wake-up."""
        if message.verb == NOTIFY and message.statement == CONNECTION_REQUESTED:
            self._listener.woken()
            self.connection.close()
        elif self.session or "Session" not in message.fields:
            self.connection.abort()
        elif message.verb == REQUEST and message.length:
            self._name_session(message.fields["Session"])
        elif message.verb == NOTIFY and not (message.statement or message.length or self._only):
            self.session = message.fields["Session"]
            self._listener.connected_back(self, self.session)
        else:
            self.connection.abort()

    def _name_session(self, session: str) -> None:
        if self._only in ("", session):
            self.session = session
        else:
            self.connection.abort()

    def body_received(self, body: Body) -> None:
        """A part of the encrypted REQUEST came."""
        self.body += body.data
        if body.last:
            self._listener.requested(self)

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message: nothing is answered to that."""
        self.connection.abort()

    def input_ended(self) -> None:
        """The other side has ended its input, and has shown nothing."""
        self.connection.close()

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._listener.gone(self)

    # From the channel.

    def channel_opened(self, channel: Channel) -> IProtocol | None:
        """The caller's first record came."""
        assert self.call is not None  # a channel is made for a call alone
        return self._listener.proven(self, channel, self.call)

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        """The channel is gone."""
        self._listener.channel_closed(channel, reason)


class HeldConnections:
    """Connections that came before the mediator's word about their session, for a short while.

    The mediator tells both sides at once, over connections of their own: a peer's may be faster.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._by_session: dict[str, list[InboundConnection]] = {}
        self._deadlines: DeadlineQueue[InboundConnection] = DeadlineQueue(
            clock, HOLD_SECONDS, self._expired
        )

    def hold(self, inbound: InboundConnection) -> None:
        """Hold one for its session; one too many is closed."""
        if len(self) >= HELD_MOST:
            inbound.connection.abort()
            return
        self._by_session.setdefault(inbound.session, []).append(inbound)
        self._deadlines.add(inbound)

    def __len__(self) -> int:
        return sum(map(len, self._by_session.values()))

    def take(self, session: str) -> list[InboundConnection]:
        """Those of a session, which are not held from now on."""
        taken = self._by_session.pop(session, [])
        for inbound in taken:
            self._deadlines.discard(inbound)
        return taken

    def discard(self, inbound: InboundConnection) -> None:
        """A connection is gone, if it is held."""
        held = self._by_session.get(inbound.session, [])
        if inbound in held:
            held.remove(inbound)
            self._deadlines.discard(inbound)
            if not held:
                del self._by_session[inbound.session]

    def close_all(self) -> None:
        """Close all that are held."""
        for session in list(self._by_session):
            for inbound in self.take(session):
                inbound.connection.abort()

    def stop(self) -> None:
        """Close all, and leave no timer behind."""
        self.close_all()
        self._deadlines.stop()

    def _expired(self, inbound: InboundConnection) -> None:
        self.discard(inbound)
        inbound.connection.abort()
