"""Which addresses a terminal may register, and which of them callers may be told (I12)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

import idna

from broker.tables.locations import AddressRefused, Contact, Origin, ValidatedContact

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: "This network" (RFC 1122): no other host has such an address, and connecting to one may reach
#: the connecting host itself.
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")
#: Some versions of ``ipaddress`` call these global, which they are not: protocol assignments,
#: site-local addresses, documentation.
_NOT_PUBLIC: Final[tuple[Network, ...]] = (
    IPv4Network("192.0.0.0/24"),
    IPv6Network("fec0::/10"),
    IPv6Network("3fff::/20"),
)
#: NAT64 (RFC 6052): the last 32 bits are the IPv4 address that a translator sends to.
_NAT64: Final = IPv6Network("64:ff9b::/96")

#: Why the server's own address and port are refused.
OWN_ADDRESS: Final = "the address is the server's own"

#: Below this port routers and other servers of a network listen (RFC 6335, 6).
SYSTEM_PORTS: Final = 1024

#: Registered in place of an address that the resolver asks the provider for (A16).
PROVIDER: Final = "Provider"
#: Maximum length of a domain name in ASCII form, without the root's dot.
DOMAIN_BYTES: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
#: Top-level names that DNS does not resolve, or that mean each machine itself (RFC 6761, 6762,
#: 7686, 9476).
_SPECIAL: Final = frozenset(
    ("localhost", "localdomain", "local", "arpa", "onion", "alt", "invalid")
)


@lru_cache(maxsize=4096)
def parse_ip(text: str) -> Ip:
    """Read an IP address; an IPv4-mapped IPv6 address becomes the IPv4 address.

    :raises AddressRefused: it is not one, or has a zone, which only its own host understands
    """
    try:
        ip = ip_address(text if "%" not in text else "")
    except ValueError:
        raise AddressRefused("an Address is an IPv4 or IPv6 address") from None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@lru_cache(maxsize=4096)
def address_scope(ip: Ip) -> str:
    """Return an address's scope: ``loopback``, ``link-local``, ``private``, ``public`` or ``none``.

    An address that embeds IPv4 addresses is public if all of those are. Otherwise it would lead
    into a network that an outsider must not be led into, and its scope is ``none``.
    """
    embedded = _embedded_ipv4(ip)
    if embedded:
        return "public" if all(address_scope(each) == "public" for each in embedded) else "none"
    if ip.is_unspecified or ip.is_multicast or (ip.is_reserved and not ip.is_loopback):
        return "none"
    if ip.version == 4 and ip in _THIS_NETWORK:
        return "none"
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    return "public" if ip.is_global and not within(ip, _NOT_PUBLIC) else "private"


def _embedded_ipv4(ip: Ip) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that NAT64, 6to4 and Teredo route an IPv6 address by."""
    if ip.version == 4:
        return ()
    if ip in _NAT64:
        return (IPv4Address(int(ip) & 0xFFFFFFFF),)
    if ip.sixtofour is not None:
        return (ip.sixtofour,)
    return ip.teredo or ()


def routable_ip(host: str) -> Ip:
    """Read an address at which other machines can reach a terminal (I12).

    :raises AddressRefused: other machines cannot reach a terminal there
    """
    ip = parse_ip(host)
    if address_scope(ip) == "none":
        raise AddressRefused("an unspecified, multicast, broadcast or reserved address")
    if ip.version == 6 and ip.is_link_local:
        raise AddressRefused("other machines cannot reach an IPv6 link-local address")
    return ip


def canonical_domain(text: str) -> str:
    """Return a domain name's canonical form: ASCII (IDNA), lower case, without the root's dot.

    :raises AddressRefused: it is not a domain name, or not one that DNS resolves for others
    """
    name = text
    if not name.isascii():
        try:
            name = idna.encode(name[:DOMAIN_BYTES], uts46=True).decode("ascii")
        except UnicodeError:
            raise AddressRefused("the Address is not a domain name") from None
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > DOMAIN_BYTES or not all(map(_LABEL.fullmatch, labels)):
        raise AddressRefused("the Address is not a domain name")
    if len(labels) == 1 or not labels[-1][0].isalpha():
        raise AddressRefused("the Address is not a complete domain name")
    if labels[-1] in _SPECIAL:
        raise AddressRefused(f"others cannot resolve a name under {labels[-1]}")
    return name


def parse_domain(text: str) -> str | None:
    """Return the canonical form of a domain name or ``Provider``; ``None`` for an IP address.

    :raises AddressRefused: it looks like a domain name and is not one
    """
    if not text.isascii():
        return canonical_domain(text)
    if text.lower() == PROVIDER.lower():
        return PROVIDER
    _, dot, top = text.removesuffix(".").rpartition(".")
    if not dot or not top[:1].isalpha() or ":" in text:
        return None  # A name of one label means something in one local network only.
    return canonical_domain(text)


