"""A small private certificate authority (D2, fig. 5): a folder, and what is done in it.

The folder holds the authority's certificate (``authority.pem``, for everybody), its private key
(``authority.key``), its revocation list (``revoked.crl``, for servers) and a copy of each
certificate that it has issued (``issued/SERIAL.pem``). One process changes it at a time.

Certificates name their holder in the subject alternative name alone; their subject is empty, so
that nothing can come to rest on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import idna
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker.files import PRIVATE, InvalidFile, sync_folder_of, write_file
from broker.messages.message import printable
from broker.net.tls.certificates import (
    CertificateRefused,
    Key,
    PublicKey,
    identifier_in,
    key_digest,
    mediator_in,
    mediator_uri,
    read_certificates,
    read_file,
    read_key,
    shown_names,
    terminal_uri,
    utc_now,
)

#: How long the authority's own certificate is good.
AUTHORITY_LIFE: Final = timedelta(days=3652)
#: How long the certificates are good that it issues, and each revocation list: as long as these,
#: since what it speaks of has expired by then, and it travels by hand.
LIFE: Final = timedelta(days=398)
#: Clocks that are slow by so much still take a new certificate.
EARLIER: Final = timedelta(hours=1)

RSA_BITS: Final = 2048
HOSTS_MOST: Final = 100

CERTIFICATE: Final = "authority.pem"
PRIVATE_KEY: Final = "authority.key"
REVOCATIONS: Final = "revoked.crl"
ISSUED: Final = "issued"

_SIGNING: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_TLS: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)

Names: TypeAlias = x509.SubjectAlternativeName


class AuthorityError(Exception):
    """It can't be done; the text says why, and what to do."""


class Kind(Enum):
    """Whose certificate it is."""

    SERVER = "server"
    TERMINAL = "terminal"
    MEDIATOR = "mediator"

    @property
    def purpose(self) -> x509.ObjectIdentifier:
        """The side of a connection on which it serves."""
        if self is Kind.SERVER:
            return ExtendedKeyUsageOID.SERVER_AUTH
        return ExtendedKeyUsageOID.CLIENT_AUTH


class Request(NamedTuple):
    """A signing request that was looked at.

    :ivar kind: whose certificate is asked for
    :ivar names: whom it names
    :ivar key: the key that it is for
    """

    kind: Kind
    names: Names
    key: PublicKey

    @property
    def holder(self) -> str:
        """Whom it names, for the eyes of a person."""
        return _holder(self.kind, self.names)


class Issued(NamedTuple):
    """A certificate that the authority has issued.

    :ivar state: ``valid``, ``expired`` or ``revoked``
    """

    serial: int
    kind: Kind
    holder: str
    ends: datetime
    state: str


# Names.


