"""Sources of addresses over DNS: by domain name (A17), and by identifier (A16).

The servers asked are those that the operator named, else the system's. Neither a hosts file nor a
search list counts.
"""

from __future__ import annotations

import unicodedata
from base64 import b32encode
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import ip_address
from math import inf
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.names import dns
from twisted.names.client import Resolver
from twisted.names.error import DNSNameError
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IAddressSource, SourceFailed
from broker.tables.locations import ResolvedHost

#: The file that names the system's DNS servers.
RESOLV_CONF: Final = "/etc/resolv.conf"
#: Seconds after which a silent server is asked again, when all others have been asked.
RETRIES: Final = (0.6, 1.2)
#: DNS servers that are asked. The limit bounds the time that a question takes.
SERVERS_MAX: Final = 3
#: Aliases (CNAME) that are followed from a name to its addresses.
ALIASES_MAX: Final = 8
#: The time to live of an answer whose other half (A or AAAA) is missing, in seconds.
HALF_SECONDS: Final = 5.0


class _Client(Resolver):
    """Twisted's client with a limited list of servers, and a way to stop it."""

    _parseCall: Any = None

    def parseConfig(self, resolvConf: Any) -> None:
        super().parseConfig(  # type: ignore[no-untyped-call]
            line for line in resolvConf if len(line.split()) > 1
        )
        self.dynServers = self.dynServers[:SERVERS_MAX]

    def _connectedProtocol(self, interface: str = "") -> dns.DNSDatagramProtocol:
        """A socket for one question; the system chooses a random free port."""
        protocol = dns.DNSDatagramProtocol(self, reactor=self._reactor)
        protocol.noisy = False
        self._reactor.listenUDP(0, protocol, interface=interface)
        return protocol

    def stop(self) -> None:
        """Leave no timer behind."""
        if self._parseCall is not None and self._parseCall.active():
            self._parseCall.cancel()


@implementer(IAddressSource)
class Dns:
    """Asks DNS for the IPv4 and IPv6 addresses of a domain name."""

    def __init__(
        self,
        reactor: Any,
        servers: Sequence[tuple[str, int]] = (),
        resolv_conf: str = RESOLV_CONF,
    ) -> None:
        """
        :param servers: addresses and ports of the servers to ask, in order; without any, the
            system's
        """
        self._reactor = reactor
        self._servers = list(servers)[:SERVERS_MAX]
        self._resolv_conf = resolv_conf
        self._client: _Client | None = None

    def stop(self) -> None:
        if self._client is not None:
            self._client.stop()
            self._client = None

    async def locate(self, name: str) -> list[ResolvedHost]:
        if self._client is None:  # no file is read, and no timer runs, before the first use
            resolv_conf = None if self._servers else self._resolv_conf
            made: Any = _Client
            self._client = made(resolv_conf, self._servers, RETRIES, self._reactor)
        client: Any = self._client
        asked: list[Deferred[Any]] = [
            maybeDeferred(client.lookupAddress, name, RETRIES),
            maybeDeferred(client.lookupIPV6Address, name, RETRIES),
        ]
        found: list[ResolvedHost] = []
        failed = False
        for success, result in await DeferredList(asked, consumeErrors=True):
            if success:
                found += _located(name, result[0])
            elif not (isinstance(result, Failure) and result.check(DNSNameError)):
                failed = True
        if failed and not found:
            raise SourceFailed("DNS gave no answer")
        if failed:  # ask for the other half again soon
            return [ResolvedHost(one.host, min(one.seconds, HALF_SECONDS)) for one in found]
        return found


def _located(name: str, answers: Sequence[dns.RRHeader]) -> list[ResolvedHost]:
    """The addresses of a name in an answer, its aliases followed; other records are ignored."""
    aliases: dict[bytes, tuple[bytes, float]] = {}
    addresses: dict[bytes, list[ResolvedHost]] = {}
    for record in answers:
        owner = record.name.name.lower()
        payload: Any = record.payload
        if record.cls != dns.IN:
            continue
        if record.type == dns.CNAME:
            aliases[owner] = (payload.name.name.lower(), record.ttl)
        elif record.type in (dns.A, dns.AAAA):
            host = str(ip_address(payload.address))
            addresses.setdefault(owner, []).append(ResolvedHost(host, record.ttl))
    alias, ttl = name.encode("ascii"), inf
    for _ in range(ALIASES_MAX):
        if alias not in aliases:
            break
        alias, seconds = aliases[alias]
        ttl = min(ttl, seconds)
    return [ResolvedHost(one.host, min(one.seconds, ttl)) for one in addresses.get(alias, ())]


@implementer(IAddressSource)
class ProviderZone:
    """A provider that publishes the addresses of its subscribers in a DNS zone (A16).

    A subscriber's label there is the SHA-256 of its identifier, in base 32. So an identifier in any
    language fits into a label. Neither the zone nor the questions reveal a subscriber to anyone who
    does not know the identifier already.
    """

    def __init__(self, names: IAddressSource, zone: str) -> None:
        self._names = names
        self._zone = zone

    async def locate(self, name: str) -> Sequence[ResolvedHost]:
        located: Sequence[ResolvedHost] = await self._names.locate(f"{label(name)}.{self._zone}")
        return located

    def stop(self) -> None:
        self._names.stop()


def label(identifier: str) -> str:
    """The label of an identifier in a provider's zone: 52 characters."""
    digest = sha256(unicodedata.normalize("NFC", identifier).encode()).digest()
    return b32encode(digest).decode("ascii").rstrip("=").lower()
