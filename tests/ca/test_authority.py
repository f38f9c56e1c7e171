"""The private authority: what it makes, what it signs and what it never does; and its commands.

The ``openssl`` command is asked as an independent witness.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.ca.authority import Authority
from broker.ca.names import (
    AuthorityError,
    CertificateKind,
    Names,
    kind_of,
    mediator_names,
    server_names,
    terminal_names,
)
from broker.ca.requests import CertificateRequest, make_request, new_key, read_request
from broker.ca.signing import AUTHORITY_LIFE, LIFE
from broker.cli import ca as ca_cli
from broker.cli.main import main
from broker.files import PRIVATE, write_file
from broker.net.tls.certificates import identifier_of, key_digest, utc_now
from broker.net.tls.contexts import ClientTls, ServerTls
from tests.support.certificates import uris

OPENSSL: Final = shutil.which("openssl")

witness = pytest.mark.skipif(
    OPENSSL is None and "CI" not in os.environ, reason="there is no openssl command"
)


def openssl(*arguments: str | Path) -> str:
    """What the openssl command says, whether it is content or not."""
    assert OPENSSL is not None, "the openssl command is needed"
    done = subprocess.run(
        [OPENSSL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=20
    )
    return done.stdout + done.stderr


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A new authority."""
    return Authority.make(tmp_path / "ca", "Test authority")


def issue(authority: Authority, names: Names) -> x509.Certificate:
    """A certificate for a new key."""
    return authority.issue(CertificateRequest(kind_of(names), names, new_key().public_key()))


def save(certificate: x509.Certificate, path: Path) -> Path:
    """Write a certificate to a file."""
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    """An extension of a certificate."""
    return certificate.extensions.get_extension_for_class(kind)


def is_private(path: Path) -> bool:
    """Whether nobody but its owner can do anything with a file."""
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class MakingTests:
    """A new authority (D2)."""

    def test_certificate(self, authority: Authority) -> None:
        """It may issue certificates and revocation lists, appoint nobody, and lives ten years."""
        certificate = authority.certificate
        basic = extension(certificate, x509.BasicConstraints)
        assert basic.critical
        assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
        usage = extension(certificate, x509.KeyUsage)
        assert usage.critical
        assert usage.value.key_cert_sign
        assert usage.value.crl_sign
        assert not usage.value.digital_signature
        life = certificate.not_valid_after_utc - utc_now()
        assert AUTHORITY_LIFE - timedelta(minutes=5) < life <= AUTHORITY_LIFE
        assert timedelta(0) < utc_now() - certificate.not_valid_before_utc < timedelta(days=1)
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        assert authority.name == "Test authority"

    def test_private(self, authority: Authority) -> None:
        """Nobody else gets into its folder or at its key, whatever the umask (I18)."""
        before = os.umask(0)
        try:
            made = Authority.make(authority.folder.with_name("open"), "x")
        finally:
            os.umask(before)
        for folder in (authority.folder, made.folder):
            assert is_private(folder)
            assert is_private(folder / "authority.key")
        assert not is_private(made.certificate_path)

    def test_never_overwritten(self, authority: Authority) -> None:
        """An authority, or anything else in its place, is never overwritten."""
        before = contents(authority.folder)
        with pytest.raises(AuthorityError, match="never overwritten"):
            Authority.make(authority.folder, "Another")
        other = authority.folder.with_name("other")
        other.mkdir()
        (other / "something").write_text("x")
        with pytest.raises(AuthorityError, match="never overwritten"):
            Authority.make(other, "Another")
        assert contents(authority.folder) == before
        assert sorted(path.name for path in authority.folder.parent.iterdir()) == ["ca", "other"]

    def test_whole_or_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where it can't be finished nothing of it is left, and the next attempt succeeds (I9)."""

        def full(folder: Authority) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(Authority, "refresh", full)
            with pytest.raises(OSError, match="No space"):
                Authority.make(tmp_path / "ca", "x")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "ca").mkdir()  # an empty folder is no hindrance
        Authority.make(tmp_path / "ca", "x")

    @pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\x1b[2J"])
    def test_bad_name(self, tmp_path: Path, name: str) -> None:
        """Its name is a line for people."""
        with pytest.raises(AuthorityError, match="name"):
            Authority.make(tmp_path / "ca", name)

    def test_opening(self, authority: Authority, tmp_path: Path) -> None:
        """What is no authority, has another's key, or a key for all to read, does nothing (I3)."""
        with pytest.raises(AuthorityError, match="there is no authority here"):
            Authority(tmp_path / "nowhere")
        key = authority.folder / "authority.key"
        key.chmod(0o644)
        with pytest.raises(AuthorityError, match="others can read"):
            Authority(authority.folder)
        other = Authority.make(tmp_path / "other", "x")
        write_file(key, (other.folder / "authority.key").read_bytes(), mode=PRIVATE, replace=True)
        with pytest.raises(AuthorityError, match="don't belong together"):
            Authority(authority.folder)


class IssuingTests:
    """The certificates that it issues (fig. 5)."""

    @pytest.mark.parametrize(
        ("names", "purpose"),
        [
            (server_names(["broker.example", "192.0.2.1"]), ExtendedKeyUsageOID.SERVER_AUTH),
            (terminal_names("山田太郎"), ExtendedKeyUsageOID.CLIENT_AUTH),
            (mediator_names("m-1"), ExtendedKeyUsageOID.CLIENT_AUTH),
        ],
    )
    def test_certificate(
        self, authority: Authority, names: Names, purpose: x509.ObjectIdentifier
    ) -> None:
        """Each is for one side of TLS alone, names its holder in one place, and lives 398 days."""
        certificate = issue(authority, names)
        assert not list(certificate.subject)
        shown = extension(certificate, Names)
        assert shown.critical  # as there is no subject (RFC 5280, section 4.2.1.6)
        assert shown.value == names
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [purpose]
        basic = extension(certificate, x509.BasicConstraints)
        assert basic.critical
        assert not basic.value.ca
        usage = extension(certificate, x509.KeyUsage).value
        assert usage.digital_signature
        assert not usage.key_cert_sign
        own = extension(authority.certificate, x509.SubjectKeyIdentifier).value.digest
        assert extension(certificate, x509.AuthorityKeyIdentifier).value.key_identifier == own
        assert extension(certificate, x509.SubjectKeyIdentifier).value.digest != own
        life = certificate.not_valid_after_utc - utc_now()
        assert LIFE - timedelta(minutes=5) < life <= LIFE
        assert timedelta(0) < utc_now() - certificate.not_valid_before_utc < timedelta(days=1)

    def test_serials(self, authority: Authority) -> None:
        """Serials are random, and never the same twice."""
        serials = {issue(authority, terminal_names("Ia")).serial_number for _ in range(20)}
        assert len(serials) == 20
        assert all(serial.bit_length() > 64 for serial in serials)

    def test_recorded(self, authority: Authority) -> None:
        """Each is on record, so that it can be found and revoked by its serial."""
        certificate = issue(authority, terminal_names("Ia"))
        issue(authority, server_names(["x.example", "192.0.2.1"]))
        found = {one.holder: one for one in authority.issued()}
        assert set(found) == {"terminal Ia", "server x.example, 192.0.2.1"}
        assert found["terminal Ia"].serial == certificate.serial_number
        assert found["terminal Ia"].ends == certificate.not_valid_after_utc
        assert found["terminal Ia"].kind is CertificateKind.TERMINAL

    def test_no_longer_than_the_authority(self, tmp_path: Path) -> None:
        """None outlives the authority, and one that has expired issues none."""
        now = [utc_now()]
        authority = Authority.make(tmp_path / "ca", "x", lambda: now[0])
        ends = authority.certificate.not_valid_after_utc
        now[0] = ends - timedelta(days=10)
        assert issue(authority, terminal_names("Ia")).not_valid_after_utc == ends
        now[0] = ends + timedelta(seconds=1)
        with pytest.raises(AuthorityError, match="has expired"):
            issue(authority, terminal_names("Ia"))

    def test_states(self, tmp_path: Path) -> None:
        """What has expired, or was revoked, is told."""
        now = [utc_now()]
        authority = Authority.make(tmp_path / "ca", "x", lambda: now[0])
        issue(authority, terminal_names("old"))
        now[0] += LIFE + timedelta(days=1)
        issue(authority, terminal_names("good"))
        authority.revoke(issue(authority, terminal_names("bad")).serial_number)
        states = {one.holder.split()[1]: one.state for one in authority.issued()}
        assert states == {"old": "expired", "good": "valid", "bad": "revoked"}

    def test_together(self, authority: Authority) -> None:
        """Several at once lose no change of each other's (I9)."""
        certificates = [issue(authority, terminal_names(f"I{n}")) for n in range(8)]

        def revoke(serial: int) -> None:
            Authority(authority.folder).revoke(serial)

        threads = [
            threading.Thread(target=revoke, args=(one.serial_number,)) for one in certificates
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert {one.state for one in authority.issued()} == {"revoked"}


class RevokingTests:
    """The revocation list."""

    def read(self, authority: Authority) -> x509.CertificateRevocationList:
        """The list as it stands."""
        return x509.load_pem_x509_crl(authority.revocations_path.read_bytes())

    def number(self, authority: Authority) -> int:
        """Its number."""
        extensions = self.read(authority).extensions
        return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    def test_from_the_start(self, authority: Authority) -> None:
        """There is a list from the start, signed, and good for as long as a certificate."""
        revocations = self.read(authority)
        assert list(revocations) == []
        key: Any = authority.certificate.public_key()
        assert revocations.is_signature_valid(key)
        assert revocations.next_update_utc is not None
        assert revocations.next_update_utc > utc_now() + LIFE - timedelta(minutes=5)

    def test_revoke(self, authority: Authority) -> None:
        """Who is revoked stays so; the list is signed anew each time, with a higher number."""
        certificates = [issue(authority, terminal_names("Ia")) for _ in range(3)]
        numbers = [self.number(authority)]
        for one in certificates[:2]:
            assert authority.revoke(one.serial_number)
            numbers.append(self.number(authority))
        assert not authority.revoke(certificates[0].serial_number)
        issue(authority, terminal_names("Ib"))
        authority.refresh()
        numbers.append(self.number(authority))
        assert numbers == sorted(set(numbers))
        revoked = {entry.serial_number for entry in self.read(authority)}
        assert revoked == {one.serial_number for one in certificates[:2]}

    def test_unknown(self, authority: Authority) -> None:
        """A serial that it never gave is a mistake, and is told."""
        before = contents(authority.folder)
        with pytest.raises(AuthorityError, match="has issued no certificate ABC"):
            authority.revoke(0xABC)
        assert contents(authority.folder) == before

    def test_foreign(self, authority: Authority, tmp_path: Path) -> None:
        """Another authority's certificate is not its to revoke, even under the same name."""
        other = Authority.make(tmp_path / "other", "Test authority")
        path = save(issue(other, terminal_names("Ia")), tmp_path / "x.pem")
        with pytest.raises(AuthorityError, match="was not issued by the authority"):
            authority.serial_of(str(path))
        assert (
            other.serial_of(str(path))
            == x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        )

    def test_refresh(self, tmp_path: Path) -> None:
        """A list can be made good for longer, as it is."""
        now = [utc_now()]
        authority = Authority.make(tmp_path / "ca", "x", lambda: now[0])
        serial = issue(authority, terminal_names("Ia")).serial_number
        authority.revoke(serial)
        now[0] += timedelta(days=100)
        authority.refresh()
        revocations = self.read(authority)
        assert revocations.next_update_utc is not None
        assert revocations.next_update_utc > utc_now() + LIFE + timedelta(days=99)
        assert [entry.serial_number for entry in revocations] == [serial]

    @pytest.mark.parametrize("damage", ["gone", "empty", "another's"])
    def test_damaged(self, authority: Authority, tmp_path: Path, damage: str) -> None:
        """A list that is lost or damaged is never quietly begun anew: that revives all (I3)."""
        serial = issue(authority, terminal_names("Ia")).serial_number
        authority.revoke(serial)
        path = authority.revocations_path
        if damage == "gone":
            path.unlink()
        elif damage == "empty":
            path.write_bytes(b"")
        else:
            other = Authority.make(tmp_path / "other", "Test authority")
            path.write_bytes(other.revocations_path.read_bytes())
        for step in (authority.refresh, lambda: authority.revoke(serial)):
            with pytest.raises(AuthorityError, match=r"revoked\.crl"):
                step()
        records = contents(authority.folder / "issued")
        with pytest.raises(AuthorityError, match=r"revoked\.crl"):
            issue(authority, terminal_names("Ib"))
        assert contents(authority.folder / "issued") == records


class RequestTests:
    """Signing requests of others."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Where a request is."""
        return tmp_path / "x.csr"

    def put(self, path: Path, names: Names | None, key: Any) -> None:
        """Write a request."""
        digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        builder = x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
        )
        if names is not None:
            builder = builder.add_extension(names, critical=False)
        path.write_bytes(builder.sign(key, digest).public_bytes(Encoding.PEM))

    @pytest.mark.parametrize(
        ("names", "kind", "holder"),
        [
            (
                server_names(["例え.example", "::1"]),
                CertificateKind.SERVER,
                "server xn--r8jz45g.example, ::1",
            ),
            (terminal_names("山田太郎"), CertificateKind.TERMINAL, "terminal 山田太郎"),
            (mediator_names("m"), CertificateKind.MEDIATOR, "mediator m"),
        ],
    )
    def test_ours(self, path: Path, names: Names, kind: CertificateKind, holder: str) -> None:
        """What `broker ca request` makes is understood; the key is the requester's."""
        key = new_key()
        path.write_bytes(make_request(names, key).public_bytes(Encoding.PEM))
        request = read_request(str(path))
        assert (request.kind, request.holder) == (kind, holder)
        assert key_digest(request.key) == key_digest(key.public_key())

    def test_only_names_and_key_count(self, path: Path, authority: Authority) -> None:
        """A request may say what it likes besides: it comes to nothing."""
        builder = x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Ib")])
        )
        greedy = (
            builder.add_extension(terminal_names("Ia"), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )
        path.write_bytes(greedy.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.PEM))
        certificate = authority.issue(read_request(str(path)))
        assert identifier_of(certificate) == "Ia"
        assert not list(certificate.subject)
        assert not extension(certificate, x509.BasicConstraints).value.ca
        assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [
            ExtendedKeyUsageOID.CLIENT_AUTH
        ]

    @pytest.mark.parametrize(
        "names",
        [
            None,
            Names([]),
            uris("broker:Ia", "broker:Ib"),
            uris("broker:Ia", "broker-mediator:m"),
            uris("broker:@all"),
            uris("broker:%4"),
            uris("broker:e%CC%81"),
            uris("broker:I+a"),
            uris("broker-mediator:"),
            uris("https://example.jp"),
            Names([x509.UniformResourceIdentifier("broker:Ia"), x509.DNSName("x.example")]),
            Names([x509.DNSName("*.example")]),
            Names([x509.DNSName("X.example")]),
            Names([x509.DNSName("300.1.1.1")]),
            Names([x509.DNSName("a\x1b[2Jb")]),
            Names([x509.RFC822Name("a@x.example")]),
            Names([x509.DNSName("x.example"), x509.RFC822Name("a@x.example")]),
        ],
    )
    def test_names_refused(self, path: Path, names: Names | None) -> None:
        """Names of no allowed shape, or in another spelling than ours, are not signed; what is
        said of them moves no terminal (I19).
        """
        self.put(path, names, new_key())
        with pytest.raises(AuthorityError) as refused:
            read_request(str(path))
        assert str(refused.value).isprintable()

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda: rsa.generate_private_key(65537, 1024), "fewer than 2048"),
            (lambda: ec.generate_private_key(ec.SECP224R1()), "not P-256"),
            (lambda: dsa.generate_private_key(2048), "of an unsupported kind"),
        ],
    )
    def test_weak_keys(self, path: Path, make: Callable[[], Any], why: str) -> None:
        """Keys that are too weak, or of no use to TLS, are not certified."""
        self.put(path, terminal_names("Ia"), make())
        with pytest.raises(AuthorityError, match=why):
            read_request(str(path))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: rsa.generate_private_key(65537, 2048),
            lambda: ec.generate_private_key(ec.SECP384R1()),
            ed25519.Ed25519PrivateKey.generate,
        ],
    )
    def test_other_keys(
        self, path: Path, authority: Authority, make: Callable[[], Any], tmp_path: Path
    ) -> None:
        """Other kinds that serve are certified, and a server runs with them."""
        key = make()
        self.put(path, server_names(["localhost"]), key)
        certificate = authority.issue(read_request(str(path)))
        files = str(save(certificate, tmp_path / "x.pem")), str(tmp_path / "x.key")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(Path(files[1]), pem, mode=PRIVATE)
        ServerTls(*files)

    def test_damaged(self, path: Path) -> None:
        """A request that isn't whole, or wasn't signed by its own key, is refused (I3)."""
        request = make_request(terminal_names("Ia"), new_key())
        der = bytearray(request.public_bytes(Encoding.DER))
        at = der.index(b"broker:Ia") + 8
        der[at : at + 1] = b"b"
        forged = x509.load_der_x509_csr(bytes(der))
        path.write_bytes(forged.public_bytes(Encoding.PEM))
        with pytest.raises(AuthorityError, match="not signed with the key"):
            read_request(str(path))
        for data in (b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", b"\xff" * 100):
            path.write_bytes(data)
            with pytest.raises(AuthorityError, match="not a signing request"):
                read_request(str(path))
        path.unlink()
        with pytest.raises(AuthorityError, match="No such file"):
            read_request(str(path))

    @pytest.mark.parametrize(
        "host", ["", "*.example", "a b", "exa_mple", "300.1.1.1", "1.2.3", "-x", "a..b", "[::1]"]
    )
    def test_no_host(self, host: str) -> None:
        """What is neither a name nor an address gets no certificate."""
        with pytest.raises(AuthorityError, match="neither a DNS name nor an IP address"):
            server_names([host])

    def test_number_of_hosts(self) -> None:
        """A server has a name, and not a thousand (I15)."""
        for hosts in ([], ["x.example"] * 101):
            with pytest.raises(AuthorityError, match="1 to 100"):
                server_names(hosts)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the commands are run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class CommandTests:
    """``broker ca``."""

    def test_issue(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Three commands, and a server and a terminal have what TLS needs (D2, fig. 5)."""
        assert main(["ca", "init"]) == 0
        assert main(["ca", "issue", "--server", "localhost", "127.0.0.1"]) == 0
        assert main(["ca", "issue", "--terminal", "山田太郎 大阪府"]) == 0
        assert is_private(here / "server-localhost.key")
        server = ServerTls(
            "server-localhost.pem",
            "server-localhost.key",
            client_ca="ca/authority.pem",
            crl="ca/revoked.crl",
        )
        name = "terminal-山田太郎_大阪府"
        client = ClientTls(
            "ca/authority.pem", "localhost", certificate=f"{name}.pem", key=f"{name}.key"
        )
        assert server.warnings() == client.warnings() == []
        capsys.readouterr()
        assert main(["ca", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {line.split(" ", 3)[3] for line in lines} == {
            "server localhost, 127.0.0.1",
            "terminal 山田太郎 大阪府",
        }

    def test_request_and_sign(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The key stays where it was made; who signs is shown what (fig. 5)."""
        main(["ca", "init", "--folder", "safe", "--name", "Acme"])
        assert main(["ca", "request", "--mediator", "m1"]) == 0
        capsys.readouterr()
        assert main(["ca", "sign", "--folder", "safe", "mediator-m1.csr"]) == 0
        shown = capsys.readouterr().out
        certificate = x509.load_pem_x509_certificate((here / "mediator-m1.pem").read_bytes())
        assert shown.startswith(f"mediator m1, key {key_digest(certificate)}\n")
        assert f"{certificate.serial_number:X}" in shown
        assert is_private(here / "mediator-m1.key")
        assert not list((here / "safe").rglob("mediator*"))

    @pytest.mark.parametrize(
        ("answer", "status"), [("y\n", 0), ("Yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)]
    )
    def test_asks(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
    ) -> None:
        """A person at a terminal is asked before anything is signed."""
        import io

        class Tty(io.StringIO):
            def isatty(self) -> bool:
                return True

        main(["ca", "init"])
        main(["ca", "request", "--terminal", "Ia"])
        monkeypatch.setattr("sys.stdin", Tty(answer))
        assert main(["ca", "sign", "terminal-Ia.csr"]) == status
        assert (here / "terminal-Ia.pem").exists() == (status == 0)
        assert len(list(Authority(here / "ca").issued())) == (status == 0)
        monkeypatch.setattr("sys.stdin", Tty())
        assert main(["ca", "sign", "--yes", "--out", "other.pem", "terminal-Ia.csr"]) == 0

    def test_revoke(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """By file or by serial, also as openssl prints it; twice does no harm."""
        main(["ca", "init"])
        for name in ("Ia", "Ib", "Ic"):
            main(["ca", "issue", "--terminal", name])
        serials = {one.holder.split()[1]: one.serial for one in Authority(Path("ca")).issued()}
        octets = f"{serials['Ic']:040x}"
        colons = ":".join(octets[n : n + 2] for n in range(0, 40, 2))
        assert main(["ca", "revoke", "terminal-Ia.pem"]) == 0
        assert main(["ca", "revoke", f"{serials['Ib']:X}"]) == 0
        assert main(["ca", "revoke", colons]) == 0
        capsys.readouterr()
        assert main(["ca", "revoke", "terminal-Ia.pem"]) == 0
        assert "already" in capsys.readouterr().out
        assert {one.state for one in Authority(Path("ca")).issued()} == {"revoked"}
        assert main(["ca", "refresh"]) == 0
        assert main(["ca", "revoke", "terminal-Ix.pem"]) == 1
        assert "no such file" in capsys.readouterr().err

    def test_nothing_is_overwritten(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What is there stays, and nothing is issued, unless --force is said; an authority
        stays in any case.
        """
        main(["ca", "init"])
        for command in ("issue", "request"):
            arguments = ["ca", command, "--terminal", command]
            assert main(arguments) == 0
            before = contents(here)
            assert main(arguments) == 1
            assert "already exists" in capsys.readouterr().err
            assert contents(here) == before
            assert main([*arguments, "--force"]) == 0
            changed = contents(here)
            path = str(here / f"terminal-{command}.key")
            assert changed[path] != before[path]
            assert is_private(Path(path))
        assert main(["ca", "init"]) == 1
        with pytest.raises(SystemExit):
            main(["ca", "init", "--force"])

    def test_own_key(self, here: Path) -> None:
        """A key that is there is used and kept, so that a renewed certificate fits its pin."""
        main(["ca", "init"])
        arguments = ["ca", "issue", "--server", "x.example", "--key", "x.key"]
        assert main(arguments) == 0
        key = (here / "x.key").read_bytes()
        first = x509.load_pem_x509_certificate((here / "server-x.example.pem").read_bytes())
        assert main([*arguments, "--force"]) == 0
        second = x509.load_pem_x509_certificate((here / "server-x.example.pem").read_bytes())
        assert (here / "x.key").read_bytes() == key
        assert first.serial_number != second.serial_number
        assert key_digest(first) == key_digest(second)
        (here / "x.key").chmod(0o644)
        assert main([*arguments, "--force"]) == 1

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("ca", "required: change"),
            ("ca issue", "one of the arguments --server --terminal --mediator is required"),
            ("ca issue --terminal Ia --mediator m", "not allowed with"),
            ("ca issue --terminal @all", "begins with @"),
            ("ca issue --server a_b", "neither a DNS name nor an IP address"),
            ("ca request --mediator a,b", "not a mediator's name"),
            ("ca sign", "required: REQUEST"),
            ("ca revoke", "required: CERTIFICATE|SERIAL"),
        ],
    )
    def test_wrong(self, line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong usage ends with 2, and says what is wrong."""
        with pytest.raises(SystemExit) as wrong:
            main(line.split())
        assert wrong.value.code == 2
        assert why in capsys.readouterr().err

    @pytest.mark.parametrize(
        "line",
        [
            "ca list",
            "ca refresh",
            "ca issue --terminal Ia",
            "ca sign x.csr",
            "ca revoke AB",
            "ca init --folder no/such/place",
        ],
    )
    def test_failure(self, here: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Where it can't be done the status is 1, with one line, and nothing is left behind."""
        assert main(line.split()) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("broker: ")
        assert captured.err.count("\n") == 1
        assert list(here.iterdir()) == []

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The commands explain themselves, and the examples are good."""
        with pytest.raises(SystemExit):
            main(["ca", "--help"])
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 100
        from broker.cli.main import make_parser

        examples = [line for line in ca_cli.EXAMPLES.splitlines() if line.startswith("  broker ")]
        assert len(examples) >= 5
        for example in examples:
            make_parser().parse_args(example.strip().partition("   ")[0].split()[1:])


@witness
class WitnessTests:
    """What OpenSSL's own command makes of it all."""

    def test_chain(self, authority: Authority, tmp_path: Path) -> None:
        """It verifies each certificate for its side and not for the other, strictly."""
        server = save(issue(authority, server_names(["x.example"])), tmp_path / "s.pem")
        terminal = save(issue(authority, terminal_names("Ia")), tmp_path / "t.pem")
        trusted = (
            *("verify", "-x509_strict", "-CAfile", authority.certificate_path),
            *("-crl_check", "-CRLfile", authority.revocations_path),
        )
        assert openssl(*trusted, "-purpose", "sslserver", server).strip() == f"{server}: OK"
        assert openssl(*trusted, "-purpose", "sslclient", terminal).strip() == f"{terminal}: OK"
        for purpose, path in (("sslclient", server), ("sslserver", terminal)):
            # "unsupported" up to OpenSSL 3.0, "unsuitable" since
            assert "certificate purpose" in openssl(*trusted, "-purpose", purpose, path)
        named = (*trusted, "-verify_hostname")
        assert openssl(*named, "x.example", server).strip() == f"{server}: OK"
        assert "ostname mismatch" in openssl(*named, "y.example", server)

    def test_revoked(self, authority: Authority, tmp_path: Path) -> None:
        """It reads the revocation list, and refuses who is on it."""
        certificate = issue(authority, terminal_names("Ia"))
        path = save(certificate, tmp_path / "t.pem")
        authority.revoke(certificate.serial_number)
        listed = openssl("crl", "-in", authority.revocations_path, "-noout", "-text")
        assert f"{certificate.serial_number:040X}"[-38:] in listed
        assert "verify OK" in openssl(
            *("crl", "-in", authority.revocations_path, "-noout"),
            *("-CAfile", authority.certificate_path),
        )
        refused = openssl(
            *("verify", "-CAfile", authority.certificate_path, "-crl_check"),
            *("-CRLfile", authority.revocations_path, path),
        )
        assert "certificate revoked" in refused

    def test_text(self, authority: Authority, tmp_path: Path) -> None:
        """It shows what is meant: the URI, the purpose, no subject."""
        path = save(issue(authority, terminal_names("é")), tmp_path / "t.pem")
        shown = openssl("x509", "-in", path, "-noout", "-text")
        assert "X509v3 Subject Alternative Name: critical\n" in shown
        assert "URI:broker:%C3%A9\n" in shown
        assert "TLS Web Client Authentication\n" in shown
        assert "CA:FALSE" in shown
        assert "Subject: \n" in shown or "Subject:\n" in shown
        own = openssl("x509", "-in", authority.certificate_path, "-noout", "-text")
        assert "CA:TRUE, pathlen:0" in own
        assert "Certificate Sign, CRL Sign" in own

    def test_foreign_request(self, authority: Authority, tmp_path: Path) -> None:
        """A request that it made is signed."""
        openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", tmp_path / "x.key", "-out", tmp_path / "x.csr", "-subj", "/CN=x"),
            *("-addext", "subjectAltName=URI:broker:%E5%B1%B1"),
        )
        certificate = authority.issue(read_request(str(tmp_path / "x.csr")))
        assert identifier_of(certificate) == "山"

    def test_pin(self, authority: Authority, tmp_path: Path) -> None:
        """The digest that is shown and pinned is SHA-256 of the key as openssl writes it."""
        import hashlib

        certificate = issue(authority, server_names(["x.example"]))
        path = save(certificate, tmp_path / "s.pem")
        public = tmp_path / "s.pub"
        public.write_text(openssl("x509", "-in", path, "-noout", "-pubkey"))
        der = tmp_path / "s.der"
        openssl("pkey", "-pubin", "-in", public, "-outform", "DER", "-out", der)
        assert hashlib.sha256(der.read_bytes()).hexdigest() == key_digest(certificate)


def test_now_is_used(tmp_path: Path) -> None:
    """The time is an argument: a certificate of another day is of that day."""
    then = datetime.fromisoformat("2020-02-29T12:00:00+00:00")
    authority = Authority.make(tmp_path / "ca", "x", lambda: then)
    certificate = issue(authority, terminal_names("Ia"))
    assert certificate.not_valid_after_utc == then + LIFE
    assert authority.certificate.not_valid_after_utc == then + AUTHORITY_LIFE