def server_names(hosts: Sequence[str]) -> Names:
    """Names for a server: DNS names and IP addresses.

    :raises AuthorityError: one is neither
    """
    if not 1 <= len(hosts) <= HOSTS_MOST:
        raise AuthorityError(f"a server has 1 to {HOSTS_MOST} names")
    return Names([_host(host) for host in hosts])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    try:
        name = idna.encode(text.removesuffix("."), uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        name = ""
    # What ends in a number is an address that was mistyped.
    if not name or name.rpartition(".")[2].isdigit():
        raise AuthorityError(f"{printable(text)} is neither a DNS name nor an IP address")
    return x509.DNSName(name)


def terminal_names(identifier: str) -> Names:
    """The name for a terminal.

    :raises AuthorityError: it is no identifier
    """
    try:
        return Names([x509.UniformResourceIdentifier(terminal_uri(identifier))])
    except ValueError as error:
        raise AuthorityError(f"{printable(identifier)} is no identifier: {error}") from None


def mediator_names(name: str) -> Names:
    """The name for a mediator, as a resolver lists it.

    :raises AuthorityError: it is no such name
    """
    try:
        return Names([x509.UniformResourceIdentifier(mediator_uri(name))])
    except ValueError as error:
        raise AuthorityError(f"{printable(name)} is no mediator's name: {error}") from None


def kind_of(names: Names) -> Kind:
    """Whose names these are; they must be just as this module would make them.

    :raises AuthorityError: they are nobody's, or several kinds'
    """
    shown = shown_names(names)
    kinds = {type(name) for name in names}
    if kinds and kinds <= {x509.DNSName, x509.IPAddress}:
        hosts = [str(name.value) for name in names]
        if server_names(hosts) != names:
            raise AuthorityError(f"it names {shown}: write DNS names in lower case and in ASCII")
        return Kind.SERVER
    if kinds == {x509.UniformResourceIdentifier} and len(names) == 1:
        with suppress(CertificateRefused):
            if terminal_names(identifier_in(names)) == names:
                return Kind.TERMINAL
        with suppress(CertificateRefused):
            mediator_in(names)
            return Kind.MEDIATOR
    raise AuthorityError(
        f"it names {shown}: what is signed is a server's DNS names and IP addresses, one terminal's"
        " URI broker:IDENTIFIER, percent-encoded, or one mediator's URI broker-mediator:NAME"
    )


def _holder(kind: Kind, names: Names) -> str:
    if kind is Kind.TERMINAL:
        return f"{kind.value} {printable(identifier_in(names))}"
    if kind is Kind.MEDIATOR:
        return f"{kind.value} {mediator_in(names)}"
    return f"{kind.value} {shown_names(names)}"


# Keys and requests.


def new_key() -> Key:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as a file holds it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_request(names: Names, key: Key) -> x509.CertificateSigningRequest:
    """A signing request for names, by whoever has the key (fig. 5)."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    return builder.add_extension(names, critical=True).sign(key, _digest(key))


def read_request(path: str) -> Request:
    """The signing request in a PEM file, as far as it says something that is signed.

    :raises AuthorityError: it is damaged, not signed by its key, or asks for what is never signed
    """
    try:
        request = x509.load_pem_x509_csr(read_file(path))
        signed = request.is_signature_valid
        key = request.public_key()
        names = request.extensions.get_extension_for_class(Names).value
    except InvalidFile as error:
        raise AuthorityError(str(error)) from None
    except x509.ExtensionNotFound:
        raise AuthorityError(f"{path}: has no subject alternative name") from None
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise AuthorityError(f"{path}: holds no signing request, or a damaged one") from None
    if not signed:
        raise AuthorityError(f"{path}: is not signed by the key that it is for")
    try:
        return Request(kind_of(names), names, _good(key))
    except AuthorityError as error:
        raise AuthorityError(f"{path}: {error}") from None


def _good(key: object) -> PublicKey:
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS:
            raise AuthorityError(f"its RSA key has {key.key_size} bits, fewer than {RSA_BITS}")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)):
            raise AuthorityError(f"its key is on the curve {key.curve.name}, not P-256 to P-521")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise AuthorityError("its key is of a kind that does not serve: use ECDSA, Ed25519 or RSA")


def _digest(key: Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


# The authority.


class Authority:
    """An authority in its folder.

    :ivar certificate: its certificate
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = utc_now) -> None:
        """
        :raises AuthorityError: there is none, or it is damaged
        """
        self.folder = folder
        self._now = now
        if not self.certificate_path.exists():
            raise AuthorityError(
                f"{folder}: there is no authority here: `broker ca init` makes one"
            )
        try:
            (self.certificate,) = read_certificates(str(self.certificate_path))[:1]
            self._key = read_key(str(folder / PRIVATE_KEY))
        except InvalidFile as error:
            raise AuthorityError(str(error)) from None
        if key_digest(self._key.public_key()) != key_digest(self.certificate):
            raise AuthorityError(f"{folder}: {CERTIFICATE} and {PRIVATE_KEY} don't belong together")

    @classmethod
    def make(cls, folder: Path, name: str, now: Callable[[], datetime] = utc_now) -> Authority:
        """Make a new authority, all of its folder or nothing.

        :param name: what its certificate says in its subject, for people
        :raises AuthorityError: the folder holds something, or the name can't be used
        """
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise AuthorityError("an authority's name has 1 to 64 characters that can be seen")
        if folder.is_dir() and any(folder.iterdir()):
            raise AuthorityError(f"{folder}: holds something already, which is never overwritten")
        key = new_key()
        certificate = _self_signed(name, key, now())
        parent = folder.absolute().parent
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))  # mode 0700
        try:
            (making / ISSUED).mkdir()
            write_file(making / CERTIFICATE, certificate.public_bytes(Encoding.PEM))
            write_file(making / PRIVATE_KEY, key_pem(key), mode=PRIVATE)
            cls(making, now).refresh()
            try:
                making.rename(folder)  # of folders, only an empty one is replaced
            except OSError as error:
                raise AuthorityError(f"{folder}: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(making)
            raise
        sync_folder_of(folder.absolute())
        return cls(folder, now)

    @property
    def certificate_path(self) -> Path:
        """The file that servers and terminals need."""
        return self.folder / CERTIFICATE

    @property
    def revocations_path(self) -> Path:
        """The file that servers need."""
        return self.folder / REVOCATIONS

    @property
    def name(self) -> str:
        """What it is called, for the eyes of a person."""
        return printable(", ".join(str(attribute.value) for attribute in self.certificate.subject))

    def issue(self, request: Request) -> x509.Certificate:
        """Issue a certificate; it is recorded before it is given away, lest it can't be revoked.

        The revocation list is signed anew with it, so that it stays good for as long.

        :raises AuthorityError: the authority has expired, or its revocation list is damaged
        """
        now = self._now()
        ends = self.certificate.not_valid_after_utc
        if ends <= now:
            raise AuthorityError(f"the authority itself has expired on {ends:%Y-%m-%d}")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(request.key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - EARLIER, self.certificate.not_valid_before_utc))
            .not_valid_after(min(now + LIFE, ends))
            .add_extension(request.names, critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_TLS, critical=True)
            .add_extension(x509.ExtendedKeyUsage([request.kind.purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.key), critical=False)
            .add_extension(_key_identifier(self.certificate), critical=False)
            .sign(self._key, _digest(self._key))
        )
        with self._locked():
            revoked = self._revoked()
            record = self.folder / ISSUED / f"{certificate.serial_number:X}.pem"
            write_file(record, certificate.public_bytes(Encoding.PEM))
            self._write_revocations(revoked)
        return certificate

    def revoke(self, serial: int) -> bool:
        """Put a certificate on the revocation list, which is signed anew.

        :return: whether it wasn't there yet
        :raises AuthorityError: the authority has issued no such certificate
        """
        with self._locked():
            revoked = self._revoked()
            if any(entry.serial_number == serial for entry in revoked):
                return False
            if not (self.folder / ISSUED / f"{serial:X}.pem").exists():
                raise AuthorityError(f"this authority has issued no certificate {serial:X}")
            builder = x509.RevokedCertificateBuilder().serial_number(serial)
            revoked.append(builder.revocation_date(self._now()).build())
            self._write_revocations(revoked)
        return True

    def refresh(self) -> None:
        """Sign the revocation list anew, as it is, so that it stays good for longer."""
        with self._locked():
            self._write_revocations(self._revoked())

    def serial_of(self, path: str) -> int:
        """The serial of the certificate in a file.

        :raises AuthorityError: there is none, or it is another authority's
        """
        try:
            certificate = read_certificates(path)[0]
        except InvalidFile as error:
            raise AuthorityError(str(error)) from None
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            why = f"was not issued by the authority in {self.folder}"
            raise AuthorityError(f"{path}: {why}") from None
        return certificate.serial_number

    def issued(self) -> Iterator[Issued]:
        """All certificates that were issued, those that end first before the others.

        :raises AuthorityError: a record is damaged
        """
        now = self._now()
        revoked = {entry.serial_number for entry in self._revoked()}
        found = []
        for path in (self.folder / ISSUED).glob("*.pem"):
            try:
                certificate = read_certificates(str(path))[0]
                names = certificate.extensions.get_extension_for_class(Names).value
                kind = kind_of(names)
            except (AuthorityError, ValueError, x509.ExtensionNotFound) as error:
                raise AuthorityError(f"{path}: {error}") from None
            ends = certificate.not_valid_after_utc
            serial = certificate.serial_number
            state = "revoked" if serial in revoked else "expired" if ends <= now else "valid"
            found.append(Issued(serial, kind, _holder(kind, names), ends, state))
        yield from sorted(found, key=lambda one: (one.ends, one.serial))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes the folder meanwhile; ends with the process at the latest."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _list(self) -> x509.CertificateRevocationList | None:
        """The revocation list; ``None`` only while the folder is being made."""
        if not self.revocations_path.exists() and not any((self.folder / ISSUED).iterdir()):
            return None
        try:
            revocations = x509.load_pem_x509_crl(read_file(str(self.revocations_path)))
            valid = revocations.is_signature_valid(self._key.public_key())
        except InvalidFile as error:
            raise AuthorityError(str(error)) from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            valid = False
        else:
            if valid:
                return revocations
        # A new one would quietly revive all that was revoked.
        raise AuthorityError(f"{self.revocations_path}: is damaged: put a copy of it in its place")

    def _revoked(self) -> list[x509.RevokedCertificate]:
        revocations = self._list()
        return [] if revocations is None else list(revocations)

    def _write_revocations(self, revoked: Sequence[x509.RevokedCertificate]) -> None:
        now = self._now()
        before = self._list()
        number = 1
        if before is not None:
            number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - EARLIER)
            .next_update(now + LIFE)
            .add_extension(_key_identifier(self.certificate), critical=False)
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._key, _digest(self._key))
        write_file(self.revocations_path, signed.public_bytes(Encoding.PEM), replace=True)


def _self_signed(name: str, key: Key, now: datetime) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key.public_key()
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_SIGNING, critical=True)
        .add_extension(own, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False
        )
        .sign(key, _digest(key))
    )


def _key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
