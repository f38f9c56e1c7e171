"""The caller's side of a call: ask, dial, show what the mediator gave, speak (fig. 11)."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure

from broker.terminal.calls import Calls
from broker.terminal.channel import Channel
from broker.terminal.doors import OUTSIDE
from broker.terminal.errors import CallFailed
from broker.terminal.handshake import Handshake, HandshakeFailed
from broker.terminal.line import Line
from broker.terminal.records import Records
from broker.wire.decoder import Body
from broker.wire.grammar import NOTIFY, REQUEST
from broker.wire.message import Malformed, Message
from broker.wire.statements import PERMISSION_DENIED, REQUEST_ACCEPTED
from broker.wire.stream import Exchange, Stream, Trace

#: Seconds in which the direct connection must stand, and again the handshake be over.
DIAL_TIMEOUT: Final = 10.0


async def place_call(
    reactor: Any,
    line: Line,
    callee: str,
    factory: IProtocolFactory,
    *,
    calls: Calls | None = None,
    exchange: Exchange | None = None,
    trace: Trace | None = None,
) -> IProtocol:
    """Call a terminal; the protocol that the factory makes then speaks with it.

    :param reactor: an ``IReactorTCP`` and ``IReactorTime``
    :param calls: where the call is counted; by default it is only reported to the mediator
    :param exchange: what direct connections share (``direct_exchange``); one of its own, without
    :raises Refused: the mediator refused (``PermissionDenied``, ``CalleeBusy``, …)
    :raises CallFailed: the callee could not be reached directly, or did not take the call
    :raises ConnectionLost: the connection to the mediator went before it answered
    :raises ValueError: nobody can be called that
    """
    told = await line.query(callee)  # S1101–S1106
    callee = told.fields.get("Callee", callee)  # its identifier, where it was called by a name
    counted = Calls(line.ended) if calls is None else calls
    stream = Stream(
        direct_exchange(reactor, trace) if exchange is None else exchange,
        lambda stream: Knock(stream, reactor, line.identifier, callee, told, factory, counted),
    )
    try:
        await connectProtocol(_way_to(reactor, told), stream)
    except (ConnectError, DNSLookupError) as error:
        place = f"{told.fields['Callee Address']} port {told.fields['Callee Port']}"
        raise CallFailed(f"{callee} could not be reached at {place}: {error}") from None
    knock = stream.receiver
    assert isinstance(knock, Knock)  # as made above
    return await knock.request()  # S1107–S1110


def direct_exchange(clock: IReactorTime, trace: Trace | None = None) -> Exchange:
    """What the connections that we dial to callees share."""
    return Exchange(clock, login_timeout=DIAL_TIMEOUT, stranger=OUTSIDE, known=OUTSIDE, trace=trace)


def _way_to(reactor: Any, told: Message) -> IStreamClientEndpoint:
    host = told.fields["Callee Address"]
    made = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
    way: IStreamClientEndpoint = made(
        reactor, host, int(told.fields["Callee Port"]), timeout=DIAL_TIMEOUT
    )
    return way


class Knock:
    """One connection to the callee, until it is a channel.

    :ivar opened: it has become one, and so the session is spent
    """

    def __init__(
        self,
        stream: Stream,
        clock: IReactorTime,
        identifier: str,
        callee: str,
        told: Message,
        factory: IProtocolFactory,
        calls: Calls,
        *,
        over: Callable[[], object] = lambda: None,
    ) -> None:
        """
        :param told: the credentials (fig. 5d)
        :param over: called when the channel is gone, if there was one
        """
        self.opened = False
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
            self._fail(f"{self._callee} denied the call: {PERMISSION_DENIED}")
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

    def _fail(self, why: str) -> None:
        self._stream.abort()
        if not self._answered.called:
            self._answered.errback(CallFailed(why))
