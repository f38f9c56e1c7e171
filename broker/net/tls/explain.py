"""Why TLS failed, in words for a person or a log."""

from __future__ import annotations

from typing import Final

from OpenSSL import SSL

from broker.messages.message import printable
from broker.net.tls.errors import HandshakeRefused, HandshakeTimedOut


def explain(error: BaseException) -> str | None:
    """Why TLS ended a connection; ``None`` where the error does not come from TLS."""
    if isinstance(error, HandshakeRefused):
        return f"the peer's certificate is refused: {error.text}"
    if isinstance(error, HandshakeTimedOut):
        return str(error)
    if not isinstance(error, SSL.Error):
        return None
    reason = last_reason(error)
    _, alerted, alert = reason.partition(" alert ")
    if alerted:
        return f"the peer has refused: {_ALERTS.get(alert, alert)}"
    return _REASONS.get(reason, f"TLS failed: {reason or type(error).__name__}")


def last_reason(error: SSL.Error) -> str:
    """The last reason in OpenSSL's error queue, in its own words."""
    if isinstance(error, SSL.SysCallError):
        return printable(str(error.args[-1]))
    queue = error.args[0] if error.args else None
    return printable(str(queue[-1][-1])) if isinstance(queue, list) and queue else ""


_ALERTS: Final = {
    "unknown ca": "no authority that it trusts has issued our certificate",
    "bad certificate": "our certificate is invalid",
    "unsupported certificate": "our certificate is not for this purpose",
    "certificate revoked": "our certificate has been revoked",
    "certificate expired": "our certificate has expired",
    "certificate unknown": "our certificate is not acceptable",
    "certificate required": "it requires a certificate",
    "internal error": "our certificate is not acceptable, or it has a fault of its own",
    "handshake failure": "there is no common cipher, or it requires a certificate",
    "protocol version": "there is no common version of TLS",
}

_REASONS: Final = {
    "peer did not return a certificate": "the peer has shown no certificate, and one is required",
    "unsupported protocol": "the peer speaks too old a version of TLS",
    "no shared cipher": "the peer supports no cipher that is strong enough",
    "wrong version number": "the peer doesn't speak TLS",
    "http request": "the peer doesn't speak TLS",
    "packet length too long": "the peer doesn't speak TLS",
    "record layer failure": "the peer doesn't speak TLS",
}
