"""The server's side: which clients it accepts, in real handshakes (broker.net.tls.contexts).

The other side is Python's ``ssl`` on the system's OpenSSL, so that we do not only test ourselves
against ourselves; where both are ours, a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.task import Clock

from broker.net.tls.certificates import (
    identifier_of,
)
from broker.net.tls.contexts import ServerTls
from broker.net.tls.transport import certificate_of
from tests.net.tls.handshakes import (
    LONG_AGO,
    VERSIONS,
    Adjust,
    Meeting,
    only_1_1,
    only_1_2,
    only_cbc,
    shake_hands,
)
from tests.support.certificates import Files, Pki, foreign_client, meet
from tests.support.transport import connect


class ServerTests:
    """The server's side, as clients meet it."""

    def meet(self, tls: ServerTls, foreign: Any) -> Meeting:
        """Let a client in, if it is to be let in."""
        meeting = Meeting(tls)
        peer = meet(meeting.tls, meeting.clock, foreign, say=b"hello")
        assert peer.closed == (meeting.echo.reason is not None)
        return meeting

    @VERSIONS
    def test_accepted(self, pki: Pki, own: Files, terminal: Files, adjust: Adjust) -> None:
        """A client and a server that trust one authority talk; the client is proven (A19, A21)."""
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl, required=True)
        foreign = foreign_client(pki.ca, terminal, adjust=adjust)
        meeting = self.meet(tls, foreign)
        assert foreign.received == b"hello"
        assert foreign.tls.version() == ("TLSv1.2" if adjust is only_1_2 else "TLSv1.3")
        shown = certificate_of(meeting.echo.transport)
        assert shown is not None
        assert identifier_of(shown) == "山田太郎 大阪府"
        assert foreign.tls.compression() is None

    @VERSIONS
    def test_no_client_certificate(self, pki: Pki, own: Files, adjust: Adjust) -> None:
        """Where none is asked for, or none is required, a client without one is nobody yet."""
        for tls in (ServerTls(*own), ServerTls(*own, client_ca=pki.ca, crl=pki.crl)):
            foreign = foreign_client(pki.ca, adjust=adjust)
            meeting = self.meet(tls, foreign)
            assert foreign.received == b"hello"
            assert certificate_of(meeting.echo.transport) is None

    def test_not_asked(self, pki: Pki, own: Files, other: Pki) -> None:
        """Where none is asked for, one that a client has is not shown, so it proves nothing."""
        meeting = self.meet(ServerTls(*own), foreign_client(pki.ca, other.terminal("Ia")))
        assert meeting.echo.heard == b"hello"
        assert certificate_of(meeting.echo.transport) is None

    @VERSIONS
    @pytest.mark.parametrize("required", [False, True])
    @pytest.mark.parametrize(
        ("whose", "why", "alert"),
        [
            ("other", "it was not issued by a trusted authority", "unknown ca"),
            ("self-signed", "it is self-signed, and not trusted", "unknown ca"),
            ("expired", "it has expired", "certificate expired"),
            ("revoked", "it has been revoked", "certificate revoked"),
            ("server", "it is for the other side of a connection", "unsupported certificate"),
        ],
    )
    def test_refused(
        self,
        pki: Pki,
        own: Files,
        other: Pki,
        whose: str,
        why: str,
        alert: str,
        required: bool,
        adjust: Adjust,
    ) -> None:
        """A certificate that doesn't hold is refused, even where none is required; both know why,
        and nothing that the client said was heard (I5).
        """
        makers: dict[str, Callable[[], Files]] = {
            "other": lambda: other.terminal("Ia"),
            "self-signed": pki.self_signed,
            "expired": lambda: pki.terminal("Ia", LONG_AGO),
            "revoked": lambda: pki.terminal("Ia"),
            "server": lambda: own,
        }
        shown = makers[whose]()
        if whose == "revoked":
            pki.revoke(shown)
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl, required=required)
        foreign = foreign_client(pki.ca, shown, adjust=adjust)
        meeting = self.meet(tls, foreign)
        assert meeting.why.startswith(f"the peer's certificate is refused: {why}")
        assert meeting.echo.heard == b""
        assert foreign.error is not None
        assert f"alert {alert}" in foreign.error

    @VERSIONS
    def test_required(self, pki: Pki, own: Files, adjust: Adjust) -> None:
        """A client without a certificate is refused where one is required."""
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl, required=True)
        meeting = self.meet(tls, foreign_client(pki.ca, adjust=adjust))
        assert meeting.why == "the peer has shown no certificate, and one is required"
        assert meeting.echo.heard == b""

    @pytest.mark.parametrize(
        ("adjust", "why"),
        [
            (only_1_1, "the peer speaks too old a version of TLS"),
            (only_cbc, "the peer supports no cipher that is strong enough"),
        ],
    )
    def test_old(self, pki: Pki, own: Files, adjust: Adjust, why: str) -> None:
        """TLS 1.1, and TLS 1.2 without authenticated encryption, are refused (A21)."""
        foreign = foreign_client(pki.ca, adjust=adjust)
        meeting = self.meet(ServerTls(*own), foreign)
        assert meeting.why == why
        assert foreign.error is not None

    def test_suites(self, pki: Pki, own: Files) -> None:
        """Whatever may be agreed on has ephemeral keys and authenticated encryption (A21, I22)."""
        protocol: Any = None
        suites = ServerTls(*own).serverConnectionForTLS(protocol).get_cipher_list()
        old = [suite for suite in suites if not suite.startswith("TLS_")]
        assert len(suites) >= 5
        for suite in old:
            assert suite.startswith("ECDHE-")
            assert "GCM" in suite or "CHACHA20-POLY1305" in suite
            assert "PSK" not in suite

    @pytest.mark.parametrize(
        "clear",
        [b"REGISTER\r\nIdentifier:Ia\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 5000],
    )
    def test_clear_text(self, own: Files, clear: bytes) -> None:
        """Clear text where TLS is spoken ends the connection, and is told so (I24)."""
        meeting = Meeting(ServerTls(*own))
        peer = connect(meeting.tls, meeting.clock)
        peer.send(clear)
        assert peer.closed
        assert meeting.why == "the peer doesn't speak TLS"
        assert meeting.echo.heard == b""

    @VERSIONS
    @pytest.mark.parametrize("asking", [False, True])
    def test_nothing_is_resumed(
        self, pki: Pki, own: Files, terminal: Files, asking: bool, adjust: Adjust
    ) -> None:
        """A client that comes back is checked anew, against what is revoked by then (I2, I22)."""
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl) if asking else ServerTls(*own)
        first = foreign_client(pki.ca, terminal, adjust=adjust)
        self.meet(tls, first)
        again = foreign_client(pki.ca, session=first.tls.session, context=first.tls.context)
        meeting = self.meet(tls, again)
        assert meeting.echo.heard == b"hello"
        assert again.tls.session_reused is False

    def test_no_renegotiation(self, own: Files) -> None:
        """A client can't have the server work through further handshakes on one connection."""
        meeting = Meeting(ServerTls(*own))
        context = SSL.Context(SSL.TLS_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        client = SSL.Connection(context, None)
        client.set_connect_state()
        peer = connect(meeting.tls, meeting.clock)
        shake_hands(client, peer)
        assert client.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            shake_hands(client, peer)

    def test_only_own_chain_is_sent(self, pki: Pki, own: Files) -> None:
        """The authority that clients are checked by is not sent to them as if it were ours."""
        foreign = foreign_client(pki.ca)
        peer = meet(Meeting(ServerTls(*own, client_ca=pki.ca)).tls, Clock(), foreign)
        without = foreign_client(pki.ca)
        plain = meet(Meeting(ServerTls(*own)).tls, Clock(), without)
        size, plain_size = (sum(map(len, one.transport.writes)) for one in (peer, plain))
        assert size - plain_size < 200  # the question for a certificate; the authority's has 440

    def test_peer_refuses(self, own: Files, other: Pki) -> None:
        """A client that trusts another authority says so, and the server's log can."""
        meeting = self.meet(ServerTls(*own), foreign_client(other.ca))
        trusts = "no authority that it trusts has issued our certificate"
        assert meeting.why == f"the peer has refused: {trusts}"
