"""The ``broker`` command: what a person does as a terminal, from a shell.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 the server can't be reached, 4 refused, and 128 and
the number of the signal that interrupted it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, Final, NoReturn, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

import broker
from broker.cli import admin as admin_cli
from broker.cli import ca as ca_cli
from broker.cli.arguments import argument
from broker.interfaces import StoreFailed
from broker.messages.errors import LoginRequired, Refused
from broker.messages.grammar import LIMITS, SECONDS_MOST, Rule, entry, identifier, number
from broker.messages.message import host_port, printable
from broker.messages.statements import CODES, LOGIN_REQUIRED, REGISTRATION_COMPLETED
from broker.net.tls.certificates import InvalidFile
from broker.net.tls.contexts import parse_pin
from broker.net.tls.errors import TlsFailed
from broker.service.process import handle_signals
from broker.service.settings import tls as secured
from broker.service.settings.common import make_trace, parse_store
from broker.service.settings.credentials import (
    Found,
    Keyring,
    NoAnswer,
    Source,
    ask_password,
    read_password,
)
from broker.service.settings.values import Server, parse_listener, parse_place, parse_server
from broker.service.terminal import make_opener, name_outside
from broker.store.backup import back_up
from broker.tables.consent_lists import NoConsent
from broker.tables.disclosures import format_time
from broker.tables.permits import as_edits
from broker.terminal.apps.files import FileSender, Receipt, TransferFailed
from broker.terminal.apps.pipe import Pipe
from broker.terminal.calls.wait_for_callee import place_call_back, place_one_call
from broker.terminal.consent_file import ACCEPT, REJECT, edit_file, read_lists
from broker.terminal.errors import CallFailed, CannotLogIn
from broker.terminal.outgoing.connector import SLOWER
from broker.terminal.registration.client import DISCLOSURES_MOST, MediatorClient, NullEvents, dial
from broker.terminal.registration.notices import PendingCall

DONE: Final = 0
FAILED: Final = 1
UNREACHABLE: Final = 3
REFUSED: Final = 4

#: Seconds that an interrupted call has to tell the callee that it is.
LAST_WORDS: Final = 0.1

EXIT_STATUS: Final = """\
exit status: 0 done, 1 failed, 2 wrong usage, 3 the server can't be reached, 4 refused (the cause is
on standard error), 130 interrupted
"""

DEFAULT_MEDIATOR: Final = parse_server("tcp:127.0.0.1:1201")
#: The options that say how a tls: mediator is to be spoken to.
TLS_OPTIONS: Final = ("ca", "pin", "revocation-list", "certificate", "private-key")

EXAMPLES: Final = f"""\
examples:
  broker login --as Ib                  keep Ib's password for the commands that follow
  broker permit add --as Ib Ia          let Ia call Ib
  broker permit add --as Ib --uses 1 If let If call it once
  broker permit list --as Ib            whom Ib lets call
  broker permit add --local Ib.consent Ia
                                        let Ia call a terminal that is asked each time
  broker disclosures --as Ib            who was told where Ib is
  broker call --as Ia Ib --send a.wav   send a file to Ib; done when Ib has it
  broker call --as Ia Ib <in >out       the same from a pipe, and what Ib says into another
  broker call --as Ia Ib --connect-back --send a.wav
                                        the same, by Ib's call password: Ib connects to you

{EXIT_STATUS}"""


class CannotBegin(Exception):
    """Something that the arguments name is not good; the text says what."""


class NotLoggedIn(Exception):
    """The mediator doesn't believe who this is; the text says so, and what to do."""


class Unreachable(Exception):
    """The mediator can't be reached, or went away; the text says which and why."""


# The commands.


