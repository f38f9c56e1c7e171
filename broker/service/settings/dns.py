"""Addresses that are registered by name: the settings, and the look-up that they configure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from broker.resolver.dns import Dns, ProviderZone
from broker.resolver.lookup_cache import PATIENCE, LookupCache
from broker.resolver.name_lookup import NameLookup
from broker.service.settings.setting import Setting
from broker.service.settings.values import DNS_SERVER, ZONE

DNS_SERVERS: Final = Setting(
    "dns-server",
    DNS_SERVER,
    [],
    "DNS server for registered domain names: ADDRESS[:PORT]. Default: the system's.",
    repeatable=True,
)
PROVIDER_ZONE: Final = Setting(
    "provider-zone",
    ZONE,
    "",
    "DNS zone in which the provider publishes its terminals' addresses, for Address:Provider.",
)


def make_naming(
    reactor: Any,
    options: Any,
    own_ports: Collection[int],
    *,
    provider: bool = True,
    patience: float = PATIENCE,
) -> NameLookup:
    """The look-up of names, as the options configure it.

    :param own_ports: the ports of this server, where no terminal can be
    :param provider: also ask the provider, if there is one
    :param patience: seconds to wait for an answer
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
