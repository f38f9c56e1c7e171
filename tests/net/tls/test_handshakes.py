"""Which servers a client accepts, and which clients a server, in real handshakes (contexts).

The other side is Python's ``ssl`` on the system's OpenSSL, so that we do not only test ourselves
against ourselves; where both are ours, a test says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509
from OpenSSL import SSL

from broker.files import InvalidFile
from broker.net.tls.certificates import identifier_of, key_digest
from broker.net.tls.contexts import ClientTls, ServerTls, parse_pin
from tests.net.tls.handshakes import (
    LONG_AGO,
    VERSIONS,
    Adjust,
    Meeting,
    Trust,
    meets,
    only_1_1,
    only_1_2,
    only_cbc,
    shake_hands,
)
from tests.support.certificates import Files, foreign_client, foreign_server, uris

#: The certificates that a peer shows.
SHOWN: dict[str, Callable[[Trust], Files]] = {
    "server": lambda it: it.own,
    "terminal": lambda it: it.terminal,
    "other server": lambda it: it.other.server(),
    "other terminal": lambda it: it.other.terminal("Ia"),
    "self-signed": lambda it: it.pki.self_signed(),
    "expired server": lambda it: it.pki.server(age=LONG_AGO),
    "expired terminal": lambda it: it.pki.terminal("Ia", LONG_AGO),
    "revoked server": lambda it: it.pki.server(),
    "revoked terminal": lambda it: it.pki.terminal("Ia"),
    "no name": lambda it: it.pki.odd(None, "localhost"),
    "odd name": lambda it: it.pki.odd(uris("broker:a:b")),
}


class Refused(NamedTuple):
    """A certificate that doesn't hold."""

    shown: str
    why: str
    #: What a client hears; empty where we are the client.
    alert: str = ""
    #: Which server we mean, where we are the client.
    meant: str = "localhost"


REFUSED = [
    Refused(
        "server", "it is for localhost, 127.0.0.1, ::1, not for example.com", "", "example.com"
    ),
    Refused("server", "it is for localhost, 127.0.0.1, ::1, not for 127.0.0.2", "", "127.0.0.2"),
    Refused("other server", "it was not issued by a trusted authority"),
    Refused("self-signed", "it is self-signed, and not trusted"),
    Refused("expired server", "it has expired"),
    Refused("revoked server", "it has been revoked"),
    Refused("terminal", "it is for the other side of a connection"),
    Refused("no name", "it is for no name, not for localhost"),
    Refused("odd name", "it is for broker:a:b, not for localhost"),
    Refused("other terminal", "it was not issued by a trusted authority", "unknown ca"),
    Refused("self-signed", "it is self-signed, and not trusted", "unknown ca"),
    Refused("expired terminal", "it has expired", "certificate expired"),
    Refused("revoked terminal", "it has been revoked", "certificate revoked"),
    Refused("server", "it is for the other side of a connection", "unsupported certificate"),
]


