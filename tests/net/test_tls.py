"""TLS: who is let in and who is refused, in real handshakes with certificates of a real authority.

The other side is Python's ``ssl`` on the system's OpenSSL, so that what we mean is not only what we
say to ourselves; where both are ours, a test says so.
"""

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
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.ca.requests import new_key
from broker.files import InvalidFile
from broker.messages.message import Message
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.tls.certificates import (
    CertificateRefused,
    identifier_of,
    key_digest,
    mediator_of,
    mediator_uri,
    terminal_uri,
    utc_now,
)
from broker.net.tls.contexts import ClientTls, ServerTls, parse_pin
from broker.net.tls.errors import HandshakeRefused, HandshakeTimedOut, TlsFailed
from broker.net.tls.explain import explain
from broker.net.tls.transport import TlsEndpoint, TlsFactory, certificate_of, is_encrypted
from tests.net.recorder import Recorder, Talk
from tests.support.certificates import Files, Pki, foreign_client, foreign_server, meet, uris
from tests.support.clock import advance
from tests.support.transport import Client, FakeTransport, Pair, connect

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all files of this module are."""
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def pki(folder: Path) -> Pki:
    """The authority that is trusted."""
    return Pki(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Pki:
    """Another, that isn't."""
    return Pki(folder, "Other")


@pytest.fixture(scope="module")
def own(pki: Pki) -> Files:
    """The server's certificate."""
    return pki.server()


@pytest.fixture(scope="module")
def terminal(pki: Pki) -> Files:
    """A terminal's certificate."""
    return pki.terminal("山田太郎 大阪府")


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


