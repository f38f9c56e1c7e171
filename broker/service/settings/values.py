"""Settings: one table a role, from which its command line and its configuration file both follow.

A setting's value is a text, a number, a truth or a list of these, and means the same in both
places. Every error of both places is found before any is told.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from os.path import abspath
from typing import Any, Final, NamedTuple

from broker.messages.grammar import DIGITS, entry, identifier, token
from broker.net.tls.contexts import parse_pin
from broker.tables.address_policy import PROVIDER, Network, canonical_domain, parse_domain


class Kind(NamedTuple):
    """What a setting may hold.

    :ivar parse: makes the value of its text, or raises ``ValueError`` with a cause
    :ivar types: the types that it may have in a file
    :ivar noun: what it must be in a file
    """

    parse: Callable[[str], object]
    types: tuple[type, ...] = (str,)
    noun: str = "a text"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a role.

    :ivar name: the option's name, and the key in the file
    :ivar kind: what it may hold
    :ivar default: what it is where nobody says otherwise, as it would stand in the file
    :ivar help: what it is for, in a sentence
    :ivar repeatable: whether it holds a list: on the command line the option is repeated
    """

    name: str
    kind: Kind
    default: Any
    help: str
    repeatable: bool = False

    @property
    def flag(self) -> bool:
        """Whether it is on or off, and takes no value on the command line."""
        return self.kind is FLAG

    @property
    def opposite(self) -> str:
        """For a flag: the option that undoes it, where the file has set it."""
        return self.name[3:] if self.name.startswith("no-") else f"no-{self.name}"


class Interface(NamedTuple):
    """A port, and the address on which it is opened."""

    port: int
    host: str

    @property
    def loopback(self) -> bool:
        """Whether nothing but this machine gets there."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Listener:
    """A place to listen, as a Twisted endpoint string that was looked at.

    :ivar text: the string
    :ivar interface: what it says
    """

    text: str
    interface: Interface


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to, as a Twisted endpoint string that was looked at.

    :ivar text: the string, by which two are told apart
    :ivar host: its address, or its domain name
    :ivar tls: whether it is spoken to over TLS
    :ivar timeout: seconds that connecting may take
    :ivar bind: our own address on the connection; any, where it is empty
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


@dataclass(slots=True)
class Settings:
    """What the settings of a role are, all sources taken together.

    :ivar values: name to value; a list of values for what is repeatable
    :ivar origins: name to where it was said, for those that were said anywhere
    :ivar errors: what is wrong, a line each
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def where(self, name: str) -> str:
        """Where a setting was said, or the option by which it can be."""
        return self.origins.get(name, f"--{name}")


