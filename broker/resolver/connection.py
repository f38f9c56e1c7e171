"""One connection to the resolver: a mediator's link, or a terminal's."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from twisted.python.failure import Failure

from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY
from broker.messages.message import Malformed, Message
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue, Request
from broker.tables.locations import Contact


class ResolverConnectionEvents(Protocol):
    """What a connection needs of its server.

    :ivar counts: outcomes, counted for the operator
    """

    counts: Counter[str]

    def requested(self, connection: ResolverConnection, request: Request, /) -> None:
        """A request came."""

    def lost(self, connection: ResolverConnection, /) -> None:
        """The connection is gone."""


class ResolverConnection(Dialogue):
    """The dialogue over one connection.

    :ivar is_link: it is a mediator's link
    :ivar identifier: the terminal that it belongs to (I4), ``None`` before it says so
    :ivar contact: the contact that the terminal registered over it, if it did
    """

    __slots__ = ("_server", "contact", "identifier", "is_link")

    def __init__(self, stream: PeerConnection, server: ResolverConnectionEvents) -> None:
        super().__init__(stream)
        self._server = server
        self.is_link = False
        self.identifier: str | None = None
        self.contact: Contact | None = None

    def message_received(self, message: Message) -> None:
        """A message came; the resolver asks nothing, and so expects no ``NOTIFY``."""
        if message.verb != NOTIFY:
            self._server.requested(self, self.open_request(message))

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self._server.counts["malformed"] += 1
        self.malformed(malformed)

    def body_received(self, body: Body) -> None:
        """No request takes a body; the one it came with has been refused."""

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone."""
        self.lost()
        self._server.lost(self)
