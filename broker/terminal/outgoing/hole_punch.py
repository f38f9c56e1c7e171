"""Both sides dial each other, from ports that their routers have opened already (RFC 9293, 3.5).

A router lets in what comes from where something was sent to. Each side's connection to the
mediator has opened a port in its router; dialled from the same port here, the other side is sent
to from the same port there, as far as the router keeps to one: then what it sends comes in.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectBindError, ConnectError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.internet.tcp import makeBinding
from zope.interface import implementer

from broker.net.endpoints import endpoint_at

#: Seconds from an attempt that was refused to the next: the other side may not have begun.
AGAIN: Final = 0.25


@implementer(IStreamClientEndpoint)
class HolePunchEndpoint:
    """Connects from a port that another connection of ours has already, and shares."""

    def __init__(
        self, reactor: Any, local: tuple[str, int], remote: tuple[str, int], timeout: float
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param local: our address and that port
        :param remote: the IP address and port to connect to
        :param timeout: seconds in which it must stand, whatever is refused meanwhile
        """
        self._reactor = reactor
        self._binding = makeBinding(*local, reuseAddress=True)
        self._remote = remote
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with a ``ConnectError``."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        until = self._reactor.seconds() + self._timeout
        while True:
            left = max(until - self._reactor.seconds(), 0.0)  # where the reactor was busy
            attempt = endpoint_at(self._reactor, *self._remote, left, self._binding)
            try:
                return await attempt.connect(factory)
            except ConnectBindError:
                raise
            except ConnectError:
                if self._reactor.seconds() + AGAIN >= until:
                    raise
            await deferLater(self._reactor, AGAIN)
