"""``broker call``: call a terminal, and send it a file or standard input."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any, BinaryIO, Final

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory
from twisted.internet.stdio import StandardIO
from twisted.internet.task import deferLater

from broker.cli.mediator import AS, CONNECTION, Invocation, run_at_mediator
from broker.cli.output import Progress
from broker.cli.table import FILE, Argument, Command, Section, Value, WrongUsage
from broker.cli.terminal import close
from broker.files import InvalidFile
from broker.messages.grammar import identifier
from broker.messages.message import printable
from broker.service.settings.credentials import FoundPassword, ask_password, read_password
from broker.service.settings.values import parse_listener, parse_place
from broker.service.terminal import make_opener
from broker.terminal.apps.files import FileSender
from broker.terminal.apps.pipe import Pipe
from broker.terminal.apps.receipt import Receipt
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.one_call import place_call_back, place_one_call
from broker.terminal.outgoing.connector import SLOWER
from broker.terminal.registration.client import MediatorClient


def run_call(arguments: Namespace) -> None:
    """Check the arguments, find the passwords, and call."""
    if arguments.call_password_file is not None and not arguments.connect_back:
        raise WrongUsage("--call-password-file goes with --connect-back")
    if arguments.open_port and arguments.outside is not None:
        raise WrongUsage("--open-port finds the outside address itself: leave out --outside")
    run_at_mediator(call, arguments, find_call_password)


def find_call_password(arguments: Namespace) -> FoundPassword | None:
    """The callee's call password, if it should connect back.

    :raises InvalidFile: it can't be read
    :raises NoPasswordGiven: the person who was asked gave none
    """
    if not arguments.connect_back:
        return None
    file = arguments.call_password_file
    if file is not None:
        return FoundPassword(read_password(file), file)
    found = ask_password(arguments.callee, "Call password")
    if found is None:
        raise InvalidFile(
            "there is no terminal to ask for the call password at: name a --call-password-file"
        )
    return found


async def call(invocation: Invocation) -> None:
    """Call a terminal, and send it a file or standard input."""
    reactor, arguments = invocation.reactor, invocation.arguments
    if arguments.send is None:
        blocking = [(number, os.get_blocking(number)) for number in (0, 1)]
        try:
            await _call(invocation, Pipe(_StandardStreams(reactor)))
        finally:  # these may be the shell's own terminal, which must block again
            for descriptor, blocked in blocking:
                os.set_blocking(descriptor, blocked)
        return
    with open(arguments.send, "rb") as file:
        progress = Progress(sys.stderr, _size(file), reactor)
        try:
            receipt = await _call(invocation, FileSender(file, progress=progress))
        finally:
            progress.end()
        print(f"{arguments.callee} has {receipt.octets} bytes, SHA-256 {receipt.digest}")


async def _call(invocation: Invocation, protocol: FileSender | Pipe) -> Receipt:
    arguments = invocation.arguments
    client = await invocation.connect()
    opener = make_opener(invocation.reactor) if arguments.open_port else None
    try:
        await _place(invocation, client, _Once(protocol), opener)
        if arguments.verbose or sys.stderr.isatty():
            _print_route(protocol)
        receipt = await protocol.done
        # Let the end of the call be sent before the connection to the mediator is closed.
        await deferLater(invocation.reactor, 0, lambda: None)
    finally:
        if opener is not None:
            await opener.stop()
    await close(client)
    return receipt


async def _place(
    invocation: Invocation, client: MediatorClient, factory: Factory, opener: Any
) -> None:
    """Have the two connected: by a permit, or by the callee's call password."""
    arguments = invocation.arguments
    listen = serverFromString(invocation.reactor, arguments.listen.text)
    port = CalleePort(listen, address=arguments.outside, opener=opener)
    trace = invocation.trace()
    peers = (invocation.reactor, client, arguments.callee, factory)
    if invocation.call_password is None:
        await place_one_call(*peers, port=port, trace=trace)
    else:
        password = invocation.call_password.password
        await place_call_back(*peers, password=password, port=port, trace=trace)


def _print_route(protocol: FileSender | Pipe) -> None:
    """Say how the callee was reached, and which candidates failed."""
    channel = protocol.transport
    candidate = getattr(channel, "candidate", None)
    if candidate is not None:
        failed = getattr(channel, "failed_candidates", ())
        others = "".join(f"; not {one}: {reason}" for one, reason in failed if reason != SLOWER)
        print(f"connected {candidate}{printable(others)}", file=sys.stderr)


class _StandardStreams:
    """This process's standard input and output."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def open(self, ends: IProtocol) -> StandardIO:
        """Open them."""
        return StandardIO(ends, reactor=self._reactor)


class _Once(Factory):
    """Gives the one protocol of the one call."""

    noisy = False

    def __init__(self, protocol: FileSender | Pipe) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> FileSender | Pipe:
        return self._protocol


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


COMMAND: Final = Command(
    "call",
    "call a terminal and send it something",
    run_call,
    AS,
    *CONNECTION,
    Argument("callee", "terminal to call", Value("CALLEE", identifier, "identifier")),
    Argument("--send", "send this file instead of standard input", FILE),
    Argument(
        "--verbose",
        "print on standard error how CALLEE was reached and which attempts failed, even if"
        " that is not a screen",
    ),
    Argument(
        "--open-port",
        "open a port in your router for the call (PCP, NAT-PMP or UPnP), and close it"
        " afterwards; this may take some seconds before the call begins",
    ),
    Argument(
        "--listen",
        "where CALLEE can connect to you: tcp:PORT[:interface=ADDRESS] (default: any free port)",
        Value("tcp:PORT", parse_listener, "listener"),
        default="tcp:0",
    ),
    Argument(
        "--outside",
        "IP address and port at which --listen is reached from outside (default: the"
        " address from which you reach the mediator, and the port of --listen)",
        Value("HOST:PORT", parse_place, "address"),
    ),
    Section(
        "connecting back",
        "A caller who knows a terminal's call password needs no permit.",
        Argument(
            "--connect-back", "ask CALLEE to connect to you; you are asked for its call password"
        ),
        Argument(
            "--call-password-file",
            "read the call password from this file, which only you can read",
            FILE,
        ),
    ),
    more="Standard input is sent, and what the callee sends goes to standard output. The"
    " command ends when the callee has confirmed that it has everything. The two connect"
    " by whichever route works: directly, within one network, by hole punching, or by"
    " CALLEE connecting to you.",
)
