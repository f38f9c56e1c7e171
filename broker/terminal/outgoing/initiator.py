"""The caller's side of one connection: it shows what the mediator gave, and so must the callee.

Whoever dialled: the caller speaks first, with its REQUEST (fig. 5f).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence

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
from broker.terminal.channel.channel import Channel
from broker.terminal.channel.handshake import Handshake, HandshakeFailed
from broker.terminal.channel.records import Records
from broker.terminal.errors import CallDenied, CallFailed


class InitiatorHandshake:
    """One connection to the callee, until it is a channel.

    :ivar opened: it has become one, and so the session is spent
    """

    def __init__(
        self,
        stream: PeerConnection,
        clock: IReactorTime,
        identifier: str,
        callee: str,
        told: Message,
        factory: IProtocolFactory,
        calls: ActiveCalls,
        *,
        candidate: Candidate,
        opening: Callable[[], Sequence[FailedCandidate]] = tuple,
        over: Callable[[], object] = lambda: None,
    ) -> None:
        """
        :param told: the credentials (fig. 5d)
        :param candidate: how this connection came to be
        :param opening: called as the channel is about to open; gives the ways that did not lead
            there
        :param over: called when the channel is gone, if there was one
        """
        self.opened = False
        self._candidate = candidate
        self._opening = opening
        self._stream = stream
        self._clock = clock
        self._identifier = identifier
        self._callee = callee
        self._told = told.fields
        self._factory = factory
        self._calls = calls
        self._over = over
        self._session = told.fields["Session"]
        self._handshake = Handshake(
            self._session, identifier, callee, told.fields["Encrypt Key"], initiator=True
        )
        self._answered: Deferred[IProtocol] = Deferred(lambda _: stream.abort())
        self._body = b""

    def request(self) -> Deferred[IProtocol]:
        """Send the REQUEST (fig. 5f).

        :return: fires with the application's protocol on its channel; fails with ``CallFailed``
        """
        body = self._handshake.write(
            Message(REQUEST, Identifier=self._identifier, Password=self._told["Password"])
        )
        self._stream.send(Message(REQUEST, Session=self._session, Length=len(body)))
        self._stream.write(body)
        return self._answered

    def message_received(self, message: Message) -> None:
        """The head of the answer came."""
        if message.verb != NOTIFY or message.get("Session") != self._session or not message.length:
            self._fail(f"{self._callee} did not answer as a terminal does")

    def body_received(self, body: Body) -> None:
        """A part of the encrypted answer came."""
        self._body += body.data
        if body.last:
            try:
                answer = self._handshake.read(self._body)
            except HandshakeFailed as error:
                self._fail(f"whoever answered at {self._callee}'s address is not it: {error}")
            else:
                self._read(answer)

    def _read(self, answer: Message) -> None:
        if answer.statement == PERMISSION_DENIED:
            self._fail(f"{self._callee} denied the call: {PERMISSION_DENIED}", CallDenied)
        elif answer.statement != REQUEST_ACCEPTED or not self._is_callee(answer):
            self._fail(f"whoever answered at {self._callee}'s address could not prove to be it")
        else:
            self._open()

    def _is_callee(self, answer: Message) -> bool:
        """The mutual check (A23): the callee shows a password of its own."""
        shown = (answer.get("Password") or "").encode("utf-8")
        return hmac.compare_digest(shown, self._told.get("Reply Password", "").encode("utf-8"))

    def _open(self) -> None:
        channel = Channel(
            self._clock,
            Records(self._handshake.cipher()),
            identifier=self._identifier,
            peer=self._callee,
            session=self._session,
            opened=lambda: self._opened(channel),
            closed=lambda reason: self._closed(channel, reason),
            initiator=True,
            candidate=self._candidate,
            failed_candidates=self._opening(),
        )
        self.opened = True
        self._factory.doStart()
        self._stream.hand_over(channel)
        if self._answered.called:
            return
        if channel.protocol is not None:
            self._answered.callback(channel.protocol)
        else:
            self._answered.errback(CallFailed("the application gave no protocol for the call"))

    def _opened(self, channel: Channel) -> IProtocol | None:
        self._calls.opened(channel)
        return self._factory.buildProtocol(channel.getPeer())

    def _closed(self, channel: Channel, reason: Failure) -> None:
        self._over()  # first: whoever waits for the end of all calls waits for what this begins
        self._calls.closed(channel, reason)
        self._factory.doStop()

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self._fail(f"{self._callee} did not answer as a terminal does: {malformed.cause}")

    def input_ended(self) -> None:
        """The callee closed without an answer: it does not expect this session."""
        self._fail(f"{self._callee} closed the connection without an answer")

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self._fail(f"{self._callee} closed the connection without an answer")

    def _fail(self, why: str, failed: type[CallFailed] = CallFailed) -> None:
        self._stream.abort()
        if not self._answered.called:
            self._answered.errback(failed(why))