class NamesTests:
    """Whom a certificate names."""

    @pytest.mark.parametrize(
        "identifier",
        ["Ia", "+81-6-6908-1121", "taro@example.jp", "山田太郎 大阪府門真市大字門真1006", "a%/?#&"],
    )
    def test_terminal(self, pki: Pki, identifier: str) -> None:
        """Every identifier goes into a certificate and comes out as it was (A18, A19)."""
        assert identifier_of(pki.terminal(identifier).read) == identifier

    @pytest.mark.parametrize(
        ("uri", "identifier"),
        [
            ("broker:Ia", "Ia"),
            ("broker:%49a", "Ia"),
            ("broker:+81@x", "+81@x"),
            ("broker:%c3%A9", "é"),
            ("broker:e%CC%81", "é"),
        ],
    )
    def test_other_spellings(self, pki: Pki, uri: str, identifier: str) -> None:
        """Another authority may escape more or fewer; what is meant is the same, in NFC (I4)."""
        assert identifier_of(pki.odd(uris(uri)).read) == identifier

    @pytest.mark.parametrize(
        ("names", "why"),
        [
            (None, "no URI"),
            (x509.SubjectAlternativeName([x509.DNSName("ia")]), "no URI"),
            (x509.SubjectAlternativeName([x509.RFC822Name("ia@example.jp")]), "no URI"),
            (uris("broker:Ia", "broker:Ib"), "more than one URI"),
            (uris("broker:Ia", "broker-mediator:m"), "more than one URI"),
            (uris("broker:Ia", "https://example.jp"), "more than one URI"),
            (uris("broker-mediator:m"), "not that of a terminal"),
            (uris("https://example.jp"), "not that of a terminal"),
            (uris("Broker:Ia"), "not that of a terminal"),
            (uris("brokers:Ia"), "not that of a terminal"),
            (uris("broker:"), "empty"),
            (uris("broker:@all"), "begins with @"),
            (uris("broker:%40all"), "begins with @"),
            (uris("broker:a,b"), "a comma"),
            (uris("broker:%00"), "cannot be seen"),
            (uris("broker:Ia%0A"), "cannot be seen"),
            (uris("broker:Ia%E2%80%AE"), "cannot be seen"),
            (uris("broker:%20Ia"), "a blank"),
            (uris("broker:" + "a" * 129), "longer than 128"),
            (uris("broker:%FF"), "not UTF-8"),
            (uris("broker:%ED%A0%80"), "not UTF-8"),
            (uris("broker:%C0%80"), "not UTF-8"),
            (uris("broker:%4"), "not percent-encoded"),
            (uris("broker:%zz"), "not percent-encoded"),
            (uris("broker:I a"), "not percent-encoded"),
            (uris("broker:Ia?x"), "not percent-encoded"),
            (uris("broker:Ia#x"), "not percent-encoded"),
            (uris("broker:Ia\x00"), "not percent-encoded"),
            (uris("broker:Ia\n"), "not percent-encoded"),
        ],
    )
    def test_no_terminal(
        self, pki: Pki, names: x509.SubjectAlternativeName | None, why: str
    ) -> None:
        """A certificate that does not name one terminal, by its URI, names none (A19, I3, I4)."""
        with pytest.raises(CertificateRefused, match=why):
            identifier_of(pki.odd(names, "Ia").read)

    def test_mediator(self, pki: Pki, terminal: Files, own: Files) -> None:
        """A mediator's certificate names a mediator and no terminal, a terminal's the other way
        round, and a server's neither (A15).
        """
        mediator = pki.mediator("m-1.example").read
        assert mediator_of(mediator) == "m-1.example"
        with pytest.raises(CertificateRefused, match="not that of a terminal"):
            identifier_of(mediator)
        with pytest.raises(CertificateRefused, match="not that of a mediator"):
            mediator_of(terminal.read)
        with pytest.raises(CertificateRefused, match="no URI"):
            mediator_of(own.read)

    @pytest.mark.parametrize("path", ["", "a b", "%41", "a" * 65, "ü".encode().hex(" ")])
    def test_no_mediator(self, pki: Pki, path: str) -> None:
        """A mediator's name is a token and stands as it is."""
        with pytest.raises(CertificateRefused):
            mediator_of(pki.odd(uris(f"broker-mediator:{path}")).read)

    def test_mediator_that_is_a_server(self, pki: Pki) -> None:
        """A certificate may name hosts besides: they are not looked at."""
        names = x509.SubjectAlternativeName(
            [x509.DNSName("m.example"), x509.UniformResourceIdentifier(mediator_uri("m"))]
        )
        assert mediator_of(pki.odd(names).read) == "m"

    def test_uris(self) -> None:
        """What our own authority writes."""
        assert terminal_uri("tel:+81/1 é") == "broker:tel%3A%2B81%2F1%20%C3%A9"
        assert mediator_uri("m-1") == "broker-mediator:m-1"
        with pytest.raises(ValueError, match="begins with @"):
            terminal_uri("@all")


