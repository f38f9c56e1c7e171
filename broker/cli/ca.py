"""``broker ca``: the commands of the private authority. Files only: no server, no reactor.

Exit status: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from broker.ca.authority import (
    Authority,
    AuthorityError,
    Kind,
    Names,
    Request,
    key_pem,
    kind_of,
    make_request,
    mediator_names,
    new_key,
    read_request,
    server_names,
    terminal_names,
    write_file,
)
from broker.messages.message import printable
from broker.net.tls.certificates import InvalidFile, Key, key_digest, read_key

FOLDER: Final = "ca"
NAME: Final = "broker authority"

EXAMPLES: Final = """\
examples:
  broker ca init                                 make an authority, in the folder ca
  broker ca issue --server signal.example.com    a key and a certificate for a server
  broker ca issue --terminal Ia                  the same for a terminal

Where a key is to stay on the machine that uses it:
  broker ca request --terminal Ia                there: terminal-Ia.key and terminal-Ia.csr
  broker ca sign terminal-Ia.csr                 where the authority is: terminal-Ia.pem

exit status: 0 done, 1 failed, 2 wrong usage
"""


class Mine(NamedTuple):
    """A private key, and where it is.

    :ivar new: whether it is still to be written there
    """

    key: Key
    path: Path
    new: bool


# The commands.


def init(arguments: argparse.Namespace) -> None:
    """Make an authority."""
    authority = Authority.make(arguments.folder, arguments.name)
    ends = authority.certificate.not_valid_after_utc
    print(f"{authority.name}, until {ends:%Y-%m-%d}, is in {arguments.folder}")
    print(f"  {authority.certificate_path}: give it to all servers and terminals")
    print(f"  {authority.revocations_path}: give it to all servers, again after each change")
    print(f"  {arguments.folder / 'authority.key'}: whoever has it is the authority: keep it away")


def request(arguments: argparse.Namespace) -> None:
    """Make a signing request, and a key for it where there is none."""
    names, base = _asked(arguments)
    mine = _key(arguments, base)
    path = _beside(base, ".csr")
    _spare(arguments, path)
    signed = make_request(names, mine.key)
    _keep(arguments, mine)
    write_file(path, signed.public_bytes(Encoding.PEM), replace=arguments.force)
    print(f"{path}: for `broker ca sign`, where the authority is")


def sign(arguments: argparse.Namespace) -> None:
    """Show what a request asks for, and sign it."""
    authority = Authority(arguments.folder)
    asked = read_request(arguments.request)
    path = arguments.out or Path(arguments.request).with_suffix(".pem")
    _spare(arguments, path)
    _show(asked)
    if not arguments.yes and sys.stdin.isatty() and not _agreed():
        raise AuthorityError("nothing was signed")
    _deliver(arguments, authority.issue(asked), path)


def issue(arguments: argparse.Namespace) -> None:
    """Make a key and a certificate in one."""
    authority = Authority(arguments.folder)
    names, base = _asked(arguments)
    mine = _key(arguments, base)
    path = _beside(base, ".pem")
    _spare(arguments, path)
    asked = Request(kind_of(names), names, mine.key.public_key())
    _show(asked)
    certificate = authority.issue(asked)
    _keep(arguments, mine)
    _deliver(arguments, certificate, path)


def revoke(arguments: argparse.Namespace) -> None:
    """Put a certificate on the revocation list."""
    authority = Authority(arguments.folder)
    text = arguments.certificate
    serial = authority.serial_of(text) if Path(text).exists() else _serial(text)
    if authority.revoke(serial):
        print(f"{serial:X} is revoked: give {authority.revocations_path} to all servers")
    else:
        print(f"{serial:X} had been revoked already")


def refresh(arguments: argparse.Namespace) -> None:
    """Sign the revocation list anew."""
    authority = Authority(arguments.folder)
    authority.refresh()
    print(f"{authority.revocations_path}: give it to all servers")


def show_all(arguments: argparse.Namespace) -> None:
    """Print what was issued, a line each."""
    for one in Authority(arguments.folder).issued():
        print(f"{one.serial:X} {one.state} {one.ends:%Y-%m-%d} {one.holder}")


# What they share.


def _asked(arguments: argparse.Namespace) -> tuple[Names, Path]:
    """Whom a certificate is for, and how its files' names begin."""
    names: Names
    if arguments.server:
        kind, first = Kind.SERVER, arguments.server[0]
        names = server_names(arguments.server)
    elif arguments.terminal is not None:
        kind, first = Kind.TERMINAL, arguments.terminal
        names = terminal_names(first)
    else:
        kind, first = Kind.MEDIATOR, arguments.mediator
        names = mediator_names(first)
    plain = "".join(c if c.isalnum() or c in "._-+@" else "_" for c in first)
    return names, arguments.out or Path(f"{kind.value}-{plain}")


