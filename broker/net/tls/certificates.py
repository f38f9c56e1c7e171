"""Certificates: reading them and their keys from files, and which peer they name.

A certificate names its peer only by a URI among its subject alternative names. The common name,
DNS names and mail names are never used: they are ASCII, and identifiers are not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.files import InvalidFile, read_private
from broker.messages.grammar import identifier, token
from broker.messages.message import printable

#: A certificate that expires within this time is worth a warning.
NOTICE: Final = timedelta(days=14)
#: The largest file of certificates, authorities or revocations that is read.
FILE_BYTES: Final = 16 * 1024 * 1024

#: Shown for a certificate without names.
NO_NAME: Final = "no name"

TERMINAL: Final = "broker:"
MEDIATOR: Final = "broker-mediator:"

#: What the path of a URI may contain (RFC 3986, section 3.3); each % begins an escape.
_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")

#: The kinds of keys that a certificate may have.
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_KEYS: Final = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_AnyKey = PublicKey | ed448.Ed448PublicKey


class CertificateRefused(ValueError):
    """A certificate does not name one peer by a URI, the only way that counts."""


class Expiry(NamedTuple):
    """Something that expires.

    :ivar what: its name, for the operator
    :ivar when: when it expires
    """

    what: str
    when: datetime


def utc_now() -> datetime:
    """The wall clock, by which certificates are issued and checked."""
    return datetime.now(UTC)


# Which peer a certificate names.


def terminal_uri(name: str) -> str:
    """The URI in the certificate of a terminal.

    :raises ValueError: the name is no identifier
    """
    return TERMINAL + quote(identifier(name), safe="")


def mediator_uri(name: str) -> str:
    """The URI in the certificate of a mediator.

    :raises ValueError: the name is no token
    """
    return MEDIATOR + token(name)


def identifier_of(certificate: x509.Certificate) -> str:
    """The identifier, in canonical form, of the terminal that a certificate is for (A19, I4).

    :raises CertificateRefused: it is not for exactly one terminal
    """
    return identifier_in(_names(certificate))


def mediator_of(certificate: x509.Certificate) -> str:
    """The name of the mediator that a certificate is for (A15); a terminal's is refused.

    :raises CertificateRefused: it is not for exactly one mediator
    """
    return mediator_in(_names(certificate))


def identifier_in(names: x509.SubjectAlternativeName | None) -> str:
    """As ``identifier_of``, from the subject alternative names."""
    path = _path(_uri(names), TERMINAL, "a terminal")
    if not _PATH.fullmatch(path):
        raise CertificateRefused("its URI is not percent-encoded as it must be")
    try:
        return identifier(unquote_to_bytes(path).decode("utf-8"))
    except UnicodeDecodeError:
        raise CertificateRefused("its identifier is not UTF-8") from None
    except ValueError as error:
        raise CertificateRefused(f"it names no terminal: {error}") from None


def mediator_in(names: x509.SubjectAlternativeName | None) -> str:
    """As ``mediator_of``, from the subject alternative names."""
    path = _path(_uri(names), MEDIATOR, "a mediator")
    try:
        return token(path)
    except ValueError as error:
        raise CertificateRefused(f"it names no mediator: {error}") from None


def _names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension):
        raise CertificateRefused("its extensions can't be read") from None


def _uri(names: x509.SubjectAlternativeName | None) -> str:
    uris = [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)
    if not uris:
        raise CertificateRefused("it has no URI as subject alternative name")
    if len(uris) > 1:
        raise CertificateRefused("it has more than one URI as subject alternative name")
    return uris[0]


def _path(uri: str, scheme: str, whose: str) -> str:
    if not uri.startswith(scheme):
        raise CertificateRefused(f"it is not that of {whose}: its URI is {printable(uri[:200])}")
    return uri.removeprefix(scheme)


def shown_names(names: x509.SubjectAlternativeName | None) -> str:
    """All names in a certificate, of any kind, as text to show (I19)."""
    shown = [
        printable(str(getattr(name, "value", "?"))[:200])
        for name in (names or ())  # other kinds may have no simple value
    ]
    return ", ".join(shown[:10]) + (", …" if len(shown) > 10 else "") if shown else NO_NAME


def names_shown(certificate: x509.Certificate) -> str:
    """All names in a certificate, as text to show."""
    try:
        return shown_names(_names(certificate))
    except CertificateRefused:
        return NO_NAME


def key_digest(key: _AnyKey | x509.Certificate) -> str:
    """SHA-256, in hexadecimal, of a public key as encoded in a certificate: what a pin holds."""
    public = key.public_key() if isinstance(key, x509.Certificate) else key
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


# Files.


def read_file(path: str) -> bytes:
    """All of a file.

    :raises InvalidFile: it can't be read, or is too large
    """
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}") from None
    if len(data) > FILE_BYTES:
        raise InvalidFile(f"{path}: is larger than {FILE_BYTES} bytes")
    return data


def read_certificates(path: str) -> list[x509.Certificate]:
    """The certificates in a PEM file, in order; at least one.

    :raises InvalidFile: there is none, or one can't be read
    """
    try:
        return x509.load_pem_x509_certificates(read_file(path))
    except InvalidFile:
        raise
    except ValueError:
        raise InvalidFile(f"{path}: holds no certificate in PEM form, or a damaged one") from None


def read_authorities(path: str) -> list[x509.Certificate]:
    """The certificates in a PEM file, all of them authorities'.

    :raises InvalidFile: there is none, or one may not issue certificates
    """
    certificates = read_certificates(path)
    for certificate in certificates:
        if not is_authority(certificate):
            raise InvalidFile(f"{path}: {_named(certificate)} is not an authority's certificate")
    return certificates


def read_revocations(
    path: str, authorities: Sequence[x509.Certificate], now: datetime
) -> x509.CertificateRevocationList:
    """The revocation list in a PEM or DER file, of one of these authorities, and still valid.

    :raises InvalidFile: it is not valid; with such a list every certificate would be refused (I3)
    """
    data = read_file(path)
    try:
        if b"-----BEGIN" in data:
            revocations = x509.load_pem_x509_crl(data)
        else:
            revocations = x509.load_der_x509_crl(data)
        ends = revocations.next_update_utc
    except ValueError:
        raise InvalidFile(f"{path}: holds no revocation list, or a damaged one") from None
    if not any(_signed(revocations, authority) for authority in authorities):
        raise InvalidFile(f"{path}: is no revocation list of the authority that is trusted")
    if ends is None:
        raise InvalidFile(f"{path}: does not say until when it is valid")
    if ends <= now:
        raise InvalidFile(
            f"{path}: has expired on {_day(ends)}: fetch a newer one from the authority,"
            " which `broker ca refresh` makes"
        )
    return revocations


def _signed(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    if revocations.issuer != authority.subject or not isinstance(key, _AnyKey):
        return False
    try:
        return revocations.is_signature_valid(key)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def read_key(path: str) -> Key:
    """A private key from a PEM file that no other user can read (I18).

    :raises InvalidFile: others can read it, or it is not a supported key
    """
    try:
        data = read_private(path, FILE_BYTES)
    except OSError as error:
        raise InvalidFile(f"{path}: {error.strerror}") from None
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError:
        raise InvalidFile(f"{path}: has a passphrase: a server has no one to ask for it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidFile(f"{path}: holds no private key in PEM form, or a damaged one") from None
    if not isinstance(key, _KEYS):
        raise InvalidFile(f"{path}: is a key of an unsupported kind: use ECDSA, Ed25519 or RSA")
    return key


# What a certificate may be used for, and how long.


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may issue others."""
    try:
        basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension):
        return False
    return basic.ca


