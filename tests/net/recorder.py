"""Receivers of a stream's events, as simple as they can be."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import Clock
from twisted.python.failure import Failure

from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY
from broker.messages.message import Malformed, Message
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.dialogue import Dialogue, Request
from broker.net.hub import ConnectionHub
from tests.support.transport import Client, connect

Heard = Message | Body | Malformed | str


class Recorder:
    """Writes down what a stream hands over.

    :ivar heard: every event, in order; the end of input and of the connection in a word
    :ivar on_message: called with each message, after it was written down
    """

    def __init__(self, stream: PeerConnection) -> None:
        self.stream = stream
        self.heard: list[Heard] = []
        self.on_message: Callable[[Message], object] = lambda _: None
        self.reason: Failure | None = None

    def lost_by(self, kind: type[Exception]) -> bool:
        """Whether this is why the connection was lost."""
        return self.reason is not None and self.reason.check(kind) is not None

    def message_received(self, message: Message) -> None:
        """A message came."""
        self.heard.append(message)
        self.on_message(message)

    def body_received(self, body: Body) -> None:
        """A part of a body came."""
        self.heard.append(body)

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self.heard.append(malformed)

    def input_ended(self) -> None:
        """The peer sends nothing more."""
        self.heard.append("ended")

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.heard.append("lost")
        self.reason = reason


class Talk(Dialogue):
    """A conversation that writes down what is asked, and answers when the test says so.

    :ivar requests: every request, in order
    :ivar unasked: each ``NOTIFY`` that answered nothing
    :ivar at_once: answer each request as it comes
    """

    def __init__(self, stream: PeerConnection, *, transactions: bool = False) -> None:
        super().__init__(stream, transactions=transactions)
        self.requests: list[Request] = []
        self.unasked: list[Message] = []
        self.at_once = False

    def message_received(self, message: Message) -> None:
        """A message came."""
        if message.verb == NOTIFY:
            if not self.answered(message):
                self.unasked.append(message)
            return
        request = self.open_request(message)
        self.requests.append(request)
        if self.at_once:
            request.reply("Request Accepted.")

    def body_received(self, body: Body) -> None:
        """No body is looked at here."""

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self.malformed(malformed)

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.lost()


def record(hub: ConnectionHub, peer_host: str = "127.0.0.1") -> tuple[Client, Recorder]:
    """A client, and what hears it."""
    assert isinstance(hub.clock, Clock)
    client = connect(ConnectionFactory(hub, Recorder), hub.clock, peer_host=peer_host)
    return client, client.protocol.receiver


def converse(hub: ConnectionHub, *, known: bool = True) -> tuple[Client, Talk]:
    """A client and the conversation with it, after login where it is known."""
    assert isinstance(hub.clock, Clock)
    client = connect(ConnectionFactory(hub, Talk), hub.clock)
    if known:
        client.protocol.authenticated()
    return client, client.protocol.receiver
