"""The resolver as a server of its own (the address-resolution server 102): fig. 7 and 8.

Two kinds of peers speak with it: mediators, which register for all their terminals and alone may
ask for an address (A8, I1), and terminals, which register their own.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from cryptography import x509
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.errors import (
    BadRequest,
    CalleeNotConnected,
    CalleeNotFound,
    LoginRequired,
    PermissionDenied,
    Refused,
    RegistrationFailed,
)
from broker.messages.framing import Body
from broker.messages.grammar import (
    DEFAULT_EXPIRES,
    DEFAULT_PORT,
    NOTIFY,
    QUERY,
    REGISTER,
    REQUEST,
)
from broker.messages.message import Malformed, Message
from broker.messages.statements import (
    CONNECTION_REQUESTED,
    LOOKUP,
    REGISTRATION_COMPLETED,
    REQUEST_ACCEPTED,
    SUPERSEDED,
)
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue, Request
from broker.net.hub import ConnectionHub
from broker.net.peer_address import local_host_of, remote_host_of
from broker.net.request_task import RequestTask, send_refusal, to_refusal
from broker.net.tls.certificates import CertificateRefused, mediator_of
from broker.net.tls.transport import certificate_of
from broker.resolver.locations import LocalResolver
from broker.tables.address_policy import (
    PROVIDER,
    Network,
    address_scope,
    parse_domain,
    parse_ip,
    routable_ip,
    validate_contact,
)
from broker.tables.locations import AddressRefused, Binding, Contact, Origin
from broker.tables.udp_keys import Key

#: What is left of a request where something must be found out first.
_Later = Coroutine[Any, Any, None]

#: Connections that one identifier may have; one more closes the oldest.
CONNECTIONS_AN_IDENTIFIER: Final = 5

_TERMINAL: Final = frozenset(
    ("Identifier", "Password", "Address", "Port", "Expires", "Transaction", "")
)
_MEDIATOR: Final = _TERMINAL | {"Age", "Dial", "Source"}
_KEY: Final = frozenset(
    ("Identifier", "Key ID", "Registration Key", "Port", "Expires", "Transaction", "")
)
_NO_KEYS: Final = frozenset(("Identifier", "UDP", "Expires", "Transaction", ""))
_ABOUT_KEYS: Final = frozenset(("Key ID", "Registration Key", "UDP"))
_ROLE: Final = frozenset(("Role", "Password", "Transaction", ""))


class ResolverPeer(Dialogue):
    """A connection to the resolver.

    :ivar mediator: it is a mediator's link
    :ivar identifier: the terminal that it belongs to (I4), ``None`` before it says so
    :ivar address: the address that the terminal registered over it, if it did
    """

    __slots__ = ("_server", "address", "identifier", "mediator")

    def __init__(self, stream: PeerConnection, server: ResolverServer) -> None:
        super().__init__(stream)
        self._server = server
        self.mediator = False
        self.identifier: str | None = None
        self.address: Contact | None = None

    def message_received(self, message: Message) -> None:
        """A message came; the resolver asks nothing, and so no ``NOTIFY`` says anything to it."""
        if message.verb != NOTIFY:
            self._server.requested(self, self.asked(message))

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


class ResolverServer:
    """Serves an address table to mediators and terminals.

    :ivar counts: how often each outcome was had, for the operator
    """

    log = Logger()

    def __init__(
        self,
        exchange: ConnectionHub,
        resolver: LocalResolver,
        *,
        secret: str | None = None,
        mediators: Collection[str] = (),
        allowed: Collection[Network] = (),
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param secret: what a mediator without a certificate must show; where there is none, and no
            mediators are named either, it must come from loopback
        :param mediators: the names of those that a certificate proves, which need no secret
        :param allowed: networks whose addresses a terminal may register from anywhere
        :param own_ports: the ports of this server, at which no terminal is
        """
        self.exchange = exchange
        self.counts: Counter[str] = Counter()
        self._resolver = resolver
        self._table = resolver.table
        self._naming = resolver.naming
        self._secret = None if secret is None else secret.encode()
        self._mediators = mediators
        self._allowed = allowed
        self._own_ports = own_ports
        self._peers: set[ResolverPeer] = set()  # mediators' links, and terminals that said who
        self._bound: dict[str, tuple[ResolverPeer, ...]] = {}
        #: Which mediator's link an address in force came over: it is told when that changes.
        self._owners: dict[str, ResolverPeer] = {}

    def peer(self, stream: PeerConnection) -> ResolverPeer:
        """The receiver of a new connection."""
        return ResolverPeer(stream, self)

    def stop(self) -> None:
        """Close every connection, and leave no timer behind."""
        for peer in list(self._peers):
            peer.stream.close()
        self.exchange.stop()

    def drop(self, revoked: Callable[[x509.Certificate], bool]) -> None:
        """Close the links of mediators whose certificate is revoked by now (I2)."""
        for peer in list(self._peers):
            certificate = certificate_of(peer.stream.transport) if peer.mediator else None
            if certificate is not None and revoked(certificate):
                self.log.warn("A mediator's link is closed: its certificate has been revoked")
                peer.stream.abort()

    # From a peer.

    def requested(self, peer: ResolverPeer, request: Request) -> None:
        """A request came: do it, and answer it whatever happens."""
        try:
            later = self._serve(peer, request)
        except Refused as error:
            self._refuse(request, error)
            if isinstance(error, _NotAMediator):
                peer.stream.close(linger=True)
        except Exception as error:
            self._refuse(request, to_refusal(error, self.log))
        else:
            if later is not None:
                RequestTask.start(later, request, self)

    def lost(self, peer: ResolverPeer) -> None:
        """A connection is gone: what a terminal registered over it expires from now on."""
        self._peers.discard(peer)
        if peer.mediator:
            self._owners = {name: one for name, one in self._owners.items() if one is not peer}
        identifier = peer.identifier
        if identifier is None:
            return
        others = tuple(one for one in self._bound.get(identifier, ()) if one is not peer)
        if others:
            self._bound[identifier] = others
        else:
            self._bound.pop(identifier, None)
        if peer.address is not None:
            self._table.release(identifier, peer.address, self._now())

    # Serving.

    def _serve(self, peer: ResolverPeer, request: Request) -> _Later | None:
        """Do what need not wait; give what must."""
        message = request.message
        if "Length" in message.fields:
            raise BadRequest("this message takes no body")
        if message.verb == QUERY and message.statement == LOOKUP:
            return self._look_up(peer, request)
        if message.verb == REQUEST and message.statement == CONNECTION_REQUESTED:
            return self._wake(peer, request)
        if message.verb != REGISTER or message.statement:
            raise BadRequest("no request of this kind is known here")
        later = None
        try:
            if "Role" in message.fields:
                self._open_link(peer, message.fields)
            elif peer.mediator and not _ABOUT_KEYS.isdisjoint(message.fields):
                self._take_key(message.fields)
            elif peer.mediator:
                later = self._register_for(peer, message.fields)
            else:
                later = self._register(peer, message.fields)
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        if later is not None:
            return self._complete_later(later, request)
        self._completed(request)
        return None

    def _completed(self, request: Request) -> None:
        self.counts[REGISTRATION_COMPLETED] += 1
        request.reply(REGISTRATION_COMPLETED)

    async def _complete_later(self, later: _Later, request: Request) -> None:
        try:
            await later
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        self._completed(request)

    def _look_up(self, peer: ResolverPeer, request: Request) -> _Later | None:
        """Fig. 8, S801–S807: a mediator asks where a terminal is."""
        if not peer.mediator:
            raise PermissionDenied
        callee = request.message.fields.get("Callee")
        if callee is None:
            raise BadRequest("a LOOKUP names a Callee")
        now = self._now()
        place = self._table.lookup(callee, now)
        if place is None:
            seen = self._resolver.seen(callee)
            if seen is None:
                raise CalleeNotFound
            self._tell(seen, request, seen=True)
            return None
        if place.contact.host == PROVIDER:
            return self._tell_later(callee, place, request)
        self._tell(place, request)
        return None

    async def _tell_later(self, callee: str, place: Binding, request: Request) -> None:
        """The provider is asked anew, unless what it said last holds yet (A16)."""
        self._tell(await self._resolver.find(callee, place), request)

    async def _wake(self, peer: ResolverPeer, request: Request) -> None:
        """A mediator asks a terminal to connect, along the ways its datagrams take (fig. 8a)."""
        if not peer.mediator:
            raise PermissionDenied
        callee = request.message.fields.get("Callee")
        if callee is None:
            raise BadRequest("a request for a connection names a Callee")
        if not await self._resolver.trigger(callee):
            raise CalleeNotConnected
        request.reply(REQUEST_ACCEPTED, code=200)

    def _tell(self, place: Binding, request: Request, *, seen: bool = False) -> None:
        now = self._now()
        address = place.contact
        told = {
            "Callee Address": address.host,
            "Callee Port": str(address.port),
            # One that is held expires so long after its connection is gone: at the earliest, now.
            "Expires": str(int(min(place.until - now, address.expires))),
        }
        if address.dialable:
            told["Dial"] = "Yes"
        if address.origin is not None:
            told["Source"] = address.origin.source
        if seen:
            told["UDP"] = "Yes"
        self.counts[LOOKUP] += 1
        request.reply("", told, code=200)

    def _open_link(self, peer: ResolverPeer, fields: dict[str, str]) -> None:
        """A mediator says that it is one, and proves it."""
        _only(fields, _ROLE)
        if peer.identifier is not None:
            raise RegistrationFailed("this connection belongs to a terminal", code=403)
        if not self._proven(peer, fields):
            source = remote_host_of(peer.stream)
            self.log.warn("A mediator's link from {source} was refused", source=source)
            raise _NotAMediator
        if not peer.mediator:
            peer.mediator = True
            peer.stream.authenticated()
            self._peers.add(peer)

    def _proven(self, peer: ResolverPeer, fields: dict[str, str]) -> bool:
        """Whether a peer is a mediator; who shows a certificate is judged by that alone (A15)."""
        certificate = certificate_of(peer.stream.transport)
        if certificate is not None:
            try:
                return mediator_of(certificate) in self._mediators
            except CertificateRefused:  # a terminal's, or nobody's
                return False
        if self._secret is not None:
            given = fields.get("Password", "")
            return hmac.compare_digest(given.encode(), self._secret)
        return (
            not self._mediators
            and address_scope(parse_ip(remote_host_of(peer.stream))) == "loopback"
        )

    def _take_key(self, fields: dict[str, str]) -> None:
        """A mediator hands a key of one of its terminals over, or says that none is good.

        A key is good for its ``Expires`` seconds from now on: the mediator tells it again in time.
        """
        identifier = fields.get("Identifier")
        if identifier is None:
            raise RegistrationFailed("a mediator says whose key it is")
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if "UDP" in fields:
            _only(fields, _NO_KEYS)
            if expires:
                raise RegistrationFailed("a key comes with its Key ID and Registration Key")
            self._resolver.drop_keys(identifier)
            return
        _only(fields, _KEY)
        if "Key ID" not in fields or "Registration Key" not in fields:
            raise RegistrationFailed("a key has a Key ID and a Registration Key")
        secret = bytes.fromhex(fields["Registration Key"])
        port = int(fields.get("Port", DEFAULT_PORT))
        if port in self._own_ports:
            raise AddressRefused("the address is the server's own")
        until = self._now() + expires
        self._resolver.keep(Key(fields["Key ID"], identifier, secret, port, expires, until))

    def _register_for(self, peer: ResolverPeer, fields: dict[str, str]) -> _Later | None:
        """A mediator registers an address of one of its terminals, or takes it back (A16).

        It has judged the address by where the terminal's connection comes from; what is never an
        address is refused here all the same (I12).
        """
        _only(fields, _MEDIATOR)
        identifier = fields.get("Identifier")
        if identifier is None:
            raise RegistrationFailed("a mediator says whose address it registers")
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        self._naming.overtake(identifier)
        if not expires:
            self._table.withdraw(identifier)
            self._comes_from(identifier, None, peer)
            return None
        port = int(fields.get("Port", DEFAULT_PORT))
        registered = self._now() - int(fields.get("Age", 0))
        host = parse_domain(_address_in(fields))
        if host is None:
            own = local_host_of(peer.stream)
            ip = routable_ip(_address_in(fields))
            if port in self._own_ports and own and ip == parse_ip(own):
                raise AddressRefused("the address is the server's own")
            address = Contact(str(ip), port, registered, expires, "Dial" in fields)
        else:
            if "Source" not in fields:
                raise AddressRefused("what is no IP address goes with its Source")
            origin = Origin(str(parse_ip(fields["Source"])))
            address = Contact(host, port, registered, expires, origin=origin)
            if host == PROVIDER:
                return self._ask_provider(peer, identifier, address)
        self._renew(peer, identifier, address)
        return None

    async def _ask_provider(self, peer: ResolverPeer, identifier: str, address: Contact) -> None:
        await self._naming.check(identifier, address)
        if not peer.stream.connected:  # and the mediator will tell it again
            raise RegistrationFailed("the link is gone")
        self._renew(peer, identifier, address)

    def _renew(self, peer: ResolverPeer, identifier: str, address: Contact) -> None:
        if not self._table.renew(identifier, address, self._now()):
            raise RegistrationFailed("a newer address is registered")
        self._comes_from(identifier, peer, peer)

    def _register(self, peer: ResolverPeer, fields: dict[str, str]) -> _Later | None:
        """A terminal registers its own address, which holds while its connection is open (A7)."""
        _only(fields, _TERMINAL)
        identifier = fields.get("Identifier", peer.identifier)
        if identifier is None:
            raise LoginRequired("say who you are: REGISTER with an Identifier")
        self._check_bound(peer, identifier)
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if not expires:
            self._naming.overtake(identifier)
            self._bind(peer, identifier)
            self._table.withdraw(identifier)
            self._comes_from(identifier, None, peer)
            peer.address = None
            return None
        port = int(fields.get("Port", DEFAULT_PORT))
        host, dialable, origin = validate_contact(
            _address_in(fields),
            port,
            source=remote_host_of(peer.stream),
            own=local_host_of(peer.stream),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )
        address = Contact(host, port, self._now(), expires, dialable, origin)
        if origin is not None:
            return self._find_and_place(peer, identifier, address)
        self._naming.overtake(identifier)
        self._place(peer, identifier, address)
        return None

    async def _find_and_place(self, peer: ResolverPeer, identifier: str, address: Contact) -> None:
        """Look a name up before it is registered; whose the connection is may change meanwhile."""
        await self._naming.check(identifier, address)
        self._check_bound(peer, identifier)
        if not peer.stream.connected:  # nothing would ever release it
            raise RegistrationFailed("the connection is gone")
        self._place(peer, identifier, address)

    def _check_bound(self, peer: ResolverPeer, identifier: str) -> None:
        if peer.mediator or peer.identifier not in (None, identifier):
            raise RegistrationFailed("this connection belongs to another identifier", code=403)

    def _place(self, peer: ResolverPeer, identifier: str, address: Contact) -> None:
        if not self._table.register(identifier, address, held=True):
            raise AddressRefused("a newer address is registered")
        self._comes_from(identifier, None, peer)
        self._bind(peer, identifier)
        peer.address = address

    def _comes_from(self, identifier: str, owner: ResolverPeer | None, by: ResolverPeer) -> None:
        """An address in force has changed: tell the mediator whose word no longer holds.

        :param owner: the mediator's link that the new one came over, if it was one
        :param by: whoever changed it, and so need not be told
        """
        before = self._owners.pop(identifier, None)
        if owner is not None:
            self._owners[identifier] = owner
        if before is not None and before is not by:
            before.stream.send(Message(NOTIFY, SUPERSEDED, Identifier=identifier))

    def _bind(self, peer: ResolverPeer, identifier: str) -> None:
        if peer.identifier is not None:
            return
        peer.identifier = identifier
        peer.stream.authenticated()
        self._peers.add(peer)
        peers = self._bound.get(identifier, ())
        if len(peers) >= CONNECTIONS_AN_IDENTIFIER:
            peers[0].stream.close()
            peers = peers[1:]
        self._bound[identifier] = (*peers, peer)

    def request_failed(self, raised: Exception, request: Request) -> None:
        """Answer a request with what serving it has raised."""
        self._refuse(request, to_refusal(raised, self.log))

    def request_served(self, task: RequestTask) -> None:
        """A request that had to wait is served: no deadline is kept for it here."""

    def _refuse(self, request: Request, error: Refused) -> None:
        self.counts[error.statement] += 1
        send_refusal(request, error)

    def _now(self) -> float:
        return self.exchange.clock.seconds()


class _NotAMediator(PermissionDenied):
    """Who says it is a mediator has not proven it."""


def _only(fields: dict[str, str], known: Collection[str]) -> None:
    for name in fields:
        if name not in known:
            raise RegistrationFailed(f"{name} is not taken here")


def _address_in(fields: dict[str, str]) -> str:
    host = fields.get("Address")
    if host is None:
        raise RegistrationFailed("an Address is missing")
    return host
