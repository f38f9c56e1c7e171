"""The client's side: which servers it accepts, in real handshakes (broker.net.tls.contexts).

The other side is Python's ``ssl`` on the system's OpenSSL, so that we do not only test ourselves
against ourselves; where both are ours, a test says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509

from broker.files import InvalidFile
from broker.net.tls.certificates import (
    identifier_of,
    key_digest,
)
from broker.net.tls.contexts import ClientTls, parse_pin
from tests.net.tls.handshakes import (
    LONG_AGO,
    VERSIONS,
    Adjust,
    Meeting,
    only_1_1,
    only_cbc,
)
from tests.support.certificates import Files, Pki, foreign_server, uris
from tests.support.transport import connect


class ClientTests:
    """The client's side, as servers meet it."""

    def meet(self, tls: ClientTls, foreign: Any) -> Meeting:
        """Speak to a server, if it is the right one; a secret is said at the first moment."""
        meeting = Meeting(tls)
        peer = connect(meeting.tls, meeting.clock)
        transport: Any = meeting.echo.transport
        transport.write(b"secret")
        foreign.talk(peer)
        assert peer.closed == (meeting.echo.reason is not None)
        return meeting

    @VERSIONS
    @pytest.mark.parametrize("server", ["localhost", "LOCALHOST.", "127.0.0.1", "::1", "::1%lo"])
    def test_accepted(self, pki: Pki, own: Files, server: str, adjust: Adjust) -> None:
        """The right server, by its name or its address, is sent what was waiting for it (D2)."""
        foreign = foreign_server(own, adjust)
        self.meet(ClientTls(pki.ca, server), foreign)
        assert foreign.received == b"secret"

    def test_international_name(self, pki: Pki) -> None:
        """A name in any script is compared, and sent, as DNS has it."""
        told: list[str | None] = []
        foreign = foreign_server(
            pki.server("例え.example"),
            lambda context: setattr(context, "sni_callback", lambda _, name, __: told.append(name)),
        )
        self.meet(ClientTls(pki.ca, "例え.Example"), foreign)
        assert foreign.received == b"secret"
        assert told == ["xn--r8jz45g.example"]

    @VERSIONS
    @pytest.mark.parametrize(
        ("whose", "server", "why"),
        [
            ("own", "example.com", "it is for localhost, 127.0.0.1, ::1, not for example.com"),
            ("own", "127.0.0.2", "it is for localhost, 127.0.0.1, ::1, not for 127.0.0.2"),
            ("other", "localhost", "it was not issued by a trusted authority"),
            ("self-signed", "localhost", "it is self-signed, and not trusted"),
            ("expired", "localhost", "it has expired"),
            ("revoked", "localhost", "it has been revoked"),
            ("terminal", "localhost", "it is for the other side of a connection"),
            ("name", "localhost", "it is for no name, not for localhost"),
            ("odd", "localhost", "it is for broker:a:b, not for localhost"),
        ],
    )
    def test_refused(
        self,
        pki: Pki,
        own: Files,
        other: Pki,
        terminal: Files,
        whose: str,
        server: str,
        why: str,
        adjust: Adjust,
    ) -> None:
        """A server that isn't the one meant gets nothing, and both know why (D2, I26)."""
        makers: dict[str, Callable[[], Files]] = {
            "own": lambda: own,
            "other": other.server,
            "self-signed": pki.self_signed,
            "expired": lambda: pki.server(age=LONG_AGO),
            "revoked": pki.server,
            "terminal": lambda: terminal,
            "name": lambda: pki.odd(None, "localhost"),
            "odd": lambda: pki.odd(uris("broker:a:b")),
        }
        shown = makers[whose]()
        if whose == "revoked":
            pki.revoke(shown)
        foreign = foreign_server(shown, adjust)
        meeting = self.meet(ClientTls(pki.ca, server, crl=pki.crl), foreign)
        assert meeting.why.startswith(f"the peer's certificate is refused: {why}")
        assert foreign.received == b""
        assert foreign.error is not None
        assert "alert" in foreign.error

    @pytest.mark.parametrize(
        ("adjust", "why"),
        [
            (only_1_1, "there is no common version of TLS"),
            (only_cbc, "there is no common cipher, or it requires a certificate"),
        ],
    )
    def test_old(self, pki: Pki, own: Files, adjust: Adjust, why: str) -> None:
        """A server that can only do what is too old gets nothing (A21, I25)."""
        foreign = foreign_server(own, adjust)
        meeting = self.meet(ClientTls(pki.ca, "localhost"), foreign)
        assert meeting.why == f"the peer has refused: {why}"
        assert foreign.received == b""

    def test_pin(self, pki: Pki, own: Files) -> None:
        """With a pin no other key will do, whoever has certified it."""
        pin = key_digest(own.read)
        foreign = foreign_server(own)
        self.meet(ClientTls(pki.ca, "localhost", pin=pin.upper()), foreign)
        assert foreign.received == b"secret"
        foreign = foreign_server(pki.server())
        meeting = self.meet(ClientTls(pki.ca, "localhost", pin=pin), foreign)
        assert meeting.why.endswith("its key is not the one that is pinned")
        assert foreign.received == b""

    def test_pin_does_not_replace_the_authority(self, own: Files, other: Pki) -> None:
        """The right key under an authority that isn't trusted won't do either."""
        tls = ClientTls(other.ca, "localhost", pin=key_digest(own.read))
        foreign = foreign_server(own)
        self.meet(tls, foreign)
        assert foreign.received == b""

    @VERSIONS
    def test_own_certificate(self, pki: Pki, own: Files, terminal: Files, adjust: Adjust) -> None:
        """It shows its certificate to a server that asks (A19)."""

        def ask(context: ssl.SSLContext) -> None:
            adjust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(pki.ca)

        foreign = foreign_server(own, ask)
        certificate, key = terminal
        self.meet(ClientTls(pki.ca, "localhost", certificate=certificate, key=key), foreign)
        assert foreign.received == b"secret"
        der = foreign.tls.getpeercert(binary_form=True)
        assert der is not None
        assert identifier_of(x509.load_der_x509_certificate(der)) == "山田太郎 大阪府"

    def test_system_authorities(
        self, own: Files, monkeypatch: pytest.MonkeyPatch, pki: Pki
    ) -> None:
        """Without an authority of its own it trusts the system's, which ours isn't one of."""
        foreign = foreign_server(own)
        meeting = self.meet(ClientTls(None, "localhost"), foreign)
        assert meeting.why.endswith("it was not issued by a trusted authority")
        monkeypatch.setenv("SSL_CERT_FILE", pki.ca)
        foreign = foreign_server(own)
        self.meet(ClientTls(None, "localhost"), foreign)
        assert foreign.received == b"secret"

    @pytest.mark.parametrize("name", ["", "a b", "-x-", "exa_mple.com", "a..b", "[::1]", "\ud800"])
    def test_no_host(self, pki: Pki, name: str) -> None:
        """What could be no server's name is refused before anybody connects."""
        with pytest.raises(InvalidFile, match="neither a DNS name nor an IP address"):
            ClientTls(pki.ca, name)

    def test_halves(self, pki: Pki, terminal: Files) -> None:
        """What makes sense only together is refused alone, not passed over in silence (I3)."""
        with pytest.raises(InvalidFile, match="needs its private key"):
            ClientTls(pki.ca, "localhost", certificate=terminal.certificate)
        with pytest.raises(InvalidFile, match="needs its private key"):
            ClientTls(pki.ca, "localhost", key=terminal.key)
        with pytest.raises(InvalidFile, match="without its authority"):
            ClientTls(None, "localhost", crl=pki.crl)

    def test_pin_forms(self) -> None:
        """A pin may have colons and capitals; anything else is no pin."""
        digits = "0123456789abcdef" * 4
        colons = ":".join(digits[n : n + 2] for n in range(0, 64, 2)).upper()
        assert parse_pin(colons) == digits
        for wrong in ("", digits[:-2], digits + "00", "g" * 64, "sha256:" + digits):
            with pytest.raises(InvalidFile, match="64 hexadecimal digits"):
                parse_pin(wrong)
