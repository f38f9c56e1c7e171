"""One terminal's connection to the mediator."""

from __future__ import annotations

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


class TerminalEvents(Protocol):
    """What a server is told of its terminals' connections."""

    def requested(self, peer: TerminalConnection, request: Request, /) -> None:
        """A request came."""

    def reported(self, peer: TerminalConnection, session: str, message: Message, /) -> None:
        """A report on a session came."""

    def received_malformed(self) -> None:
        """What came is no message; the connection has answered it."""

    def lost(self, peer: TerminalConnection, /) -> None:
        """The connection is gone."""


class TerminalConnection(Dialogue):
    """A terminal's connection, which acts as one identifier from its login on.

    :ivar logged_in: it has proven an identity
    :ivar identifier: the identifier it acts as (I4). Not set before login: to read it then is an
        error of ours (``AttributeError``), so that no handler takes a stranger for a terminal.
    :ivar address: the address it registered over this connection, if it did
    :ivar key: the Key ID of the registration key that was given out over it, if one was
    :ivar port: where it takes calls, as it said when it got that key
    :ivar offer: the other candidates that its callers may be given, as it registered them
    :ivar registration_number: the number of its registration among all of this server; the
        terminal is reached over the connection with the latest one
    :ivar failed_logins: how many logins have failed on it
    """

    __slots__ = (
        "_events",
        "address",
        "failed_logins",
        "identifier",
        "key",
        "logged_in",
        "offer",
        "port",
        "registration_number",
    )

    identifier: str

    def __init__(self, stream: PeerConnection, events: TerminalEvents) -> None:
        super().__init__(stream)
        self._events = events
        self.logged_in = False
        self.address: Contact | None = None
        self.key: str | None = None
        self.port = 0
        self.offer: CandidateOffer | None = None
        self.registration_number = 0
        self.failed_logins = 0

    def log_in(self, identifier: str) -> None:
        """Act as this identifier from now on; the wider limits hold."""
        self.identifier = identifier
        self.logged_in = True
        self.stream.authenticated()

    def message_received(self, message: Message) -> None:
        """A message came: a report on a session, an answer to a question of ours, or a request."""
        if message.verb == NOTIFY:
            session = message.fields.get("Session")
            if session is not None:
                self._events.reported(self, session, message)
            else:
                self.answered(message)
        else:
            self._events.requested(self, self.open_request(message))

    def malformed_received(self, malformed: Malformed) -> None:
        """What came is no message."""
        self._events.received_malformed()
        self.malformed(malformed)

    def body_received(self, body: Body) -> None:
        """No request takes a body yet; the one it came with has been refused."""

    def dismiss(self) -> None:
        """Stop taking requests, and close when those that came are answered."""
        self.input_ended()

    def connection_lost(self, reason: Failure) -> None:
        """The connection is gone: give up what waits for it."""
        self.lost()
        self._events.lost(self)


def seen_ip(peer: TerminalConnection) -> Ip:
    """The address that a connection comes from; an IPv4-mapped IPv6 address counts as IPv4."""
    return parse_ip(remote_host_of(peer.stream))


def canonical_identifier_field(peer: TerminalConnection, request: Request) -> dict[str, str]:
    """The field that gives a terminal its identifier, where it used another of its names (C1).

    The other side of its calls sees the identifier. A terminal that used it needs no such field,
    and a bare reply has none, since the figure has none.
    """
    identifier = peer.identifier
    if request.bare or request.message.fields.get("Identifier", identifier) == identifier:
        return {}
    return {"Identifier": identifier}
