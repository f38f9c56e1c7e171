"""``twistd broker-terminal``: a terminal that stays registered and takes calls."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from broker.files import InvalidFile
from broker.messages.message import host_port
from broker.nat.context import NatContext
from broker.nat.mapper import PortMapper
from broker.net.hub import HubMember
from broker.service.errors import CannotStart
from broker.service.ports import reason
from broker.service.process import ProcessOwner, Role, own_process
from broker.service.settings import common as shared
from broker.service.settings import tls as tls_settings
from broker.service.settings.credentials import Keyring, PasswordSource, read_password
from broker.service.settings.options import RoleOptions
from broker.service.settings.setting import Setting, Settings
from broker.service.settings.values import (
    ADDRESS,
    ENTRY,
    FLAG,
    IDENTIFIER,
    LISTENER,
    NETWORK,
    PATH,
    PERCENT,
    SECONDS,
    SERVER,
    SIZE,
    Server,
    ValueType,
)
from broker.tables.consent_lists import NoConsent
from broker.tables.permits import ASK, LIST, PASSWORD
from broker.terminal.apps.files import FileReceiver, InThread, safe_name
from broker.terminal.calls.dial_back import Admits, knows
from broker.terminal.consent_file import ConsentFile, read_lists
from broker.terminal.load import CpuLoad
from broker.terminal.ports.port_mapping import VerifiedPortMapper
from broker.terminal.registration.client import MediatorClient
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal

#: The resolver's default UDP port.
UDP_PORT: Final = 1200


def parse_udp_server(text: str) -> tuple[str | None, int] | None:
    """Where to register by UDP: ``HOST:PORT``, ``[IPv6]:PORT``, ``auto``: the mediator's host."""
    if text in ("", "auto"):
        return (None, UDP_PORT) if text else None
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^][: ]+)):([0-9]{1,5})", text, re.ASCII)
    if found is None or not 0 < int(found[3]) <= 65535 or not text.isascii():
        raise ValueError(f"{text!r} is neither HOST:PORT nor auto")
    return found[1] or found[2], int(found[3])


def parse_policy(text: str) -> str | None:
    """The call policy: ``list``, ``ask``, ``password``; empty: keep the current one."""
    found = {"": None, "list": LIST, "ask": ASK, "password": PASSWORD}
    if text not in found:
        raise ValueError(f"{text!r} is neither list nor ask nor password")
    return found[text]


CLEAR_TEXT_WARNING: Final = "Messages to the mediator {mediator} are not encrypted"

T = TypeVar("T")


