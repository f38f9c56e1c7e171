"""What settings may hold: how each kind of value is read from a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from os.path import abspath
from typing import Final, NamedTuple

from broker.messages.grammar import DIGITS, entry, identifier, token
from broker.net.tls.contexts import parse_pin
from broker.tables.address_policy import Network, canonical_domain


class ValueType(NamedTuple):
    """What a setting may hold.

    :ivar parse: makes the value of a text, or raises ``ValueError`` with a cause
    :ivar types: the Python types that a value in the file may have
    :ivar noun: these types in words, for errors
    """

    parse: Callable[[str], object]
    types: tuple[type, ...] = (str,)
    noun: str = "a text"


class Interface(NamedTuple):
    """A port, and the address on which it is opened."""

    port: int
    host: str

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Listener:
    """Where to listen: a checked Twisted endpoint string.

    :ivar text: the string
    :ivar interface: the port and address in it
    """

    text: str
    interface: Interface


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to: a checked Twisted endpoint string.

    :ivar text: the string; two servers are the same if it is
    :ivar host: its address or domain name
    :ivar tls: whether the connection uses TLS
    :ivar timeout: seconds that connecting may take
    :ivar bind: our own address on the connection; empty: any
    """

    text: str
    host: str
    tls: bool = False
    port: int = field(default=0, compare=False)
    timeout: int = field(default=30, compare=False)
    bind: str = field(default="", compare=False)

    @property
    def loopback(self) -> bool:
        """Whether it is on this machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: a loopback address, or ``localhost``."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _port(text: str, least: int = 0) -> int:
    if not 1 <= len(text) <= 5 or not DIGITS.issuperset(text) or not least <= int(text) <= 65535:
        raise ValueError(f"{text!r} is no port: a number from {least} to 65535")
    return int(text)


def _address(text: str) -> str:
    if text == "localhost":
        return text
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None


def _escaped(text: str) -> str:
    """An endpoint string with each ``[IPv6]`` in Twisted's form: a backslash before each colon."""

    def escaped(found: re.Match[str]) -> str:
        try:
            if ip_address(found[1]).version == 6:
                return found[1].replace(":", r"\:")
        except ValueError:
            pass
        raise ValueError(f"{text!r}: an IPv6 address must stand between [ and ]")

    return re.sub(r"\[([^]]*)\]", escaped, text)


def _split(text: str) -> list[str]:
    """The parts of an endpoint string, which colons without a backslash separate."""
    parts = [""]
    escaped = False
    for character in text:
        if escaped or character not in ":\\":
            parts[-1] += character
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            parts.append("")
    return parts


def _endpoint(
    text: str,
    positions: Sequence[str],
    known: Sequence[str],
    schemes: Sequence[str] = ("tcp",),
) -> dict[str, str]:
    """The arguments of an endpoint string by name."""
    forms = (":".join([scheme, *(word.upper() for word in positions)]) for scheme in schemes)
    form = " or ".join(forms)
    scheme, *rest = _split(text)
    if scheme not in schemes:
        raise ValueError(f"{text!r} is no endpoint that is offered here: {form}")
    arguments: dict[str, str] = {}
    for index, part in enumerate(rest):
        name, equals, value = part.partition("=")
        if not equals:
            if index >= len(positions):
                raise ValueError(f"{text!r} is no endpoint: {form}")
            name, value = positions[index], part
        if name not in known or name in arguments:
            raise ValueError(f"{text!r}: {name!r} can't be used here: {form}")
        arguments[name] = value
    missing = [name for name in positions if not arguments.get(name)]
    if missing:
        raise ValueError(f"{text!r} lacks the {' and the '.join(missing)}: {form}")
    return arguments


def parse_listener(text: str) -> Listener:
    """Where to listen: ``tcp:1201:interface=127.0.0.1``. Without an interface: all IPv4 addresses.

    ``tcp:1201:interface=[::]`` means all IPv6 addresses, and on most systems IPv4 too.
    """
    text = _escaped(text)
    arguments = _endpoint(text, ("port",), ("port", "interface", "backlog"))
    if "backlog" in arguments and not DIGITS.issuperset(arguments["backlog"] or "-"):
        raise ValueError(f"{text!r}: the backlog must be a number")
    host = _address(arguments["interface"]) if arguments.get("interface") else "0.0.0.0"
    return Listener(text, Interface(_port(arguments["port"]), host))


