"""Certificates for tests: an authority in a folder, and peers that speak TLS by another library.

The other library is Python's own ``ssl``, which rests on the system's OpenSSL and not on the one
that the product brings along.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.internet.interfaces import IProtocolFactory

from broker.ca.authority import Authority
from broker.ca.names import Names, kind_of, mediator_names, server_names, terminal_names
from broker.ca.requests import CertificateRequest, key_pem, new_key
from broker.files import PRIVATE, write_file
from broker.net.tls.certificates import Key, utc_now
from tests.support.clock import settle
from tests.support.transport import Client, connect

#: The age of an authority that has issued certificates which have expired by now.
OLD: Final = timedelta(days=1000)


class Files(NamedTuple):
    """A certificate and its key."""

    certificate: str
    key: str

    @property
    def read(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(Path(self.certificate).read_bytes())

    def copy(self, folder: Path) -> Files:
        """The same in another folder, always under the same names."""
        copied = Files(str(folder / "own.pem"), str(folder / "own.key"))
        for path, source in zip(copied, self, strict=True):
            write_file(Path(path), Path(source).read_bytes(), mode=PRIVATE, replace=True)
        return copied


class Pki:
    """An authority, and whoever has a certificate of it.

    :ivar ca: the file of its certificate
    :ivar crl: the file of its revocation list
    """

    def __init__(self, folder: Path, name: str = "Test", age: timedelta = OLD) -> None:
        """
        :param age: how long ago it was made
        """
        self._folder = folder
        self._age = age
        self.authority = Authority.make(folder / name, name, self._clock)
        self._age = timedelta()
        self.authority.refresh()
        self.ca = str(self.authority.certificate_path)
        self.crl = str(self.authority.revocations_path)
        self._made = 0

    def _clock(self) -> datetime:
        return utc_now() - self._age

    def server(self, *hosts: str, age: timedelta = timedelta()) -> Files:
        """A server's certificate."""
        return self.issue(server_names(hosts or ("localhost", "127.0.0.1", "::1")), age)

    def terminal(self, identifier: str, age: timedelta = timedelta()) -> Files:
        """A terminal's."""
        return self.issue(terminal_names(identifier), age)

    def mediator(self, name: str) -> Files:
        """A mediator's."""
        return self.issue(mediator_names(name))

    def issue(self, names: Names, age: timedelta = timedelta()) -> Files:
        """A certificate with such names that was issued so long ago; it may have expired."""
        key = new_key()
        self._age = age
        certificate = self.authority.issue(
            CertificateRequest(kind_of(names), names, key.public_key())
        )
        self._age = timedelta()
        self.authority.refresh()
        return self.keep(certificate, key)

    def odd(self, names: Names | None, common_name: str = "") -> Files:
        """What no authority of ours would issue, signed by it all the same."""
        key = new_key()
        authority: Any = self.authority
        return self.keep(
            signed(key, names, common_name, authority.certificate.subject, authority._key), key
        )

    def self_signed(self, *hosts: str) -> Files:
        """Nobody's."""
        key = new_key()
        names = server_names(hosts or ("localhost",))
        return self.keep(signed(key, names, "localhost", None, key), key)

    def keep(self, certificate: x509.Certificate, key: Key) -> Files:
        """Write a certificate and a key to files."""
        self._made += 1
        base = self._folder / f"{Path(self.ca).parent.name}-{self._made}"
        files = Files(str(base.with_suffix(".pem")), str(base.with_suffix(".key")))
        write_file(Path(files.certificate), certificate.public_bytes(Encoding.PEM))
        write_file(Path(files.key), key_pem(key), mode=PRIVATE)
        return files

    def revoke(self, files: Files) -> None:
        """Put a certificate on the revocation list."""
        assert self.authority.revoke(files.read.serial_number)


def signed(
    key: Key, names: Names | None, common_name: str, issuer: x509.Name | None, signer: Key
) -> x509.Certificate:
    """A certificate for any names, without regard to what is good for it."""
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    subject = x509.Name(parts)
    now = utc_now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=30))
    )
    if names is not None:
        builder = builder.add_extension(names, critical=not common_name)
    return builder.sign(signer, hashes.SHA256())


def uris(*texts: str) -> Names:
    """Names that are such URIs."""
    return Names([x509.UniformResourceIdentifier(text) for text in texts])


class Foreign:
    """A peer by another library, which speaks with a protocol of ours.

    :ivar error: why its side of the handshake failed, ``None`` as long as it hasn't
    :ivar received: what it was sent, in clear
    """

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        """
        :param options: as for ``ssl.SSLContext.wrap_bio``
        """
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, **options)
        self.error: str | None = None
        self.received = b""
        self.ready = False

    def talk(self, peer: Client, *, say: bytes = b"") -> None:
        """Speak with a peer until nothing moves any more; say this once the handshake is over."""
        unsaid = say
        for _ in range(1000):
            self._advance()
            if self.ready and unsaid and self.error is None:
                self.tls.write(unsaid)
                unsaid = b""
            out = self._out.read()
            if out and not peer.closed:
                peer.send(out)
            settle(peer.transport.clock)
            came = peer.bytes()
            if came:
                self._in.write(came)
            elif not out:
                return
        raise AssertionError("they never come to rest")

    def _advance(self) -> None:
        try:
            if not self.ready and self.error is None:
                self.tls.do_handshake()
                self.ready = True
            while self.ready and self.error is None:
                data = self.tls.read(65536)
                if not data:
                    return
                self.received += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = str(error)


def foreign_client(
    ca: str,
    own: Files | None = None,
    *,
    server: str = "localhost",
    adjust: Callable[[ssl.SSLContext], object] = lambda context: None,
    session: ssl.SSLSession | None = None,
    context: ssl.SSLContext | None = None,
) -> Foreign:
    """A client that trusts an authority and may have a certificate."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)
        adjust(context)
    return Foreign(context, server_hostname=server, session=session)


def foreign_server(
    own: Files, adjust: Callable[[ssl.SSLContext], object] = lambda context: None
) -> Foreign:
    """A server that shows a certificate, whatever it is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    adjust(context)
    return Foreign(context, server_side=True)


def meet(factory: IProtocolFactory, clock: Any, foreign: Foreign, *, say: bytes = b"") -> Client:
    """Let a protocol of ours and a foreign peer meet, until nothing moves any more."""
    peer = connect(factory, clock)
    foreign.talk(peer, say=say)
    return peer
