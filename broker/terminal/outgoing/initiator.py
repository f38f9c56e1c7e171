"""The caller's side of one connection to the callee: both show what the mediator gave them.

Whichever side has dialled, the caller speaks first, with its REQUEST (fig. 5f).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime
from twisted.python.failure import Failure

from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Malformed, Message
from broker.messages.statements import PERMISSION_DENIED, REQUEST_ACCEPTED
from broker.net.connection import PeerConnection
from broker.terminal.candidates import Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.channel.channel import Channel, ChannelParties
from broker.terminal.channel.handshake import Handshake, HandshakeFailed
from broker.terminal.channel.records import Records
from broker.terminal.errors import CallDenied, CallFailed


@dataclass(frozen=True, slots=True)
class OutgoingCall:
    """A call of ours that the mediator has granted, by whichever candidate it connects.

    :ivar caller: our identifier
    :ivar callee: the callee's, even where it was called by a name
    :ivar credentials: the mediator's answer (fig. 5d)
    :ivar factory: makes the application's protocol
    :ivar calls: where the call is counted while it is open
    """

    clock: IReactorTime
    caller: str
    callee: str
    credentials: Message
    factory: IProtocolFactory
    calls: ActiveCalls

    @property
    def session(self) -> str:
        """The session's identifier."""
        return self.credentials.fields["Session"]


class InitiatorEvents(Protocol):
    """What connects a call: an attempt of its connector, or what waits for its callee."""

    def opening(self) -> Sequence[FailedCandidate]:
        """The channel is about to open; give what else was tried, and failed."""
        ...

    def channel_closed(self) -> object:
        """The channel is gone."""


class InitiatorHandshake:
    """One connection to the callee, until it is a channel.

    :ivar opened: it has become one, and so the session is spent
    """

    def __init__(
        self,
        connection: PeerConnection,
        call: OutgoingCall,
        candidate: Candidate,
        events: InitiatorEvents,
    ) -> None:
        """
        :param candidate: how the connection was made
        """
        self.opened = False
        self._connection = connection
        self._call = call
        self._candidate = candidate
        self._events = events
        key = call.credentials.fields["Encrypt Key"]
        self._handshake = Handshake(call.session, call.caller, call.callee, key, initiator=True)
        self._done: Deferred[IProtocol] = Deferred(lambda _: connection.abort())
        self._body = b""

    def request(self) -> Deferred[IProtocol]:
        """Send the REQUEST (fig. 5f).

        :return: fires with the application's protocol on its channel; fails with ``CallFailed``
        """
        call = self._call
        password = call.credentials.fields["Password"]
        body = self._handshake.write(Message(REQUEST, Identifier=call.caller, Password=password))
        self._connection.send(Message(REQUEST, Session=call.session, Length=len(body)))
        self._connection.write(body)
        return self._done

    # From the connection.

    def message_received(self, message: Message) -> None:
        """The head of the answer arrived."""
        session = message.get("Session")
        if message.verb != NOTIFY or session != self._call.session or not message.length:
            self._fail(f"{self._call.callee} did not answer as a terminal does")

    def body_received(self, body: Body) -> None:
        """A part of the encrypted answer arrived."""
        self._body += body.data
        if body.last:
            try:
                answer = self._handshake.read(self._body)
            except HandshakeFailed as error:
                self._fail(f"what answered at {self._call.callee}'s address is not it: {error}")
            else:
                self._answered(answer)

    def malformed_received(self, malformed: Malformed) -> None:
        """What arrived is no message."""
        self._fail(f"{self._call.callee} did not answer as a terminal does: {malformed.cause}")

    def input_ended(self) -> None:
        """The callee closed without an answer: it does not expect this session."""
        self._fail(f"{self._call.callee} closed the connection without an answer")

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._fail(f"{self._call.callee} closed the connection without an answer")

    # The answer.

    def _answered(self, answer: Message) -> None:
        callee = self._call.callee
        if answer.statement == PERMISSION_DENIED:
            self._fail(f"{callee} denied the call: {PERMISSION_DENIED}", CallDenied)
        elif answer.statement != REQUEST_ACCEPTED or not self._is_callee(answer):
            self._fail(f"what answered at {callee}'s address could not prove that it is {callee}")
        else:
            self._open()

    def _is_callee(self, answer: Message) -> bool:
        """The mutual check (A23): the callee shows a password of its own; in constant time."""
        shown = answer.fields.get("Password", "").encode("utf-8")
        expected = self._call.credentials.fields.get("Reply Password", "").encode("utf-8")
        return hmac.compare_digest(shown, expected)

    def _open(self) -> None:
        call = self._call
        failed = self._events.opening()
        parties = ChannelParties(
            call.caller, call.callee, call.session, True, self._candidate, tuple(failed)
        )
        channel = Channel(call.clock, Records(self._handshake.cipher()), parties, self)
        self.opened = True
        call.factory.doStart()
        self._connection.hand_over(channel)
        if self._done.called:
            return
        if channel.protocol is not None:
            self._done.callback(channel.protocol)
        else:
            self._done.errback(CallFailed("the application gave no protocol for the call"))

    # From the channel.

    def channel_opened(self, channel: Channel) -> IProtocol | None:
        """The channel is open: the application speaks on it."""
        self._call.calls.opened(channel)
        return self._call.factory.buildProtocol(channel.getPeer())

    def channel_closed(self, channel: Channel, reason: Failure) -> None:
        """The channel is gone."""
        # First: what waits for the end of all calls must also wait for what this begins to close.
        self._events.channel_closed()
        self._call.calls.closed(channel, reason)
        self._call.factory.doStop()

    def _fail(self, why: str, error: type[CallFailed] = CallFailed) -> None:
        self._connection.abort()
        if not self._done.called:
            self._done.errback(error(why))
