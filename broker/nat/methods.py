"""What the ways to have a port opened have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

from twisted.internet.defer import Deferred

Kind = Literal["TCP", "UDP"]

#: The longest lifetime that a router is believed, in seconds (RFC 6887, 15).
LIFETIME_MOST: Final = 86_400


class NotOpened(Exception):
    """A port was not opened; the text says why."""


@dataclass(eq=False)
class MappingRequest:
    """A port that is to be opened.

    :ivar lifetime: seconds
    :ivar wanted: false once another way was faster
    :ivar asking: whether the router may have been asked already; only UPnP tells
    """

    kind: Kind
    port: int
    lifetime: int
    wanted: bool = True
    asking: bool = False


@dataclass(frozen=True)
class PortMapping:
    """A port that a router says it has opened.

    :ivar kind: TCP or UDP
    :ivar port: ours
    :ivar address: the router's to the outside, as it says
    :ivar external: the router's port
    :ivar lifetime: seconds from when it was told; 0, if it stays open until it is closed
    :ivar asked: seconds that were asked for
    :ivar how: ``PCP``, ``NAT-PMP`` or ``UPnP``
    :ivar nonce: PCP's proof that it is ours
    """

    kind: Kind
    port: int
    address: str
    external: int
    lifetime: int
    asked: int
    how: str
    nonce: bytes = b""


class Way(Protocol):
    """A way to have ports opened by one router.

    Each Deferred may be cancelled: what comes of an ``open`` that was cancelled is taken back.

    :ivar name: for messages
    """

    name: str

    def open(self, wish: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; fails with ``NotOpened``."""

    def renew(self, opening: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open; fails with ``NotOpened``."""

    def close(self, opening: PortMapping) -> Deferred[None]:
        """Have it closed; fails with ``NotOpened``."""

    def stop(self) -> Deferred[None]:
        """Fires when nothing goes on any more; nothing may be asked for from now on."""