def validate_ip(host: str, source: str, allowed: Collection[Network] = ()) -> str:
    """Return the canonical form of an IP address that may be registered (I12).

    It must have the same scope (loopback, private, public) as the source of its connection,
    unless the operator allows its network.

    :param source: the address that the connection comes from
    :raises AddressRefused: it may not be registered
    """
    ip = routable_ip(host)
    _check_scope(ip, address_scope(parse_ip(source)), allowed)
    return str(ip)


def _check_scope(ip: Ip, expected: str, allowed: Collection[Network]) -> None:
    scope = address_scope(ip)
    if scope != expected and not within(ip, allowed):
        raise AddressRefused(
            f"a {scope} address is accepted only over a connection from a {scope} address"
        )


def _check_not_own(ip: Ip, port: int, own: Collection[Ip], own_ports: Collection[int]) -> None:
    """Refuse this server's own ports: callers must not be sent to the server itself."""
    if port in own_ports and (ip in own or any(each in own for each in _embedded_ipv4(ip))):
        raise AddressRefused(OWN_ADDRESS)


def validate_contact(
    host: str,
    port: int,
    *,
    source: str,
    own: str,
    allowed: Collection[Network] = (),
    own_ports: Collection[int] = (),
) -> ValidatedContact:
    """Judge a contact that a terminal registers over its own connection (I12).

    A domain name is judged by `resolve_contact`, each time it is resolved.

    :param source: the address that the connection comes from
    :param own: the local address of that connection, or the empty text if it has none
    :param allowed: networks whose addresses may be registered from anywhere, and connected to
    :param own_ports: the ports of this server, which no terminal can have
    :return: its canonical form, and whether the mediator may connect to it
    :raises AddressRefused: it may not be registered
    """
    source_ip = parse_ip(source)
    name = parse_domain(host)
    if name is not None:
        return ValidatedContact(name, False, Origin(str(source_ip)))
    host = validate_ip(host, source, allowed)
    ip = parse_ip(host)
    own_ips = (source_ip, parse_ip(own)) if own else (source_ip,)
    _check_not_own(ip, port, own_ips, own_ports)
    return ValidatedContact(host, ip == source_ip or within(ip, allowed))


def validate_local(
    host: str, port: int, *, source: str, own: str, own_ports: Collection[int] = ()
) -> str:
    """Judge a terminal's host candidate, which peers in the same network are told (I12).

    :param source: the address that its connection comes from
    :param own: the local address of that connection, or the empty text if it has none
    :param own_ports: the ports of this server, which no terminal can have
    :return: its canonical form
    :raises AddressRefused: peers may not be told it
    """
    # A caller connects to it inside the caller's own network, where its router and servers are.
    if port < SYSTEM_PORTS:
        raise AddressRefused(f"a Local port must be {SYSTEM_PORTS} or above")
    ip = routable_ip(host)
    if address_scope(ip) != "private":
        _check_scope(ip, address_scope(parse_ip(source)), ())
    _check_not_own(ip, port, (parse_ip(own),) if own else (), own_ports)
    return str(ip)


def resolve_contact(
    contact: Contact,
    hosts: Collection[str],
    *,
    own: Collection[Ip] = (),
    allowed: Collection[Network] = (),
    own_ports: Collection[int] = (),
) -> Contact:
    """Replace a contact's name by the first IP address found for it that callers may be told (I12).

    A domain name leads to addresses of the scope that it was registered from, the provider to
    public ones, both to networks that the operator allows. Those of the source's family go first.

    :param hosts: the IP addresses found
    :param own: the addresses of this machine
    :raises AddressRefused: callers may not be told any of them
    :raises ValueError: the contact is an IP address already
    """
    if contact.origin is None:
        raise ValueError("the contact is an IP address")
    source = parse_ip(contact.origin.source)
    scope = "public" if contact.host == PROVIDER else address_scope(source)
    for host in sorted(hosts, key=lambda each: (":" in each) != (source.version == 6)):
        try:
            ip = routable_ip(host)
            _check_scope(ip, scope, allowed)
            _check_not_own(ip, contact.port, (source, *own), own_ports)
        except AddressRefused:
            continue
        dialable = ip == source or within(ip, allowed)
        return replace(contact, host=str(ip), dialable=dialable, origin=None)
    name = "the provider" if contact.host == PROVIDER else "the domain name"
    raise AddressRefused(f"{name} has no address that may be registered over this connection")


def within(ip: Ip, networks: Collection[Network]) -> bool:
    """Return whether an address lies in one of the networks."""
    return any(ip.version == network.version and ip in network for network in networks)
