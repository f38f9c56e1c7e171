"""One terminal's connection to the mediator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

from twisted.python.failure import Failure

from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY
from broker.messages.message import Malformed, Message
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue, Request
from broker.net.peer_address import remote_host_of
from broker.tables.address_policy import Ip, parse_ip
from broker.tables.locations import CandidateOffer, Contact


class ConnectionEvents(Protocol):
    """What a terminal's connection needs of its server.

    :ivar counts: outcomes, counted for the operator
    """

    counts: Counter[str]

    def requested(self, peer: Peer, request: Request, /) -> None:
        """A request came."""

    def reported(self, peer: Peer, session: str, message: Message, /) -> None:
        """A report on a session came."""

    def lost(self, peer: Peer, /) -> None:
        """The connection is gone."""


class Peer(Dialogue):
    """A conversation with a terminal, bound to one identifier once it has said who it is.

    :ivar identifier: whom it acts as (I4), ``None`` before login
    :ivar address: the address it registered over this connection, if it did
    :ivar key: the Key ID of the registration key that was given out over it, if one was
    :ivar port: where it takes calls, as it said when that was
    :ivar offer: what its callers may be told besides, as it registered over this connection
    :ivar turn: which registration that was among all; the latest is the one reached
    :ivar failures: how many logins have failed on it
    :ivar greeting: further fields for the answer to its login
    :ivar leaving: called when it goes while it is being found out who it is
    """

    __slots__ = (
        "_mediator",
        "address",
        "failures",
        "greeting",
        "identifier",
        "key",
        "leaving",
        "offer",
        "port",
        "turn",
    )

    def __init__(self, stream: PeerConnection, mediator: ConnectionEvents) -> None:
        super().__init__(stream)
        self._mediator = mediator
        self.identifier: str | None = None
        self.address: Contact | None = None
        self.key: str | None = None
        self.port = 0
        self.offer: CandidateOffer | None = None
        self.turn = 0
        self.failures = 0
        self.greeting: dict[str, str] | None = None
        self.leaving: Callable[[], None] | None = None

    def message_received(self, message: Message) -> None:
        """A message came: a report on a session, an answer to a question of ours, or a request."""
        if message.verb == NOTIFY:
            session = message.fields.get("Session")
            if session is not None:
                self._mediator.reported(self, session, message)
            else:
                self.answered(message)
        else:
            self._mediator.requested(self, self.asked(message))

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self._mediator.counts["malformed"] += 1
        self.malformed(malformed)

    def body_received(self, body: Body) -> None:
        """No request takes a body so far; the one it came with has been refused."""

    def dismiss(self) -> None:
        """Take nothing more, and close once what was asked is answered."""
        self.input_ended()

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone: so is all that waited for it."""
        self.lost()
        if self.leaving is not None:
            self.leaving()
        self._mediator.lost(self)


def seen_ip(peer: Peer) -> Ip:
    """The address that a connection comes from; an IPv4 one in IPv6 clothing is taken for one."""
    return parse_ip(remote_host_of(peer.stream))


def canonical_identifier_field(peer: Peer, request: Request) -> dict[str, str]:
    """What tells a terminal that calls itself by another name its identifier (C1).

    That is how the other side of its calls is told who it is; nothing to whom knows it, or can't
    be told since the figure holds no more.
    """
    identifier = peer.identifier or ""
    if request.bare or request.message.fields.get("Identifier", identifier) == identifier:
        return {}
    return {"Identifier": identifier}
