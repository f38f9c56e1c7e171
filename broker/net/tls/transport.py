"""TLS over Twisted's transports: a handshake with a deadline, and what the peer has shown."""

from __future__ import annotations

from typing import Any, Final, Protocol

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.net.socket_write import send_at_once
from broker.net.timers import DeadlineQueue
from broker.net.tls.contexts import ClientTls, ServerTls
from broker.net.tls.errors import HandshakeTimedOut

#: Seconds that a handshake may take.
HANDSHAKE: Final = 5.0


class _TlsProtocol(TLSMemoryBIOProtocol):
    """TLS for one connection, with a deadline for its handshake.

    Twisted's own class also joins the writes of a turn, which ``PeerConnection`` has done already.
    """

    factory: TlsFactory
    _shaking = True

    def makeConnection(self, transport: Any) -> None:
        self.factory.handshakes.add(self)
        TLSMemoryBIOProtocol.makeConnection(self, transport)

    def _flushSendBIO(self) -> None:
        """Write to the socket at once where possible: it saves a sixth of a call's cost."""
        try:
            data = self._tlsConnection.bio_read(2**15)
        except SSL.WantReadError:
            return
        transport: Any = self.transport
        if isinstance(transport, Connection):
            data = send_at_once(transport, data)
        if data and transport is not None:
            transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        TLSMemoryBIOProtocol.dataReceived(self, data)
        if self._shaking and self._handshakeDone:
            self._shaken()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._shaken()
        TLSMemoryBIOProtocol.connectionLost(self, reason)

    def out_of_time(self) -> None:
        """Close at once, and say why."""
        self._shaken()
        TLSMemoryBIOProtocol.failVerification(self, Failure(HandshakeTimedOut()))

    def _shaken(self) -> None:
        self._shaking = False
        self.factory.handshakes.discard(self)


class TlsFactory(TLSMemoryBIOFactory):
    """Puts TLS under the protocols of another factory.

    That factory may refuse a connection, such as from a source at its limit (I15). With Twisted's
    own class such a connection would stay open, with nothing above it.

    :ivar handshakes: the connections whose handshake is not complete
    """

    protocol = _TlsProtocol

    def __init__(
        self,
        tls: ServerTls | ClientTls,
        factory: IProtocolFactory,
        clock: IReactorTime,
        timeout: float = HANDSHAKE,
    ) -> None:
        """
        :param timeout: seconds that a handshake may take
        """
        creator: Any = tls
        super().__init__(creator, isinstance(tls, ClientTls), factory, clock=clock)
        self.handshakes: DeadlineQueue[_TlsProtocol] = DeadlineQueue(
            clock, timeout, _TlsProtocol.out_of_time
        )

    def stopFactory(self) -> None:
        """No port is left: close what is not through its handshake; leave no timer behind."""
        for protocol in list(self.handshakes):
            protocol.out_of_time()
        self.handshakes.stop()

    def buildProtocol(  # type: ignore[override]
        self, addr: IAddress | None
    ) -> TLSMemoryBIOProtocol | None:
        """TLS for one connection, or ``None`` where the other factory refuses it."""
        wrapped = self.wrappedFactory.buildProtocol(addr)
        if wrapped is None:
            return None
        make: Any = self.protocol  # carries no annotations
        protocol: _TlsProtocol = make(self, wrapped)
        return protocol


@implementer(IStreamClientEndpoint)
class TlsEndpoint:
    """Connects through another endpoint, and speaks TLS there.

    The protocol is returned when the TCP connection is established. The handshake follows, and
    what is written waits for it.
    """

    def __init__(self, tls: ClientTls, endpoint: IStreamClientEndpoint, clock: IReactorTime):
        self._tls = tls
        self._endpoint = endpoint
        self._clock = clock

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect."""
        factory: Any = TlsFactory(self._tls, protocolFactory, self._clock)
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda protocol: protocol.wrappedProtocol)


def is_encrypted(transport: object) -> bool:
    """Whether a transport is encrypted.

    Not by its attribute ``TLS``: that would be the attribute of the TCP connection below.
    """
    return ISSLTransport.providedBy(transport)


class _Showing(Protocol):
    def getPeerCertificate(self) -> X509 | None: ...


def certificate_of(transport: Any) -> x509.Certificate | None:
    """The certificate that the peer has shown; ``None`` without one, or without TLS.

    It has been verified once something was received: before that, the handshake may not be
    complete.
    """
    if not is_encrypted(transport):
        return None
    showing: _Showing = transport
    shown = showing.getPeerCertificate()
    return None if shown is None else shown.to_cryptography()
