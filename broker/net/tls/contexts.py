"""TLS contexts for both ends of a connection (A21, D2), made from files.

TLS 1.3, and 1.2 only with ECDHE and AEAD. No compression and no renegotiation. No session is
resumed, by ticket or otherwise: a resumed session would not be checked against a newer revocation
list, and the key of a ticket would decrypt what was recorded (I22). A full handshake costs hardly
more.

A refused peer gets TLS's own alert. On this side the reason arrives in ``connectionLost``, and
``explain`` puts it in words. The handshake has a deadline (``transport``), which Twisted lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from ipaddress import ip_address
from typing import Final, NamedTuple

import idna
from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509StoreFlags
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import (
    verify_certificate_hostname,
    verify_certificate_ip_address,
)
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from broker.files import InvalidFile
from broker.messages.grammar import hexadecimal
from broker.net.tls.certificates import (
    Expiry,
    check_own,
    key_digest,
    names_shown,
    read_authorities,
    read_certificates,
    read_key,
    read_revocations,
    utc_now,
    warnings,
)
from broker.net.tls.errors import HandshakeRefused
from broker.net.tls.explain import last_reason

#: For TLS 1.2: only ephemeral keys and authenticated encryption, with at least 112 bits. All suites
#: of TLS 1.3 are of that kind.
CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!PSK:!aNULL:@SECLEVEL=2"

#: ``SSL_MODE_NO_AUTO_CHAIN``: send only the certificates of our file, and do not add an authority
#: that we trust. pyOpenSSL has no name for it.
_NO_AUTO_CHAIN: Final = 0x8


class _Loaded(NamedTuple):
    """What was made from the files.

    :ivar endings: when each certificate and list expires
    """

    context: SSL.Context
    endings: list[Expiry]
    revocations: x509.CertificateRevocationList | None


class _ReloadableTls:
    """A context made from files, which can be read again."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        """
        :param now: the wall clock, by which certificates are checked
        """
        self._now = now
        self._loaded = self._load()

    def _load(self) -> _Loaded:
        raise NotImplementedError

    def reload(self) -> None:
        """Read the files again, for the connections made from now on.

        :raises InvalidFile: one of them is invalid; nothing changes (I3)
        """
        self._loaded = self._load()

    def warnings(self) -> list[str]:
        """A line for each certificate or list in use that ends within 14 days, or has ended."""
        return warnings(self._loaded.endings, self._now())

    def revoked(self, certificate: x509.Certificate) -> bool:
        """Whether the revocation list in use names a certificate.

        Handshakes check that themselves. This is for connections older than the list (I2).
        """
        revocations = self._loaded.revocations
        if revocations is None or revocations.issuer != certificate.issuer:
            return False
        serial = certificate.serial_number
        return revocations.get_revoked_certificate_by_serial_number(serial) is not None


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls(_ReloadableTls):
    """The server's side.

    Without ``client_ca`` no client is asked for a certificate. With it each is asked, and the
    certificate that it shows must be valid: issued by that authority for a client, not expired, not
    revoked.
    """

    def __init__(
        self,
        certificate: str,
        key: str,
        *,
        client_ca: str | None = None,
        crl: str | None = None,
        required: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """
        :param certificate: a PEM file: the server's certificate, then the intermediate ones, if any
        :param key: a PEM file: its private key, which no other user may be able to read
        :param client_ca: a PEM file: the authorities of the clients
        :param crl: their revocation list
        :param required: whether a client without a certificate is refused
        :raises InvalidFile: a file is invalid
        """
        if client_ca is None and (required or crl is not None):
            raise InvalidFile("clients' certificates can't be checked without their authority's")
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._crl = crl
        self._required = required
        super().__init__(now)

    def _load(self) -> _Loaded:
        context = _new_context()
        endings: list[Expiry] = []
        _present(context, self._certificate, self._key, endings, server=True, now=self._now())
        revocations = None
        if self._client_ca is not None:
            revocations = _trust(context, self._client_ca, self._crl, endings, self._now())
            for authority in read_authorities(self._client_ca):
                context.add_client_ca(authority)  # tells clients which certificate to show
            mode = SSL.VERIFY_PEER
            if self._required:
                mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            context.set_verify(mode, _refuse_bad)
        return _Loaded(context, endings, revocations)

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection for one client."""
        connection = SSL.Connection(self._loaded.context, None)
        connection.set_accept_state()
        return connection


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls(_ReloadableTls):
    """The client's side, for one server.

    Its chain, its name and, if there is a pin, its key are verified within the handshake: before
    anything of ours is sent (D2, I26).
    """

    def __init__(
        self,
        ca: str | None,
        server: str,
        *,
        certificate: str | None = None,
        key: str | None = None,
        pin: str | None = None,
        crl: str | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """
        :param ca: a PEM file: the authorities, one of which must have issued the server's
            certificate; without it, those that the system trusts
        :param server: the DNS name or IP address that the certificate must be for
        :param certificate: a PEM file: our own certificate, then the intermediate ones, if any
        :param key: a PEM file: its private key, which no other user may be able to read
        :param pin: SHA-256 of the server's public key, in hexadecimal: only this key is accepted
        :param crl: the authority's revocation list
        :raises InvalidFile: a file, or another argument, is invalid
        """
        if (certificate is None) != (key is None):
            raise InvalidFile("a certificate needs its private key, and the key its certificate")
        if crl is not None and ca is None:
            raise InvalidFile(
                "a revocation list can't be checked without its authority's certificate"
            )
        self._ca = ca
        self._crl = crl
        self._certificate = certificate
        self._key = key
        self._pin = None if pin is None else parse_pin(pin)
        self._host = _Host.of(server)
        super().__init__(now)

    def _load(self) -> _Loaded:
        context = _new_context()
        endings: list[Expiry] = []
        if self._certificate is not None and self._key is not None:
            _present(context, self._certificate, self._key, endings, server=False, now=self._now())
        revocations = None
        if self._ca is None:
            context.set_default_verify_paths()
        else:
            revocations = _trust(context, self._ca, self._crl, endings, self._now())
        host, pin = self._host, self._pin

        def verify(
            connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int
        ) -> bool:
            _refuse_bad(connection, certificate, error, depth, ok)
            if depth == 0:
                shown = certificate.to_cryptography()
                host.check(shown)
                if pin is not None and key_digest(shown) != pin:
                    raise HandshakeRefused("its key is not the one that is pinned")
            return True

        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return _Loaded(context, endings, revocations)

    def clientConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        """A connection to the server."""
        connection = SSL.Connection(self._loaded.context, None)
        if not self._host.is_address:
            connection.set_tlsext_host_name(self._host.name.encode("ascii"))
        connection.set_connect_state()
        return connection


class _Host(NamedTuple):
    """A server's name as in certificates: ASCII, in lower case; or its address."""

    name: str
    is_address: bool

    @classmethod
    def of(cls, text: str) -> _Host:
        try:
            return cls(str(ip_address(text.partition("%")[0])), True)
        except ValueError:
            pass
        try:
            return cls(idna.encode(text.removesuffix("."), uts46=True).decode("ascii"), False)
        except (idna.IDNAError, UnicodeError):
            raise InvalidFile(f"{text!r} is neither a DNS name nor an IP address") from None

    def check(self, certificate: x509.Certificate) -> None:
        """Check that a certificate is for this host.

        :raises HandshakeRefused: it isn't
        """
        try:
            if self.is_address:
                verify_certificate_ip_address(certificate, self.name)
            else:
                verify_certificate_hostname(certificate, self.name)
        except (VerificationError, CertificateError, ValueError):
            # The last two: it has names that can't be parsed.
            shown = names_shown(certificate)
            raise HandshakeRefused(f"it is for {shown}, not for {self.name}") from None


def parse_pin(text: str) -> str:
    """A pin in its canonical form; colons between the digits, as tools print them, are accepted.

    :raises InvalidFile: it isn't SHA-256 in hexadecimal
    """
    try:
        return hexadecimal(32)(text.replace(":", ""))
    except ValueError as error:
        raise InvalidFile(f"{text!r} is no SHA-256 of a public key: {error}") from None


# Making contexts.


def _new_context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # Idle connections give back their buffers, 34 KB each.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | _NO_AUTO_CHAIN)
    return context


def _present(
    context: SSL.Context,
    path: str,
    key_path: str,
    endings: list[Expiry],
    *,
    server: bool,
    now: datetime,
) -> None:
    """Make a context show a certificate."""
    own, *between = read_certificates(path)
    key = read_key(key_path)
    check_own(own, path, key, key_path, server=server, now=now)
    try:
        context.use_certificate(own)
        for certificate in between:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error as error:  # mostly because the key is too weak
        raise InvalidFile(f"{path}: can't be used: {last_reason(error)}") from None
    endings.extend(
        Expiry(f"the certificate in {path}", certificate.not_valid_after_utc)
        for certificate in (own, *between)
    )


def _trust(
    context: SSL.Context, path: str, crl: str | None, endings: list[Expiry], now: datetime
) -> x509.CertificateRevocationList | None:
    """Make a context trust the authorities of a file, but not what they have revoked."""
    authorities = read_authorities(path)
    store = context.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(X509.from_cryptography(authority))
    if all(authority.not_valid_after_utc <= now for authority in authorities):
        raise InvalidFile(f"{path}: has expired")
    if len(authorities) == 1:  # in a large bundle some are always about to expire
        ends = authorities[0].not_valid_after_utc
        endings.append(Expiry(f"the authority's certificate in {path}", ends))
    if crl is None:
        return None
    revocations = read_revocations(crl, authorities, now)
    store.add_crl(revocations)
    store.set_flags(X509StoreFlags.CRL_CHECK)
    if revocations.next_update_utc is not None:
        endings.append(Expiry(f"the revocation list in {crl}", revocations.next_update_utc))
    return revocations


def _refuse_bad(
    connection: SSL.Connection, certificate: X509, error: int, depth: int, ok: int
) -> bool:
    """Called by OpenSSL for each certificate of a chain, from the authority's on.

    What is raised here comes out of ``do_handshake``, after the alert was sent.
    """
    if not ok:
        whose = "" if depth == 0 else "that of its authority: "
        raise HandshakeRefused(whose + _VERIFICATION.get(error, f"verification error {error}"))
    return True


_UNKNOWN: Final = "it was not issued by a trusted authority"
_CODES: Final = SSL.X509VerificationCodes

_VERIFICATION: Final[dict[int, str]] = {
    _CODES.ERR_CERT_HAS_EXPIRED: "it has expired",
    _CODES.ERR_CERT_NOT_YET_VALID: "it is not valid yet: are both clocks right?",
    _CODES.ERR_CERT_REVOKED: "it has been revoked",
    _CODES.ERR_UNABLE_TO_GET_CRL: "there is no revocation list of its authority",
    _CODES.ERR_CRL_HAS_EXPIRED: "the revocation list of its authority is out of date",
    _CODES.ERR_CRL_NOT_YET_VALID: "the revocation list of its authority is not valid yet",
    _CODES.ERR_CRL_SIGNATURE_FAILURE: "the revocation list is not its authority's",
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "it is self-signed, and not trusted",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: _UNKNOWN,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: _UNKNOWN,
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: _UNKNOWN,
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: _UNKNOWN,
    _CODES.ERR_CERT_UNTRUSTED: _UNKNOWN,
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "its signature is not that of the authority it names",
    _CODES.ERR_INVALID_PURPOSE: "it is for the other side of a connection (its key usage)",
    _CODES.ERR_INVALID_CA: "its issuer is no authority",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "its authority may not appoint other authorities",
    _CODES.ERR_CERT_CHAIN_TOO_LONG: "its chain is too long",
    # Codes for which pyOpenSSL has no name.
    66: "its key is too weak",
    67: "the key of its authority is too weak",
    68: "it is signed with too weak a digest",
}