class TerminalOptions(RoleOptions):
    """The terminal's options."""

    role = "broker-terminal"
    longdesc = (
        "A terminal: it stays registered with its mediator under its identifier, and takes calls"
        " of the callers it permits. With --receive it stores what they send as files; without it"
        " takes no calls."
    )
    settings = (
        Setting("identifier", IDENTIFIER, "", "Identifier to log in as. Required."),
        Setting(
            "mediator",
            SERVER,
            "tcp:127.0.0.1:1201",
            "The mediator: tcp:HOST:PORT or tls:HOST:PORT.",
        ),
        *tls_settings.MEDIATOR_SETTINGS,
        Setting(
            "password-file",
            PATH,
            "",
            "File with the password, which only its owner can read. Default: the password that"
            " broker login keeps.",
        ),
        shared.CLEAR_TEXT,
        Setting(
            "listen",
            LISTENER,
            "tcp:1203",
            "Where to listen for calls: tcp:PORT[:interface=ADDRESS]. Calls are encrypted.",
        ),
        Setting(
            "address",
            ADDRESS,
            "",
            "IP address that callers are given. Default: the address from which the terminal"
            " reaches the mediator.",
        ),
        Setting(
            "udp",
            ValueType(parse_udp_server),
            "",
            "Also register by UDP: at HOST:PORT, or auto: port 1200 of the mediator's host. Without"
            " --address, callers are given the address that the datagrams come from.",
        ),
        Setting(
            "no-hold",
            FLAG,
            False,
            "Disconnect when idle. A UDP wake-up from the mediator makes the terminal reconnect."
            " Needs --udp.",
        ),
        Setting(
            "linger", SECONDS, 15, "With --no-hold: seconds until an idle connection is closed."
        ),
        Setting(
            "keepalive-most", SECONDS, 300, "With --udp: the longest keepalive interval in seconds."
        ),
        Setting(
            "open-port",
            FLAG,
            False,
            "Open the port of --listen in the router (PCP, NAT-PMP or UPnP) while the terminal"
            " runs. Callers are given the outside address and port, if the mediator can connect to"
            " them.",
        ),
        Setting(
            "accept",
            ENTRY,
            [],
            "Caller or @group to permit. Added once in each run: a permit that is withdrawn later"
            " stays withdrawn.",
            repeatable=True,
        ),
        Setting(
            "policy",
            ValueType(parse_policy),
            "",
            "Call policy: list: callers on the stored list; ask: ask this terminal for each call;"
            " password: only callers who know the call password (connect-back); the list is not in"
            " force. Default: keep the current policy.",
        ),
        Setting(
            "consent-file",
            PATH,
            "",
            "With --policy ask: the file that names the callers to accept and to reject. It is read"
            " for each call.",
        ),
        Setting(
            "call-password-file",
            PATH,
            "",
            "With --policy password: the file with the call password, which only its owner can"
            " read. It is read for each call.",
        ),
        Setting(
            "call-back-to",
            NETWORK,
            [],
            "Network to connect back to, such as 192.168.0.0/16, in addition to the Internet and"
            " the kind of network that the mediator is in.",
            repeatable=True,
        ),
        Setting(
            "name",
            IDENTIFIER,
            "",
            "Another name that callers can use. Where there are accounts, the operator must have"
            " given it to this one.",
        ),
        Setting(
            "receive",
            PATH,
            "",
            "Folder for what callers send, one file for each call. Default: take no calls.",
        ),
        Setting(
            "max-size", SIZE, "1G", "The most bytes in one file; K, M, G and T are powers of 1024."
        ),
        Setting("max-load", PERCENT, 0, "CPU load in percent above which it is busy. 0: never."),
        Setting("one-at-a-time", FLAG, False, "Be busy during a call."),
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        values = settings.values
        if values["identifier"] is None:
            yield f"{settings.where('identifier')}: name the identifier to log in as"
        yield from tls_settings.mediator_problems(settings)
        yield from _login_problems(settings)
        purpose = ", which names the callers to accept"
        yield from _policy_problems(settings, ASK, "consent-file", read_lists, purpose)
        yield from _policy_problems(settings, PASSWORD, "call-password-file", read_password)
        if values["no-hold"] and values["udp"] is None:
            yield f"{settings.where('no-hold')}: needs udp, which wakes the terminal"
        if values["open-port"] and values["address"] is not None:
            yield f"{settings.where('open-port')}: finds out the address itself: leave out address"
        folder = values["receive"]
        if folder is not None and not os.path.isdir(folder):
            yield f"{settings.where('receive')}: {folder} is no folder"
        elif folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            yield f"{settings.where('receive')}: files can't be written in {folder}"

    def pidfile(self) -> str:
        """Contains the identifier, because several terminals may run in one folder."""
        return f"{self.role}-{safe_name(self['identifier'])}.pid"


def _policy_problems(
    settings: Settings, policy: str, name: str, read: Callable[[str], object], purpose: str = ""
) -> Iterator[str]:
    """What is wrong with the file that one policy needs, and no other may have.

    :param name: the setting that names the file
    :param read: reads the file as it will be read later
    :param purpose: what the file is for, after a comma
    """
    file = settings.values[name]
    chosen = settings.values["policy"] == policy
    if chosen and file is None:
        yield f"{settings.where('policy')}: {policy.lower()} needs a {name}{purpose}"
    elif file is not None and not chosen:
        yield f"{settings.where(name)}: goes with the policy {policy.lower()}"
    elif file is not None:
        try:
            read(file)
        except (NoConsent, InvalidFile) as error:
            yield f"{settings.where(name)}: {error}"


def _login_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with how the terminal logs in."""
    values = settings.values
    server: Server = values["mediator"]
    exposed = tls_settings.clear_text_problem(server, allowed=values["allow-clear-text"])
    if exposed is not None:
        yield f"{settings.where('mediator')}: {exposed}"
    source = _password_source(values)
    if source is not None and values["identifier"] is not None:
        try:
            source.find()
        except InvalidFile as error:
            named = values["password-file"] is not None
            yield f"{settings.where('password-file')}: {error}" if named else str(error)


def _password_source(values: Any) -> PasswordSource | None:
    """Where the password comes from; ``None`` if a certificate is used instead."""
    file = values["password-file"]
    if values["certificate"] is not None and file is None:
        return None
    return PasswordSource(
        values["identifier"], values["mediator"].text, file, Keyring.of(os.environ)
    )


class TerminalService(Role):
    """The terminal, what it does with calls, and how it decides whether it is busy.

    :ivar terminal: the terminal
    :ivar renewal: reads the files of certificates again
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: TerminalOptions,
        in_thread: InThread,
        owner: ProcessOwner | None = None,
    ) -> None:
        """
        :param in_thread: runs what waits for the disk
        """
        super().__init__(owner)
        self._options = options
        tls = tls_settings.at_start(tls_settings.mediator_tls, options)
        self.renewal = tls_settings.Renewal(reactor, tls)
        limit = options["max-load"]
        self._load = CpuLoad(reactor, limit) if limit is not None else None
        self._opener = make_opener(reactor) if options["open-port"] else None
        self.terminal = Terminal(
            reactor,
            options["identifier"],
            tls_settings.endpoint(reactor, options["mediator"], tls),
            self._settings(reactor, in_thread),
        )

    def _settings(self, reactor: Any, in_thread: InThread) -> TerminalSettings:
        """The terminal's settings, from the options."""
        options = self._options
        return TerminalSettings(
            handler=_file_receiver(options, in_thread),
            load=self._load,
            one_at_a_time=options["one-at-a-time"],
            listen=serverFromString(reactor, options["listen"].text),
            address=options["address"],
            name=options["name"],
            opener=self._opener,
            open_port=options["open-port"],
            accept=options["accept"],
            policy=options["policy"],
            consent=_made(ConsentFile, options["consent-file"]),
            call_password=_made(_call_password, options["call-password-file"]),
            call_back_to=options["call-back-to"],
            password=_password_source(options),
            allow_clear_text=options["allow-clear-text"],
            udp=options["udp"],
            hold=not options["no-hold"],
            linger=options["linger"],
            keepalive_most=options["keepalive-most"],
            trace=shared.log_trace(name_outside) if options["trace"] else None,
        )

    async def open(self) -> None:
        """Open the direct listener."""
        mediator: Server = self._options["mediator"]
        if not mediator.loopback and not mediator.tls:
            self.log.warn(
                CLEAR_TEXT_WARNING,
                mediator=mediator.text,
            )
        self.terminal.startService()
        text = self._options["listen"].text
        try:
            port: Any = await self.terminal.listening
        except CannotListenError as error:
            raise CannotStart(f"cannot listen on {text}: {reason(error)}") from None
        address = port.getHost()
        self.log.info("Listening on {where}", where=host_port(address.host, address.port))

    def serve(self) -> None:
        self.renewal.start()
        if self._load is not None:
            self._load.start()

    def close(self) -> Deferred[Any]:
        self.renewal.stop()
        if self._load is not None:
            self._load.stop()
        stopped = maybeDeferred(self.terminal.stopService)
        if self._opener is not None:
            opener = self._opener
            stopped.addBoth(lambda _: opener.stop())
        return stopped


def _made(make: Callable[[str], T], path: str | None) -> T | None:
    """What a setting makes of a file, if it names one."""
    return None if path is None else make(path)


def _call_password(path: str) -> Admits:
    return knows(partial(read_password, path))


def _file_receiver(options: TerminalOptions, in_thread: InThread) -> FileReceiver | None:
    folder = options["receive"]
    if folder is None:
        return None
    return FileReceiver(
        folder, options["max-size"], now=lambda: datetime.now(UTC), in_thread=in_thread
    )


def make_opener(reactor: Any) -> VerifiedPortMapper:
    """What opens ports in this machine's router. It must be stopped."""
    return VerifiedPortMapper(PortMapper(NatContext(reactor)))


def name_outside(stream: HubMember) -> str:
    """What a terminal calls a peer in the trace: ``mediator``, or the address of another one."""
    return "mediator" if isinstance(stream.receiver, MediatorClient) else shared.address_of(stream)


# What twistd looks for.

Options = TerminalOptions


def makeService(config: TerminalOptions) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    in_thread: InThread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    service = TerminalService(reactor, config, in_thread, owner)
    service.renewal.on_hangup(reactor)
    return service
