"""Certificates: what they name, and their files (broker.net.tls.certificates)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from broker.ca.requests import new_key
from broker.files import InvalidFile
from broker.net.tls.certificates import (
    CertificateRefused,
    identifier_of,
    mediator_of,
    mediator_uri,
    terminal_uri,
    utc_now,
)
from broker.net.tls.contexts import ClientTls, ServerTls
from tests.net.tls.handshakes import LONG_AGO, Trust
from tests.support.certificates import Files, uris


def pem(key: Any, encryption: KeySerializationEncryption) -> bytes:
    """A private key's file."""
    content: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return content


class NamesTests:
    """Which terminal or mediator a certificate names."""

    @pytest.mark.parametrize(
        "identifier",
        ["Ia", "+81-6-6908-1121", "taro@example.jp", "山田太郎 大阪府門真市大字門真1006", "a%/?#&"],
    )
    def test_terminal(self, trust: Trust, identifier: str) -> None:
        """Every identifier goes into a certificate and comes out unchanged (A18, A19)."""
        assert identifier_of(trust.pki.terminal(identifier).read) == identifier

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
    def test_other_spellings(self, trust: Trust, uri: str, identifier: str) -> None:
        """Another authority may escape more or fewer; what is meant is the same, in NFC (I4)."""
        assert identifier_of(trust.pki.odd(uris(uri)).read) == identifier

    @pytest.mark.parametrize(
        ("names", "why"),
        [
            (None, "no URI"),
            (x509.SubjectAlternativeName([x509.DNSName("ia")]), "no URI"),
            (x509.SubjectAlternativeName([x509.RFC822Name("ia@example.jp")]), "no URI"),
            *(
                (uris("broker:Ia", more), "more than one URI")
                for more in ("broker:Ib", "broker-mediator:m", "https://example.jp")
            ),
            *(
                (uris(uri), why)
                for why, odd in (
                    ("not that of a terminal", ["broker-mediator:m", "https://example.jp"]),
                    ("not that of a terminal", ["Broker:Ia", "brokers:Ia"]),
                    ("empty", ["broker:"]),
                    ("begins with @", ["broker:@all", "broker:%40all"]),
                    ("a comma", ["broker:a,b"]),
                    ("cannot be seen", ["broker:%00", "broker:Ia%0A", "broker:Ia%E2%80%AE"]),
                    ("a blank", ["broker:%20Ia"]),
                    ("longer than 128", ["broker:" + "a" * 129]),
                    ("not UTF-8", ["broker:%FF", "broker:%ED%A0%80", "broker:%C0%80"]),
                    ("not percent-encoded", ["broker:%4", "broker:%zz", "broker:I a"]),
                    ("not percent-encoded", ["broker:Ia?x", "broker:Ia#x"]),
                    ("not percent-encoded", ["broker:Ia\x00", "broker:Ia\n"]),
                )
                for uri in odd
            ),
        ],
    )
    def test_no_terminal(
        self, trust: Trust, names: x509.SubjectAlternativeName | None, why: str
    ) -> None:
        """A certificate that does not name one terminal, by its URI, names none (A19, I3, I4)."""
        with pytest.raises(CertificateRefused, match=why):
            identifier_of(trust.pki.odd(names, "Ia").read)

    def test_mediator(self, trust: Trust) -> None:
        """A mediator's certificate names a mediator and no terminal, a terminal's the other way
        round, and a server's neither (A15). It may name hosts too: they are not looked at.
        """
        mediator = trust.pki.mediator("m-1.example").read
        assert mediator_of(mediator) == "m-1.example"
        with pytest.raises(CertificateRefused, match="not that of a terminal"):
            identifier_of(mediator)
        with pytest.raises(CertificateRefused, match="not that of a mediator"):
            mediator_of(trust.terminal.read)
        with pytest.raises(CertificateRefused, match="no URI"):
            mediator_of(trust.own.read)
        names = [x509.DNSName("m.example"), x509.UniformResourceIdentifier(mediator_uri("m"))]
        assert mediator_of(trust.pki.odd(x509.SubjectAlternativeName(names)).read) == "m"

    @pytest.mark.parametrize("path", ["", "a b", "%41", "a" * 65, "ü".encode().hex(" ")])
    def test_no_mediator(self, trust: Trust, path: str) -> None:
        """A mediator's name is a token and stands unescaped."""
        with pytest.raises(CertificateRefused):
            mediator_of(trust.pki.odd(uris(f"broker-mediator:{path}")).read)

    def test_uris(self) -> None:
        """What our own authority writes."""
        assert terminal_uri("tel:+81/1 é") == "broker:tel%3A%2B81%2F1%20%C3%A9"
        assert mediator_uri("m-1") == "broker-mediator:m-1"
        with pytest.raises(ValueError, match="begins with @"):
            terminal_uri("@all")


def later(**time: int) -> Callable[[], datetime]:
    """The clock of a machine, so much later."""
    return lambda: utc_now() + timedelta(**time)


