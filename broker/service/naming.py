"""Addresses that are registered by name: the settings, and what they make."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from broker.config import DNS_SERVER, ZONE, Setting
from broker.resolver.names import Dns, ProviderZone
from broker.resolver.whereabouts import PATIENCE, Naming, Remembered

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
) -> Naming:
    """What the options say.

    :param own_ports: the ports of this server, at which no terminal is
    :param provider: ask the provider, too, if there is one
    :param patience: seconds that somebody waits for an answer
    """
    names = Dns(reactor, options["dns-server"])
    zone = options["provider-zone"] if provider else None
    return Naming(
        reactor,
        Remembered(names, reactor, patience=patience),
        Remembered(ProviderZone(names, zone), reactor, patience=patience) if zone else None,
        allowed=options["allow-address"],
        own_ports=own_ports,
    )
