"""What the methods of opening a port in a router have in common: PCP with NAT-PMP, and UPnP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from twisted.internet.defer import Deferred

from broker.nat.gateway import is_public

TransportProtocol = Literal["TCP", "UDP"]

#: The longest lifetime of a mapping that a router is believed, in seconds (RFC 6887, 15).
LIFETIME_MOST: Final = 86_400

#: Why a method stops, once another has opened the port.
SLOWER: Final = "another method was faster"


class NotOpened(Exception):
    """A port was not opened; the text says why."""


@dataclass(eq=False)
class MappingRequest:
    """A port that should be opened.

    :ivar port: ours
    :ivar lifetime: seconds
    :ivar wanted: false once another method was faster
    :ivar asking: whether the router may have been asked already; set by UPnP alone
    """

    protocol: TransportProtocol
    port: int
    lifetime: int
    wanted: bool = True
    asking: bool = False


@dataclass(frozen=True)
class PortMapping:
    """A port that a router says it has opened.

    Nothing of it is proven: compare the address with what a server sees, and connect.

    :ivar port: ours
    :ivar address: the router's to the outside, by its own claim
    :ivar external: the router's port
    :ivar lifetime: seconds from the router's answer, after which it closes the port unless it is
        renewed; 0 if it stays open until it is closed
    :ivar requested: the seconds that were requested
    :ivar method: ``PCP``, ``NAT-PMP`` or ``UPnP``
    :ivar nonce: PCP's proof that it is ours
    """

    protocol: TransportProtocol
    port: int
    address: str
    external: int
    lifetime: int
    requested: int
    method: str
    nonce: bytes = field(default=b"", repr=False)

    @property
    def is_public(self) -> bool:
        """Whether the address could be reached from everywhere.

        If not, the router is behind another, which has opened nothing.
        """
        return is_public(self.address)


class MappingMethod(Protocol):
    """A method to have ports opened by one router.

    Each Deferred may be cancelled: what comes of an ``open`` that was cancelled is taken back.

    :ivar name: for messages
    """

    name: str

    def open(self, request: MappingRequest) -> Deferred[PortMapping]:
        """Have a port opened; fails with ``NotOpened``."""

    def renew(self, mapping: PortMapping) -> Deferred[PortMapping]:
        """Have it kept open; fails with ``NotOpened``."""

    def close(self, mapping: PortMapping) -> Deferred[None]:
        """Have it closed; fails with ``NotOpened``."""

    def stop(self) -> Deferred[None]:
        """Ask for nothing from now on; fires when nothing is under way."""


class MethodEvents(Protocol):
    """What hears of a router by one of its methods."""

    def mappings_lost(self, method: MappingMethod) -> None:
        """The router's clock shows that it has lost what it was asked for by this method."""
