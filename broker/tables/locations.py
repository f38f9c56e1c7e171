"""The address table (fig. 7): identifier to where it is now. The newest wins; the old expires.

In place of an IP address a domain name may stand, or ``Provider`` (¶77–78). It is kept as it is,
and found out anew each time it is told; what is found is judged as an IP address would have been
that the terminal had registered.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from math import inf
from typing import Final, NamedTuple

import idna

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: How many addresses one table may hold (I15).
ADDRESSES_MOST: Final = 1_000_000
#: "This network" (RFC 1122): a host that is dialled there is none, or the dialling one itself.
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")
#: What some versions of ``ipaddress`` take for public, and isn't: protocol assignments, site-local
#: addresses, documentation.
_NOT_PUBLIC: Final[tuple[Network, ...]] = (
    IPv4Network("192.0.0.0/24"),
    IPv6Network("fec0::/10"),
    IPv6Network("3fff::/20"),
)
#: NAT64 (RFC 6052): the last 32 bits are the IPv4 address that a translator sends to.
_NAT64: Final = IPv6Network("64:ff9b::/96")

#: Ports below are where routers and other servers of a network listen (RFC 6335, 6).
SYSTEM_PORTS: Final = 1024

#: Stands in place of an address that the resolver is to ask the provider for (A16).
PROVIDER: Final = "Provider"
#: What a domain name has at the most, in its ASCII form, without the root's dot.
DOMAIN_BYTES: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: Names that are not DNS's to tell, or mean each machine itself (RFC 6761, 6762, 7686, 9476).
_SPECIAL: Final = frozenset(
    ("localhost", "localdomain", "local", "arpa", "onion", "alt", "invalid")
)


class AddressRefused(ValueError):
    """An address may not be registered; the text says why."""


@dataclass(slots=True)
class Origin:
    """How an address came to be registered that is no IP address: what is found is judged by it.

    :ivar source: the IP address that the connection came from
    :ivar checked: something admissible was found once; shared by all copies of the address
    """

    source: str
    checked: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where a terminal said it is.

    :ivar host: an IP address; a domain name, or ``Provider``, where there is an ``origin``
    :ivar port: the port its callers turn to
    :ivar registered: when, in seconds of the table's clock
    :ivar expires: seconds for which it holds
    :ivar dialable: the registration came from this very address, or the operator allowed the
        network to be dialled
    :ivar origin: what stands there must be found out before it is told, and is judged by this
    """

    host: str
    port: int
    registered: float
    expires: int
    dialable: bool = False
    origin: Origin | None = None


class Located(NamedTuple):
    """An address that was found by a name.

    :ivar host: an IP address
    :ivar seconds: for how long it may be taken for so
    """

    host: str
    seconds: float


class Admitted(NamedTuple):
    """What a terminal may register, as an ``Address`` holds it."""

    host: str
    dialable: bool
    origin: Origin | None = None


class CandidateOffer(NamedTuple):
    """What a terminal lets its callers be told besides, while it is reached over a connection.

    :ivar local: where it listens in its own network, if it has said so
    :ivar seen: whether they may be told where this connection comes from
    """

    local: Address | None
    seen: bool


class Place(NamedTuple):
    """An address in force.

    :ivar address: where
    :ivar until: when it expires, in seconds of the table's clock
    """

    address: Address
    until: float


class LocationTable:
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
    """Of which kind an address is: ``loopback``, ``link``, ``private``, ``public``, or ``none``.

    One that carries IPv4 addresses is public if they all are; else it would lead to where nobody
    outside may be led, and so is none.
    """
    carried = _carried(ip)
    if carried:
        return "public" if all(kind(one) == "public" for one in carried) else "none"
    if ip.is_unspecified or ip.is_multicast or (ip.is_reserved and not ip.is_loopback):
        return "none"
    if ip.version == 4 and ip in _THIS_NETWORK:
        return "none"
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link"
    return "public" if ip.is_global and not within(ip, _NOT_PUBLIC) else "private"


