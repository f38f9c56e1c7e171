"""The address table (fig. 7): identifier to where it is now. The newest wins; the old expires."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from math import inf
from typing import Final, NamedTuple

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: How many addresses one table may hold (I15).
ADDRESSES_MOST: Final = 1_000_000
#: "This network" (RFC 1122): a host that is dialled there is none, or the dialling one itself.
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")


class AddressRefused(ValueError):
    """An address may not be registered; the text says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a terminal said it is.

    :ivar host: an IP address
    :ivar port: the port its callers turn to
    :ivar registered: when, in seconds of the table's clock
    :ivar expires: seconds for which it holds
    :ivar dialable: the registration came from this very address, or the operator allowed the
        network to be dialled
    """

    host: str
    port: int
    registered: float
    expires: int
    dialable: bool = False


class Place(NamedTuple):
    """An address in force.

    :ivar address: where
    :ivar until: when it expires, in seconds of the table's clock
    """

    address: Address
    until: float


class AddressTable:
    """The addresses of all terminals.

    An address that is *held* (the connection that registered it is open) does not expire.
    """

    __slots__ = ("_most", "_places")

    def __init__(self, most: int = ADDRESSES_MOST) -> None:
        self._places: dict[str, Place] = {}
        self._most = most

    def register(self, identifier: str, address: Address, *, held: bool = False) -> bool:
        """Record an address, unless a newer one stands.

        :return: whether it is the one in force now
        :raises AddressRefused: the table is full
        """
        place = self._places.get(identifier)
        if place is not None and place.address.registered > address.registered:
            return False
        if place is None and len(self._places) >= self._most:
            raise AddressRefused("the table of addresses is full")
        until = inf if held else address.registered + address.expires
        self._places[identifier] = Place(address, until)
        return True

    def renew(self, identifier: str, address: Address, now: float) -> bool:
        """Record an address on another's word: it holds for its ``expires`` seconds from now on.

        Whenever it was registered: that only decides which of two is the newer. The one in force
        is not replaced by itself, only prolonged.

        :return: whether it is the one in force now
        :raises AddressRefused: the table is full
        """
        place = self._places.get(identifier)
        if place is not None and place.until > now:
            there = place.address
            if there.registered > address.registered:
                if (there.host, there.port) != (address.host, address.port):
                    return False
                self._places[identifier] = Place(there, max(place.until, now + address.expires))
                return True
        elif place is None and len(self._places) >= self._most:
            raise AddressRefused("the table of addresses is full")
        self._places[identifier] = Place(address, now + address.expires)
        return True

    def lookup(self, identifier: str, now: float) -> Place | None:
        """The address in force, or ``None`` (S802–S807). An expired one is never told (I10)."""
        place = self._places.get(identifier)
        return None if place is None or place.until <= now else place

    def release(self, identifier: str, address: Address, now: float) -> None:
        """The connection that held this very address is gone: its expiry begins to run."""
        place = self._places.get(identifier)
        if place is not None and place.address is address:
            self._places[identifier] = Place(address, now + address.expires)

    def withdraw(self, identifier: str) -> None:
        """Forget an address."""
        self._places.pop(identifier, None)

    def prune(self, now: float) -> int:
        """Drop what has expired; return how many went."""
        gone = [name for name, place in self._places.items() if place.until <= now]
        for name in gone:
            del self._places[name]
        return len(gone)

    def __len__(self) -> int:
        return len(self._places)


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Ip:
    """An IP address; an IPv4 one in IPv6 clothing is taken for what it is.

    :raises AddressRefused: it is none, or has a zone, which only its own host understands
    """
    try:
        ip = ip_address(text if "%" not in text else "")
    except ValueError:
        raise AddressRefused("an Address is an IPv4 or IPv6 address") from None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@lru_cache(maxsize=4096)
def kind(ip: Ip) -> str:
    """Of which kind an address is: ``loopback``, ``link``, ``private``, ``public``, or ``none``."""
    if ip.is_unspecified or ip.is_multicast or (ip.is_reserved and not ip.is_loopback):
        return "none"
    if ip.version == 4 and ip in _THIS_NETWORK:
        return "none"
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link"
    return "public" if ip.is_global else "private"


def usable(host: str) -> Ip:
    """An address at which a terminal may be, wherever it is told from (I12).

    :raises AddressRefused: there is no terminal at such an address
    """
    ip = parse_ip(host)
    if kind(ip) == "none":
        raise AddressRefused("an unspecified, multicast, broadcast or reserved address")
    return ip


def check(host: str, source: str, allowed: Collection[Network] = ()) -> str:
    """The canonical form of an address that may be registered (I12).

    It must be of the same kind (loopback, private, public) as the address its connection comes
    from; the operator may allow more by network.

    :param source: the address that the connection comes from
    :raises AddressRefused: it may not
    """
    ip = usable(host)
    its = kind(ip)
    if kind(parse_ip(source)) != its and not within(ip, allowed):
        raise AddressRefused(
            f"a {its} address is not taken from a connection that comes from elsewhere"
        )
    return str(ip)


def admit(
    host: str,
    port: int,
    *,
    source: str,
    own: str,
    allowed: Collection[Network] = (),
    own_ports: Collection[int] = (),
) -> tuple[str, bool]:
    """Judge an address that a terminal registers over its own connection (I12).

    :param source: the address that the connection comes from
    :param own: the address at which it arrived, or the empty text where it has none
    :param allowed: networks whose addresses may be registered from anywhere, and dialled
    :param own_ports: the ports of this server, which no terminal is told to be at
    :return: its canonical form, and whether it may be dialled
    :raises AddressRefused: it may not be registered
    """
    host = check(host, source, allowed)
    ip = parse_ip(host)
    is_source = ip == parse_ip(source)
    if port in own_ports and (is_source or (own and ip == parse_ip(own))):
        raise AddressRefused("the address is the server's own")
    return host, is_source or within(ip, allowed)


def within(ip: Ip, networks: Collection[Network]) -> bool:
    """Whether an address lies in one of the networks."""
    return any(ip.version == network.version and ip in network for network in networks)
