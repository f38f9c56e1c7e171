"""This host's router, and its own address towards it. Linux and IPv4."""

from __future__ import annotations

import socket
import sys
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from broker.nat.packets import SERVER_PORT

ROUTES: Final = Path("/proc/net/route")

_UP: Final = 0x1
_GATEWAY: Final = 0x2
_REJECT: Final = 0x200


class NoRouter(Exception):
    """There is no router to ask; the text says why."""


def parse_routes(text: str) -> str | None:
    """The router of the default route with the smallest metric, in the kernel's table."""
    found = []
    for line in text.splitlines()[1:]:
        try:
            _, destination, gateway, flags, _, _, metric, mask = line.split()[:8]
            state = int(flags, 16)
            if int(destination, 16) or int(mask, 16):
                continue
            address = int(gateway, 16).to_bytes(4, sys.byteorder)
            if state & (_UP | _GATEWAY | _REJECT) == _UP | _GATEWAY:
                found.append((int(metric), str(IPv4Address(address))))
        except (ValueError, OverflowError):
            continue
    return min(found, key=lambda route: route[0])[1] if found else None


def find_gateway(path: Path = ROUTES) -> str:
    """The router of the default route.

    :raises NoRouter: there is none, or the routes can't be read
    """
    try:
        gateway = parse_routes(path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise NoRouter(f"the routes can't be read: {error}") from None
    if gateway is None:
        raise NoRouter("there is no IPv4 route to a router")
    return gateway


def local_address(gateway: str) -> str:
    """Our own address towards a router; nothing is sent.

    :raises NoRouter: there is no route to it
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((gateway, SERVER_PORT))
            host: str = probe.getsockname()[0]
        except OSError as error:
            raise NoRouter(f"no route to the router {gateway}: {error.strerror}") from None
    return host


def is_public(address: str) -> bool:
    """Whether an address could be reached from everywhere: not that of a router behind another."""
    try:
        parsed = IPv4Address(address)
    except ValueError:
        return False
    return parsed.is_global and not parsed.is_multicast