class FilesTests:
    """Which files are taken."""

    @pytest.fixture
    def copy(self, own: Files, tmp_path: Path) -> Files:
        """The server's files, to be spoiled."""
        files = Files(str(tmp_path / "own.pem"), str(tmp_path / "own.key"))
        for path, source in zip(files, own, strict=True):
            Path(path).write_bytes(Path(source).read_bytes())
            Path(path).chmod(0o600)
        return files

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
    def test_open_key(self, copy: Files, mode: int) -> None:
        """A key that others can read, or change, is refused by name (A21, I18)."""
        ServerTls(*copy)
        Path(copy.key).chmod(mode)
        with pytest.raises(InvalidFile, match=r"own\.key: others can read or change it"):
            ServerTls(*copy)

    def test_mismatch(self, own: Files, pki: Pki) -> None:
        """The key of another certificate is refused, and both files are named."""
        with pytest.raises(
            InvalidFile, match=r"\.pem: is not the certificate of the key in .*\.key"
        ):
            ServerTls(own.certificate, pki.server().key)

    @pytest.mark.parametrize(
        ("which", "content", "why"),
        [
            ("certificate", None, "No such file"),
            ("certificate", b"", "holds no certificate"),
            ("certificate", b"\x00\xff" * 50, "holds no certificate"),
            ("certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ""),
            ("key", None, "No such file"),
            ("key", b"", "holds no private key"),
            ("key", b"nothing", "holds no private key"),
        ],
    )
    def test_bad_file(self, copy: Files, which: str, content: bytes | None, why: str) -> None:
        """A file that is missing, empty or something else is refused, and named (I3)."""
        path = Path(getattr(copy, which))
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with pytest.raises(InvalidFile, match=f"{path}: .*{why}"):
            ServerTls(*copy)

    def test_other_keys(self, copy: Files) -> None:
        """A key with a passphrase can't be asked for it; one of a kind without use is refused."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            BestAvailableEncryption,
            Encoding,
            NoEncryption,
            PrivateFormat,
        )

        locked = new_key().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
        )
        Path(copy.key).write_bytes(locked)
        with pytest.raises(InvalidFile, match="has a passphrase"):
            ServerTls(*copy)
        useless = X25519PrivateKey.generate()
        Path(copy.key).write_bytes(
            useless.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        with pytest.raises(InvalidFile, match="of an unsupported kind"):
            ServerTls(*copy)

    def test_wrong_side(self, pki: Pki, own: Files, terminal: Files) -> None:
        """A terminal's certificate for a server, or the reverse, is refused before anybody is."""
        with pytest.raises(InvalidFile, match="not a certificate for a server"):
            ServerTls(*terminal)
        with pytest.raises(InvalidFile, match="not a certificate for a client"):
            ClientTls(pki.ca, "localhost", certificate=own.certificate, key=own.key)

    def test_out_of_time(self, pki: Pki, own: Files) -> None:
        """One that has expired, or isn't valid yet, is refused: so would every peer."""
        with pytest.raises(InvalidFile, match="has expired on "):
            ServerTls(*pki.server(age=LONG_AGO))
        with pytest.raises(InvalidFile, match="is the clock of this machine right"):
            ServerTls(*own, now=lambda: utc_now() - timedelta(days=1))

    def test_authorities(self, pki: Pki, own: Files) -> None:
        """What is trusted must be an authority's, and still good."""
        with pytest.raises(InvalidFile, match="is not an authority's certificate"):
            ServerTls(*own, client_ca=own.certificate)
        later = utc_now() + timedelta(days=3000)
        with pytest.raises(InvalidFile, match=f"{pki.ca}: has expired"):
            ClientTls(pki.ca, "localhost", now=lambda: later)

    def test_revocation_lists(self, pki: Pki, other: Pki, own: Files, tmp_path: Path) -> None:
        """A revocation list must be the authority's, whole and up to date, else all would be
        refused, or none (I3).
        """
        with pytest.raises(InvalidFile, match="is no revocation list of the authority"):
            ServerTls(*own, client_ca=pki.ca, crl=other.crl)
        with pytest.raises(InvalidFile, match="holds no revocation list"):
            ServerTls(*own, client_ca=pki.ca, crl=pki.ca)
        with pytest.raises(InvalidFile, match="No such file"):
            ServerTls(*own, client_ca=pki.ca, crl=str(tmp_path / "none"))
        later = utc_now() + timedelta(days=399)
        with pytest.raises(InvalidFile, match="broker ca refresh"):
            ClientTls(pki.ca, "localhost", crl=pki.crl, now=lambda: later)
        with pytest.raises(InvalidFile, match="can't be checked without"):
            ServerTls(*own, crl=pki.crl)
        with pytest.raises(InvalidFile, match="can't be checked without"):
            ServerTls(*own, required=True)

    def test_der_revocations(self, pki: Pki, own: Files, tmp_path: Path) -> None:
        """Public authorities give their lists in DER: that is taken as well."""
        from cryptography.hazmat.primitives.serialization import Encoding

        path = tmp_path / "list.der"
        revocations = x509.load_pem_x509_crl(Path(pki.crl).read_bytes())
        path.write_bytes(revocations.public_bytes(Encoding.DER))
        ServerTls(*own, client_ca=pki.ca, crl=str(path))

    def test_expiry(self, pki: Pki, own: Files) -> None:
        """From 14 days before its end on, each certificate and list is named; not before."""
        now = [utc_now()]
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl, now=lambda: now[0])
        ends = own.read.not_valid_after_utc
        now[0] = ends - timedelta(days=14, seconds=1)
        assert tls.warnings() == []
        now[0] = ends - timedelta(days=13, hours=23)
        assert f"the certificate in {own.certificate} ends in 13 days, on {ends:%Y-%m-%d}" in (
            tls.warnings()
        )
        now[0] = ends - timedelta(hours=1)
        assert any("ends in less than a day" in line for line in tls.warnings())
        now[0] = ends + timedelta(days=1)
        lines = tls.warnings()
        assert f"the certificate in {own.certificate} has ended on {ends:%Y-%m-%d}" in lines
        assert any(line.startswith(f"the revocation list in {pki.crl}") for line in lines)

    def test_expiry_of_authority(self, pki: Pki) -> None:
        """So is an authority that ends."""
        now = [utc_now()]
        tls = ClientTls(pki.ca, "localhost", now=lambda: now[0])
        assert tls.warnings() == []
        ends = pki.authority.certificate.not_valid_after_utc
        now[0] = ends - timedelta(days=1, hours=1)
        what = f"the authority's certificate in {pki.ca}"
        assert tls.warnings() == [f"{what} ends in 1 day, on {ends:%Y-%m-%d}"]