def _beside(base: Path, suffix: str) -> Path:
    return base.with_name(base.name + suffix)  # with_suffix would cut a host's name


def _key(arguments: argparse.Namespace, base: Path) -> Mine:
    if arguments.key is not None and arguments.key.exists():
        return Mine(read_key(str(arguments.key)), arguments.key, False)
    path = arguments.key or _beside(base, ".key")
    _spare(arguments, path)
    return Mine(new_key(), path, True)


def _keep(arguments: argparse.Namespace, mine: Mine) -> None:
    if mine.new:
        write_file(mine.path, key_pem(mine.key), private=True, replace=arguments.force)
        print(f"{mine.path}: the private key, for its holder alone")


def _spare(arguments: argparse.Namespace, path: Path) -> None:
    """See that nothing would be overwritten, before anything is done."""
    if not arguments.force and path.exists():
        raise AuthorityError(f"{path}: is there already: --force replaces it, --out names another")


def _show(asked: Request) -> None:
    print(f"{asked.holder}, key {key_digest(asked.key)}")


def _agreed() -> bool:
    print("Sign it? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _deliver(arguments: argparse.Namespace, certificate: x509.Certificate, path: Path) -> None:
    write_file(path, certificate.public_bytes(Encoding.PEM), replace=arguments.force)
    ends = certificate.not_valid_after_utc
    print(f"{path}: certificate {certificate.serial_number:X}, until {ends:%Y-%m-%d}")


def _serial(text: str) -> int:
    digits = text.replace(":", "")
    if not 1 <= len(digits) <= 40 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise AuthorityError(f"{printable(text)}: no such file, and no serial in hexadecimal")
    return int(digits, 16)


# The command line.


def add_commands(commands: Any) -> None:
    """Add ``ca`` to the commands of a parser; each sets ``local`` to what runs it."""
    parser = commands.add_parser(
        "ca",
        help="a private certificate authority",
        description="A small private certificate authority, kept in a folder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    changes = parser.add_subparsers(dest="change", metavar="change", required=True)
    made = _add(changes, "init", "make an authority", init)
    made.add_argument(
        "--name", default=NAME, help="what its certificate calls it (default: %(default)s)"
    )
    made = _add(changes, "request", "make a key and a signing request", request, folder=False)
    _add_holder(made)
    made = _add(changes, "sign", "sign a request, after showing it", sign)
    made.add_argument("request", metavar="REQUEST", help="the file of the request")
    made.add_argument("--yes", action="store_true", help="do not ask, even on a terminal")
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="the certificate's file (REQUEST's name in .pem)"
    )
    _add_force(made)
    made = _add(changes, "issue", "make a key and a certificate in one", issue)
    _add_holder(made)
    made = _add(changes, "revoke", "put a certificate on the revocation list", revoke)
    made.add_argument(
        "certificate", metavar="CERTIFICATE|SERIAL", help="its file, or its serial in hexadecimal"
    )
    _add(changes, "refresh", "sign the revocation list anew, so that it stays good", refresh)
    _add(changes, "list", "print what was issued: serial, state, end, holder", show_all)


def _add(
    changes: Any,
    name: str,
    brief: str,
    run_it: Callable[[argparse.Namespace], None],
    *,
    folder: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = changes.add_parser(
        name, help=brief, description=f"{brief[0].upper()}{brief[1:]}."
    )
    if folder:
        parser.add_argument(
            "--folder",
            metavar="DIR",
            default=Path(FOLDER),
            type=Path,
            help="the authority's folder (default: %(default)s)",
        )
    parser.set_defaults(local=lambda arguments: run(run_it, arguments))
    return parser


def _add_holder(parser: argparse.ArgumentParser) -> None:
    holder = parser.add_mutually_exclusive_group(required=True)
    holder.add_argument(
        "--server",
        metavar="HOST",
        nargs="+",
        type=_name(lambda text: server_names([text])),
        help="for a server: its DNS names and IP addresses",
    )
    holder.add_argument(
        "--terminal",
        metavar="ID",
        type=_name(terminal_names),
        help="for a terminal: its identifier",
    )
    holder.add_argument(
        "--mediator",
        metavar="NAME",
        type=_name(mediator_names),
        help="for a mediator, to show to a resolver: its name there",
    )
    parser.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="the private key: used if it is there, else made there",
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="how the names of the other files begin"
    )
    _add_force(parser)


def _name(check: Callable[[str], Names]) -> Callable[[str], str]:
    """A type for argparse, which tells why a name is wrong."""

    def checked(text: str) -> str:
        try:
            check(text)
        except AuthorityError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return checked


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace files that are there")


def run(command: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Run one command.

    :return: the exit status
    """
    try:
        command(arguments)
    except (AuthorityError, InvalidFile) as error:
        return _say(str(error))
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}{error.strerror or error}")
    return 0


def _say(text: str) -> int:
    print(f"broker: {text}", file=sys.stderr, flush=True)
    return 1
