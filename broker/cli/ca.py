"""``broker ca``: the commands of the private certificate authority. They only work on files."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

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
from broker.ca.requests import CertificateRequest, key_pem, make_request, new_key, read_request
from broker.cli.table import EXIT_STATUS_OF_FILES, Argument, Command, CommandGroup, OneOf, Value
from broker.files import PRIVATE, write_file
from broker.messages.message import printable
from broker.net.tls.certificates import Key, key_digest, read_key

FOLDER: Final = "ca"
NAME: Final = "broker authority"

EXAMPLES: Final = f"""\
examples:
  broker ca init                                 make an authority, in the folder ca
  broker ca issue --server signal.example.com    a key and a certificate for a server
  broker ca issue --terminal Ia                  a key and a certificate for a terminal

To keep a private key on the machine that uses it:
  broker ca request --terminal Ia                there: terminal-Ia.key and terminal-Ia.csr
  broker ca sign terminal-Ia.csr                 where the authority is: terminal-Ia.pem

{EXIT_STATUS_OF_FILES}"""


class HolderKey(NamedTuple):
    """The private key of a certificate's holder, and its file.

    :ivar new: whether the file is not written yet
    """

    key: Key
    path: Path
    new: bool


# The commands.


def init(arguments: Namespace) -> None:
    """Make an authority."""
    authority = Authority.make(arguments.folder, arguments.name)
    ends = authority.certificate.not_valid_after_utc
    print(f"{authority.name}, valid until {ends:%Y-%m-%d}, is in {arguments.folder}")
    print(f"  {authority.certificate_path}: copy it to all servers and terminals")
    print(f"  {authority.revocations_path}: copy it to all servers, again after each change")
    print(f"  {arguments.folder / 'authority.key'}: keep it secret: it can sign any certificate")


def request(arguments: Namespace) -> None:
    """Make a signing request, and a key for it if there is none."""
    names, base = _holder(arguments)
    holder_key = _key(arguments, base)
    path = _with_suffix(base, ".csr")
    _check_free(arguments, path)
    signed = make_request(names, holder_key.key)
    _write_key(arguments, holder_key)
    write_file(path, signed.public_bytes(Encoding.PEM), replace=arguments.force)
    print(f"{path}: for `broker ca sign`, where the authority is")


def sign(arguments: Namespace) -> None:
    """Show what a request asks for, and sign it."""
    authority = Authority(arguments.folder)
    signing_request = read_request(arguments.request)
    path = arguments.out or Path(arguments.request).with_suffix(".pem")
    _check_free(arguments, path)
    _show(signing_request)
    if not arguments.yes and sys.stdin.isatty() and not _confirmed():
        raise AuthorityError("nothing was signed")
    _write_certificate(arguments, authority.issue(signing_request), path)


def issue(arguments: Namespace) -> None:
    """Make a key and a certificate in one step."""
    authority = Authority(arguments.folder)
    names, base = _holder(arguments)
    holder_key = _key(arguments, base)
    path = _with_suffix(base, ".pem")
    _check_free(arguments, path)
    signing_request = CertificateRequest(kind_of(names), names, holder_key.key.public_key())
    _show(signing_request)
    certificate = authority.issue(signing_request)
    _write_key(arguments, holder_key)
    _write_certificate(arguments, certificate, path)


def revoke(arguments: Namespace) -> None:
    """Put a certificate on the revocation list."""
    authority = Authority(arguments.folder)
    text = arguments.certificate
    serial = authority.serial_of(text) if Path(text).exists() else _serial(text)
    if authority.revoke(serial):
        print(f"{serial:X} is revoked: copy {authority.revocations_path} to all servers")
    else:
        print(f"{serial:X} was already revoked")


def refresh(arguments: Namespace) -> None:
    """Sign the revocation list again, which makes it valid for another period."""
    authority = Authority(arguments.folder)
    authority.refresh()
    print(f"{authority.revocations_path}: copy it to all servers")


def show_all(arguments: Namespace) -> None:
    """Print the issued certificates, one on each line."""
    for issued in Authority(arguments.folder).issued():
        print(f"{issued.serial:X} {issued.state} {issued.ends:%Y-%m-%d} {issued.holder}")


# What they share.


def _holder(arguments: Namespace) -> tuple[Names, Path]:
    """The names of a certificate's holder, and how the names of its files begin."""
    names: Names
    if arguments.server:
        kind, first = CertificateKind.SERVER, arguments.server[0]
        names = server_names(arguments.server)
    elif arguments.terminal is not None:
        kind, first = CertificateKind.TERMINAL, arguments.terminal
        names = terminal_names(first)
    else:
        kind, first = CertificateKind.MEDIATOR, arguments.mediator
        names = mediator_names(first)
    plain = "".join(c if c.isalnum() or c in "._-+@" else "_" for c in first)
    return names, arguments.out or Path(f"{kind.value}-{plain}")


