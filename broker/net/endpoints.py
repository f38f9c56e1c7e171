"""Endpoints for IP addresses of either family."""

from __future__ import annotations

from typing import Any

from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint


def endpoint_at(
    reactor: Any, host: str, port: int, timeout: float, bind: Any = None
) -> IStreamClientEndpoint:
    """A client endpoint.

    :param host: the IP address
    :param timeout: seconds in which the connection must be established
    :param bind: the local address: a pair of host and port, or what ``makeBinding`` returns
    """
    made = TCP6ClientEndpoint if ":" in host else TCP4ClientEndpoint
    endpoint: IStreamClientEndpoint = made(reactor, host, port, timeout, bind)
    return endpoint
