"""What TLS can fail with, as exceptions."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet.error import ConnectionLost


class HandshakeRefused(SSL.Error):
    """The peer's certificate was refused; the text says why.

    It derives from OpenSSL's error, with a list of reasons, because Twisted passes only such an
    error on to ``connectionLost``.

    :ivar text: why
    """

    def __init__(self, text: str) -> None:
        super().__init__([("broker", "", text)])
        self.text = text

    def __str__(self) -> str:
        return self.text


class HandshakeTimedOut(SSL.Error):
    """The handshake took too long."""

    def __init__(self) -> None:
        super().__init__([("broker", "", str(self))])

    def __str__(self) -> str:
        return "the handshake timed out"


class TlsFailed(ConnectionLost):
    """TLS ended the connection; the text says why, as ``explain`` gives it.

    Code that waits for a connection handles this as any other loss, and can report the reason.
    """

    def __str__(self) -> str:
        return str(self.args[0])