def is_loopback(host: str) -> bool:
    """Whether an address, or the name ``localhost``, is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


# Putting the sources together.


def settle(
    settings: Sequence[Setting], given: Mapping[str, Sequence[str] | bool], path: str | None = None
) -> Settings:
    """Put the command line, the configuration file and the defaults together; the first wins.

    :param given: what the command line says: the texts of each option in turn, or the flag
    :param path: the configuration file
    """
    result = Settings()
    written = _read(path, settings, result.errors) if path is not None else {}
    for setting in settings:
        name = setting.name
        result.values[name] = _default(setting)
        if name in written:
            result.origins[name] = f"{path}: {name}"
            _take(setting, written[name], result)
        if name in given:
            result.origins[name] = f"--{name}"
            said = given[name]
            single = isinstance(said, bool) or setting.repeatable
            _take(setting, said if single else said[-1], result)  # type: ignore[index]
    return result


def _default(setting: Setting) -> Any:
    if setting.repeatable:
        return [setting.kind.parse(text) for text in setting.default]
    return setting.default if setting.flag else setting.kind.parse(str(setting.default))


def _take(setting: Setting, value: Any, result: Settings) -> None:
    """Take in a value, be it of the file or of the command line."""
    if setting.flag:
        result.values[setting.name] = value
        return
    parsed = []
    for one in value if setting.repeatable else [value]:
        try:
            parsed.append(setting.kind.parse(str(one)))
        except ValueError as error:
            result.errors.append(f"{result.where(setting.name)}: {error}")
    if setting.repeatable:
        result.values[setting.name] = parsed
    elif parsed:
        result.values[setting.name] = parsed[0]


def _read(path: str, settings: Sequence[Setting], errors: list[str]) -> dict[str, Any]:
    """The values of a configuration file that have the right type; what is wrong with the rest."""
    try:
        with open(path, "rb") as file:
            written = tomllib.load(file)
    except OSError as error:
        errors.append(f"{path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        errors.append(f"{path}: not TOML: {error}")
        return {}
    known = {setting.name: setting for setting in settings}
    right = {}
    for name, value in written.items():
        setting = known.get(name)
        if setting is None:
            errors.append(f"{path}: {name}: there is no such setting")
        elif setting.repeatable and not isinstance(value, list):
            errors.append(f"{path}: {name}: must be a list")
        elif not all(_has_type(setting.kind, one) for one in _each(value, setting)):
            noun = f"a list of which each is {setting.kind.noun}"
            noun = noun if setting.repeatable else setting.kind.noun
            errors.append(f"{path}: {name}: must be {noun}")
        else:
            right[name] = value
    return right


def _each(value: Any, setting: Setting) -> list[Any]:
    return list(value) if setting.repeatable else [value]


def _has_type(kind: Kind, value: object) -> bool:
    if isinstance(value, bool):  # which Python takes for a number
        return bool in kind.types
    return isinstance(value, kind.types)


# What settings may hold.


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
    """An endpoint string with each ``[IPv6]`` as Twisted has it: colons behind backslashes."""

    def escaped(found: re.Match[str]) -> str:
        try:
            if ip_address(found[1]).version == 6:
                return found[1].replace(":", r"\:")
        except ValueError:
            pass
        raise ValueError(f"{text!r}: between [ and ] stands an IPv6 address")

    return re.sub(r"\[([^]]*)\]", escaped, text)


def _split(text: str) -> list[str]:
    """The parts of an endpoint string: parted by colons, save those behind a backslash."""
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
            raise ValueError(f"{text!r}: {name!r} has no place there: {form}")
        arguments[name] = value
    missing = [name for name in positions if not arguments.get(name)]
    if missing:
        raise ValueError(f"{text!r} lacks the {' and the '.join(missing)}: {form}")
    return arguments


def parse_listener(text: str) -> Listener:
    """A place to listen: ``tcp:1201:interface=127.0.0.1``. Without an interface, on all of IPv4.

    ``tcp:1201:interface=[::]`` is all of IPv6, and of IPv4 too where the system has it so.
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
    """A port for datagrams and its interface: ``1200:127.0.0.1``, ``1200``, ``1200:[::1]``."""
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
    """The same, or ``None`` for the text that means there is none."""
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


def _where(text: str) -> str:
    """An IP address, or what may be registered in its place."""
    try:
        name = parse_domain(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if name is not None:
        return name
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address, domain name or {PROVIDER}") from None


def choice(*offered: str) -> Kind:
    """One of a few words."""
    return Kind(_choice(*offered))


FLAG: Final = Kind(str, (bool,), "true or false")
LISTENER: Final = Kind(parse_listener)
SERVER: Final = Kind(parse_server)
RESOLVER: Final = Kind(_optional(parse_server, "inside"))
UDP: Final = Kind(_optional(parse_udp, "none"))
IDENTIFIER: Final = Kind(_optional(identifier))
ENTRY: Final = Kind(entry)
ADDRESS: Final = Kind(_optional(_ip))
WHERE: Final = Kind(_optional(_where))
DNS_SERVER: Final = Kind(parse_dns_server)
ZONE: Final = Kind(_optional(_zone))
NETWORK: Final = Kind(_network)
PIN: Final = Kind(_optional(parse_pin))
TOKEN: Final = Kind(token)
PATH: Final = Kind(_optional(abspath))
SECONDS: Final = Kind(_seconds, (int, float), "a number")
PERCENT: Final = Kind(_percent, (int, float), "a number")
SIZE: Final = Kind(_size, (int, str), "a number, or a text such as 1G")