class ReloadTests:
    """Certificates that change while the server runs."""

    def shown(self, tls: ServerTls, pki: Pki) -> bytes | None:
        """The certificate that a new client sees."""
        foreign = foreign_client(pki.ca)
        meet(Meeting(tls).tls, Clock(), foreign)
        der: bytes | None = foreign.tls.getpeercert(binary_form=True)
        return der

    def place(self, files: Files, folder: Path) -> Files:
        """Put a certificate and its key where the server looks."""
        placed = Files(str(folder / "server.pem"), str(folder / "server.key"))
        for path, source in zip(placed, files, strict=True):
            Path(path).write_bytes(Path(source).read_bytes())
        Path(placed.key).chmod(0o600)
        return placed

    def test_new_certificate(self, pki: Pki, own: Files, tmp_path: Path) -> None:
        """New connections see the new one; those that stand go on (A21)."""
        tls = ServerTls(*self.place(own, tmp_path))
        meeting = Meeting(tls)
        foreign = foreign_client(pki.ca)
        peer = meet(meeting.tls, meeting.clock, foreign)
        before = self.shown(tls, pki)
        self.place(pki.server(), tmp_path)
        assert self.shown(tls, pki) == before
        tls.reload()
        assert self.shown(tls, pki) not in {before, None}
        foreign.talk(peer, say=b"still here")
        assert foreign.received == b"still here"

    def test_bad_file(self, pki: Pki, own: Files, tmp_path: Path) -> None:
        """A bad file at reload keeps the old, and says so (I3)."""
        placed = self.place(own, tmp_path)
        tls = ServerTls(*placed)
        before = self.shown(tls, pki)
        assert before is not None
        Path(placed.certificate).write_bytes(Path(pki.server().certificate).read_bytes())
        with pytest.raises(InvalidFile, match="is not the certificate of the key"):
            tls.reload()
        assert self.shown(tls, pki) == before

    def test_revoked_since(self, pki: Pki, own: Files) -> None:
        """A reload brings a revocation into force, also for who is connected already (I2)."""
        tls = ServerTls(*own, client_ca=pki.ca, crl=pki.crl)
        files = pki.terminal("Ia")
        meeting = Meeting(tls)
        foreign = foreign_client(pki.ca, files)
        meet(meeting.tls, meeting.clock, foreign)
        shown = certificate_of(meeting.echo.transport)
        assert shown is not None
        pki.revoke(files)
        assert not tls.revoked(shown)
        tls.reload()
        assert tls.revoked(shown)
        again = Meeting(tls)
        meet(again.tls, again.clock, foreign_client(pki.ca, files))
        assert again.why.endswith("it has been revoked")
        assert not tls.revoked(pki.terminal("Ia").read)
        assert not ServerTls(*own).revoked(shown)

    def test_client(self, pki: Pki, other: Pki, own: Files, tmp_path: Path) -> None:
        """A client reloads whom it trusts."""
        ca = tmp_path / "ca.pem"
        ca.write_bytes(Path(other.ca).read_bytes())
        tls = ClientTls(str(ca), "localhost")
        foreign = foreign_server(own)
        meet(Meeting(tls).tls, Clock(), foreign)
        assert foreign.error is not None
        ca.write_bytes(Path(pki.ca).read_bytes())
        tls.reload()
        foreign = foreign_server(own)
        meet(Meeting(tls).tls, Clock(), foreign)
        assert foreign.error is None
        assert foreign.ready


