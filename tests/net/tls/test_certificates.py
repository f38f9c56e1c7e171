"""Certificates: whom they name, and their files (broker.net.tls.certificates)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

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
from tests.net.tls.handshakes import (
    LONG_AGO,
)
from tests.support.certificates import Files, Pki, uris


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