def _with_suffix(base: Path, suffix: str) -> Path:
    return base.with_name(
        base.name + suffix
    )  # Path.with_suffix would cut off a part of a host name


def _key(arguments: Namespace, base: Path) -> HolderKey:
    if arguments.key is not None and arguments.key.exists():
        return HolderKey(read_key(str(arguments.key)), arguments.key, False)
    path = arguments.key or _with_suffix(base, ".key")
    _check_free(arguments, path)
    return HolderKey(new_key(), path, True)


def _write_key(arguments: Namespace, holder_key: HolderKey) -> None:
    if holder_key.new:
        pem = key_pem(holder_key.key)
        write_file(holder_key.path, pem, mode=PRIVATE, replace=arguments.force)
        print(f"{holder_key.path}: the private key, for its holder only")


def _check_free(arguments: Namespace, path: Path) -> None:
    """See that no file would be overwritten, before anything is done."""
    if not arguments.force and path.exists():
        raise AuthorityError(f"{path}: already exists: --force replaces it, --out names another")


def _show(signing_request: CertificateRequest) -> None:
    print(f"{signing_request.holder}, key {key_digest(signing_request.key)}")


def _confirmed() -> bool:
    print("Sign it? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _write_certificate(arguments: Namespace, certificate: x509.Certificate, path: Path) -> None:
    write_file(path, certificate.public_bytes(Encoding.PEM), replace=arguments.force)
    ends = certificate.not_valid_after_utc
    print(f"{path}: certificate {certificate.serial_number:X}, valid until {ends:%Y-%m-%d}")


def _serial(text: str) -> int:
    digits = text.replace(":", "")
    if not 1 <= len(digits) <= 40 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise AuthorityError(f"{printable(text)}: no such file, and no serial in hexadecimal")
    return int(digits, 16)


# The command line.


def _name(check: Callable[[str], Names]) -> Callable[[str], str]:
    """The type of an argument: a name that a certificate can have."""

    def checked(text: str) -> str:
        try:
            check(text)
        except AuthorityError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return checked


_FOLDER: Final = Argument(
    "--folder",
    "the authority's folder (default: %(default)s)",
    Value("DIR", Path),
    default=Path(FOLDER),
)
_FORCE: Final = Argument("--force", "replace existing files")
_HOLDER: Final = (
    OneOf(
        Argument(
            "--server",
            "for a server: its DNS names and IP addresses",
            Value("HOST", _name(lambda text: server_names([text]))),
            nargs="+",
        ),
        Argument(
            "--terminal", "for a terminal: its identifier", Value("ID", _name(terminal_names))
        ),
        Argument(
            "--mediator",
            "for a mediator that proves itself to a resolver: its name there",
            Value("NAME", _name(mediator_names)),
        ),
        required=True,
    ),
    Argument("--key", "the private key; made if the file is not there", Value("FILE", Path)),
    Argument("--out", "how the names of the other files begin", Value("PATH", Path)),
    _FORCE,
)


_command = partial(Command, epilog="")

COMMAND: Final = CommandGroup(
    "ca",
    "a private certificate authority",
    _command(
        "init",
        "make an authority",
        init,
        _FOLDER,
        Argument(
            "--name", "name in its certificate (default: %(default)s)", Value("NAME"), default=NAME
        ),
    ),
    _command("request", "make a key and a signing request", request, *_HOLDER),
    _command(
        "sign",
        "show a signing request, and sign it",
        sign,
        _FOLDER,
        Argument("request", "file of the request", Value("REQUEST")),
        Argument("--yes", "do not ask first, even on a terminal"),
        Argument(
            "--out",
            "file for the certificate (default: REQUEST with the suffix .pem)",
            Value("FILE", Path),
        ),
        _FORCE,
    ),
    _command("issue", "make a key and a certificate in one step", issue, _FOLDER, *_HOLDER),
    _command(
        "revoke",
        "put a certificate on the revocation list",
        revoke,
        _FOLDER,
        Argument(
            "certificate",
            "its file, or its serial number in hexadecimal",
            Value("CERTIFICATE|SERIAL"),
        ),
    ),
    _command("refresh", "sign the revocation list again, before it expires", refresh, _FOLDER),
    _command("list", "print issued certificates: serial, state, end, holder", show_all, _FOLDER),
    more="It is small, and kept in a folder.",
    epilog=EXAMPLES,
)