class NoFactory(Factory):
    """Wants no connection."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> None:
        return None


@implementer(IStreamClientEndpoint)
class InMemory:
    """An endpoint that connects to nobody, yet."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.client: Client | None = None

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect."""
        self.client = connect(protocolFactory, self.clock)
        return succeed(self.client.protocol)


class TransportTests:
    """TLS under the protocols of the product."""

    def test_both_ours(self, pki: Pki, own: Files, terminal: Files) -> None:
        """Both sides of ours speak with each other, a byte at a time."""
        server = Meeting(ServerTls(*own, client_ca=pki.ca, crl=pki.crl, required=True))
        client = Meeting(ClientTls(pki.ca, "localhost", certificate=terminal[0], key=terminal[1]))
        clock = server.clock
        client.clock = clock
        ends = [
            FakeTransport(one.tls.buildProtocol(None), clock, peer_reads=False)  # type: ignore[arg-type]
            for one in (server, client)
        ]
        for end in ends:
            end.start()
        transport: Any = client.echo.transport
        transport.write(b"x")
        pair = Pair(ends[0], ends[1], clock, chunk=1)
        for _ in range(20_000):
            pair.step()
            if len(server.echo.heard) >= 2:
                break
        assert server.echo.heard[:2] == b"xx"
        assert client.echo.heard[:1] == b"x"

    def test_handshake_deadline(self, own: Files) -> None:
        """A peer that connects and says nothing, or half of it, is cut off after 5 s (I14)."""
        for said in (b"", b"\x16\x03\x01\x02"):
            meeting = Meeting(ServerTls(*own))
            peer = connect(meeting.tls, meeting.clock)
            peer.send(said)
            advance(meeting.clock, 4.9)
            assert not peer.closed
            advance(meeting.clock, 0.2)
            assert peer.closed
            assert peer.transport.aborted
            assert meeting.why == str(HandshakeTimedOut())
            assert not meeting.clock.getDelayedCalls()

    def test_no_deadline_after(self, pki: Pki, own: Files) -> None:
        """Once the handshake is over that deadline is lifted, for server and client."""
        meeting = Meeting(ServerTls(*own))
        foreign = foreign_client(pki.ca)
        peer = meet(meeting.tls, meeting.clock, foreign)
        advance(meeting.clock, 3600)
        assert not peer.closed
        meeting = Meeting(ClientTls(pki.ca, "localhost"))
        peer = meet(meeting.tls, meeting.clock, foreign_server(own))
        advance(meeting.clock, 3600)
        assert not peer.closed

    def test_client_deadline(self, pki: Pki) -> None:
        """A server that says nothing is given up as well."""
        meeting = Meeting(ClientTls(pki.ca, "localhost"))
        peer = connect(meeting.tls, meeting.clock)
        advance(meeting.clock, 5.1)
        assert peer.closed
        assert meeting.why == str(HandshakeTimedOut())

    def test_stopped(self, own: Files) -> None:
        """A port that closes leaves no handshake and no timer behind."""
        meeting = Meeting(ServerTls(*own))
        factory: Any = meeting.tls
        factory.doStart()
        peer = connect(factory, meeting.clock)
        factory.doStop()
        assert peer.closed
        assert not meeting.clock.getDelayedCalls()

    def test_source_at_its_limit(self, own: Files) -> None:
        """Where the factory above wants no connection there is none (I15)."""
        assert TlsFactory(ServerTls(*own), NoFactory(), Clock()).buildProtocol(None) is None

    def test_endpoint(self, pki: Pki, own: Files) -> None:
        """A client connects through any endpoint; what it says at once waits for the handshake."""
        clock = Clock()
        endpoint = InMemory(clock)
        tls = ClientTls(pki.ca, "localhost")
        made: list[Any] = []
        wrapped = TlsEndpoint(tls, endpoint, clock)
        wrapped.connect(Factory.forProtocol(Echo)).addCallback(made.append)
        assert isinstance(made[0], Echo)
        transport: Any = made[0].transport
        transport.write(b"REGISTER")
        assert endpoint.client is not None
        assert b"REGISTER" not in endpoint.client.transport.writes[0]
        foreign = foreign_server(own)
        foreign.talk(endpoint.client)
        assert foreign.received == b"REGISTER"

    def test_stream(self, pki: Pki, own: Files) -> None:
        """Messages pass over TLS; the transport's own switches reach the connection below."""
        clock = Clock()
        made: list[Recorder] = []

        def receiver(stream: PeerConnection) -> Recorder:
            made.append(Recorder(stream))
            return made[-1]

        factory = TlsFactory(
            ServerTls(*own), ConnectionFactory(ConnectionHub(clock), receiver), clock
        )
        foreign = foreign_client(pki.ca)
        message = Message("QUERY", Identifier="Ia", Callee="Ib")
        peer = meet(factory, clock, foreign, say=message.encode() * 3)
        assert len(made[0].heard) == 3
        assert peer.transport.no_delay
        assert peer.transport.keep_alive
        made[0].stream.write(b"answer")
        foreign.talk(peer)
        assert foreign.received == b"answer"
        made[0].stream.hold()
        foreign.talk(peer, say=message.encode())
        assert peer.transport.waiting > 0
        assert len(made[0].heard) == 3
        made[0].stream.go_on()
        foreign.talk(peer)
        assert len(made[0].heard) == 4
        advance(clock, 11)
        assert peer.closed, "the login deadline holds over TLS too"

    def test_encrypted(self, pki: Pki, own: Files) -> None:
        """What is TLS is known as such, before and after the handshake; what isn't, isn't (I25)."""
        meeting = Meeting(ServerTls(*own))
        peer = connect(meeting.tls, meeting.clock)
        assert is_encrypted(meeting.echo.transport)
        assert not is_encrypted(peer.transport)
        assert not is_encrypted(None)
        assert certificate_of(peer.transport) is None

    def test_other_errors(self) -> None:
        """What TLS has nothing to do with is not explained by it."""
        assert explain(ConnectionResetError()) is None
        assert explain(HandshakeRefused("it x")) == "the peer's certificate is refused: it x"
        strange = SSL.Error([("SSL routines", "", "something\x1b new")])
        assert explain(strange) == "TLS failed: something\\u001b new"
        assert explain(SSL.Error([])) == "TLS failed: Error"
        assert explain(SSL.SysCallError(-1, "Unexpected EOF")) == "TLS failed: Unexpected EOF"