def _carried(ip: Ip) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses by which an IPv6 one leads somewhere: of NAT64, 6to4 and Teredo."""
    if ip.version == 4:
        return ()
    if ip in _NAT64:
        return (IPv4Address(int(ip) & 0xFFFFFFFF),)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    return ip.teredo or ()


def routable_ip(host: str) -> Ip:
    """An address at which a terminal may be, wherever it is told from (I12).

    :raises AddressRefused: there is no terminal at such an address
    """
    ip = parse_ip(host)
    if kind(ip) == "none":
        raise AddressRefused("an unspecified, multicast, broadcast or reserved address")
    if ip.version == 6 and ip.is_link_local:
        raise AddressRefused("an IPv6 link-local address leads nowhere from another machine")
    return ip


def domain(text: str) -> str:
    """The canonical form of a domain name: ASCII (IDNA), lower case, without the root's dot.

    :raises AddressRefused: it is none, or none that DNS could tell to others
    """
    name = text
    if not name.isascii():
        try:
            name = idna.encode(name[:DOMAIN_BYTES], uts46=True).decode("ascii")
        except UnicodeError:
            raise AddressRefused("the Address is no domain name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > DOMAIN_BYTES or not all(map(_LABEL.fullmatch, labels)):
        raise AddressRefused("the Address is no domain name")
    if len(labels) == 1 or not labels[-1][0].isalpha():
        raise AddressRefused("the Address is no whole domain name")
    if labels[-1] in _SPECIAL:
        raise AddressRefused(f"a name under {labels[-1]} means nothing to others")
    return name


def named(text: str) -> str | None:
    """What stands in place of an IP address, in its canonical form; ``None`` if one is meant.

    :raises AddressRefused: a domain name is meant, and it is none
    """
    if not text.isascii():
        return domain(text)
    if text.lower() == PROVIDER.lower():
        return PROVIDER
    top = text.removesuffix(".").rpartition(".")
    if not top[1] or not top[2][:1].isalpha() or ":" in text:
        return None  # a name of one label is nobody's but a machine's own
    return domain(text)


def check(host: str, source: str, allowed: Collection[Network] = ()) -> str:
    """The canonical form of an IP address that may be registered (I12).

    It must be of the same kind (loopback, private, public) as the address its connection comes
    from; the operator may allow more by network.

    :param source: the address that the connection comes from
    :raises AddressRefused: it may not
    """
    ip = routable_ip(host)
    _check_kind(ip, kind(parse_ip(source)), allowed)
    return str(ip)


def _check_kind(ip: Ip, wanted: str, allowed: Collection[Network]) -> None:
    its = kind(ip)
    if its != wanted and not within(ip, allowed):
        raise AddressRefused(
            f"a {its} address is not taken from a connection that comes from elsewhere"
        )


def _check_own(ip: Ip, port: int, own: Collection[Ip], own_ports: Collection[int]) -> None:
    if port in own_ports and (ip in own or any(one in own for one in _carried(ip))):
        raise AddressRefused("the address is the server's own")


def admit(
    host: str,
    port: int,
    *,
    source: str,
    own: str,
    allowed: Collection[Network] = (),
    own_ports: Collection[int] = (),
) -> Admitted:
    """Judge an address that a terminal registers over its own connection (I12).

    What stands in place of an IP address is judged by ``settle``, once it is found out.

    :param source: the address that the connection comes from
    :param own: the address at which it arrived, or the empty text where it has none
    :param allowed: networks whose addresses may be registered from anywhere, and dialled
    :param own_ports: the ports of this server, which no terminal is told to be at
    :return: its canonical form, and whether it may be dialled
    :raises AddressRefused: it may not be registered
    """
    comes_from = parse_ip(source)
    name = named(host)
    if name is not None:
        return Admitted(name, False, Origin(str(comes_from)))
    host = check(host, source, allowed)
    ip = parse_ip(host)
    ours = (comes_from, parse_ip(own)) if own else (comes_from,)
    _check_own(ip, port, ours, own_ports)
    return Admitted(host, ip == comes_from or within(ip, allowed))


def admit_local(
    host: str, port: int, *, source: str, own: str, own_ports: Collection[int] = ()
) -> str:
    """Judge where a terminal says that it is in its own network: those beside it are told (I12).

    :param source: the address that its connection comes from
    :param own: the address at which that arrived, or the empty text where it has none
    :param own_ports: the ports of this server, which no terminal is told to be at
    :return: its canonical form
    :raises AddressRefused: it may not be told
    """
    if port < SYSTEM_PORTS:  # whoever is led there knocks within his own network
        raise AddressRefused(f"a Local port is {SYSTEM_PORTS} or above")
    ip = routable_ip(host)
    if kind(ip) != "private":
        _check_kind(ip, kind(parse_ip(source)), ())
    _check_own(ip, port, (parse_ip(own),) if own else (), own_ports)
    return str(ip)


def settle(
    address: Address,
    hosts: Collection[str],
    *,
    own: Collection[Ip] = (),
    allowed: Collection[Network] = (),
    own_ports: Collection[int] = (),
) -> Address:
    """An address that is no IP address, as it is told: the first of those found that may be (I12).

    A domain name leads to addresses of the kind from which it was registered; the provider, to
    public ones; both to what the operator allowed. Those of the source's family come first.

    :param hosts: what was found
    :param own: the addresses of this machine
    :raises AddressRefused: none of them may be told
    """
    if address.origin is None:
        raise ValueError("an IP address is settled")
    source = parse_ip(address.origin.source)
    wanted = "public" if address.host == PROVIDER else kind(source)
    for host in sorted(hosts, key=lambda one: (":" in one) != (source.version == 6)):
        try:
            ip = routable_ip(host)
            _check_kind(ip, wanted, allowed)
            _check_own(ip, address.port, (source, *own), own_ports)
        except AddressRefused:
            continue
        dialable = ip == source or within(ip, allowed)
        return replace(address, host=str(ip), dialable=dialable, origin=None)
    who = "the provider" if address.host == PROVIDER else "the domain name"
    raise AddressRefused(f"{who} has no address that may be registered from where you are")


def within(ip: Ip, networks: Collection[Network]) -> bool:
    """Whether an address lies in one of the networks."""
    return any(ip.version == network.version and ip in network for network in networks)