async def permit(reactor: Any, arguments: argparse.Namespace) -> None:
    """Edit or list whom a terminal lets call (fig. 3)."""
    line = await _connect(reactor, arguments)
    if arguments.change == "list":
        for one in await line.accepted():
            print(printable(one if arguments.plain else limits_in_words(one)))
    elif arguments.change == "policy":
        await line.register(policy=arguments.policy.capitalize())
        print(REGISTRATION_COMPLETED)
    elif arguments.change in _REJECTS:
        await line.register(reject=as_edits(arguments.identifiers, _REJECTS[arguments.change]))
        print(REGISTRATION_COMPLETED)
    else:
        said = {name: getattr(arguments, name, None) for name in LIMITS}
        limits = "".join(f";{name}={most}" for name, most in said.items() if most is not None)
        entries = [f"{name}{limits}" for name in arguments.identifiers]
        await line.register(edits=as_edits(entries, arguments.change.capitalize()))
        print(REGISTRATION_COMPLETED)
    await _close(line)


#: Edits of the list of those who are refused.
_REJECTS: Final = {"refuse": "Add", "relent": "Delete"}


def permit_locally(arguments: argparse.Namespace) -> int:
    """Edit or list whom a terminal lets call in its own file; needs no server, and no reactor."""
    path = arguments.own_file
    try:
        if arguments.change == "list":
            lists = read_lists(path)
            for sign, names in ((ACCEPT, lists.accepted), (REJECT, lists.rejected)):
                for name in names:
                    print(printable(f"{sign} {name}"))
            return DONE
        sign, listed = _IN_FILE[arguments.change]
        lists = edit_file(path, arguments.identifiers, sign, listed=listed)
    except NoConsent as error:
        return _say(printable(str(error)), FAILED)
    except OSError as error:
        return _say(f"{printable(path)}: {error.strerror}", FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"{printable(path)} says so")
    if arguments.change == "add":
        refused = [name for name in dict.fromkeys(arguments.identifiers) if name in lists.rejected]
        if refused:
            remedy = shlex.join(["broker", "permit", "relent", "--local", path, *refused])
            _say(printable(f"{', '.join(refused)} is refused there, which wins: {remedy}"), DONE)
    return DONE


#: Which list in a terminal's own file a change is about, and whether those named are on it then.
_IN_FILE: Final = {
    "add": (ACCEPT, True),
    "delete": (ACCEPT, False),
    "refuse": (REJECT, True),
    "relent": (REJECT, False),
}

#: The arguments that are of use with a mediator's list and not with a file, and why.
_NOT_IN_FILE: Final = (
    (tuple(LIMITS), "a file has no limits; permit delete takes somebody off it"),
    (("plain",), "a file has no limits, and is always listed so"),
    (
        ("mediator", *TLS_OPTIONS, "password_file", "allow_clear_text", "trace"),
        "no mediator is spoken to",
    ),
)


