"""Registration over TCP or TLS (fig. 7): by mediators for their terminals, and by terminals.

A mediator has validated an address by where the terminal's connection comes from; what can never
be an address is refused here as well (I12). A terminal's own address is validated here.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterator, Mapping
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

from broker.messages.errors import LoginRequired, RegistrationFailed
from broker.messages.grammar import DEFAULT_EXPIRES, DEFAULT_PORT, NOTIFY
from broker.messages.message import Message
from broker.messages.statements import SUPERSEDED
from broker.net.peer_address import local_host_of, remote_host_of
from broker.resolver.connection import ResolverConnection
from broker.resolver.locations import LocalResolver
from broker.tables.address_policy import (
    OWN_ADDRESS,
    PROVIDER,
    Network,
    parse_domain,
    parse_ip,
    routable_ip,
    validate_contact,
)
from broker.tables.locations import AddressRefused, Contact, Origin
from broker.tables.udp_keys import UdpKey

#: What is left of a registration where something must be found out first.
Later = Coroutine[Any, Any, None]

#: Connections that one terminal may have; one more closes the oldest.
CONNECTIONS_AN_IDENTIFIER: Final = 5

# The fields that each kind of registration may have; any other is refused.
_TERMINAL: Final = frozenset(
    ("Identifier", "Password", "Address", "Port", "Expires", "Transaction", "")
)
_MEDIATOR: Final = _TERMINAL | {"Age", "Dial", "Source"}
_KEY: Final = frozenset(
    ("Identifier", "Key ID", "Registration Key", "Port", "Expires", "Transaction", "")
)
_NO_KEYS: Final = frozenset(("Identifier", "UDP", "Expires", "Transaction", ""))
_ABOUT_KEYS: Final = frozenset(("Key ID", "Registration Key", "UDP"))

# Causes of refusals.
NEWER: Final = "a newer address is registered"
FOREIGN: Final = "this connection belongs to another identifier"
NO_SOURCE: Final = "an address that is no IP address needs its Source"
NO_IDENTIFIER: Final = "an Identifier is missing"
NO_ADDRESS: Final = "an Address is missing"
NO_KEY: Final = "a key needs a Key ID and a Registration Key"


class ConnectionRegistrar:
    """Registers what comes over connections, in the location table of a resolver."""

    def __init__(
        self,
        resolver: LocalResolver,
        clock: IReactorTime,
        *,
        allowed: Collection[Network],
        own_ports: Collection[int],
    ) -> None:
        """
        :param allowed: networks whose addresses a terminal may register from anywhere
        :param own_ports: the ports of this server, at which no terminal can be
        """
        self._resolver = resolver
        self._table = resolver.table
        self._naming = resolver.naming
        self._clock = clock
        self._allowed = allowed
        self._own_ports = own_ports
        #: The connections of each terminal that has said who it is, oldest first.
        self._terminals: dict[str, tuple[ResolverConnection, ...]] = {}
        #: The link over which a contact in force came: it is told when that changes.
        self._links: dict[str, ResolverConnection] = {}

    def __iter__(self) -> Iterator[ResolverConnection]:
        """The connections of terminals."""
        for connections in list(self._terminals.values()):
            yield from connections

    def register(self, connection: ResolverConnection, fields: Mapping[str, str]) -> Later | None:
        """Do what a registration asks for.

        :return: what is left to do where something must be found out first
        :raises AddressRefused: the address, or its age, is not acceptable
        :raises RegistrationFailed: anything else is not
        """
        if not connection.is_link:
            return self._register(connection, fields)
        if _ABOUT_KEYS.isdisjoint(fields):
            return self._register_for(connection, fields)
        self._take_key(fields)
        return None

    def lost(self, connection: ResolverConnection) -> None:
        """A connection is gone: what a terminal registered over it expires from now on."""
        if connection.is_link:
            self._links = {
                name: link for name, link in self._links.items() if link is not connection
            }
        identifier = connection.identifier
        if identifier is None:
            return
        others = tuple(
            other for other in self._terminals.get(identifier, ()) if other is not connection
        )
        if others:
            self._terminals[identifier] = others
        else:
            self._terminals.pop(identifier, None)
        if connection.contact is not None:
            self._table.release(identifier, connection.contact, self._clock.seconds())

    # By a mediator.

    def _take_key(self, fields: Mapping[str, str]) -> None:
        """A mediator hands over a key of one of its terminals, or says that none is valid.

        A key is valid for its ``Expires`` seconds: the mediator tells it again in time.
        """
        identifier = _required(fields, "Identifier", NO_IDENTIFIER)
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if "UDP" in fields:
            check_fields(fields, _NO_KEYS)
            if expires:
                raise RegistrationFailed(NO_KEY)
            self._resolver.drop_keys(identifier)
            return
        check_fields(fields, _KEY)
        name = _required(fields, "Key ID", NO_KEY)
        secret = bytes.fromhex(_required(fields, "Registration Key", NO_KEY))
        port = int(fields.get("Port", DEFAULT_PORT))
        if port in self._own_ports:
            raise AddressRefused(OWN_ADDRESS)
        until = self._clock.seconds() + expires
        self._resolver.keep(UdpKey(name, identifier, secret, port, expires, until))

    def _register_for(self, link: ResolverConnection, fields: Mapping[str, str]) -> Later | None:
        """A mediator registers a contact of one of its terminals, or withdraws it (A16)."""
        check_fields(fields, _MEDIATOR)
        identifier = _required(fields, "Identifier", NO_IDENTIFIER)
        self._naming.cancel_check(identifier)
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if not expires:
            self._withdraw(identifier, link)
            return None
        port = int(fields.get("Port", DEFAULT_PORT))
        registered = self._clock.seconds() - int(fields.get("Age", 0))
        address = _required(fields, "Address", NO_ADDRESS)
        name = parse_domain(address)
        if name is None:
            own = local_host_of(link.stream)
            ip = routable_ip(address)
            if port in self._own_ports and own and ip == parse_ip(own):
                raise AddressRefused(OWN_ADDRESS)
            contact = Contact(str(ip), port, registered, expires, "Dial" in fields)
        else:
            if "Source" not in fields:
                raise AddressRefused(NO_SOURCE)
            origin = Origin(str(parse_ip(fields["Source"])))
            contact = Contact(name, port, registered, expires, origin=origin)
            if name == PROVIDER:
                return self._ask_provider(link, identifier, contact)
        self._renew(link, identifier, contact)
        return None

    async def _ask_provider(
        self, link: ResolverConnection, identifier: str, contact: Contact
    ) -> None:
        await self._naming.check(identifier, contact)
        if not link.stream.connected:  # the mediator will tell it again
            raise RegistrationFailed("the link is gone")
        self._renew(link, identifier, contact)

    def _renew(self, link: ResolverConnection, identifier: str, contact: Contact) -> None:
        if not self._table.renew(identifier, contact, self._clock.seconds()):
            raise RegistrationFailed(NEWER)
        self._supersede(identifier, link, link)

    # By a terminal.

    def _register(self, connection: ResolverConnection, fields: Mapping[str, str]) -> Later | None:
        """A terminal registers its own address, which holds while its connection is open (A7)."""
        check_fields(fields, _TERMINAL)
        identifier = fields.get("Identifier", connection.identifier)
        if identifier is None:
            raise LoginRequired("say who you are: REGISTER with an Identifier")
        _check_belongs(connection, identifier)
        expires = int(fields.get("Expires", DEFAULT_EXPIRES))
        if not expires:
            self._naming.cancel_check(identifier)
            self._bind(connection, identifier)
            self._withdraw(identifier, connection)
            connection.contact = None
            return None
        port = int(fields.get("Port", DEFAULT_PORT))
        host, dialable, origin = validate_contact(
            _required(fields, "Address", NO_ADDRESS),
            port,
            source=remote_host_of(connection.stream),
            own=local_host_of(connection.stream),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )
        contact = Contact(host, port, self._clock.seconds(), expires, dialable, origin)
        if origin is not None:
            return self._resolve_and_place(connection, identifier, contact)
        self._naming.cancel_check(identifier)
        self._place(connection, identifier, contact)
        return None

    async def _resolve_and_place(
        self, connection: ResolverConnection, identifier: str, contact: Contact
    ) -> None:
        """Resolve a name before it is registered, then check the connection again.

        Until the answer comes the connection may close, or be bound to another terminal.
        """
        await self._naming.check(identifier, contact)
        _check_belongs(connection, identifier)
        if not connection.stream.connected:  # nothing would ever release the contact
            raise RegistrationFailed("the connection is gone")
        self._place(connection, identifier, contact)

    def _place(self, connection: ResolverConnection, identifier: str, contact: Contact) -> None:
        if not self._table.register(identifier, contact, held=True):
            raise AddressRefused(NEWER)
        self._supersede(identifier, None, connection)
        self._bind(connection, identifier)
        connection.contact = contact

    def _bind(self, connection: ResolverConnection, identifier: str) -> None:
        """From now on this connection belongs to this terminal alone (I4)."""
        if connection.identifier is not None:
            return
        connection.identifier = identifier
        connection.stream.authenticated()
        connections = self._terminals.get(identifier, ())
        if len(connections) >= CONNECTIONS_AN_IDENTIFIER:
            connections[0].stream.close()
            connections = connections[1:]
        self._terminals[identifier] = (*connections, connection)

    # By both.

    def _withdraw(self, identifier: str, connection: ResolverConnection) -> None:
        self._table.withdraw(identifier)
        self._supersede(identifier, None, connection)

    def _supersede(
        self, identifier: str, link: ResolverConnection | None, by: ResolverConnection
    ) -> None:
        """A contact in force has changed: tell the mediator whose contact it was.

        :param link: the link that the new one came over, if it came over one
        :param by: the connection that changed it, which need not be told
        """
        before = self._links.pop(identifier, None)
        if link is not None:
            self._links[identifier] = link
        if before is not None and before is not by:
            before.stream.send(Message(NOTIFY, SUPERSEDED, Identifier=identifier))


def check_fields(fields: Mapping[str, str], known: Collection[str]) -> None:
    """
    :raises RegistrationFailed: there is a field that this registration does not take
    """
    for name in fields:
        if name not in known:
            raise RegistrationFailed(f"{name} is not accepted here")


def _check_belongs(connection: ResolverConnection, identifier: str) -> None:
    if connection.is_link or connection.identifier not in (None, identifier):
        raise RegistrationFailed(FOREIGN, code=403)


def _required(fields: Mapping[str, str], name: str, cause: str) -> str:
    value = fields.get(name)
    if value is None:
        raise RegistrationFailed(cause)
    return value
