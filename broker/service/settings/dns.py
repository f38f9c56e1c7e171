"""Addresses that are registered by name: the settings, and what they make."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from broker.resolver.dns import Dns, ProviderZone
from broker.resolver.lookup_cache import PATIENCE, LookupCache
from broker.resolver.name_lookup import NameLookup
from broker.service.settings.values import DNS_SERVER, ZONE, Setting

DNS_SERVERS: Final = Setting(
    "dns-server",
    DNS_SERVER,
    [],
    "A DNS server to ask what a registered domain name means: ADDRESS[:PORT]; without, the"
    " system's.",
    repeatable=True,
)
PROVIDER_ZONE: Final = Setting(
    "provider-zone",
    ZONE,
    "",
    "The DNS zone in which the provider tells where its terminals are, for Address:Provider.",
)


def make_naming(
    reactor: Any,
    options: Any,
    own_ports: Collection[int],
    *,
    provider: bool = True,
    patience: float = PATIENCE,
) -> NameLookup:
    """What the options say.

    :param own_ports: the ports of this server, at which no terminal is
    :param provider: ask the provider, too, if there is one
    :param patience: seconds that somebody waits for an answer
    """
    names = Dns(reactor, options["dns-server"])
    zone = options["provider-zone"] if provider else None
    return NameLookup(
        reactor,
        LookupCache(names, reactor, patience=patience),
        LookupCache(ProviderZone(names, zone), reactor, patience=patience) if zone else None,
        allowed=options["allow-address"],
        own_ports=own_ports,
    )