def _not_in_file(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options beside ``--local``; ``None`` where nothing is."""
    for names, why in _NOT_IN_FILE:
        for name in names:
            said = vars(arguments).get(name)
            if said not in (None, False) and said is not DEFAULT_MEDIATOR:
                return f"--{name.replace('_', '-')} goes without --local: {why}"
    return None


async def disclosures(reactor: Any, arguments: argparse.Namespace) -> None:
    """Print who was told where a terminal is."""
    line = await _connect(reactor, arguments)
    told = await line.disclosures()
    while told:
        for one in told:
            where = host_port(one.host, one.port)
            columns = (format_time(one.at), one.told, where, one.basis)
            print("\t".join(map(printable, columns)))
        more = len(told) >= DISCLOSURES_MOST
        told = await line.disclosures(told[-1].at) if more else []
    await _close(line)


async def login(reactor: Any, arguments: argparse.Namespace) -> None:
    """Try a password at the mediator, and keep it."""
    found: Found | None = arguments.password
    if found is None:
        raise CannotBegin("there is no terminal to ask for a password at: name a --password-file")
    line = await _dial(reactor, arguments)
    answer = await line.register(password=found.password)
    await _close(line)
    shown = f"{arguments.identifier} at {arguments.mediator.text}"
    if "Token" not in answer.fields:
        raise CannotBegin(f"the mediator did not check the password of {shown}: it is not kept")
    path = _keyring().keep(arguments.identifier, arguments.mediator.text, found.password)
    print(f"The password of {printable(shown)} is right, and kept in {path}")


def logout(arguments: argparse.Namespace) -> int:
    """Forget a password that is kept; needs no server."""
    shown = printable(f"{arguments.identifier} at {arguments.mediator.text}")
    try:
        kept = _keyring().forget(arguments.identifier, arguments.mediator.text)
    except OSError as error:
        return _say(f"{error.filename}: {error.strerror}", FAILED)
    print(
        f"The password of {shown} is kept no longer" if kept else f"No password of {shown} is kept"
    )
    return DONE


def limits_in_words(listed: str) -> str:
    """An entry of a list for a person: ``Ia (59 min left, 1 call left)``."""
    name, *limits = listed.split(";")
    words = []
    for limit in limits:
        kind, _, left = limit.partition("=")
        count = int(left)
        if kind == "uses":
            words.append(f"{count} {'call' if count == 1 else 'calls'} left")
        else:
            unit, size = next(
                (unit, size) for unit, size in _UNITS if count >= 2 * size or size == 1
            )
            words.append(f"{count // size} {unit} left")
    return f"{name} ({', '.join(words)})" if words else name


_UNITS: Final = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))


async def register(reactor: Any, arguments: argparse.Namespace) -> None:
    """Register where a terminal is, and stay so that it is reached."""
    line = await _connect(reactor, arguments, _Announcer())
    await line.register(address=arguments.address, port=arguments.port, expires=arguments.expires)
    print(REGISTRATION_COMPLETED, flush=True)
    if arguments.once:
        await _close(line)
    else:
        await line.gone
        raise Unreachable("the mediator has closed the connection")


async def call(reactor: Any, arguments: argparse.Namespace) -> None:
    """Call a terminal, and send it a file or what is on standard input."""
    if arguments.send is None:
        blocking = [(number, os.get_blocking(number)) for number in (0, 1)]
        try:
            pipe = Pipe(lambda protocol: StandardIO(protocol, reactor=reactor))
            await _call(reactor, arguments, pipe)
        finally:  # the shell's own terminal, it may be
            for descriptor, was in blocking:
                os.set_blocking(descriptor, was)
        return
    with open(arguments.send, "rb") as file:
        progress = Progress(sys.stderr, _size(file), time.monotonic)
        try:
            receipt = await _call(reactor, arguments, FileSender(file, progress=progress.at))
        finally:
            progress.end()
        print(f"{arguments.callee} has {receipt.octets} bytes, SHA-256 {receipt.digest}")


def backup(arguments: argparse.Namespace) -> int:
    """Copy a store to a file; needs no server, and no reactor."""
    try:
        back_up(arguments.store, arguments.file)
    except StoreFailed as error:
        return _say(printable(str(error)), FAILED)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"{printable(arguments.file)} is a copy of {printable(arguments.store)}")
    return DONE


async def _call(
    reactor: Any, arguments: argparse.Namespace, protocol: FileSender | Pipe
) -> Receipt:
    line = await _connect(reactor, arguments)
    # A protocol's outcome is also told when it has failed before it is waited for.
    callee, factory, trace = arguments.callee, _Once(protocol), _trace(arguments)
    listen = serverFromString(reactor, arguments.listen.text)
    opener = make_opener(reactor) if arguments.open_port else None
    try:
        if arguments.connect_back:
            await place_call_back(
                reactor,
                line,
                callee,
                factory,
                password=arguments.call_password.password,
                listen=listen,
                address=arguments.outside,
                opener=opener,
                trace=trace,
            )
        else:
            await place_one_call(
                reactor,
                line,
                callee,
                factory,
                listen=listen,
                address=arguments.outside,
                opener=opener,
                trace=trace,
            )
        if arguments.verbose or sys.stderr.isatty():
            _tell_way(protocol)
        receipt = await protocol.done
        await deferLater(reactor, 0, lambda: None)  # the end of the call is reported first
    finally:
        if opener is not None:
            await opener.stop()
    await _close(line)
    return receipt


def _tell_way(protocol: FileSender | Pipe) -> None:
    """Say how the callee is reached, and by which candidates it could not be."""
    channel = protocol.transport
    candidate = getattr(channel, "candidate", None)
    if candidate is not None:
        failed = getattr(channel, "failed_candidates", ())
        others = "".join(f"; not {one}: {reason}" for one, reason in failed if reason != SLOWER)
        print(f"connected {candidate}{printable(others)}", file=sys.stderr)


class _Once(Factory):
    """Gives the one protocol of the one call."""

    noisy = False

    def __init__(self, protocol: FileSender | Pipe) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> FileSender | Pipe:
        return self._protocol


class _Announcer(NullEvents):
    """Says which calls would come to the terminal that is registered."""

    def acceptable(self) -> bool:
        """Whoever listens at the registered address may."""
        return True

    def announced(self, line: MediatorClient, call: PendingCall) -> None:
        """Fig. 5e, without its secrets."""
        print(f"A call from {printable(call.caller)} is announced", flush=True)

    def superseded(self) -> None:
        print("The terminal is reached elsewhere from now on", flush=True)


async def _connect(
    reactor: Any, arguments: argparse.Namespace, told: NullEvents | None = None
) -> MediatorClient:
    """A connection that is logged in, where there is a password."""
    found: Found | None = arguments.password
    return await _dial(reactor, arguments, told, None if found is None else found.password)


async def _dial(
    reactor: Any,
    arguments: argparse.Namespace,
    told: NullEvents | None = None,
    password: str | None = None,
) -> MediatorClient:
    server: Server = arguments.mediator
    try:
        endpoint = secured.endpoint(reactor, server, secured.to_mediator(vars(arguments)))
    except InvalidFile as error:
        raise CannotBegin(printable(str(error))) from None
    try:
        return await dial(
            reactor,
            endpoint,
            arguments.identifier,
            password=password,
            allow_clear_text=arguments.allow_clear_text,
            told=told,
            trace=_trace(arguments),
        )
    except (ConnectError, DNSLookupError) as error:
        raise Unreachable(f"the mediator at {server.text} can't be reached: {error}") from None


async def _close(line: MediatorClient) -> None:
    line.close()
    await line.gone


def _trace(arguments: argparse.Namespace) -> Any:
    if not arguments.trace:
        return None
    return make_trace(partial(print, file=sys.stderr, flush=True), name_outside)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


# Logging in.


async def as_terminal(reactor: Any, arguments: argparse.Namespace) -> None:
    """Run a command; where the mediator wants a login that nothing was said of, ask the person.

    It may be run twice then: what wants a login first has done nothing.
    """
    try:
        await _told_why(reactor, arguments)
    except LoginRequired as refusal:
        if arguments.certificate is not None:  # which was not good, and a password were no remedy
            raise
        arguments.password = ask_password(arguments.identifier)
        if arguments.password is None:
            cause = f": {refusal.cause}" if refusal.cause else ""
            raise NotLoggedIn(f"the mediator wants a login{cause}: {_advice(arguments)}") from None
        await _told_why(reactor, arguments)


async def _told_why(reactor: Any, arguments: argparse.Namespace) -> None:
    try:
        await arguments.run(reactor, arguments)
    except Refused as refusal:
        if isinstance(refusal, CannotLogIn):
            raise NotLoggedIn(f"{refusal.cause}: say --allow-clear-text if it may") from None
        found: Found | None = arguments.password
        if found is None or refusal.code != CODES[LOGIN_REQUIRED]:
            raise
        cause = refusal.cause or refusal.statement
        whence = f"it is the one in {found.file}; " if found.file is not None else ""
        raise NotLoggedIn(f"{cause}: {whence}{_advice(arguments)}") from None


def _advice(arguments: argparse.Namespace) -> str:
    if arguments.run is login:
        return "nothing is kept"
    words = ["broker", "login", "--as", arguments.identifier, "--mediator", arguments.mediator.text]
    return f"{shlex.join(words)} asks for the password; or name a --password-file"


def _keyring() -> Keyring:
    return Keyring.of(os.environ)


def _find_password(arguments: argparse.Namespace) -> Found | None:
    """What to log in with, as far as that is known before the mediator asks.

    :raises Unusable: it can't be had
    """
    file = arguments.password_file
    if arguments.command == "login" and file is None:
        return ask_password(arguments.identifier)
    if arguments.certificate is not None and file is None:
        return None
    return Source(arguments.identifier, arguments.mediator.text, file, _keyring()).find()


def _find_call_password(arguments: argparse.Namespace) -> Found | None:
    """The callee's call password, where it is to connect back.

    :raises Unusable: it can't be had
    """
    if not vars(arguments).get("connect_back"):
        return None
    file = arguments.call_password_file
    if file is not None:
        return Found(read_password(file), file)
    found = ask_password(arguments.callee, "Call password")
    if found is None:
        raise InvalidFile(
            "there is no terminal to ask for the call password at: name a --call-password-file"
        )
    return found


class Progress:
    """A bar that grows, on a terminal; nothing at all elsewhere."""

    WIDTH: Final = 30
    INTERVAL: Final = 0.1

    def __init__(self, stream: TextIO, total: int, seconds: Callable[[], float]) -> None:
        """
        :param total: bytes that there are to send
        :param seconds: the time, to draw no more often than can be seen
        """
        self._stream = stream
        self._total = total
        self._seconds = seconds
        self._shown = stream.isatty() and total > 0
        self._drawn = ""
        self._next = 0.0

    def at(self, octets: int) -> None:
        """So many bytes have gone."""
        now = self._seconds()
        if not self._shown or (now < self._next and octets < self._total):
            return
        self._next = now + self.INTERVAL
        part = min(1.0, octets / self._total)
        bar = "#" * int(part * self.WIDTH)
        self._drawn = f"[{bar:<{self.WIDTH}}] {part:4.0%} of {self._total / 1e6:.1f} MB"
        self._stream.write(f"\r{self._drawn}")
        self._stream.flush()

    def end(self) -> None:
        """Nothing more goes: leave the line."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = ""


# The command line.


def _number(rule: Rule, noun: str) -> Callable[[str], int]:
    return argument(lambda text: int(rule(text)), noun)


def make_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(
        prog="broker",
        description="Act as a terminal: say who may call it, register where it is, call another.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"broker {broker.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    _add_login(commands)
    permits = _add_permit(commands)
    _add_register(commands)
    _add_call(commands)
    _add_disclosures(commands)
    _add_backup(commands)
    admin_cli.add_commands(commands, permits)
    ca_cli.add_commands(commands)
    return parser


def _add_command(
    commands: Any,
    name: str,
    brief: str,
    more: str = "",
    epilog: str = EXIT_STATUS,
    *,
    in_file: bool = False,
) -> argparse.ArgumentParser:
    """A command with the options that all have that speak with the mediator."""
    parser = _add_for(commands, name, brief, more, epilog, in_file=in_file)
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="the authority that has issued a tls: mediator's certificate; without, those that the"
        " system trusts",
    )
    parser.add_argument(
        "--pin",
        metavar="SHA256",
        type=argument(parse_pin, "pin"),
        help="the digest of a tls: mediator's public key: no other key will do",
    )
    parser.add_argument(
        "--revocation-list",
        dest="revocation-list",
        metavar="FILE",
        help="what the authority named by --ca has revoked",
    )
    parser.add_argument(
        "--certificate",
        metavar="FILE",
        help="the certificate that proves ID to a tls: mediator; no password is looked for then",
    )
    parser.add_argument(
        "--private-key",
        dest="private-key",
        metavar="FILE",
        help="its private key, which nobody else may be able to read",
    )
    parser.add_argument(
        "--password-file",
        metavar="FILE",
        help="the file of the password, which nobody else may be able to read; without, what broker"
        " login keeps, or else you are asked where the mediator asks",
    )
    parser.add_argument(
        "--allow-clear-text",
        action="store_true",
        help="speak in clear text with a tcp: mediator on another machine: others can read it",
    )
    parser.add_argument(
        "--trace", action="store_true", help="show each message on standard error; secrets masked"
    )
    return parser


def _add_for(
    commands: Any,
    name: str,
    brief: str,
    more: str = "",
    epilog: str = EXIT_STATUS,
    *,
    in_file: bool = False,
) -> argparse.ArgumentParser:
    """A command for one identifier at one mediator, or else for a terminal's own file."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=f"{brief[0].upper()}{brief[1:]}. {more}".strip(),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --password is no option, and no short form of --password-file
    )
    whose = parser.add_mutually_exclusive_group(required=True) if in_file else parser
    whose.add_argument(
        "--as",
        dest="identifier",
        metavar="ID",
        required=not in_file,
        type=argument(identifier, "identifier"),
        help="whom to act as",
    )
    if in_file:
        whose.add_argument(
            "--local",
            dest="own_file",
            metavar="FILE",
            help="do it in the --consent-file of a terminal on this machine, which says for itself"
            " who may call; without any mediator, and so without any of the options about one",
        )
    parser.add_argument(
        "--mediator",
        metavar="tcp:HOST:PORT",
        default=DEFAULT_MEDIATOR,
        type=argument(parse_server, "server"),
        help="where the mediator is: tcp:HOST:PORT, or tls:HOST:PORT (default:"
        f" {DEFAULT_MEDIATOR.text})",
    )
    return parser


def _add_login(commands: Any) -> None:
    parser = _add_command(
        commands,
        "login",
        "keep a password for the commands that follow",
        "It is tried at the mediator first, and kept for that\nmediator alone, in"
        " ~/.config/broker, where nobody else can read it.",
    )
    parser.set_defaults(run=login)
    parser = _add_for(
        commands,
        "logout",
        "forget the password that is kept",
        "The password of ID at the mediator, that is.",
    )
    parser.set_defaults(local=logout)


def _add_disclosures(commands: Any) -> None:
    parser = _add_command(
        commands,
        "disclosures",
        "print who was told where a terminal is",
        "The newest first, one a line: when (UTC), who, the\naddress, and the entry that"
        " permitted it; parted by tabs.",
    )
    parser.set_defaults(run=disclosures)


def _add_permit(commands: Any) -> Any:
    """The commands about permits.

    :return: where others may be added
    """
    group = commands.add_parser(
        "permit",
        help="say who may call",
        description="Say who may call: in the list that the mediator keeps (--as), or in the file"
        " of a terminal that says for itself who may (--local).",
    )
    changes = group.add_subparsers(dest="change", metavar="change", required=True)
    for name, brief in (
        ("create", "let these call and nobody else; nobody at all, without any"),
        ("add", "let these call too"),
        ("delete", "let these call no longer"),
    ):
        parser = _add_command(changes, name, brief, in_file=name in _IN_FILE)
        parser.add_argument(
            "identifiers",
            metavar="ID",
            nargs="*" if name == "create" else "+",
            type=argument(entry, "identifier"),
            help="a terminal, or a group: @family",
        )
        if name != "delete":
            parser.add_argument(
                "--expires",
                metavar="SECONDS",
                type=_number(LIMITS["expires"], "number of seconds"),
                help="for so long only",
            )
            parser.add_argument(
                "--uses",
                metavar="NUMBER",
                type=_number(LIMITS["uses"], "number of calls"),
                help="for so many calls each only",
            )
        if name == "create":
            _keep_from_files(parser, name, "a file is changed by add, delete, refuse and relent")
        parser.set_defaults(run=permit)
    for name, brief in (
        ("refuse", "let these never call, whoever else lets them"),
        ("relent", "refuse these no longer"),
    ):
        parser = _add_command(changes, name, brief, in_file=True)
        parser.add_argument(
            "identifiers",
            metavar="ID",
            nargs="+",
            type=argument(entry, "identifier"),
            help="a terminal, or a group: @family",
        )
        parser.set_defaults(run=permit)
    parser = _add_command(
        changes, "policy", "say who decides: the list, the terminal each time, or its call password"
    )
    parser.add_argument("policy", choices=["list", "ask", "password"], help="who decides")
    _keep_from_files(
        parser,
        "policy",
        "a terminal with a file is started with --policy ask --consent-file FILE",
    )
    parser.set_defaults(run=permit)
    parser = _add_command(
        changes,
        "list",
        "print who may call, one a line",
        "From a file (--local) those who are refused, too:\n+ Ia, - Ix.",
        in_file=True,
    )
    parser.add_argument(
        "--plain", action="store_true", help="limits as the mediator has them: Ia;expires=60;uses=1"
    )
    parser.set_defaults(run=permit)
    return changes


def _keep_from_files(parser: argparse.ArgumentParser, change: str, advice: str) -> None:
    """Have a change that only a mediator's list knows say so, where it is told a file."""

    def refuse(_: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"{change} is for a mediator's list (--as ID); {advice}")

    parser.add_argument("--local", type=refuse, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_register(commands: Any) -> None:
    parser = _add_command(
        commands,
        "register",
        "register where a terminal is",
        "The connection is held until it is interrupted, so that\nthe terminal is reached over it:"
        " calls are announced, and the direct connections of callers\ngo to the address.",
    )
    parser.add_argument(
        "--address", required=True, metavar="IP", help="the IP address that callers are given"
    )
    parser.add_argument(
        "--port",
        type=_number(number(1, 65535), "port"),
        help="the port that callers are given (1203 without)",
    )
    parser.add_argument(
        "--expires",
        metavar="SECONDS",
        type=_number(number(1, SECONDS_MOST), "number of seconds"),
        help="how long the address holds once the connection is gone (3600 without)",
    )
    parser.add_argument(
        "--once", action="store_true", help="do not hold the connection: leave the address only"
    )
    parser.set_defaults(run=register)


def _add_call(commands: Any) -> None:
    parser = _add_command(
        commands,
        "call",
        "call a terminal and send it something",
        "What is on standard input is sent, and what the callee\nsays goes to standard output. It"
        " is done when the callee has everything and has said so.\nThe two are connected whichever"
        " way leads there: directly, within one network, by both sides\ndialling, or by CALLEE's"
        " connecting to you.",
    )
    parser.add_argument(
        "callee", metavar="CALLEE", type=argument(identifier, "identifier"), help="whom to call"
    )
    parser.add_argument("--send", metavar="FILE", help="send this file instead")
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="say on standard error which way led there, and which did not, even if that is no"
        " screen",
    )
    parser.add_argument(
        "--open-port",
        action="store_true",
        help="have your router open a port for the call (by PCP, NAT-PMP or UPnP), and close it"
        " after it; that may take some seconds, before the call begins",
    )
    parser.add_argument(
        "--listen",
        metavar="tcp:PORT",
        type=argument(parse_listener, "listener"),
        default="tcp:0",
        help="where CALLEE can connect to you: tcp:PORT[:interface=ADDRESS] (any free port,"
        " without)",
    )
    parser.add_argument(
        "--outside",
        metavar="HOST:PORT",
        type=argument(parse_place, "address"),
        help="the IP address and port by which that is reached from outside; without, the address"
        " by which you reach the mediator, and the port that you listen on",
    )
    back = parser.add_argument_group(
        "connecting back", "Whoever knows a terminal's call password needs no permit."
    )
    back.add_argument(
        "--connect-back",
        action="store_true",
        help="ask CALLEE to connect to you; you are asked for its call password",
    )
    back.add_argument(
        "--call-password-file",
        metavar="FILE",
        help="the file of its call password, which nobody else may be able to read",
    )
    parser.set_defaults(run=call)


def _add_backup(commands: Any) -> None:
    parser = commands.add_parser(
        "backup",
        help="copy the store of a mediator to a file",
        description="Copy the store of a mediator, which may be running, to a file. An earlier"
        " backup of\nthat name is replaced once the new one is complete. To restore it: stop the"
        " mediator,\nmove the database and what lies beside it away, and put the copy in its"
        " place.",
        epilog="exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store",
        metavar="sqlite:PATH",
        required=True,
        type=argument(_database, "store"),
        help="where the mediator keeps what must survive",
    )
    parser.add_argument("file", metavar="FILE", help="where the copy goes")
    parser.set_defaults(local=backup)


def _database(text: str) -> str:
    path = parse_store(text)
    if path is None:
        raise ValueError("there is no file to copy")
    return path


# Running one.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    :return: the exit status
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if vars(arguments).get("own_file") is not None:
        wrong = _not_in_file(arguments)
        if wrong is not None:
            parser.error(wrong)
        return permit_locally(arguments)
    if "local" in arguments:  # it needs no server
        status: int = arguments.local(arguments)
        return status
    server: Server = arguments.mediator
    if not server.tls and any(vars(arguments)[name] is not None for name in TLS_OPTIONS):
        parser.error(  # else all is in clear
            "--ca and --pin go with --mediator tls:HOST:PORT, and so do --revocation-list,"
            " --certificate and --private-key"
        )
    exposed = secured.in_clear(server, allowed=arguments.allow_clear_text)
    if exposed is not None:
        parser.error(exposed)
    if arguments.run is call:
        if arguments.call_password_file is not None and not arguments.connect_back:
            parser.error("--call-password-file goes with --connect-back")
        if arguments.open_port and arguments.outside is not None:
            parser.error("--open-port goes without --outside, which it finds out")
    try:
        arguments.password = _find_password(arguments)
        arguments.call_password = _find_call_password(arguments)
    except (InvalidFile, NoAnswer):
        return _explain(Failure())
    from twisted.internet import reactor

    return run(lambda the_reactor: as_terminal(the_reactor, arguments), reactor)


def run(command: Callable[[Any], Any], reactor: Any) -> int:
    """Run one command in a reactor of its own.

    :return: the exit status
    """
    reactor.seconds = time.monotonic
    status: list[int] = []
    doing: list[Deferred[None]] = []

    def begin() -> None:
        deferred = Deferred.fromCoroutine(command(reactor))
        doing.append(deferred)
        deferred.addBoth(end)

    def interrupted(received: signal.Signals) -> None:
        status.append(128 + received)
        doing[0].cancel()

    def end(result: Failure | None) -> None:
        if not status:
            status.append(_explain(result) if isinstance(result, Failure) else DONE)
        reactor.callLater(LAST_WORDS if status[0] > 128 else 0, reactor.stop)

    handle_signals(reactor, interrupted)
    reactor.callWhenRunning(begin)
    reactor.run()
    return status[0]


def _explain(failure: Failure) -> int:
    """Say what went wrong in a line, and give the status for it."""
    error = failure.value
    if isinstance(error, Refused):
        why = f" ({printable(error.cause)})" if error.cause else ""
        return _say(f"{error.statement}{why}", REFUSED)
    if isinstance(error, TlsFailed):
        return _say(f"the mediator can't be spoken to over TLS: {error}", UNREACHABLE)
    if isinstance(error, NoAnswer):
        return 128 + signal.SIGINT
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)
    if status is not None:
        return _say(printable(str(error)), status)
    if isinstance(error, ConnectionClosed):
        return _say("the mediator has closed the connection", UNREACHABLE)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return _say(f"{name}{error.strerror or error}", FAILED)
    failure.printTraceback(file=sys.stderr)
    return FAILED


#: Exceptions whose text says all, and the status that each ends with.
_STATUS: Final[dict[type[BaseException], int]] = {
    CannotBegin: FAILED,
    CallFailed: FAILED,
    NotLoggedIn: REFUSED,
    TransferFailed: FAILED,
    Unreachable: UNREACHABLE,
    InvalidFile: FAILED,
}


def _say(text: str, status: int) -> int:
    print(f"broker: {text}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
