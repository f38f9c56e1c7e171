"""A small private certificate authority (D2, fig. 5), which is a folder.

The folder has the authority's certificate (``authority.pem``, for all peers), its private key
(``authority.key``), its revocation list (``revoked.crl``, for servers) and a copy of each
certificate that it has issued (``issued/SERIAL.pem``). One process changes it at a time.

Certificates have the holder's names only in the subject alternative name. Their subject is empty,
so that no code can come to depend on it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from broker.ca.names import AuthorityError, CertificateKind, Names, holder_of, kind_of
from broker.ca.requests import CertificateRequest, key_pem, new_key
from broker.ca.signing import sign_authority, sign_certificate, sign_revocations
from broker.files import PRIVATE, InvalidFile, sync_folder_of, write_file
from broker.messages.message import printable
from broker.net.tls.certificates import (
    key_digest,
    read_certificates,
    read_file,
    read_key,
    utc_now,
)

CERTIFICATE: Final = "authority.pem"
PRIVATE_KEY: Final = "authority.key"
REVOCATIONS: Final = "revoked.crl"
ISSUED: Final = "issued"


class IssuedCertificate(NamedTuple):
    """A certificate that the authority has issued.

    :ivar state: ``valid``, ``expired`` or ``revoked``
    """

    serial: int
    kind: CertificateKind
    holder: str
    ends: datetime
    state: str


class Authority:
    """An authority in its folder.

    :ivar certificate: its certificate
    """

    def __init__(self, folder: Path, now: Callable[[], datetime] = utc_now) -> None:
        """
        :param now: the current time
        :raises AuthorityError: there is no authority, or it is damaged
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
        """Make a new authority: its whole folder, or nothing.

        :param name: the subject of its certificate, for people to read
        :raises AuthorityError: the folder is not empty, or the name cannot be used
        """
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise AuthorityError("an authority's name has 1 to 64 printable characters")
        if folder.is_dir() and any(folder.iterdir()):
            raise AuthorityError(f"{folder}: is not empty, and is never overwritten")
        key = new_key()
        certificate = sign_authority(name, key, now())
        parent = folder.absolute().parent
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))  # With mode 0700.
        try:
            (making / ISSUED).mkdir()
            write_file(making / CERTIFICATE, certificate.public_bytes(Encoding.PEM))
            write_file(making / PRIVATE_KEY, key_pem(key), mode=PRIVATE)
            cls(making, now).refresh()
            try:
                making.rename(folder)  # This replaces an empty folder only.
            except OSError as error:
                raise AuthorityError(f"{folder}: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(making)
            raise
        sync_folder_of(folder.absolute())
        return cls(folder, now)

    @property
    def certificate_path(self) -> Path:
        """The file of its certificate, which servers and terminals need."""
        return self.folder / CERTIFICATE

    @property
    def revocations_path(self) -> Path:
        """The file of its revocation list, which servers need."""
        return self.folder / REVOCATIONS

    @property
    def name(self) -> str:
        """Its name, for people to read."""
        return printable(", ".join(str(attribute.value) for attribute in self.certificate.subject))

    def issue(self, request: CertificateRequest) -> x509.Certificate:
        """Issue a certificate. It is recorded before it is returned, so that it can be revoked.

        The revocation list is signed again too, so that it is valid for as long.

        :raises AuthorityError: the authority has expired, or its revocation list is damaged
        """
        now = self._now()
        ends = self.certificate.not_valid_after_utc
        if ends <= now:
            raise AuthorityError(f"the authority itself has expired on {ends:%Y-%m-%d}")
        certificate = sign_certificate(request, self.certificate, self._key, now)
        with self._locked():
            revoked = self._revoked()
            record = self.folder / ISSUED / f"{certificate.serial_number:X}.pem"
            write_file(record, certificate.public_bytes(Encoding.PEM))
            self._write_revocations(revoked)
        return certificate

    def revoke(self, serial: int) -> bool:
        """Add a certificate to the revocation list, and sign that again.

        :return: whether it is new there
        :raises AuthorityError: the authority has not issued such a certificate
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
        """Sign the revocation list again, unchanged, so that it is valid for longer."""
        with self._locked():
            self._write_revocations(self._revoked())

    def serial_of(self, path: str) -> int:
        """Return the serial number of the certificate in a file.

        :raises AuthorityError: there is none, or another authority has issued it
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

    def issued(self) -> Iterator[IssuedCertificate]:
        """Return all certificates that were issued, by the time at which they end.

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
            found.append(IssuedCertificate(serial, kind, holder_of(kind, names), ends, state))
        yield from sorted(found, key=lambda each: (each.ends, each.serial))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the folder; the lock ends with the process."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _list(self) -> x509.CertificateRevocationList | None:
        """Return the revocation list; ``None`` only while the folder is being made."""
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
        # A new list would silently make all revoked certificates valid again.
        raise AuthorityError(f"{self.revocations_path}: is damaged: put a copy of it in its place")

    def _revoked(self) -> list[x509.RevokedCertificate]:
        revocations = self._list()
        return [] if revocations is None else list(revocations)

    def _write_revocations(self, revoked: Sequence[x509.RevokedCertificate]) -> None:
        before = self._list()
        number = 1
        if before is not None:
            number += before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        signed = sign_revocations(revoked, number, self.certificate, self._key, self._now())
        write_file(self.revocations_path, signed.public_bytes(Encoding.PEM), replace=True)
