"""TLS handshakes in memory: our side, and what the other side may be made to offer."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.explain import explain
from broker.net.tls.transport import TlsFactory, certificate_of
from tests.support.certificates import Foreign, Pki
from tests.support.transport import Client, connect

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
    """One connection, whose protocol can be looked at.

    :ivar peer: the other end of it, once it is made
    """

    noisy = False

    def __init__(self, tls: ServerTls | ClientTls) -> None:
        self.clock = Clock()
        self.echo = Echo()
        self.tls = TlsFactory(tls, self, self.clock)
        self.is_client = isinstance(tls, ClientTls)

    def buildProtocol(self, addr: IAddress | None) -> Echo:
        return self.echo

    def connect(self) -> Client:
        """Make the connection."""
        self.peer = connect(self.tls, self.clock)
        return self.peer

    @property
    def why(self) -> str:
        """Why it ended, in words."""
        assert self.echo.reason is not None, "it has not ended"
        error = self.echo.reason.value
        assert error is not None
        explained = explain(error)
        assert explained is not None, f"it was not TLS: {self.echo.reason!r}"
        return explained

    @property
    def shown(self) -> x509.Certificate | None:
        """The certificate that the other side has proven."""
        return certificate_of(self.echo.transport)


def meets(tls: ServerTls | ClientTls, foreign: Foreign) -> Meeting:
    """Our side and another library's; the client says hello at the first moment that it can."""
    meeting = Meeting(tls)
    peer = meeting.connect()
    transport: Any = meeting.echo.transport
    if meeting.is_client:
        transport.write(b"hello")
    foreign.talk(peer, say=b"" if meeting.is_client else b"hello")
    assert peer.closed == (meeting.echo.reason is not None)
    return meeting


class Trust:
    """Who trusts which authority, and has which certificate.

    :ivar pki: the authority that is trusted
    :ivar other: another, that isn't
    :ivar own: the server's certificate
    :ivar terminal: a terminal's
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Pki(folder)
        self.other = Pki(folder, "Other")
        self.own = self.pki.server()
        self.terminal = self.pki.terminal("山田太郎 大阪府")

    def server(self, **options: Any) -> ServerTls:
        """A server, which asks for no certificate unless the options say so."""
        return ServerTls(*self.own, **options)

    def asking(self, **options: Any) -> ServerTls:
        """A server that asks for a certificate."""
        return self.server(client_ca=self.pki.ca, crl=self.pki.crl, **options)

    def client(self, server: str = "localhost", **options: Any) -> ClientTls:
        """A client that trusts the authority."""
        return ClientTls(self.pki.ca, server, **options)


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
