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
from broker.net.timers import Timer

#: Factor by which the wait grows from one attempt to the next.
FACTOR: Final = 2.0
#: A number of attempts after which the wait is the longest, whatever it began with.
_SLOWEST: Final = 64

#: Logged when a connection was accepted, but its preparation was refused.
NOT_TAKEN_UP: Final = "A connection was not taken up: {why}"


class ClientDialogue(Receiver, Protocol):
    """A receiver that knows its connection, as each ``Dialogue`` does."""

    stream: PeerConnection


D = TypeVar("D", bound=ClientDialogue)


class ClientEvents(Protocol[D]):
    """What the owner of a ``ReconnectingClient`` does with its connections."""

    def make_dialogue(self, connection: PeerConnection, /) -> D:
        """Make the dialogue of a new connection."""

    def prepare(self, dialogue: D, /) -> Awaitable[object]:
        """Say what must come first, such as a login, and wait for the answer.

        Where this fails, the connection is closed, and another attempt is made later.
        """

    def up(self, dialogue: D, /) -> None:
        """The connection is prepared; nothing unless the owner says so."""
        return  # not abstract

    def down(self, dialogue: D, /) -> None:
        """A connection that was up is lost; its dialogue does not know yet. Nothing either."""
        return  # not abstract


class ReconnectingClient(Service, Generic[D]):
    """Keeps one connection to a server.

    A new connection is *prepared* by its owner first. Only then is it up, and only after that does
    the next loss begin with a short wait again: so a server that accepts and then refuses is not
    asked without pause.

    :ivar dialogue: the dialogue over the connection that is up, else ``None``
    """

    log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        hub: ConnectionHub,
        events: ClientEvents[D],
        *,
        jitter: Callable[[], float],
        initial: float = 0.2,
        longest: float = 30.0,
        patience: float = 10.0,
    ) -> None:
        """
        :param jitter: a random source of numbers from 0 to 1, which spreads the attempts of many
        :param initial: seconds to wait before the first attempt after a loss; each attempt waits
            from half of its time to the whole
        :param longest: the longest wait before any attempt, in seconds
        :param patience: seconds that preparing may take
        """
        self.dialogue: D | None = None
        self._hub = hub
        self._events = events
        self._patience = patience
        self._backoff = _spread_backoff(initial, longest, jitter)
        self._attempts = 0  # since a connection was last up
        self._retry_at = 0.0
        self._connection: PeerConnection | None = None
        self._preparing: Timer | None = None
        self._waiting: dict[Deferred[D], None] = {}
        factory: IProtocolFactory = _ClientFactory(self)
        self._service = ClientService(endpoint, factory, self._delay, hub.clock)

    # For the owner.

    def startService(self) -> None:
        """Connect, and from now on connect again whenever the connection is lost."""
        super().startService()  # type: ignore[no-untyped-call]
        self._service.startService()

    def stopService(self) -> Deferred[None]:
        """Close the connection and make no other; fires when it is closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        if self._connection is not None:
            self._connection.close()
        stopped = self._service.stopService()
        for waiting in list(self._waiting):
            waiting.cancel()
        return stopped

    def wait(self) -> Deferred[D]:
        """The dialogue, once a connection is up; cancel to give up."""
        waiting: Deferred[D] = Deferred(lambda given_up: self._waiting.pop(given_up, None))
        if self.dialogue is not None:
            waiting.callback(self.dialogue)
        else:
            self._waiting[waiting] = None
        return waiting

    def retry_now(self) -> None:
        """Connect at once, if it is waiting before the next attempt.

        A caller who does so at a stranger's request must limit how often.
        """
        if self.running and self._hub.clock.seconds() < self._retry_at:
            self._retry_at = 0.0
            self._service.stopService()
            self._service.startService()

    def slow_down(self) -> None:
        """Take the longest wait before each attempt from now on: an earlier one is pointless."""
        self._attempts = _SLOWEST

    # For its connections.

    def build(self) -> PeerConnection:
        """The protocol of a new connection."""
        return _ClientConnection(self._hub, self._events.make_dialogue, self)

    def made(self, connection: PeerConnection) -> None:
        """A connection is established: prepare it."""
        self._connection = connection
        dialogue: Any = connection.receiver
        self._preparing = Timer(self._hub.clock, connection.abort)
        self._preparing.start(self._patience)
        preparing = Deferred.fromCoroutine(_awaited(self._events.prepare(dialogue)))
        preparing.addCallback(lambda _: self._prepared(connection, dialogue))
        preparing.addErrback(self._preparing_failed, connection)

    def lost(self, connection: PeerConnection) -> None:
        """A connection is gone."""
        if self._connection is connection:
            self._connection = None
            self._stop_preparing()
        dialogue = self.dialogue
        if dialogue is not None and dialogue.stream is connection:
            self.dialogue = None
            self._events.down(dialogue)

    # Inside.

    def _delay(self, _attempt: int) -> float:
        self._attempts += 1
        delay = self._backoff(self._attempts)
        self._retry_at = self._hub.clock.seconds() + delay
        return delay

    def _prepared(self, connection: PeerConnection, dialogue: D) -> None:
        if self._connection is not connection or not connection.connected:
            return
        self._stop_preparing()
        self._attempts = 0
        self.dialogue = dialogue
        self._events.up(dialogue)
        waiting, self._waiting = self._waiting, {}
        for deferred in waiting:
            deferred.callback(dialogue)

    def _preparing_failed(self, failure: Failure, connection: PeerConnection) -> None:
        if failure.check(Refused, ConnectionLost) is None:
            self.log.failure("A connection could not be prepared", failure)
        else:
            # A refusal's text is the server's.
            self.log.info(NOT_TAKEN_UP, why=printable(str(failure.value)))
        connection.abort()

    def _stop_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.stop()
            self._preparing = None


def _spread_backoff(
    initial: float, longest: float, jitter: Callable[[], float]
) -> Callable[[int], float]:
    """The wait before each attempt: it doubles up to the longest, and is cut by up to a half."""
    wait = backoffPolicy(initial / FACTOR, longest, FACTOR, lambda: 0.0)
    return lambda attempt: wait(attempt) * (0.5 + jitter() / 2)


class _ClientConnection(PeerConnection):
    """A connection that tells its client when it is established and when it is gone."""

    __slots__ = ("_client",)

    def __init__(
        self,
        hub: ConnectionHub,
        receiver: Callable[[PeerConnection], Receiver],
        client: ReconnectingClient[Any],
    ) -> None:
        super().__init__(hub, receiver)
        self._client = client

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)
        self.authenticated()  # we dialled, and so know the peer
        self._client.made(self)

    def connectionLost(self, reason: Failure) -> None:
        self._client.lost(self)
        super().connectionLost(reason)


@implementer(IProtocolFactory)
class _ClientFactory:
    """Makes a client's connections; no limit for each source, since we dial."""

    def __init__(self, client: ReconnectingClient[Any]) -> None:
        self._client = client

    def buildProtocol(self, addr: IAddress | None) -> IProtocol:
        connection: IProtocol = self._client.build()
        return connection

    def doStart(self) -> None:
        """Required by the interface."""

    def doStop(self) -> None:
        """Required by the interface."""


async def _awaited(step: Awaitable[object]) -> None:
    await step
