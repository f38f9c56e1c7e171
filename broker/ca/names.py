"""Subject names of certificates: a server's hosts, a terminal's identifier, a mediator's name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from ipaddress import ip_address
from typing import Final, TypeAlias

import idna
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker.messages.message import printable
from broker.net.tls.certificates import (
    CertificateRefused,
    identifier_in,
    mediator_in,
    mediator_uri,
    shown_names,
    terminal_uri,
)

#: How many names a server's certificate may have.
HOSTS_MOST: Final = 100

Names: TypeAlias = x509.SubjectAlternativeName


class AuthorityError(Exception):
    """The authority refuses; the text says why, and what to do."""


class CertificateKind(Enum):
    """The kind of a certificate's holder."""

    SERVER = "server"
    TERMINAL = "terminal"
    MEDIATOR = "mediator"

    @property
    def purpose(self) -> x509.ObjectIdentifier:
        """The side of a TLS connection that it is for."""
        if self is CertificateKind.SERVER:
            return ExtendedKeyUsageOID.SERVER_AUTH
        return ExtendedKeyUsageOID.CLIENT_AUTH


def server_names(hosts: Sequence[str]) -> Names:
    """Return the names of a server: DNS names and IP addresses.

    :raises AuthorityError: one is neither, or there are too many
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
    # A name that ends in a number is a mistyped address.
    if not name or name.rpartition(".")[2].isdigit():
        raise AuthorityError(f"{printable(text)} is neither a DNS name nor an IP address")
    return x509.DNSName(name)


def terminal_names(identifier: str) -> Names:
    """Return the name of a terminal.

    :raises AuthorityError: it is not an identifier
    """
    try:
        return Names([x509.UniformResourceIdentifier(terminal_uri(identifier))])
    except ValueError as error:
        raise AuthorityError(f"{printable(identifier)} is not an identifier: {error}") from None


def mediator_names(name: str) -> Names:
    """Return the name of a mediator, which a resolver lists.

    :raises AuthorityError: it is not such a name
    """
    try:
        return Names([x509.UniformResourceIdentifier(mediator_uri(name))])
    except ValueError as error:
        raise AuthorityError(f"{printable(name)} is not a mediator's name: {error}") from None


def kind_of(names: Names) -> CertificateKind:
    """Return the kind of holder that has these names, which must be just as this module makes them.

    :raises AuthorityError: they are of no kind, or of several
    """
    shown = shown_names(names)
    kinds = {type(name) for name in names}
    if kinds and kinds <= {x509.DNSName, x509.IPAddress}:
        hosts = [str(name.value) for name in names]
        if server_names(hosts) != names:
            raise AuthorityError(f"it names {shown}: write DNS names in lower case and in ASCII")
        return CertificateKind.SERVER
    if kinds == {x509.UniformResourceIdentifier} and len(names) == 1:
        with suppress(CertificateRefused):
            if terminal_names(identifier_in(names)) == names:
                return CertificateKind.TERMINAL
        with suppress(CertificateRefused):
            mediator_in(names)
            return CertificateKind.MEDIATOR
    raise AuthorityError(
        f"it names {shown}: the names can be DNS names and IP addresses of a server, the URI"
        " broker:IDENTIFIER, percent-encoded, of one terminal, or broker-mediator:NAME of one"
        " mediator"
    )


def holder_of(kind: CertificateKind, names: Names) -> str:
    """Return a certificate's holder for people to read: ``terminal Ia``."""
    if kind is CertificateKind.TERMINAL:
        return f"{kind.value} {printable(identifier_in(names))}"
    if kind is CertificateKind.MEDIATOR:
        return f"{kind.value} {mediator_in(names)}"
    return f"{kind.value} {shown_names(names)}"