#: What is refused before any peer connects, and why; each names its file.
REFUSED: list[tuple[str, Callable[[Trust], object]]] = [
    (
        r"\.pem: is not the certificate of the key in .*\.key",
        lambda it: ServerTls(it.own.certificate, it.pki.server().key),
    ),
    # A terminal's certificate for a server, or the reverse.
    ("not a certificate for a server", lambda it: ServerTls(*it.terminal)),
    ("not a certificate for a client", lambda it: it.client(**it.own._asdict())),
    # One that has expired, or isn't valid yet: so would every peer refuse it.
    ("has expired on ", lambda it: ServerTls(*it.pki.server(age=LONG_AGO))),
    ("is the clock of this machine right", lambda it: it.server(now=later(days=-1))),
    # What is trusted must be an authority's, and still valid.
    ("is not an authority's certificate", lambda it: it.server(client_ca=it.own.certificate)),
    (r"Test/\S+: has expired", lambda it: it.client(now=later(days=3000))),
    # A revocation list must be the authority's, whole and up to date, else all would be refused, or
    # none (I3).
    (
        "is no revocation list of the authority",
        lambda it: it.server(client_ca=it.pki.ca, crl=it.other.crl),
    ),
    ("holds no revocation list", lambda it: it.server(client_ca=it.pki.ca, crl=it.pki.ca)),
    ("No such file", lambda it: it.server(client_ca=it.pki.ca, crl=str(it.folder / "none"))),
    ("broker ca refresh", lambda it: it.client(crl=it.pki.crl, now=later(days=399))),
    # What makes sense only together is refused alone, not passed over in silence (I3).
    ("can't be checked without", lambda it: it.server(crl=it.pki.crl)),
    ("can't be checked without", lambda it: it.server(required=True)),
    ("needs its private key", lambda it: it.client(certificate=it.terminal.certificate)),
    ("needs its private key", lambda it: it.client(key=it.terminal.key)),
    ("without its authority", lambda it: ClientTls(None, "localhost", crl=it.pki.crl)),
]


class FilesTests:
    """Which files are taken."""

    @pytest.fixture
    def copy(self, trust: Trust, tmp_path: Path) -> Files:
        """The server's files, to be spoiled."""
        return trust.own.copy(tmp_path)

    @pytest.mark.parametrize(("why", "make"), REFUSED)
    def test_when_the_files_do_not_fit_then_they_are_refused_at_once(
        self, trust: Trust, why: str, make: Callable[[Trust], object]
    ) -> None:
        """Not first when a peer connects."""
        with pytest.raises(InvalidFile, match=why):
            make(trust)

    @pytest.mark.parametrize("name", ["", "a b", "-x-", "exa_mple.com", "a..b", "[::1]", "\ud800"])
    def test_no_host(self, trust: Trust, name: str) -> None:
        """What could be no server's name is refused before a connection is made."""
        with pytest.raises(InvalidFile, match="neither a DNS name nor an IP address"):
            trust.client(name)

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602])
    def test_open_key(self, copy: Files, mode: int) -> None:
        """A key that others can read, or change, is refused by name (A21, I18)."""
        ServerTls(*copy)
        Path(copy.key).chmod(mode)
        with pytest.raises(InvalidFile, match=r"own\.key: others can read or change it"):
            ServerTls(*copy)

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
            # A key with a passphrase can't be asked for it.
            ("key", pem(new_key(), BestAvailableEncryption(b"x")), "has a passphrase"),
            # One of a kind without use.
            ("key", pem(X25519PrivateKey.generate(), NoEncryption()), "of an unsupported kind"),
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

    def test_der_revocations(self, trust: Trust, tmp_path: Path) -> None:
        """Public authorities give their lists in DER: that is taken as well."""
        path = tmp_path / "list.der"
        revocations = x509.load_pem_x509_crl(Path(trust.pki.crl).read_bytes())
        path.write_bytes(revocations.public_bytes(Encoding.DER))
        trust.server(client_ca=trust.pki.ca, crl=str(path))

    def test_expiry(self, trust: Trust) -> None:
        """From 14 days before its end on, each certificate and list is named; not before. So is an
        authority that ends.
        """
        now = [utc_now()]
        tls, client = trust.asking(now=lambda: now[0]), trust.client(now=lambda: now[0])
        assert client.warnings() == []
        ends = trust.own.read.not_valid_after_utc
        what = f"the certificate in {trust.own.certificate}"
        now[0] = ends - timedelta(days=14, seconds=1)
        assert tls.warnings() == []
        now[0] = ends - timedelta(days=13, hours=23)
        assert f"{what} ends in 13 days, on {ends:%Y-%m-%d}" in tls.warnings()
        now[0] = ends - timedelta(hours=1)
        assert any("ends in less than a day" in line for line in tls.warnings())
        now[0] = ends + timedelta(days=1)
        assert f"{what} has ended on {ends:%Y-%m-%d}" in tls.warnings()
        assert f"the revocation list in {trust.pki.crl}" in "".join(tls.warnings())
        ends = trust.pki.authority.certificate.not_valid_after_utc
        now[0] = ends - timedelta(days=1, hours=1)
        what = f"the authority's certificate in {trust.pki.ca}"
        assert client.warnings() == [f"{what} ends in 1 day, on {ends:%Y-%m-%d}"]
