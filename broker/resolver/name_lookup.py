"""Contacts that are registered by name: resolved when they are told, and validated each time (I12).

``LookupCache`` keeps what a source says for as long as it holds. Both kinds of resolvers ask a
``NameLookup`` about a contact that is not an IP address.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Protocol

import psutil
from twisted.internet.interfaces import IReactorTime

from broker.interfaces import SourceFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.resolver.lookup_cache import LookupCache
from broker.tables.address_policy import PROVIDER, Ip, Network, parse_ip, resolve_contact
from broker.tables.locations import AddressRefused, Contact

#: Seconds after which this machine is asked for its own addresses again.
OWN_SECONDS: Final = 60.0


class OwnAddresses(Protocol):
    """Knows the addresses of the machine that the server runs on."""

    def current(self) -> Collection[Ip]:
        """The addresses now."""


class InterfaceAddresses(OwnAddresses):
    """The addresses of this machine's network interfaces, asked for once a minute."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._addresses: frozenset[Ip] = frozenset()
        self._until = -1.0

    def current(self) -> Collection[Ip]:
        """The addresses, at most ``OWN_SECONDS`` old."""
        now = self._clock.seconds()
        if self._until <= now:
            self._addresses = read_own_addresses()
            self._until = now + OWN_SECONDS
        return self._addresses


def read_own_addresses() -> frozenset[Ip]:
    """The addresses of this machine's network interfaces."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            try:
                found.add(parse_ip(address.address.partition("%")[0]))
            except AddressRefused:  # a hardware address
                continue
    return frozenset(found)


class NameLookup:
    """Resolves contacts that are names, and validates what they resolve to.

    A contact that is an IP address never comes here, so that it costs a look-up nothing.
    """

    def __init__(
        self,
        clock: IReactorTime,
        names: LookupCache | None = None,
        provider: LookupCache | None = None,
        *,
        allowed: Collection[Network] = (),
        own: OwnAddresses | None = None,
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param names: resolves domain names; without it, none are accepted
        :param provider: resolves identifiers; without it, there is no provider
        :param allowed: networks in which an address is accepted wherever it was registered from
        :param own: the addresses of this machine
        :param own_ports: the ports of this server, at which no terminal can be
        """
        self._names = names
        self._provider = provider
        self._allowed = allowed
        self._own = InterfaceAddresses(clock) if own is None else own
        self._own_ports = own_ports
        #: The registration by name that is being checked, by terminal.
        self._checking: dict[str, Contact] = {}

    async def check(self, identifier: str, contact: Contact) -> None:
        """Find out whether a contact that is a name may be registered.

        :raises RegistrationFailed: it may not, or a newer registration came during the check
        :raises ServiceUnavailable: it can't be resolved now
        """
        if contact.origin is None:
            raise ValueError("an IP address needs no look-up")
        self._checking[identifier] = contact
        try:
            if not contact.origin.checked:
                await self._resolve(identifier, contact)
                contact.origin.checked = True
            if self._checking.get(identifier) is not contact:
                raise RegistrationFailed("a newer registration came during the look-up")
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        except SourceFailed:
            source = "the provider" if contact.host == PROVIDER else "DNS"
            raise ServiceUnavailable(f"{source} does not answer") from None
        finally:
            if self._checking.get(identifier) is contact:
                del self._checking[identifier]

    def cancel_check(self, identifier: str) -> None:
        """A newer registration has come: an older one that is still checked must not win."""
        self._checking.pop(identifier, None)

    async def resolve(self, identifier: str, contact: Contact) -> Contact:
        """A contact ready to be told: with an IP address, validated just now.

        :raises CalleeNotFound: it resolves to no address that may be told
        :raises ServiceUnavailable: it can't be resolved now
        """
        try:
            return await self._resolve(identifier, contact)
        except AddressRefused:
            raise CalleeNotFound from None
        except SourceFailed:
            raise ServiceUnavailable from None

    def stop(self) -> None:
        """Leave no timer behind."""
        for source in (self._names, self._provider):
            if source is not None:
                source.stop()

    async def _resolve(self, identifier: str, contact: Contact) -> Contact:
        by_provider = contact.host == PROVIDER
        source = self._provider if by_provider else self._names
        if source is None:
            what = "Provider" if by_provider else "a domain name"
            raise AddressRefused(f"{what} is not offered by this server")
        hosts = await source.hosts(identifier if by_provider else contact.host)
        return resolve_contact(
            contact,
            hosts,
            own=self._own.current() if self._own_ports else (),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )
