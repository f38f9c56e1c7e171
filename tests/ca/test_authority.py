"""The private authority: what it makes, what it signs and what it never does; and its commands.

The ``openssl`` command is asked as an independent witness.
"""

from __future__ import annotations

import hashlib
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
from broker.ca.signing import LIFE
from broker.files import PRIVATE, write_file
from broker.net.tls.certificates import identifier_of, key_digest, utc_now
from broker.net.tls.contexts import ClientTls, ServerTls
from tests.cli.shell import Shell, Tty
from tests.support.certificates import uris

OPENSSL: Final = shutil.which("openssl")


def openssl(*arguments: str | Path) -> str:
    """What the openssl command says, whether it is content or not."""
    assert OPENSSL is not None, "the openssl command is needed"
    done = subprocess.run(
        [OPENSSL, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=20
    )
    return done.stdout + done.stderr


@pytest.fixture
def now() -> list[datetime]:
    """The time for the authority: its only item."""
    return [utc_now()]


@pytest.fixture
def authority(tmp_path: Path, now: list[datetime]) -> Authority:
    """A new authority."""
    return Authority.make(tmp_path / "ca", "Test authority", lambda: now[0])


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Another authority of the same name."""
    return Authority.make(tmp_path / "other", "Test authority")


def issue(authority: Authority, names: Names | str) -> x509.Certificate:
    """A certificate for a new key, and these names or this terminal."""
    names = terminal_names(names) if isinstance(names, str) else names
    return authority.issue(CertificateRequest(kind_of(names), names, new_key().public_key()))


def save(certificate: x509.Certificate | x509.CertificateSigningRequest, path: Path) -> Path:
    """Write a certificate or a request to a file."""
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    return path


def load(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def extension(certificate: x509.Certificate, kind: Any) -> tuple[bool, Any]:
    """Whether an extension of a certificate is critical, and its value."""
    found = certificate.extensions.get_extension_for_class(kind)
    return found.critical, found.value


def uses(certificate: x509.Certificate) -> list[str]:
    """What a certificate's key may be used for."""
    critical, usage = extension(certificate, x509.KeyUsage)
    assert critical
    kinds = ("digital_signature", "key_cert_sign", "crl_sign")
    return [kind for kind in kinds if getattr(usage, kind)]


def lives(certificate: x509.Certificate, now: datetime, days: int) -> bool:
    """Whether a certificate is valid from a little before now on, and for so many days."""
    begins = certificate.not_valid_before_utc
    ends = now.replace(microsecond=0) + timedelta(days=days)
    return certificate.not_valid_after_utc == ends and now - timedelta(days=1) < begins < now


def is_private(path: Path) -> bool:
    """Whether a file's owner alone may do anything with it."""
    return stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class MakingTests:
    """A new authority (D2)."""

    def test_certificate(self, authority: Authority, now: list[datetime]) -> None:
        """It may issue certificates and revocation lists, appoint no other authority, and lives
        ten years.
        """
        certificate = authority.certificate
        basic = x509.BasicConstraints(ca=True, path_length=0)
        assert extension(certificate, x509.BasicConstraints) == (True, basic)
        assert uses(certificate) == ["key_cert_sign", "crl_sign"]
        assert lives(certificate, now[0], 3652)
        key: Any = certificate.public_key()
        assert (key.curve.name, authority.name) == ("secp256r1", "Test authority")

    def test_private(self, authority: Authority) -> None:
        """Only its owner gets into its folder or at its key, whatever the umask (I18)."""
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
        something = authority.folder.with_name("something")
        something.mkdir()
        (something / "something").write_text("x")
        before = contents(authority.folder.parent)
        for folder in (authority.folder, something):
            with pytest.raises(AuthorityError, match="never overwritten"):
                Authority.make(folder, "Another")
        assert contents(authority.folder.parent) == before

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

    def test_opening(self, authority: Authority, other: Authority, tmp_path: Path) -> None:
        """What is no authority, has another's key, or a key for all to read, does nothing (I3)."""
        with pytest.raises(AuthorityError, match="there is no authority here"):
            Authority(tmp_path / "nowhere")
        key = authority.folder / "authority.key"
        key.chmod(0o644)
        with pytest.raises(AuthorityError, match="others can read"):
            Authority(authority.folder)
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
        self,
        authority: Authority,
        now: list[datetime],
        names: Names,
        purpose: x509.ObjectIdentifier,
    ) -> None:
        """Each is for one side of TLS alone, names its holder in one place, and lives 398 days
        from the time that is given.
        """
        now[0] += timedelta(days=100)
        certificate = issue(authority, names)
        assert not list(certificate.subject)
        # Critical, as there is no subject (RFC 5280, section 4.2.1.6).
        assert extension(certificate, Names) == (True, names)
        assert list(extension(certificate, x509.ExtendedKeyUsage)[1]) == [purpose]
        critical, basic = extension(certificate, x509.BasicConstraints)
        assert (critical, basic.ca) == (True, False)
        assert uses(certificate) == ["digital_signature"]
        own = extension(authority.certificate, x509.SubjectKeyIdentifier)[1].digest
        assert extension(certificate, x509.AuthorityKeyIdentifier)[1].key_identifier == own
        assert extension(certificate, x509.SubjectKeyIdentifier)[1].digest != own
        assert lives(certificate, now[0], 398)

    def test_serials(self, authority: Authority) -> None:
        """Serials are random, and never the same twice."""
        serials = {issue(authority, "Ia").serial_number for _ in range(20)}
        assert len(serials) == 20
        assert all(serial.bit_length() > 64 for serial in serials)

    def test_recorded(self, authority: Authority) -> None:
        """Each is on record, so that it can be found and revoked by its serial."""
        made = issue(authority, "Ia")
        issue(authority, server_names(["x.example", "192.0.2.1"]))
        found = {one.holder: one for one in authority.issued()}
        assert set(found) == {"terminal Ia", "server x.example, 192.0.2.1"}
        ia = found["terminal Ia"]
        assert (ia.serial, ia.ends) == (made.serial_number, made.not_valid_after_utc)
        assert ia.kind is CertificateKind.TERMINAL

    def test_no_longer_than_the_authority(self, authority: Authority, now: list[datetime]) -> None:
        """None outlives the authority, and one that has expired issues none."""
        ends = authority.certificate.not_valid_after_utc
        now[0] = ends - timedelta(days=10)
        assert issue(authority, "Ia").not_valid_after_utc == ends
        now[0] = ends + timedelta(seconds=1)
        with pytest.raises(AuthorityError, match="has expired"):
            issue(authority, "Ia")

    def test_states(self, authority: Authority, now: list[datetime]) -> None:
        """What has expired, or was revoked, is told."""
        issue(authority, "old")
        now[0] += LIFE + timedelta(days=1)
        issue(authority, "good")
        authority.revoke(issue(authority, "bad").serial_number)
        states = {one.holder.split()[1]: one.state for one in authority.issued()}
        assert states == {"old": "expired", "good": "valid", "bad": "revoked"}

    def test_together(self, authority: Authority) -> None:
        """Several at once lose no change of each other's (I9)."""
        serials = [issue(authority, f"I{n}").serial_number for n in range(8)]

        def revoke(serial: int) -> None:
            Authority(authority.folder).revoke(serial)

        threads = [threading.Thread(target=revoke, args=(serial,)) for serial in serials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert {one.state for one in authority.issued()} == {"revoked"}


def revocations(authority: Authority) -> x509.CertificateRevocationList:
    """An authority's revocation list as it stands."""
    return x509.load_pem_x509_crl(authority.revocations_path.read_bytes())


def ends(authority: Authority) -> datetime:
    """Until when the list is valid."""
    found = revocations(authority).next_update_utc
    assert found is not None
    return found


class RevokingTests:
    """The revocation list."""

    def number(self, authority: Authority) -> int:
        """Its number."""
        extensions = revocations(authority).extensions
        return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    def test_from_the_start(self, authority: Authority) -> None:
        """There is a list from the start, signed, and valid for as long as a certificate."""
        found = revocations(authority)
        key: Any = authority.certificate.public_key()
        assert list(found) == []
        assert found.is_signature_valid(key)
        assert ends(authority) > utc_now() + LIFE - timedelta(minutes=5)

    def test_revoke(self, authority: Authority, now: list[datetime]) -> None:
        """Who is revoked stays so; the list is signed again each time, with a higher number, and
        can be made valid for longer.
        """
        serials = [issue(authority, "Ia").serial_number for _ in range(3)]
        numbers = [self.number(authority)]
        for serial in serials[:2]:
            assert authority.revoke(serial)
            numbers.append(self.number(authority))
        assert not authority.revoke(serials[0])
        issue(authority, "Ib")
        now[0] += timedelta(days=100)
        authority.refresh()
        numbers.append(self.number(authority))
        assert numbers == sorted(set(numbers))
        assert {entry.serial_number for entry in revocations(authority)} == set(serials[:2])
        assert ends(authority) > utc_now() + LIFE + timedelta(days=99)

    def test_not_its_own(self, authority: Authority, other: Authority, tmp_path: Path) -> None:
        """A serial that it never gave is a mistake, and is told; another authority's certificate
        is not its to revoke, even under the same name.
        """
        before = contents(authority.folder)
        with pytest.raises(AuthorityError, match="has issued no certificate ABC"):
            authority.revoke(0xABC)
        assert contents(authority.folder) == before
        certificate = issue(other, "Ia")
        path = str(save(certificate, tmp_path / "x.pem"))
        with pytest.raises(AuthorityError, match="was not issued by the authority"):
            authority.serial_of(path)
        assert other.serial_of(path) == certificate.serial_number

    @pytest.mark.parametrize("damage", ["gone", "empty", "another's"])
    def test_damaged(self, authority: Authority, other: Authority, damage: str) -> None:
        """A list that is lost or damaged is never quietly begun again: that revives all (I3)."""
        serial = issue(authority, "Ia").serial_number
        authority.revoke(serial)
        path = authority.revocations_path
        if damage == "gone":
            path.unlink()
        else:
            data = b"" if damage == "empty" else other.revocations_path.read_bytes()
            path.write_bytes(data)
        records = contents(authority.folder / "issued")
        steps: list[Callable[[], object]] = [
            authority.refresh,
            lambda: authority.revoke(serial),
            lambda: issue(authority, "Ib"),
        ]
        for step in steps:
            with pytest.raises(AuthorityError, match=r"revoked\.crl"):
                step()
        assert contents(authority.folder / "issued") == records


class RequestTests:
    """Signing requests of others."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Where a request is."""
        return tmp_path / "x.csr"

    def put(self, path: Path, key: Any, *extensions: x509.ExtensionType | None) -> None:
        """Write a request."""
        digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        builder = x509.CertificateSigningRequestBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever")])
        )
        for found in extensions:
            if found is not None:
                builder = builder.add_extension(found, critical=False)
        save(builder.sign(key, digest), path)

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
        request = read_request(str(save(make_request(names, key), path)))
        assert (request.kind, request.holder) == (kind, holder)
        assert key_digest(request.key) == key_digest(key.public_key())

    def test_only_names_and_key_count(self, path: Path, authority: Authority) -> None:
        """What else a request says comes to nothing."""
        greedy = (
            x509.BasicConstraints(ca=True, path_length=None),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        )
        self.put(path, new_key(), terminal_names("Ia"), *greedy)
        certificate = authority.issue(read_request(str(path)))
        assert identifier_of(certificate) == "Ia"
        assert not list(certificate.subject)
        assert not extension(certificate, x509.BasicConstraints)[1].ca
        purposes = list(extension(certificate, x509.ExtendedKeyUsage)[1])
        assert purposes == [ExtendedKeyUsageOID.CLIENT_AUTH]

    @pytest.mark.parametrize(
        "names",
        [
            None,
            Names([]),
            uris("broker:Ia", "broker:Ib"),
            uris("broker:Ia", "broker-mediator:m"),
            *map(uris, ("broker:@all", "broker:%4", "broker:e%CC%81", "broker:I+a")),
            *map(uris, ("broker-mediator:", "https://example.jp")),
            Names([x509.UniformResourceIdentifier("broker:Ia"), x509.DNSName("x.example")]),
            *(
                Names([x509.DNSName(name)])
                for name in ("*.example", "X.example", "300.1.1.1", "a\x1b[2Jb")
            ),
            Names([x509.RFC822Name("a@x.example")]),
            Names([x509.DNSName("x.example"), x509.RFC822Name("a@x.example")]),
        ],
    )
    def test_names_refused(self, path: Path, names: Names | None) -> None:
        """Names of no allowed shape, or in another spelling than ours, are not signed; what is
        said of them moves no terminal (I19).
        """
        self.put(path, new_key(), names)
        with pytest.raises(AuthorityError) as refused:
            read_request(str(path))
        assert str(refused.value).isprintable()

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda: rsa.generate_private_key(65537, 1024), "fewer than 2048"),
            (lambda: ec.generate_private_key(ec.SECP224R1()), "not P-256"),
            (lambda: dsa.generate_private_key(2048), "of an unsupported kind"),
            (lambda: rsa.generate_private_key(65537, 2048), ""),
            (lambda: ec.generate_private_key(ec.SECP384R1()), ""),
            (ed25519.Ed25519PrivateKey.generate, ""),
        ],
    )
    def test_keys(
        self, path: Path, authority: Authority, make: Callable[[], Any], why: str
    ) -> None:
        """Keys that are too weak, or of no use to TLS, are not certified; other kinds that serve
        are, and a server runs with them.
        """
        key = make()
        self.put(path, key, server_names(["localhost"]))
        if why:
            with pytest.raises(AuthorityError, match=why):
                read_request(str(path))
            return
        certificate = save(authority.issue(read_request(str(path))), path.with_suffix(".pem"))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_file(path.with_suffix(".key"), pem, mode=PRIVATE)
        ServerTls(str(certificate), str(path.with_suffix(".key")))

    def test_damaged(self, path: Path) -> None:
        """A request that isn't whole, or wasn't signed by its own key, is refused (I3)."""
        request = make_request(terminal_names("Ia"), new_key()).public_bytes(Encoding.DER)
        forged = x509.load_der_x509_csr(request.replace(b"broker:Ia", b"broker:Ib"))
        for data, why in (
            (forged.public_bytes(Encoding.PEM), "not signed with the key"),
            (b"", "not a signing request"),
            (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n", "not a signing request"),
            (b"\xff" * 100, "not a signing request"),
            (None, "No such file"),
        ):
            path.unlink() if data is None else path.write_bytes(data)
            with pytest.raises(AuthorityError, match=why):
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


class CommandTests:
    """``broker ca``."""

    @pytest.fixture(autouse=True)
    def alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A folder in which the commands are run."""
        monkeypatch.chdir(tmp_path)
        self.here = tmp_path
        self.shell = Shell(capsys)

    def does(self, line: str, status: int = 0) -> str:
        """Run a command that ends so, and give what it prints."""
        done = self.shell(f"ca {line}")
        assert done.status == status, done.err
        return done.err if status else done.out

    def test_issue(self) -> None:
        """Three commands, and a server and a terminal have what TLS needs (D2, fig. 5)."""
        self.does("init")
        self.does("issue --server localhost 127.0.0.1")
        self.does("issue --terminal '山田太郎 大阪府'")
        assert is_private(self.here / "server-localhost.key")
        server = ServerTls(
            *("server-localhost.pem", "server-localhost.key"),
            client_ca="ca/authority.pem",
            crl="ca/revoked.crl",
        )
        name = "terminal-山田太郎_大阪府"
        client = ClientTls(
            "ca/authority.pem", "localhost", certificate=f"{name}.pem", key=f"{name}.key"
        )
        assert server.warnings() == client.warnings() == []
        assert {line.split(" ", 3)[3] for line in self.does("list").splitlines()} == {
            "server localhost, 127.0.0.1",
            "terminal 山田太郎 大阪府",
        }

    def test_request_and_sign(self) -> None:
        """The key stays where it was made; who signs is shown what (fig. 5)."""
        self.does("init --folder safe --name Acme")
        self.does("request --mediator m1")
        shown = self.does("sign --folder safe mediator-m1.csr")
        certificate = load(self.here / "mediator-m1.pem")
        assert shown.startswith(f"mediator m1, key {key_digest(certificate)}\n")
        assert f"{certificate.serial_number:X}" in shown
        assert is_private(self.here / "mediator-m1.key")
        assert not list((self.here / "safe").rglob("mediator*"))

    @pytest.mark.parametrize(
        ("answer", "status"), [("y\n", 0), ("Yes\n", 0), ("n\n", 1), ("\n", 1), ("", 1)]
    )
    def test_asks(self, monkeypatch: pytest.MonkeyPatch, answer: str, status: int) -> None:
        """A person at a terminal is asked before anything is signed."""
        self.does("init")
        self.does("request --terminal Ia")
        monkeypatch.setattr("sys.stdin", Tty(answer))
        self.does("sign terminal-Ia.csr", status)
        assert (self.here / "terminal-Ia.pem").exists() == (status == 0)
        assert len(list(Authority(Path("ca")).issued())) == (status == 0)
        monkeypatch.setattr("sys.stdin", Tty())
        self.does("sign --yes --out other.pem terminal-Ia.csr")

    def test_revoke(self) -> None:
        """By file or by serial, also as openssl prints it; twice does no harm."""
        self.does("init")
        for name in ("Ia", "Ib", "Ic"):
            self.does(f"issue --terminal {name}")
        serials = {one.holder.split()[1]: one.serial for one in Authority(Path("ca")).issued()}
        octets = serials["Ic"].to_bytes(20).hex(":")
        for named in ("terminal-Ia.pem", f"{serials['Ib']:X}", octets):
            self.does(f"revoke {named}")
        assert "already" in self.does("revoke terminal-Ia.pem")
        assert {one.state for one in Authority(Path("ca")).issued()} == {"revoked"}
        self.does("refresh")
        assert "no such file" in self.does("revoke terminal-Ix.pem", 1)

    def test_nothing_is_overwritten(self) -> None:
        """What is there stays, and nothing is issued, unless --force is said; an authority
        stays in any case.
        """
        self.does("init")
        for command in ("issue", "request"):
            line = f"{command} --terminal {command}"
            self.does(line)
            before = contents(self.here)
            assert "already exists" in self.does(line, 1)
            assert contents(self.here) == before
            self.does(f"{line} --force")
            path = str(self.here / f"terminal-{command}.key")
            assert contents(self.here)[path] != before[path]
            assert is_private(Path(path))
        self.does("init", 1)
        self.does("init --force", 2)

    def test_own_key(self) -> None:
        """A key that is there is used and kept, so that a renewed certificate fits its pin."""
        self.does("init")
        line, key = "issue --server x.example --key x.key", self.here / "x.key"
        self.does(line)
        before, first = key.read_bytes(), load(self.here / "server-x.example.pem")
        self.does(f"{line} --force")
        second = load(self.here / "server-x.example.pem")
        assert key.read_bytes() == before
        assert first.serial_number != second.serial_number
        assert key_digest(first) == key_digest(second)
        key.chmod(0o644)
        self.does(f"{line} --force", 1)

    @pytest.mark.parametrize(
        "line",
        [
            *("list", "refresh", "issue --terminal Ia", "sign x.csr", "revoke AB"),
            "init --folder no/such/place",
        ],
    )
    def test_failure(self, line: str) -> None:
        """Where it can't be done the status is 1, with one line, and nothing is left behind."""
        status, out, err = self.shell(f"ca {line}")
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("broker: ")
        assert list(self.here.iterdir()) == []


@pytest.mark.skipif(
    OPENSSL is None and "CI" not in os.environ, reason="there is no openssl command"
)
class WitnessTests:
    """What OpenSSL's own command makes of it all."""

    def test_chain(self, authority: Authority, tmp_path: Path) -> None:
        """It verifies each certificate for its side and not for the other, strictly, and refuses
        who is on the revocation list.
        """
        server = save(issue(authority, server_names(["x.example"])), tmp_path / "s.pem")
        ia, ib = issue(authority, "Ia"), issue(authority, "Ib")
        terminal, revoked = save(ia, tmp_path / "t.pem"), save(ib, tmp_path / "r.pem")
        authority.revoke(ib.serial_number)
        listed = openssl("crl", "-in", authority.revocations_path, "-noout", "-text")
        assert f"{ib.serial_number:040X}"[-38:] in listed
        trust = ("-CAfile", authority.certificate_path)
        crl = ("crl", "-in", authority.revocations_path, "-noout", *trust)
        assert "verify OK" in openssl(*crl)
        trusted = (
            *("verify", "-x509_strict", *trust),
            *("-crl_check", "-CRLfile", authority.revocations_path),
        )
        # "unsupported certificate purpose" up to OpenSSL 3.0, "unsuitable" since
        for option, value, path, told in (
            ("-purpose", "sslserver", server, f"{server}: OK"),
            ("-purpose", "sslclient", terminal, f"{terminal}: OK"),
            ("-purpose", "sslclient", server, "certificate purpose"),
            ("-purpose", "sslserver", terminal, "certificate purpose"),
            ("-verify_hostname", "x.example", server, f"{server}: OK"),
            ("-verify_hostname", "y.example", server, "ostname mismatch"),
            ("-purpose", "sslclient", revoked, "certificate revoked"),
        ):
            shown = openssl(*trusted, option, value, path).strip()
            assert shown == told if told.endswith("OK") else told in shown

    def test_text(self, authority: Authority, tmp_path: Path) -> None:
        """It shows what is meant: the URI, the purpose, no subject."""
        terminal = save(issue(authority, "é"), tmp_path / "t.pem")
        for path, lines in {
            terminal: (
                *("X509v3 Subject Alternative Name: critical\n", "URI:broker:%C3%A9\n"),
                *("TLS Web Client Authentication\n", "CA:FALSE", "Subject:\n"),
            ),
            authority.certificate_path: ("CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign"),
        }.items():
            shown = openssl("x509", "-in", path, "-noout", "-text")
            assert [line for line in lines if line not in shown.replace(": \n", ":\n")] == []

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
        certificate = issue(authority, server_names(["x.example"]))
        path, public, der = (tmp_path / f"s.{kind}" for kind in ("pem", "pub", "der"))
        save(certificate, path)
        public.write_text(openssl("x509", "-in", path, "-noout", "-pubkey"))
        openssl("pkey", "-pubin", "-in", public, "-outform", "DER", "-out", der)
        assert hashlib.sha256(der.read_bytes()).hexdigest() == key_digest(certificate)
