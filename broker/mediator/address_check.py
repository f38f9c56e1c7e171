"""Address check: a terminal asks for its server-reflexive address, and if it is open (D9, I12).

A router's own word on its outside address is only a claim. Here a terminal learns the address that
its connection comes from, and nothing of others. The only address that is dialled for it is that.
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

#: Port checks a minute for one terminal, at one source or at several,
TRIES_A_TERMINAL: Final = 10
#: and at one source for all terminals: many may be behind one router.
TRIES_A_SOURCE: Final = 30


class AddressCheck:
    """Answers where a terminal's connection comes from, and whether one of its ports is open."""

    def __init__(self, context: MediatorContext, dialer: WakeUpDialer | None) -> None:
        """
        :param dialer: tries ports; without, none is tried
        """
        self._clock = context.clock
        self._dialer = dialer
        self._own_ports = context.settings.own_ports
        self._trying: set[str] = set()  # identifiers
        self._tried = RateLimiter(RateLimits(TRIES_A_TERMINAL, TRIES_A_TERMINAL, TRIES_A_SOURCE))

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """Send a terminal its own source; try a port there first, if it names one.

        :raises NotReached: no connection to that port can be made
        :raises TooManyRequests: it asks too often, or while it waits for an answer
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
        if ip.is_loopback:  # a client behind a tunnel or proxy of this machine
            raise BadRequest("no port on the server's own machine is checked")
        if self._dialer is None:
            raise ServiceUnavailable("this server checks no ports")
        if identifier in self._trying:
            raise TooManyRequests
        if self._tried.acquire(identifier, str(ip), self._clock.seconds()) is None:
            raise TooManyRequests("too many port checks: wait a minute")
        self._trying.add(identifier)  # one at a time: the check of many ports would be a port scan
        try:
            reached = await self._dialer.reaches(str(ip), port)
        finally:
            self._trying.discard(identifier)
        if not reached:
            raise NotReached(f"nothing answers at {ip} port {port} from here")
