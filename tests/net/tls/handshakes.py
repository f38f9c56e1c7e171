"""TLS handshakes in memory: our side, and what the other side may be made to offer."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.explain import explain
from broker.net.tls.transport import TlsFactory
from tests.support.transport import Client

LONG_AGO = timedelta(days=400)


class Echo(Protocol):
    """Says back what it hears.

    :ivar heard: that
    :ivar reason: why the connection ended, ``None`` as long as it hasn't
    """

    def __init__(self) -> None:
        self.heard = b""
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        transport: Any = self.transport
        transport.write(data)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.reason = reason


class Meeting(Factory):
    """One connection, whose protocol can be looked at."""

    noisy = False

    def __init__(self, tls: ServerTls | ClientTls) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.tls = TlsFactory(tls, self, self.clock)

    def buildProtocol(self, addr: IAddress | None) -> Echo:
        return self.echo

    @property
    def why(self) -> str:
        """Why it ended, in words."""
        assert self.echo.reason is not None, "it has not ended"
        error = self.echo.reason.value
        assert error is not None
        told = explain(error)
        assert told is not None, f"it was not TLS: {self.echo.reason!r}"
        return told


def only_1_2(context: ssl.SSLContext) -> None:
    """No TLS 1.3."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def only_cbc(context: ssl.SSLContext) -> None:
    """TLS 1.2 without authenticated encryption."""
    only_1_2(context)
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA")


def only_1_1(context: ssl.SSLContext) -> None:
    """TLS 1.1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")


VERSIONS = pytest.mark.parametrize("adjust", [lambda context: None, only_1_2], ids=["1.3", "1.2"])
Adjust = Callable[[ssl.SSLContext], object]


def shake_hands(client: SSL.Connection, peer: Client) -> None:
    """A client's handshake with a peer of ours."""
    for _ in range(10):
        try:
            client.do_handshake()
        except SSL.WantReadError:
            peer.send(client.bio_read(65536))
            client.bio_write(peer.bytes())
        else:
            return
    raise AssertionError("they never come to an end")
