"""A terminal asks where it is seen to come from, and whether it can be reached there (D9, I12).

What a router says of itself is only its claim. Here a terminal is told its own source, of nobody
else anything; and the one address that is dialled for it is that very source.
"""

from __future__ import annotations

from typing import Final

from broker.mediator.connection import TerminalConnection, seen_ip
from broker.mediator.context import MediatorContext
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.messages.errors import BadRequest, NotReached, ServiceUnavailable, TooManyRequests
from broker.net.dialogue import Request
from broker.net.peer_address import remote_port_of
from broker.tables.address_policy import Ip
from broker.tables.rate_limits import RateLimiter, RateLimits

#: Ports that are tried in a minute for one terminal at one source, or at several,
TRIES_A_TERMINAL: Final = 10
#: and at one source, whoever asks: many may be behind one router.
TRIES_A_SOURCE: Final = 30


class AddressCheck:
    """Says what a terminal looks like from here."""

    def __init__(self, context: MediatorContext, dialer: WakeUpDialer | None) -> None:
        """
        :param dialer: tries ports; none are tried, without
        """
        self._clock = context.clock
        self._dialer = dialer
        self._own_ports = context.settings.own_ports
        self._trying: set[str] = set()  # identifiers
        self._tried = RateLimiter(RateLimits(TRIES_A_TERMINAL, TRIES_A_TERMINAL, TRIES_A_SOURCE))

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """Tell a terminal its own source; try a port there, if it names one.

        :raises NotReached: no connection to that port stands
        :raises TooManyRequests: it has asked too often, or all at once
        :raises BadRequest: that port is not tried
        """
        port = remote_port_of(peer.stream)
        if port is None:
            raise BadRequest("this connection has no address")
        ip = seen_ip(peer)
        wanted = request.message.fields.get("Port")
        if wanted is not None:
            port = int(wanted)
            await self._try(peer.identifier, ip, port)
        request.reply("", {"Address": str(ip), "Port": str(port)}, code=200)

    async def _try(self, identifier: str, ip: Ip, port: int) -> None:
        if port in self._own_ports:
            raise BadRequest("the port is one of the server's own")
        if ip.is_loopback:  # whoever comes by a tunnel or proxy of this machine
            raise BadRequest("no port of the server's own machine is tried")
        if self._dialer is None:
            raise ServiceUnavailable("no ports are tried here")
        if identifier in self._trying:
            raise TooManyRequests
        if self._tried.acquire(identifier, str(ip), self._clock.seconds()) is None:
            raise TooManyRequests("too many ports have been tried: wait a minute")
        self._trying.add(identifier)
        try:
            reached = await self._dialer.reaches(str(ip), port)
        finally:
            self._trying.discard(identifier)
        if not reached:
            raise NotReached(f"nothing answers at {ip} port {port} from here")