def serves(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """Whether it may be used for a purpose: it names that purpose, or none at all."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except (ValueError, x509.DuplicateExtension):
        return False
    return purpose in usage or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage


def check_own(
    certificate: x509.Certificate,
    path: str,
    key: Key,
    key_path: str,
    *,
    server: bool,
    now: datetime,
) -> None:
    """Check that our certificate and its key can be used.

    :raises InvalidFile: they can't: every peer would refuse them
    """
    if key_digest(key.public_key()) != key_digest(certificate):
        raise InvalidFile(f"{path}: is not the certificate of the key in {key_path}")
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    if not serves(certificate, purpose):
        raise InvalidFile(f"{path}: is not a certificate for a {'server' if server else 'client'}")
    if certificate.not_valid_after_utc <= now:
        raise InvalidFile(f"{path}: has expired on {_day(certificate.not_valid_after_utc)}")
    if certificate.not_valid_before_utc > now:
        raise InvalidFile(
            f"{path}: is not valid before {_day(certificate.not_valid_before_utc)}:"
            " is the clock of this machine right?"
        )


def warnings(endings: Iterable[Expiry], now: datetime) -> list[str]:
    """A line for each thing that expires within 14 days, or has expired."""
    lines = []
    for what, when in sorted(endings, key=lambda ending: ending.when):
        left = when - now
        if left <= timedelta(0):
            lines.append(f"{what} has ended on {_day(when)}")
        elif left <= NOTICE:
            days = left.days
            span = "1 day" if days == 1 else f"{days} days" if days else "less than a day"
            lines.append(f"{what} ends in {span}, on {_day(when)}")
    return lines


def _named(certificate: x509.Certificate) -> str:
    return printable(certificate.subject.rfc4514_string()) or names_shown(certificate)


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d}"
