"""Commands that speak with the mediator: their options, how they log in, the reactor they run in.

The others need no reactor, and import none.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.python.failure import Failure

from broker.cli.output import CommandFailed, Interrupted, NotAllowed, Unreachable
from broker.cli.table import FILE, ID, Argument, Run, Value, WrongUsage
from broker.files import InvalidFile
from broker.messages.errors import LoginRequired, Refused
from broker.messages.message import printable
from broker.messages.statements import CODES, LOGIN_REQUIRED
from broker.net.tls.contexts import parse_pin
from broker.service.process import handle_signals
from broker.service.settings import tls as tls_settings
from broker.service.settings.common import make_trace
from broker.service.settings.credentials import (
    FoundPassword,
    Keyring,
    NoPasswordGiven,
    PasswordSource,
    ask_password,
)
from broker.service.settings.values import Server, parse_server
from broker.service.terminal import name_outside
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.client import MediatorClient, NullEvents, dial

#: Seconds that an interrupted command has to send its last messages, such as the end of a call.
LAST_WORDS: Final = 0.1

DEFAULT_MEDIATOR: Final = parse_server("tcp:127.0.0.1:1201")
#: The options for a ``tls:`` mediator.
TLS_OPTIONS: Final = ("ca", "pin", "revocation-list", "certificate", "private-key")

AS: Final = Argument("--as", "identifier to act as", ID, dest="identifier", required=True)
MEDIATOR: Final = Argument(
    "--mediator",
    f"the mediator: tcp:HOST:PORT or tls:HOST:PORT (default: {DEFAULT_MEDIATOR.text})",
    Value("tcp:HOST:PORT", parse_server, "server"),
    default=DEFAULT_MEDIATOR,
)
#: What each command takes that speaks with the mediator, apart from ``AS``.
CONNECTION: Final = (
    MEDIATOR,
    Argument(
        "--ca",
        "CA that issued the certificate of a tls: mediator (default: the system's CAs)",
        FILE,
    ),
    Argument(
        "--pin",
        "SHA-256 of the public key of a tls: mediator; no other key is accepted",
        Value("SHA256", parse_pin, "pin"),
    ),
    Argument(
        "--revocation-list",
        "revocation list of the CA that --ca names",
        FILE,
        dest="revocation-list",
    ),
    Argument(
        "--certificate",
        "log in to a tls: mediator with this certificate instead of a password",
        FILE,
    ),
    Argument(
        "--private-key",
        "private key of --certificate, in a file that only you can read",
        FILE,
        dest="private-key",
    ),
    Argument(
        "--password-file",
        "read the password from this file, which only you can read (default: the one that"
        " broker login keeps; without one, you are asked if the mediator wants a login)",
        FILE,
    ),
    Argument(
        "--allow-clear-text",
        "allow a tcp: mediator on another machine, without encryption: others can read it",
    ),
    Argument("--trace", "show each message on standard error, with secrets masked"),
)


@dataclass(slots=True)
class Invocation:
    """One use of a command that speaks with the mediator.

    :ivar arguments: its arguments
    :ivar password: the password to log in with, if there is one
    :ivar call_password: the callee's, for a call with ``--connect-back``
    """

    reactor: Any
    arguments: Namespace
    password: FoundPassword | None = None
    call_password: FoundPassword | None = None

    async def connect(self, events: NullEvents | None = None) -> MediatorClient:
        """Connect, and log in if there is a password."""
        return await self.dial(events, None if self.password is None else self.password.password)

    async def dial(
        self, events: NullEvents | None = None, password: str | None = None
    ) -> MediatorClient:
        """Connect, and log in if a password is given."""
        arguments = self.arguments
        server: Server = arguments.mediator
        try:
            tls = tls_settings.mediator_tls(vars(arguments))
        except InvalidFile as error:
            raise CommandFailed(str(error)) from None
        try:
            return await dial(
                self.reactor,
                tls_settings.endpoint(self.reactor, server, tls),
                arguments.identifier,
                password=password,
                allow_clear_text=arguments.allow_clear_text,
                events=events,
                trace=self.trace(),
            )
        except (ConnectError, DNSLookupError) as error:
            raise Unreachable(f"the mediator at {server.text} can't be reached: {error}") from None

    def trace(self) -> Any:
        """What shows each message, with ``--trace``."""
        if not self.arguments.trace:
            return None
        return make_trace(partial(print, file=sys.stderr, flush=True), name_outside)


#: What a command does once a reactor runs. It may be run twice: see ``log_in_and_run``.
Steps = Callable[[Invocation], Coroutine[Any, Any, None]]


def at_mediator(steps: Steps) -> Run:
    """Make a command of what speaks with the mediator."""
    return lambda arguments: run_at_mediator(steps, arguments)


def run_at_mediator(
    steps: Steps,
    arguments: Namespace,
    find_call_password: Callable[[Namespace], FoundPassword | None] = lambda _: None,
) -> None:
    """Check the arguments, find the passwords, and run the steps in a reactor of their own.

    :param find_call_password: finds the callee's password for a call, where one is needed
    """
    check_connection(arguments)
    password = find_password(arguments)
    call_password = find_call_password(arguments)
    # Only here: other commands must not wait until a reactor is loaded and installed.
    from twisted.internet import reactor

    invocation = Invocation(reactor, arguments, password, call_password)
    run_in_reactor(lambda: log_in_and_run(steps, invocation), reactor)


def check_connection(arguments: Namespace) -> None:
    """See that nothing goes over a network in clear text by mistake (I25).

    :raises WrongUsage: it would
    """
    server: Server = arguments.mediator
    if not server.tls and any(vars(arguments)[name] is not None for name in TLS_OPTIONS):
        raise WrongUsage(  # ignoring these options would send everything in clear text
            "--ca and --pin go with --mediator tls:HOST:PORT, and so do --revocation-list,"
            " --certificate and --private-key"
        )
    exposed = tls_settings.clear_text_problem(server, allowed=arguments.allow_clear_text)
    if exposed is not None:
        raise WrongUsage(exposed)


def run_in_reactor(steps: Callable[[], Coroutine[Any, Any, None]], reactor: Any) -> None:
    """Run steps in a reactor that ends with them.

    :raises Interrupted: SIGINT or SIGTERM came
    :raises Exception: what the steps raise
    """
    reactor.seconds = time.monotonic  # so that a step of the wall clock fires no timer
    running: list[Deferred[None]] = []
    outcome: list[Failure | None] = []

    def begin() -> None:
        deferred = Deferred.fromCoroutine(steps())
        running.append(deferred)
        deferred.addBoth(end)

    def interrupt(received: signal.Signals) -> None:
        outcome.append(Failure(Interrupted(received)))
        running[0].cancel()

    def end(result: Failure | None) -> None:
        outcome.append(result)
        first = outcome[0]  # an interruption, if there was one: cancelling gives another failure
        given_up = first is not None and first.check(Interrupted, NoPasswordGiven)
        reactor.callLater(LAST_WORDS if given_up else 0, reactor.stop)

    # The reactor's own handlers would stop it at once, before the callee is told.
    handle_signals(reactor, interrupt)
    reactor.callWhenRunning(begin)
    reactor.run()
    if outcome[0] is not None:
        outcome[0].raiseException()


# Logging in.


async def log_in_and_run(steps: Steps, invocation: Invocation) -> None:
    """Run the steps; if the mediator wants a login and there is no password, ask for one.

    The steps run again then. That is safe: a command that needs a login has changed nothing when
    the mediator asks for it.
    """
    try:
        await _run_once(steps, invocation)
    except LoginRequired as refusal:
        if invocation.arguments.certificate is not None:  # refused, and a password can't replace it
            raise
        invocation.password = ask_password(invocation.arguments.identifier)
        if invocation.password is None:
            cause = f": {refusal.cause}" if refusal.cause else ""
            advice = _advice(invocation.arguments)
            raise NotAllowed(f"the mediator wants a login{cause}: {advice}") from None
        await _run_once(steps, invocation)


async def _run_once(steps: Steps, invocation: Invocation) -> None:
    """Run the steps; a refused login says which password was used, and what to do."""
    try:
        await steps(invocation)
    except CannotLogIn as refusal:
        raise NotAllowed(f"{refusal.cause}: use --allow-clear-text if it may") from None
    except Refused as refusal:
        found = invocation.password
        if found is None or refusal.code != CODES[LOGIN_REQUIRED]:
            raise
        cause = refusal.cause or refusal.statement
        source = f"it is the one in {found.file}; " if found.file is not None else ""
        raise NotAllowed(f"{cause}: {source}{_advice(invocation.arguments)}") from None


def _advice(arguments: Namespace) -> str:
    if arguments.command == "login":
        return "nothing is kept"
    words = ["broker", "login", "--as", arguments.identifier, "--mediator", arguments.mediator.text]
    return f"{shlex.join(words)} asks for the password; or name a --password-file"


def keyring() -> Keyring:
    """The passwords that this user keeps."""
    return Keyring.of(os.environ)


def find_password(arguments: Namespace) -> FoundPassword | None:
    """What to log in with, as far as that is known before the mediator asks.

    :raises InvalidFile: it can't be read
    :raises NoPasswordGiven: the person who was asked gave none
    """
    file = arguments.password_file
    if arguments.command == "login" and file is None:
        return ask_password(arguments.identifier)
    if arguments.certificate is not None and file is None:
        return None
    return PasswordSource(arguments.identifier, arguments.mediator.text, file, keyring()).find()


def account_at(arguments: Namespace) -> str:
    """Which password is meant, in words: ``Ib at tcp:127.0.0.1:1201``."""
    return printable(f"{arguments.identifier} at {arguments.mediator.text}")
