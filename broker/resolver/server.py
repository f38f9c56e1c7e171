"""The resolver as a server of its own (the address-resolution server 102): fig. 7 and 8.

Two kinds of peers connect to it: mediators, which register for all their terminals and alone may
ask for an address (A8, I1), and terminals, which register their own.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

from cryptography import x509
from twisted.logger import Logger

from broker.messages.errors import (
    BadRequest,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    RegistrationFailed,
)
from broker.messages.grammar import QUERY, REGISTER, REQUEST
from broker.messages.statements import (
    CONNECTION_REQUESTED,
    LOOKUP,
    REGISTRATION_COMPLETED,
    REQUEST_ACCEPTED,
)
from broker.net.connection import PeerConnection
from broker.net.dialogue import Request
from broker.net.hub import ConnectionHub
from broker.net.peer_address import remote_host_of
from broker.net.request_task import RequestTask, send_refusal, to_refusal
from broker.net.tls.certificates import CertificateRefused, mediator_of
from broker.net.tls.transport import certificate_of
from broker.resolver.connection import ResolverConnection
from broker.resolver.locations import LocalResolver
from broker.resolver.registrar import ConnectionRegistrar, Later, check_fields
from broker.tables.address_policy import PROVIDER, Network, address_scope, parse_ip
from broker.tables.locations import AddressRefused, Binding

_ROLE: Final = frozenset(("Role", "Password", "Transaction", ""))

# What the log says of links.
LINK_REFUSED: Final = "A mediator's link from {source} was refused"
LINK_REVOKED: Final = "A mediator's link is closed: its certificate has been revoked"


class ResolverServer:
    """Serves a resolver to mediators and terminals.

    :ivar hub: what its connections share
    :ivar counts: how often each outcome occurred, for the operator
    """

    log = Logger()

    def __init__(
        self,
        hub: ConnectionHub,
        resolver: LocalResolver,
        *,
        secret: str | None = None,
        mediators: Collection[str] = (),
        allowed: Collection[Network] = (),
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param secret: what a mediator without a certificate must show. Without a secret and
            without ``mediators``, it must come from loopback.
        :param mediators: the names of those that a certificate proves, which need no secret
        :param allowed: networks whose addresses a terminal may register from anywhere
        :param own_ports: the ports of this server, at which no terminal can be
        """
        self.hub = hub
        self.counts: Counter[str] = Counter()
        self._resolver = resolver
        self._locations = resolver.table
        self._registrar = ConnectionRegistrar(
            resolver, hub.clock, allowed=allowed, own_ports=own_ports
        )
        self._secret = None if secret is None else secret.encode()
        self._mediators = mediators
        self._links: set[ResolverConnection] = set()

    def peer(self, stream: PeerConnection) -> ResolverConnection:
        """The receiver of a new connection."""
        return ResolverConnection(stream, self)

    def stop(self) -> None:
        """Close every connection, and leave no timer behind."""
        for connection in [*self._links, *self._registrar]:
            connection.stream.close()
        self.hub.stop()

    def drop(self, revoked: Callable[[x509.Certificate], bool]) -> None:
        """Close the links of mediators whose certificate has been revoked (I2)."""
        for link in list(self._links):
            certificate = certificate_of(link.stream.transport)
            if certificate is not None and revoked(certificate):
                self.log.warn(LINK_REVOKED)
                link.stream.abort()

    # As the events of its connections.

    def requested(self, connection: ResolverConnection, request: Request) -> None:
        """A request came: serve it, and answer it whatever happens."""
        try:
            later = self._serve(connection, request)
        except Refused as error:
            self._refuse(request, error)
            if isinstance(error, _NotAMediator):
                connection.stream.close(linger=True)
        except Exception as error:
            self._refuse(request, to_refusal(error, self.log))
        else:
            if later is not None:
                RequestTask.start(later, request, self)

    def lost(self, connection: ResolverConnection) -> None:
        """A connection is gone."""
        self._links.discard(connection)
        self._registrar.lost(connection)

    # As the events of its tasks.

    def request_failed(self, raised: Exception, request: Request) -> None:
        """Answer a request with what serving it has raised."""
        self._refuse(request, to_refusal(raised, self.log))

    def request_served(self, task: RequestTask) -> None:
        """A request that had to wait is served: no deadline is kept for it here."""

    # Serving.

    def _serve(self, connection: ResolverConnection, request: Request) -> Later | None:
        """Do what need not wait; return what must."""
        message = request.message
        if "Length" in message.fields:
            raise BadRequest("this message takes no body")
        if message.verb == QUERY and message.statement == LOOKUP:
            return self._look_up(_callee_for(connection, request), request)
        if message.verb == REQUEST and message.statement == CONNECTION_REQUESTED:
            return self._wake(_callee_for(connection, request), request)
        if message.verb != REGISTER or message.statement:
            raise BadRequest("no request of this kind is known here")
        later = None
        try:
            if "Role" in message.fields:
                self._open_link(connection, message.fields)
            else:
                later = self._registrar.register(connection, message.fields)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        if later is not None:
            return self._complete_later(later, request)
        self._completed(request)
        return None

    def _completed(self, request: Request) -> None:
        self.counts[REGISTRATION_COMPLETED] += 1
        request.reply(REGISTRATION_COMPLETED)

    async def _complete_later(self, later: Later, request: Request) -> None:
        try:
            await later
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        self._completed(request)

    def _look_up(self, callee: str, request: Request) -> Later | None:
        """Fig. 8, S801–S807: a mediator asks where a terminal is."""
        binding = self._locations.lookup(callee, self.hub.clock.seconds())
        if binding is None:
            seen = self._resolver.seen(callee)
            if seen is None:
                raise CalleeNotFound
            self._tell(seen, request, seen=True)
        elif binding.contact.host == PROVIDER:
            return self._look_up_later(callee, binding, request)
        else:
            self._tell(binding, request)
        return None

    async def _look_up_later(self, callee: str, binding: Binding, request: Request) -> None:
        """The provider is asked, unless its last answer still holds (A16)."""
        self._tell(await self._resolver.find(callee, binding), request)

    async def _wake(self, callee: str, request: Request) -> None:
        """A mediator has a terminal asked by UDP to connect (fig. 8a)."""
        if not await self._resolver.trigger(callee):
            raise CalleeNotConnected
        request.reply(REQUEST_ACCEPTED, code=200)

    def _tell(self, binding: Binding, request: Request, *, seen: bool = False) -> None:
        """Answer a look-up.

        :param seen: it is the source of the terminal's datagrams, not what it registered
        """
        contact = binding.contact
        # A contact whose connection is open expires this long after that closes: at the earliest,
        # now.
        expires = int(min(binding.until - self.hub.clock.seconds(), contact.expires))
        fields = {
            "Callee Address": contact.host,
            "Callee Port": str(contact.port),
            "Expires": str(expires),
        }
        if contact.dialable:
            fields["Dial"] = "Yes"
        if contact.origin is not None:
            fields["Source"] = contact.origin.source
        if seen:
            fields["UDP"] = "Yes"
        self.counts[LOOKUP] += 1
        request.reply("", fields, code=200)

    def _refuse(self, request: Request, error: Refused) -> None:
        self.counts[error.statement] += 1
        send_refusal(request, error)

    # Links.

    def _open_link(self, connection: ResolverConnection, fields: Mapping[str, str]) -> None:
        """A mediator says that it is one, and proves it."""
        check_fields(fields, _ROLE)
        if connection.identifier is not None:
            raise RegistrationFailed("this connection belongs to a terminal", code=403)
        if not self._proven(connection, fields):
            self.log.warn(LINK_REFUSED, source=remote_host_of(connection.stream))
            raise _NotAMediator
        if not connection.is_link:
            connection.is_link = True
            connection.stream.authenticated()
            self._links.add(connection)

    def _proven(self, connection: ResolverConnection, fields: Mapping[str, str]) -> bool:
        """Whether a peer is a mediator; a certificate, if it shows one, decides alone (A15)."""
        certificate = certificate_of(connection.stream.transport)
        if certificate is not None:
            try:
                return mediator_of(certificate) in self._mediators
            except CertificateRefused:  # it is a terminal's, or names no single peer
                return False
        if self._secret is not None:
            given = fields.get("Password", "")
            return hmac.compare_digest(given.encode(), self._secret)
        loopback = address_scope(parse_ip(remote_host_of(connection.stream))) == "loopback"
        return not self._mediators and loopback


class _NotAMediator(PermissionDenied):
    """The peer says that it is a mediator, and has not proven it."""


def _callee_for(connection: ResolverConnection, request: Request) -> str:
    """The callee of a request that only a mediator may make."""
    if not connection.is_link:
        raise PermissionDenied
    callee = request.message.fields.get("Callee")
    if callee is None:
        raise BadRequest(f"a {request.message.verb} needs a Callee")
    return callee
