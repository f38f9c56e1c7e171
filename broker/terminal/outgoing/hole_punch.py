"""TCP hole punching: both sides dial each other, from ports that their routers have opened.

A router lets in what comes from where something was sent to. Each side's connection to the
mediator has opened a port in its router. Each side dials from that same local port to the port at
which the mediator sees the other: if both routers keep to one mapping, what the other side sends
gets in, and the two SYNs make one connection (simultaneous open, RFC 9293, 3.5).
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

#: Seconds from a refused attempt to the next one: the other side may not have begun.
RETRY_DELAY: Final = 0.25


@implementer(IStreamClientEndpoint)
class HolePunchEndpoint:
    """Connects from a local port that another connection of ours uses, and shares."""

    def __init__(
        self, reactor: Any, local: tuple[str, int], remote: tuple[str, int], timeout: float
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param local: our address and that port
        :param remote: the IP address and port to connect to
        :param timeout: seconds after which it is given up, however often it was refused
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
            left = max(until - self._reactor.seconds(), 0.0)  # negative if the reactor was busy
            attempt = endpoint_at(self._reactor, *self._remote, left, self._binding)
            try:
                return await attempt.connect(factory)
            except ConnectBindError:
                raise
            except ConnectError:
                if self._reactor.seconds() + RETRY_DELAY >= until:
                    raise
            await deferLater(self._reactor, RETRY_DELAY)