def parse_server(text: str) -> Server:
    """A server to connect to: ``tcp:127.0.0.1:1201``, ``tcp:[::1]:1201``; ``tls:…`` over TLS."""
    known = ("host", "port", "timeout", "bindAddress")
    arguments = _endpoint(_escaped(text), ("host", "port"), known, ("tcp", "tls"))
    _port(arguments["port"], 1)
    if "timeout" in arguments and not DIGITS.issuperset(arguments["timeout"] or "-"):
        raise ValueError(f"{text!r}: the timeout must be a number of seconds")
    if not arguments["host"].isascii() or " " in arguments["host"]:
        raise ValueError(f"{text!r}: the host is an address or a domain name")
    return Server(
        text,
        arguments["host"],
        text.startswith("tls:"),
        int(arguments["port"]),
        int(arguments.get("timeout", 30)),
        arguments.get("bindAddress", ""),
    )


def parse_udp(text: str) -> Interface:
    """A UDP port and its interface: ``1200:127.0.0.1``, ``1200``, ``1200:[::1]``."""
    port, colon, host = text.partition(":")
    if not colon:
        return Interface(_port(port), "0.0.0.0")
    return Interface(_port(port), _address(host.removeprefix("[").removesuffix("]")))


def parse_place(text: str) -> tuple[str, int]:
    """An IP address and a port: ``203.0.113.9:4000``, ``[2001:db8::9]:4000``."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if (":" in bare) != (host == f"[{bare}]"):
        raise ValueError(f"{text!r} is neither IPv4:PORT nor [IPv6]:PORT")
    try:
        return str(ip_address(bare)), _port(port, 1)
    except ValueError as error:
        raise ValueError(f"{text!r} is neither IPv4:PORT nor [IPv6]:PORT") from error


def _optional(parse: Callable[[str], object], absent: str = "") -> Callable[[str], object]:
    """A parser that gives ``None`` for the text that means: none."""
    return lambda text: None if text == absent else parse(text)


def _number(text: str) -> float:
    try:
        if not text.isascii() or "_" in text:
            raise ValueError
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 86400:
        raise ValueError("must be more than 0 and at most 86400 seconds")
    return value


def _percent(text: str) -> float | None:
    value = _number(text)
    if not 0 <= value <= 100:
        raise ValueError("must be from 0 to 100 percent")
    return value or None


_UNITS: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _size(text: str) -> int:
    digits = text.rstrip("KMGT")
    unit = text[len(digits) :]
    if unit not in _UNITS or not 1 <= len(digits) <= 15 or not DIGITS.issuperset(digits):
        raise ValueError(f"{text!r} is no size: a number of bytes, or with K, M, G or T after it")
    return int(digits) << _UNITS[unit]


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(f"{text!r} is no network such as 192.168.0.0/16") from None


def _choice(*offered: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in offered:
            raise ValueError(f"{text!r} is not offered: only {' or '.join(offered)}")
        return text

    return parse


def parse_dns_server(text: str) -> tuple[str, int]:
    """A DNS server: ``192.0.2.53``, ``192.0.2.53:5353``, ``[2001:db8::53]:5353``."""
    found = re.fullmatch(r"\[([^]]*)\](?::(.*))?|([^:]*):([^:]*)", text)
    if found is None:
        return _ip(text), 53
    port = found[2] if found[1] is not None else found[4]
    return _ip(found[1] if found[1] is not None else found[3]), 53 if port is None else _port(
        port, 1
    )


def _zone(text: str) -> str:
    try:
        return canonical_domain(text)
    except ValueError:
        raise ValueError(f"{text!r} is no domain name such as subscribers.example.jp") from None


def _ip(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address") from None


def choice(*offered: str) -> ValueType:
    """The type of a setting that is one of a few words."""
    return ValueType(_choice(*offered))


FLAG: Final = ValueType(str, (bool,), "true or false")
LISTENER: Final = ValueType(parse_listener)
SERVER: Final = ValueType(parse_server)
RESOLVER: Final = ValueType(_optional(parse_server, "inside"))
UDP: Final = ValueType(_optional(parse_udp, "none"))
IDENTIFIER: Final = ValueType(_optional(identifier))
ENTRY: Final = ValueType(entry)
ADDRESS: Final = ValueType(_optional(_ip))
DNS_SERVER: Final = ValueType(parse_dns_server)
ZONE: Final = ValueType(_optional(_zone))
NETWORK: Final = ValueType(_network)
PIN: Final = ValueType(_optional(parse_pin))
TOKEN: Final = ValueType(token)
PATH: Final = ValueType(_optional(abspath))
SECONDS: Final = ValueType(_seconds, (int, float), "a number")
PERCENT: Final = ValueType(_percent, (int, float), "a number")
SIZE: Final = ValueType(_size, (int, str), "a number, or a text such as 1G")
