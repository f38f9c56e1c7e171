"""What connects to an IP address, of either family."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint


def endpoint_at(
    reactor: Any, host: str, port: int, timeout: float, bind: Any = None
) -> IStreamClientEndpoint:
    """An endpoint.

    :param host: the IP address
    :param timeout: seconds in which the connection must stand
    :param bind: what our own side is bound to: a pair, or what ``makeBinding`` gives
    """
    made = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
    endpoint: IStreamClientEndpoint = made(reactor, host, port, timeout, bind)
    return endpoint
