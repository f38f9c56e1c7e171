"""Commands of a terminal about itself: its login, its address, and who was told that address."""

from __future__ import annotations

from argparse import Namespace
from typing import Final

from broker.cli.mediator import (
    AS,
    CONNECTION,
    MEDIATOR,
    Invocation,
    account_at,
    at_mediator,
    keyring,
)
from broker.cli.output import CommandFailed, Unreachable
from broker.cli.table import Argument, Command, Value
from broker.messages.grammar import SECONDS_MOST, number
from broker.messages.message import host_port, printable
from broker.messages.statements import REGISTRATION_COMPLETED
from broker.tables.disclosures import format_time
from broker.terminal.registration.client import DISCLOSURES_MOST, MediatorClient, NullEvents
from broker.terminal.registration.notices import PendingCall

_port = number(1, 65535)
_seconds = number(1, SECONDS_MOST)


async def log_in(invocation: Invocation) -> None:
    """Try a password at the mediator, and keep it."""
    arguments, found = invocation.arguments, invocation.password
    if found is None:
        raise CommandFailed("there is no terminal to ask for a password at: name a --password-file")
    client = await invocation.dial()
    answer = await client.register(password=found.password)
    await close(client)
    if "Token" not in answer.fields:
        account = account_at(arguments)
        raise CommandFailed(f"the mediator did not check the password of {account}: it is not kept")
    path = keyring().keep(arguments.identifier, arguments.mediator.text, found.password)
    print(f"The password of {account_at(arguments)} is right, and kept in {path}")


def log_out(arguments: Namespace) -> None:
    """Delete a password that is kept; needs no server."""
    found = keyring().forget(arguments.identifier, arguments.mediator.text)
    account = account_at(arguments)
    print(f"Deleted the password of {account}" if found else f"No password of {account} is kept")


class _Announcer(NullEvents):
    """Prints the calls that are announced to the registered terminal."""

    def acceptable(self) -> bool:
        """The program that listens at the registered address may take any call."""
        return True

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        """Fig. 5e, without its secrets."""
        print(f"A call from {printable(call.caller)} is announced", flush=True)

    def superseded(self) -> None:
        print("The mediator now uses another connection of this terminal", flush=True)


async def register(invocation: Invocation) -> None:
    """Register where a terminal is, and stay connected so that calls reach it."""
    arguments = invocation.arguments
    client = await invocation.connect(_Announcer())
    await client.register(address=arguments.address, port=arguments.port, expires=arguments.expires)
    print(REGISTRATION_COMPLETED, flush=True)
    if arguments.once:
        await close(client)
    else:
        await client.gone
        raise Unreachable("the mediator has closed the connection")


async def show_disclosures(invocation: Invocation) -> None:
    """Print who was told where a terminal is."""
    client = await invocation.connect()
    page = await client.disclosures()
    while page:
        for disclosure in page:
            where = host_port(disclosure.host, disclosure.port)
            columns = (format_time(disclosure.at), disclosure.recipient, where, disclosure.basis)
            print("\t".join(map(printable, columns)))
        more = len(page) >= DISCLOSURES_MOST
        page = await client.disclosures(page[-1].at) if more else []
    await close(client)


async def close(client: MediatorClient) -> None:
    """Close a connection, and wait until it is."""
    client.close()
    await client.gone


COMMANDS: Final = (
    Command(
        "login",
        "keep a password for later commands",
        at_mediator(log_in),
        AS,
        *CONNECTION,
        more="The password is first tried at the mediator. It is kept for that mediator"
        " only, in ~/.config/broker, where only you can read it.",
    ),
    Command(
        "logout",
        "delete a password that is kept",
        log_out,
        AS,
        MEDIATOR,
        more="This is the password of ID at the mediator.",
    ),
    Command(
        "register",
        "register where a terminal is",
        at_mediator(register),
        AS,
        *CONNECTION,
        Argument("--address", "IP address that callers are given", Value("IP"), required=True),
        Argument(
            "--port",
            "port that callers are given (default: 1203)",
            Value("NUMBER", lambda text: int(_port(text)), "port"),
        ),
        Argument(
            "--expires",
            "how long the address stays registered after the connection has ended (default: 3600)",
            Value("SECONDS", lambda text: int(_seconds(text)), "number of seconds"),
        ),
        Argument("--once", "register the address and exit, instead of staying connected"),
        more="The connection stays open until you interrupt the command. Calls are announced"
        " over it, and callers connect directly to the address.",
    ),
    Command(
        "disclosures",
        "print who was told where a terminal is",
        at_mediator(show_disclosures),
        AS,
        *CONNECTION,
        more="One line each, the newest first: time (UTC), caller, address, and the permit"
        " entry that allowed it, separated by tabs.",
    ),
)