class RefusedTests:
    """What does not hold, on either side."""

    @VERSIONS
    @pytest.mark.parametrize(
        ("row", "required"),
        [
            (row, required)
            for row in REFUSED
            for required in ([False, True] if row.alert else [False])
        ],
    )
    def test_when_a_certificate_does_not_hold_then_nothing_passes_and_both_know_why(
        self, trust: Trust, row: Refused, required: bool, adjust: Adjust
    ) -> None:
        """A server that isn't the one meant gets nothing (D2, I26); a client is refused even where
        no certificate is required, and nothing that it said was heard (I5).
        """
        shown = SHOWN[row.shown](trust)
        if row.shown.startswith("revoked"):
            trust.pki.revoke(shown)
        if row.alert:
            foreign = foreign_client(trust.pki.ca, shown, adjust=adjust)
            meeting = meets(trust.asking(required=required), foreign)
        else:
            foreign = foreign_server(shown, adjust)
            meeting = meets(trust.client(row.meant, crl=trust.pki.crl), foreign)
        assert meeting.why.startswith(f"the peer's certificate is refused: {row.why}")
        assert (meeting.echo.heard, foreign.received) == (b"", b"")
        assert foreign.error is not None
        assert f"alert {row.alert}" in foreign.error

    @pytest.mark.parametrize(
        ("adjust", "at_the_server", "at_the_client"),
        [
            (
                only_1_1,
                "the peer speaks too old a version of TLS",
                "the peer has refused: there is no common version of TLS",
            ),
            (
                only_cbc,
                "the peer supports no cipher that is strong enough",
                "the peer has refused: there is no common cipher, or it requires a certificate",
            ),
        ],
    )
    def test_old(
        self, trust: Trust, adjust: Adjust, at_the_server: str, at_the_client: str
    ) -> None:
        """TLS 1.1, and TLS 1.2 without authenticated encryption, are refused (A21, I25)."""
        foreign = foreign_client(trust.pki.ca, adjust=adjust)
        assert meets(trust.server(), foreign).why == at_the_server
        assert foreign.error is not None
        foreign = foreign_server(trust.own, adjust)
        assert meets(trust.client(), foreign).why == at_the_client
        assert foreign.received == b""

    @VERSIONS
    def test_required(self, trust: Trust, adjust: Adjust) -> None:
        """A client without a certificate is refused where one is required."""
        meeting = meets(trust.asking(required=True), foreign_client(trust.pki.ca, adjust=adjust))
        assert meeting.why == "the peer has shown no certificate, and one is required"
        assert meeting.echo.heard == b""

    def test_peer_refuses(self, trust: Trust) -> None:
        """A client that trusts another authority says so, and the server's log can."""
        meeting = meets(trust.server(), foreign_client(trust.other.ca))
        trusts = "no authority that it trusts has issued our certificate"
        assert meeting.why == f"the peer has refused: {trusts}"

    @pytest.mark.parametrize(
        "clear",
        [b"REGISTER\r\nIdentifier:Ia\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000],
    )
    def test_clear_text(self, trust: Trust, clear: bytes) -> None:
        """Clear text where TLS is spoken ends the connection, and is told so (I24)."""
        meeting = Meeting(trust.server())
        peer = meeting.connect()
        peer.send(clear)
        assert peer.closed
        assert meeting.why == "the peer doesn't speak TLS"
        assert meeting.echo.heard == b""


class ClientTests:
    """The client's side, as servers meet it."""

    @VERSIONS
    @pytest.mark.parametrize("server", ["localhost", "LOCALHOST.", "127.0.0.1", "::1", "::1%lo"])
    def test_accepted(self, trust: Trust, server: str, adjust: Adjust) -> None:
        """The right server, by its name or its address, is sent what was waiting for it (D2)."""
        foreign = foreign_server(trust.own, adjust)
        meets(trust.client(server), foreign)
        assert foreign.received == b"hello"

    def test_international_name(self, trust: Trust) -> None:
        """A name in any script is compared, and sent, as DNS has it."""
        sent: list[str | None] = []
        foreign = foreign_server(
            trust.pki.server("例え.example"),
            lambda context: setattr(context, "sni_callback", lambda _, name, __: sent.append(name)),
        )
        meets(trust.client("例え.Example"), foreign)
        assert foreign.received == b"hello"
        assert sent == ["xn--r8jz45g.example"]

    def test_pin(self, trust: Trust) -> None:
        """With a pin no other key will do, whichever authority has certified it; nor does the right
        key under an authority that isn't trusted.
        """
        pin = key_digest(trust.own.read)
        foreign = foreign_server(trust.own)
        meets(trust.client(pin=pin.upper()), foreign)
        assert foreign.received == b"hello"
        foreign = foreign_server(trust.pki.server())
        meeting = meets(trust.client(pin=pin), foreign)
        assert meeting.why.endswith("its key is not the one that is pinned")
        assert foreign.received == b""
        foreign = foreign_server(trust.own)
        meets(ClientTls(trust.other.ca, "localhost", pin=pin), foreign)
        assert foreign.received == b""

    def test_pin_forms(self) -> None:
        """A pin may have colons and capitals; anything else is no pin."""
        digits = "0123456789abcdef" * 4
        colons = ":".join(digits[n : n + 2] for n in range(0, 64, 2)).upper()
        assert parse_pin(colons) == digits
        for wrong in ("", digits[:-2], digits + "00", "g" * 64, "sha256:" + digits):
            with pytest.raises(InvalidFile, match="64 hexadecimal digits"):
                parse_pin(wrong)

    @VERSIONS
    def test_own_certificate(self, trust: Trust, adjust: Adjust) -> None:
        """It shows its certificate to a server that asks (A19)."""

        def ask(context: ssl.SSLContext) -> None:
            adjust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(trust.pki.ca)

        foreign = foreign_server(trust.own, ask)
        meets(trust.client(**trust.terminal._asdict()), foreign)
        assert foreign.received == b"hello"
        der = foreign.tls.getpeercert(binary_form=True)
        assert der is not None
        assert identifier_of(x509.load_der_x509_certificate(der)) == "山田太郎 大阪府"

    def test_system_authorities(self, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an authority of its own it trusts the system's, which ours isn't one of."""
        meeting = meets(ClientTls(None, "localhost"), foreign_server(trust.own))
        assert meeting.why.endswith("it was not issued by a trusted authority")
        monkeypatch.setenv("SSL_CERT_FILE", trust.pki.ca)
        foreign = foreign_server(trust.own)
        meets(ClientTls(None, "localhost"), foreign)
        assert foreign.received == b"hello"


class ServerTests:
    """The server's side, as clients meet it."""

    @VERSIONS
    def test_accepted(self, trust: Trust, adjust: Adjust) -> None:
        """A client and a server that trust one authority talk; the client is proven (A19, A21)."""
        foreign = foreign_client(trust.pki.ca, trust.terminal, adjust=adjust)
        meeting = meets(trust.asking(required=True), foreign)
        assert foreign.received == b"hello"
        assert foreign.tls.version() == ("TLSv1.2" if adjust is only_1_2 else "TLSv1.3")
        assert meeting.shown is not None
        assert identifier_of(meeting.shown) == "山田太郎 大阪府"
        assert foreign.tls.compression() is None

    @VERSIONS
    def test_no_client_certificate(self, trust: Trust, adjust: Adjust) -> None:
        """Where none is asked for, or none is required, a client without one has proven nothing;
        nor has one that has a certificate where none is asked for: it is not shown.
        """
        for tls, own in (
            (trust.server(), None),
            (trust.asking(), None),
            (trust.server(), trust.other.terminal("Ia")),
        ):
            foreign = foreign_client(trust.pki.ca, own, adjust=adjust)
            meeting = meets(tls, foreign)
            assert foreign.received == b"hello"
            assert meeting.shown is None

    def test_suites(self, trust: Trust) -> None:
        """All that may be agreed on has ephemeral keys and authenticated encryption (A21, I22)."""
        protocol: Any = None
        suites = trust.server().serverConnectionForTLS(protocol).get_cipher_list()
        assert len(suites) >= 5
        for suite in suites:
            if not suite.startswith("TLS_"):
                assert suite.startswith("ECDHE-")
                assert "GCM" in suite or "CHACHA20-POLY1305" in suite
                assert "PSK" not in suite

    @VERSIONS
    @pytest.mark.parametrize("asking", [False, True])
    def test_nothing_is_resumed(self, trust: Trust, asking: bool, adjust: Adjust) -> None:
        """A client that comes back is checked again, against what is revoked by then (I2, I22)."""
        tls = trust.asking() if asking else trust.server()
        first = foreign_client(trust.pki.ca, trust.terminal, adjust=adjust)
        meets(tls, first)
        again = foreign_client(trust.pki.ca, session=first.tls.session, context=first.tls.context)
        assert meets(tls, again).echo.heard == b"hello"
        assert again.tls.session_reused is False

    def test_no_renegotiation(self, trust: Trust) -> None:
        """A client can't have the server work through more handshakes on one connection."""
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client = SSL.Connection(context, None)
        client.set_connect_state()
        peer = Meeting(trust.server()).connect()
        shake_hands(client, peer)
        assert client.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            shake_hands(client, peer)

    def test_only_own_chain_is_sent(self, trust: Trust) -> None:
        """The authority that clients are checked by is not sent to them as if it were ours."""
        size, plain_size = (
            sum(map(len, meets(tls, foreign_client(trust.pki.ca)).peer.transport.writes))
            for tls in (trust.server(client_ca=trust.pki.ca), trust.server())
        )
        assert size - plain_size < 200  # the question for a certificate; the authority's has 440


class ReloadTests:
    """Files that are read again: certificates that change while the server runs."""

    def shown(self, trust: Trust, tls: ServerTls) -> bytes | None:
        """The certificate that a new client sees."""
        foreign = foreign_client(trust.pki.ca)
        meets(tls, foreign)
        der: bytes | None = foreign.tls.getpeercert(binary_form=True)
        return der

    def test_new_certificate(self, trust: Trust, tmp_path: Path) -> None:
        """New connections see the new one; those that stand go on (A21). A bad file at reload keeps
        the old, and says so (I3).
        """
        placed = trust.own.copy(tmp_path)
        tls = ServerTls(*placed)
        foreign = foreign_client(trust.pki.ca)
        standing = meets(tls, foreign)
        before = self.shown(trust, tls)
        assert before is not None
        newer = trust.pki.server()
        Path(placed.certificate).write_bytes(Path(newer.certificate).read_bytes())
        with pytest.raises(InvalidFile, match="is not the certificate of the key"):
            tls.reload()
        assert self.shown(trust, tls) == before
        newer.copy(tmp_path)
        assert self.shown(trust, tls) == before
        tls.reload()
        assert self.shown(trust, tls) not in {before, None}
        foreign.talk(standing.peer, say=b", still here")
        assert foreign.received == b"hello, still here"

    def test_revoked_since(self, trust: Trust) -> None:
        """A reload brings a revocation into force, also for who is connected already (I2)."""
        tls = trust.asking()
        files = trust.pki.terminal("Ia")
        shown = meets(tls, foreign_client(trust.pki.ca, files)).shown
        assert shown is not None
        trust.pki.revoke(files)
        assert not tls.revoked(shown)
        tls.reload()
        assert tls.revoked(shown)
        again = meets(tls, foreign_client(trust.pki.ca, files))
        assert again.why.endswith("it has been revoked")
        assert not tls.revoked(trust.pki.terminal("Ia").read)
        assert not trust.server().revoked(shown)

    def test_client(self, trust: Trust, tmp_path: Path) -> None:
        """A client reloads which authority it trusts."""
        ca = tmp_path / "ca.pem"
        ca.write_bytes(Path(trust.other.ca).read_bytes())
        tls = ClientTls(str(ca), "localhost")
        for trusted in (False, True):
            foreign = foreign_server(trust.own)
            meets(tls, foreign)
            assert ((foreign.error is None), foreign.received) == (
                trusted,
                b"hello" if trusted else b"",
            )
            ca.write_bytes(Path(trust.pki.ca).read_bytes())
            tls.reload()
