"""A client's one connection to its server: made, kept, and made again when it is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from twisted.application.internet import ClientService, backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.errors import Refused
from broker.messages.message import printable
from broker.net.connection import PeerConnection, Receiver
from broker.net.hub import ConnectionHub

#: By what the wait grows from one attempt to the next.
FACTOR: Final = 2.0
#: So many attempts that the wait is the longest, whatever it began with.
_SLOWEST: Final = 64


class _Conversation(Receiver, Protocol):
    """A receiver that knows its stream, as each ``Dialogue`` does."""

    stream: PeerConnection


C = TypeVar("C", bound=_Conversation)


class ReconnectingClient(Service, Generic[C]):
    """Keeps one connection to a server.

    A connection that stands is first *prepared* by its owner (who says who it is, and whatever
    else must come first); only then is it up, and only then does the next loss begin with a short
    wait again. So a server that accepts and then refuses is not asked without pause.

    :ivar conversation: what is said over the connection that is up, else ``None``
    """

    log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        exchange: ConnectionHub,
        receiver: Callable[[PeerConnection], C],
        *,
        jitter: Callable[[], float],
        prepare: Callable[[C], Awaitable[object]] | None = None,
        up: Callable[[C], object] | None = None,
        down: Callable[[C], object] | None = None,
        initial: float = 0.2,
        most: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        """
        :param receiver: gives the conversation of a new connection
        :param jitter: a random source of numbers from 0 to 1, which spreads the attempts of many
        :param prepare: what must be said before the link is up; where it fails, the connection is
            closed and another attempted later
        :param up: called when the link is up
        :param down: called when a link that was up is lost, before the conversation hears of it
        :param initial: seconds to wait before the first attempt after a loss; each attempt takes
            from half of its wait to the whole
        :param most: seconds to wait before any attempt, at the most
        :param patience: seconds that preparing may take
        """
        self.conversation: C | None = None
        self._exchange = exchange
        self._receiver = receiver
        self._jitter = jitter
        self._prepare = prepare
        self._up = up
        self._down = down
        self._patience = patience
        self._wait = backoffPolicy(initial / FACTOR, most, FACTOR, lambda: 0.0)
        self._attempts = 0  # since the link was last up
        self._retry_at = 0.0
        self._standing: PeerConnection | None = None
        self._preparing: IDelayedCall | None = None
        self._waiting: dict[Deferred[C], None] = {}
        factory: IProtocolFactory = _Factory(self)
        self._service = ClientService(endpoint, factory, self._delay, exchange.clock)

    # For the owner.

    def startService(self) -> None:
        """Connect, and from now on connect again whenever the connection is lost."""
        super().startService()  # type: ignore[no-untyped-call]
        self._service.startService()

    def stopService(self) -> Deferred[None]:
        """Close the connection and make no other; fires when it is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._standing is not None:
            self._standing.close()
        stopped = self._service.stopService()
        for waiting in list(self._waiting):
            waiting.cancel()
        return stopped

    def wait(self) -> Deferred[C]:
        """The conversation, once the link is up; cancel to give up."""
        waiting: Deferred[C] = Deferred(lambda given_up: self._waiting.pop(given_up, None))
        if self.conversation is not None:
            waiting.callback(self.conversation)
        else:
            self._waiting[waiting] = None
        return waiting

    def retry_now(self) -> None:
        """Connect at once, if the next attempt is being waited for.

        Whoever does so on a stranger's word sees to it that this is not too often.
        """
        if self.running and self._exchange.clock.seconds() < self._retry_at:
            self._retry_at = 0.0
            self._service.stopService()
            self._service.startService()

    def slow_down(self) -> None:
        """Take the longest wait before the next attempt, and from there on: it would be in vain."""
        self._attempts = _SLOWEST

    # From the connection.

    def build(self) -> PeerConnection:
        """The protocol of a new connection."""
        return _Connection(self._exchange, self._receiver, self)

    def made(self, stream: PeerConnection) -> None:
        """A connection stands."""
        self._standing = stream
        conversation: Any = stream.receiver
        if self._prepare is None:
            self._is_up(conversation)
            return
        self._preparing = self._exchange.clock.callLater(self._patience, stream.abort)
        preparing = Deferred.fromCoroutine(_awaited(self._prepare(conversation)))
        preparing.addCallback(lambda _: self._is_prepared(stream, conversation))
        preparing.addErrback(self._is_not_prepared, stream)

    def lost(self, stream: PeerConnection) -> None:
        """The connection is gone."""
        if self._standing is stream:
            self._standing = None
            self._stop_preparing()
        conversation = self.conversation
        if conversation is not None and conversation.stream is stream:
            self.conversation = None
            if self._down is not None:
                self._down(conversation)

    # Inside.

    def _delay(self, _attempt: int) -> float:
        self._attempts += 1
        delay = self._wait(self._attempts) * (0.5 + self._jitter() / 2)
        self._retry_at = self._exchange.clock.seconds() + delay
        return delay

    def _is_prepared(self, stream: PeerConnection, conversation: C) -> None:
        if self._standing is stream and stream.connected:
            self._stop_preparing()
            self._is_up(conversation)

    def _is_not_prepared(self, failure: Failure, stream: PeerConnection) -> None:
        if failure.check(Refused, ConnectionLost) is None:
            self.log.failure("A connection could not be prepared", failure)
        else:
            why = printable(str(failure.value))  # a refusal's is the server's text
            self.log.info("A connection was not taken up: {why}", why=why)
        stream.abort()

    def _stop_preparing(self) -> None:
        if self._preparing is not None:
            if self._preparing.active():
                self._preparing.cancel()
            self._preparing = None

    def _is_up(self, conversation: C) -> None:
        self._attempts = 0
        self.conversation = conversation
        if self._up is not None:
            self._up(conversation)
        waiting = self._waiting
        self._waiting = {}
        for one in waiting:
            one.callback(conversation)


class _Connection(PeerConnection):
    """A stream that tells its link when it stands and when it is gone."""

    __slots__ = ("_link",)

    def __init__(
        self,
        exchange: ConnectionHub,
        receiver: Callable[[PeerConnection], Receiver],
        link: ReconnectingClient[Any],
    ) -> None:
        super().__init__(exchange, receiver)
        self._link = link

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)
        self.authenticated()  # we know whom we called
        self._link.made(self)

    def connectionLost(self, reason: Failure) -> None:
        self._link.lost(self)
        super().connectionLost(reason)


@implementer(IProtocolFactory)
class _Factory:
    """Makes a link's connections; it counts no sources, since we dial."""

    def __init__(self, link: ReconnectingClient[Any]) -> None:
        self._link = link

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:
        stream: IProtocol = self._link.build()
        return stream

    def doStart(self) -> None:
        """Required by the interface."""

    def doStop(self) -> None:
        """Required by the interface."""


async def _awaited(step: Awaitable[object]) -> None:
    await step
