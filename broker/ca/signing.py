"""What the authority signs: its own certificate, those of others, and revocation lists."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from broker.ca.requests import CertificateRequest, digest_of
from broker.net.tls.certificates import Key

#: Lifetime of the authority's own certificate.
AUTHORITY_LIFE: Final = timedelta(days=3652)
#: Lifetime of the certificates that it issues, and of each revocation list: as long as these,
#: since the certificates on it have expired by then, and people copy it by hand.
LIFE: Final = timedelta(days=398)
#: A certificate is valid from this long before now: clocks that are slow by as much still take it.
EARLIER: Final = timedelta(hours=1)

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


def sign_authority(name: str, key: Key, now: datetime) -> x509.Certificate:
    """Make the authority's own certificate.

    :param name: the common name in its subject, for people to read
    """
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
        .sign(key, digest_of(key))
    )


def sign_certificate(
    request: CertificateRequest, issuer: x509.Certificate, key: Key, now: datetime
) -> x509.Certificate:
    """Make a certificate for a request.

    Its subject is empty: the subject alternative name is all that identifies the holder.

    :param key: the issuer's
    """
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(request.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - EARLIER, issuer.not_valid_before_utc))
        .not_valid_after(min(now + LIFE, issuer.not_valid_after_utc))
        .add_extension(request.names, critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_TLS, critical=True)
        .add_extension(x509.ExtendedKeyUsage([request.kind.purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(request.key), critical=False)
        .add_extension(_key_identifier(issuer), critical=False)
        .sign(key, digest_of(key))
    )


def sign_revocations(
    revoked: Iterable[x509.RevokedCertificate],
    number: int,
    issuer: x509.Certificate,
    key: Key,
    now: datetime,
) -> x509.CertificateRevocationList:
    """Make a revocation list.

    :param number: of this list; each list has a higher one than the list before
    :param key: the issuer's
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - EARLIER)
        .next_update(now + LIFE)
        .add_extension(_key_identifier(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, digest_of(key))


def _key_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
