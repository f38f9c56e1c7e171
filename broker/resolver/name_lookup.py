"""Addresses that are registered by name: found out when they are told, and judged each time (I12).

``LookupCache`` keeps what a source says for as long as it holds; both kinds of resolvers ask a
``NameLookup`` about an address that is no IP address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import psutil
from twisted.internet.interfaces import IReactorTime

from broker.interfaces import SourceFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.resolver.lookup_cache import LookupCache
from broker.tables.address_policy import PROVIDER, Ip, Network, parse_ip, resolve_contact
from broker.tables.locations import AddressRefused, Contact

#: Seconds for which this machine's own addresses are taken for known.
OWN_SECONDS: Final = 60.0


def own_addresses() -> frozenset[Ip]:
    """The addresses of this machine."""
    found = set()
    for interface in psutil.net_if_addrs().values():
        for one in interface:
            try:
                found.add(parse_ip(one.address.partition("%")[0]))
            except AddressRefused:  # of hardware
                continue
    return frozenset(found)


class NameLookup:
    """Finds out what stands behind an address that is no IP address, and judges it.

    An IP address never comes here, so that it costs a look-up nothing.
    """

    def __init__(
        self,
        clock: IReactorTime,
        names: LookupCache | None = None,
        provider: LookupCache | None = None,
        *,
        allowed: Collection[Network] = (),
        own: Callable[[], Collection[Ip]] = own_addresses,
        own_ports: Collection[int] = (),
    ) -> None:
        """
        :param names: knows domain names; without it, none are taken
        :param provider: knows identifiers; without it, there is no provider
        :param allowed: networks in which an address may be whatever it was registered from
        :param own: gives the addresses of this machine
        :param own_ports: the ports of this server, at which no terminal is
        """
        self._clock = clock
        self._names = names
        self._provider = provider
        self._allowed = allowed
        self._own = own
        self._own_ports = own_ports
        self._ours: tuple[Collection[Ip], float] = ((), -1.0)  # until when
        #: The registration by name that is being checked, of those for whom one is.
        self._checking: dict[str, Contact] = {}

    async def check(self, identifier: str, address: Contact) -> None:
        """Find out whether an address may be registered that is no IP address.

        :raises RegistrationFailed: it may not, or another registration has come meanwhile
        :raises ServiceUnavailable: it can't be found out now
        """
        if address.origin is None:
            raise ValueError("an IP address needs no finding out")
        self._checking[identifier] = address
        try:
            if not address.origin.checked:
                await self._find(identifier, address)
                address.origin.checked = True
            if self._checking.get(identifier) is not address:
                raise RegistrationFailed("a newer registration has come meanwhile")
        except AddressRefused as error:
            raise RegistrationFailed(str(error)) from None
        except SourceFailed:
            who = "the provider" if address.host == PROVIDER else "DNS"
            raise ServiceUnavailable(f"{who} does not answer") from None
        finally:
            if self._checking.get(identifier) is address:
                del self._checking[identifier]

    def overtake(self, identifier: str) -> None:
        """What a terminal registered by name, and is still being checked, is in force no more."""
        self._checking.pop(identifier, None)

    async def told(self, identifier: str, address: Contact) -> Contact:
        """An address as it is told: with an IP address, that was judged just now.

        :raises CalleeNotFound: it leads to none that may be told
        :raises ServiceUnavailable: it can't be found out now
        """
        try:
            return await self._find(identifier, address)
        except AddressRefused:
            raise CalleeNotFound from None
        except SourceFailed:
            raise ServiceUnavailable from None

    def stop(self) -> None:
        """Leave no timer behind."""
        for one in (self._names, self._provider):
            if one is not None:
                one.stop()

    async def _find(self, identifier: str, address: Contact) -> Contact:
        by_provider = address.host == PROVIDER
        source = self._provider if by_provider else self._names
        if source is None:
            what = "Provider" if by_provider else "a domain name"
            raise AddressRefused(f"{what} is not offered by this server")
        hosts = await source.hosts(identifier if by_provider else address.host)
        return resolve_contact(
            address,
            hosts,
            own=self._own_now(),
            allowed=self._allowed,
            own_ports=self._own_ports,
        )

    def _own_now(self) -> Collection[Ip]:
        if not self._own_ports:
            return ()
        now = self._clock.seconds()
        if self._ours[1] <= now:
            self._ours = (self._own(), now + OWN_SECONDS)
        return self._ours[0]