class StreamTests:
    """``PeerConnection`` over TLS: what holds over plain TCP holds here."""

    def setup_method(self) -> None:
        """Nobody is connected yet."""
        self.clock = Clock()
        self.exchange = ConnectionHub(self.clock)
        self.made: list[Recorder] = []

    def meet(self, own: Files, foreign: Any) -> tuple[Client, PeerConnection]:
        """One connection, secured."""

        def receiver(stream: PeerConnection) -> Recorder:
            self.made.append(Recorder(stream))
            return self.made[-1]

        factory = TlsFactory(
            ServerTls(*own), ConnectionFactory(self.exchange, receiver), self.clock
        )
        peer = meet(factory, self.clock, foreign)
        return peer, self.made[-1].stream

    def test_secure(self, pki: Pki, own: Files) -> None:
        """It knows that it is encrypted, and once it is gone that it isn't (I25)."""
        peer, stream = self.meet(own, foreign_client(pki.ca))
        assert stream.secure
        peer.vanish()
        assert not stream.secure

    def test_output_limit(self, pki: Pki, own: Files) -> None:
        """A stranger that doesn't read is cut off at 4 KiB, one that is known has more (I15)."""
        peer, stream = self.meet(own, foreign_client(pki.ca))
        assert peer.transport.bufferSize == self.exchange.unauthenticated.output
        peer.transport.stop_reading_peer()
        stream.write(b"x" * 5000)
        advance(self.clock, self.exchange.unauthenticated.stalled + 0.1)
        assert peer.closed
        peer, stream = self.meet(own, foreign_client(pki.ca))
        stream.authenticated()
        assert peer.transport.bufferSize == 65536
        peer.transport.stop_reading_peer()
        stream.write(b"x" * 5000)
        advance(self.clock, 8)
        assert not peer.closed

    def test_closed_while_held(self, pki: Pki, own: Files) -> None:
        """Closing reads on, though nothing was to be read, so that the peer's end is seen."""
        foreign = foreign_client(pki.ca)
        peer, stream = self.meet(own, foreign)
        stream.authenticated()
        stream.hold()
        stream.write(b"bye")
        stream.close()
        foreign.talk(peer)
        assert foreign.received == b"bye"
        assert not peer.closed
        foreign.tls.unwrap()  # its own end of TLS
        foreign.talk(peer)
        assert peer.closed
        assert not peer.transport.aborted

    def test_refused(self, pki: Pki, other: Pki, own: Files) -> None:
        """Why TLS ended a connection reaches the receiver and the log, a line a second (I15)."""
        with capturedLogs() as events:
            for _ in range(3):
                self.meet(own, foreign_client(other.ca))
            why = "the peer has refused: no authority that it trusts has issued our certificate"
            reason = self.made[0].reason
            assert reason is not None
            assert reason.check(TlsFailed)
            assert str(reason.value) == why
            advance(self.clock, 1.1)
            self.meet(own, foreign_client(other.ca))
        lines = [formatEvent(event) for event in events]
        assert lines == [
            f"TLS with this machine failed: {why}",
            f"TLS with this machine failed: {why} (2 more since the last such line)",
        ]

    def test_questions_are_told(self, pki: Pki, other: Pki, own: Files) -> None:
        """Who waits for an answer learns that it was TLS, not just that there is none."""
        exchange = ConnectionHub.of_client(self.clock)
        tls = ClientTls(other.ca, "localhost")
        factory = TlsFactory(tls, ConnectionFactory(exchange, Asking), self.clock)
        peer = connect(factory, self.clock)
        wrapper: Any = peer.protocol
        answer = wrapper.wrappedProtocol.receiver.ask(Message("QUERY", "STATUS"))
        foreign_server(own).talk(peer)
        failed: list[Failure] = []
        answer.addErrback(failed.append)
        assert failed[0].check(TlsFailed)
        assert str(failed[0].value).endswith("it was not issued by a trusted authority")


class Asking(Talk):
    """A conversation that passes on why its connection was lost."""

    def connection_lost(self, reason: Failure) -> None:
        self.lost(reason)
