"""``twistd broker-terminal``: a terminal that keeps itself registered and takes calls."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from broker.files import InvalidFile
from broker.messages.message import host_port
from broker.nat.mapper import Changed, PortMapper
from broker.net.hub import HubMember
from broker.service.ports import reason
from broker.service.process import CannotStart, Owner, Role, own_process
from broker.service.settings import common as shared
from broker.service.settings import tls as secured
from broker.service.settings.credentials import Keyring, Source, read_password
from broker.service.settings.options import RoleOptions
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
    Kind,
    Server,
    Setting,
    Settings,
)
from broker.tables.consent_lists import NoConsent
from broker.tables.permits import ASK, LIST, PASSWORD
from broker.terminal.apps.files import FileReceiver, InThread, safe_name
from broker.terminal.calls.dial_back import knows
from broker.terminal.consent_file import ConsentFile, read_lists
from broker.terminal.load import CpuLoad
from broker.terminal.ports.port_mapping import VerifiedPortMapper
from broker.terminal.registration.client import MediatorClient
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal

#: The port for datagrams, where a resolver is told no other.
UDP_PORT: Final = 1200


def parse_udp_server(text: str) -> tuple[str | None, int] | None:
    """Where datagrams are sent: ``HOST:PORT``, ``[IPv6]:PORT``; ``auto`` where the mediator is."""
    if text in ("", "auto"):
        return (None, UDP_PORT) if text else None
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^][: ]+)):([0-9]{1,5})", text, re.ASCII)
    if found is None or not 0 < int(found[3]) <= 65535 or not text.isascii():
        raise ValueError(f"{text!r} is neither HOST:PORT nor auto")
    return found[1] or found[2], int(found[3])


def parse_policy(text: str) -> str | None:
    """How its consent is had: ``list``, ``ask``, ``password``; for the empty text, as it was."""
    found = {"": None, "list": LIST, "ask": ASK, "password": PASSWORD}
    if text not in found:
        raise ValueError(f"{text!r} is neither list nor ask nor password")
    return found[text]


class Options(RoleOptions):
    """The terminal's options."""

    role = "broker-terminal"
    longdesc = (
        "A terminal: it stays connected to its mediator under its identifier, and takes the calls"
        " of those whom it accepts. With --receive it keeps what they send as files; without, it"
        " takes no calls."
    )
    settings = (
        Setting("identifier", IDENTIFIER, "", "Whom it acts as; there is no default."),
        Setting(
            "mediator",
            SERVER,
            "tcp:127.0.0.1:1201",
            "The mediator: tcp:HOST:PORT, or tls:HOST:PORT.",
        ),
        *secured.TO_MEDIATOR,
        Setting(
            "password-file",
            PATH,
            "",
            "The file of the password, which nobody else may be able to read; without, what broker"
            " login keeps.",
        ),
        shared.CLEAR_TEXT,
        Setting(
            "listen",
            LISTENER,
            "tcp:1203",
            "Where calls arrive: tcp:PORT[:interface=ADDRESS]. Calls are encrypted.",
        ),
        Setting(
            "address",
            ADDRESS,
            "",
            "The IP address that callers are given; without, the one by which it reaches the"
            " mediator.",
        ),
        Setting(
            "udp",
            Kind(parse_udp_server),
            "",
            "Where it registers by UDP besides: HOST:PORT, or auto for port 1200 where the mediator"
            " is. Without --address, callers are given the address that its datagrams come from.",
        ),
        Setting(
            "no-hold",
            FLAG,
            False,
            "With --udp: close the connection to the mediator while there is nothing to do; what"
            " comes along the datagrams' way has it made again.",
        ),
        Setting("linger", SECONDS, 15, "With --no-hold: seconds before it is closed."),
        Setting(
            "keepalive-most",
            SECONDS,
            300,
            "With --udp: seconds from one datagram to the next, at the most.",
        ),
        Setting(
            "open-port",
            FLAG,
            False,
            "Have the router open the port where calls arrive (by PCP, NAT-PMP or UPnP), while it"
            " runs: callers are given the address and port outside, if a connection to there"
            " arrives.",
        ),
        Setting(
            "accept",
            ENTRY,
            [],
            "Somebody who may call. Added once a run; what is withdrawn meanwhile stays withdrawn.",
            repeatable=True,
        ),
        Setting(
            "policy",
            Kind(parse_policy),
            "",
            "Who may call is said by the list that the mediator keeps (list), or by this terminal"
            " each time (ask); or whoever knows its call password may ask it to call back"
            " (password). Without, as it was said before.",
        ),
        Setting(
            "consent-file",
            PATH,
            "",
            "With --policy ask: the file that says who may call, and who may not; read each time.",
        ),
        Setting(
            "call-password-file",
            PATH,
            "",
            "With --policy password: the file of the call password, which nobody else may be able"
            " to read; read each time.",
        ),
        Setting(
            "call-back-to",
            NETWORK,
            [],
            "A network, such as 192.168.0.0/16, where it calls back to besides the Internet, and"
            " the kind of network in which the mediator is.",
            repeatable=True,
        ),
        Setting(
            "name",
            IDENTIFIER,
            "",
            "A further name as which it may be called; where there are accounts, one that the"
            " operator has given it.",
        ),
        Setting("receive", PATH, "", "The folder for what callers send: a file for each call."),
        Setting("max-size", SIZE, "1G", "The most bytes that one file may have; K, M, G, T."),
        Setting(
            "max-load",
            PERCENT,
            0,
            "The load of the processors, in percent, above which it is busy; 0: never.",
        ),
        Setting("one-at-a-time", FLAG, False, "Be busy while in a call."),
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        values = settings.values
        if values["identifier"] is None:
            yield f"{settings.where('identifier')}: say whom the terminal acts as"
        yield from secured.mediator_problems(settings)
        yield from _login_problems(settings)
        says = ", which says who may call"
        yield from _policy_problems(settings, ASK, "consent-file", read_lists, says)
        yield from _policy_problems(settings, PASSWORD, "call-password-file", read_password)
        if values["no-hold"] and values["udp"] is None:
            yield f"{settings.where('no-hold')}: goes with udp, or nobody could wake the terminal"
        if values["open-port"] and values["address"] is not None:
            yield f"{settings.where('open-port')}: goes without address, which it finds out"
        folder = values["receive"]
        if folder is not None and not os.path.isdir(folder):
            yield f"{settings.where('receive')}: {folder} is no folder"
        elif folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            yield f"{settings.where('receive')}: no file can be made in {folder}"

    def pidfile(self) -> str:
        """With the identifier in it, since several terminals may run in one folder."""
        return f"{self.role}-{safe_name(self['identifier'])}.pid"


def _policy_problems(
    settings: Settings, policy: str, name: str, read: Callable[[str], object], why: str = ""
) -> Iterator[str]:
    """What is wrong with the file that goes with one policy, and with no other.

    :param name: the file's setting
    :param read: reads it as it will be read
    :param why: what the file is for, after a comma
    """
    file = settings.values[name]
    chosen = settings.values["policy"] == policy
    if chosen and file is None:
        yield f"{settings.where('policy')}: {policy.lower()} goes with a {name}{why}"
    elif file is not None and not chosen:
        yield f"{settings.where(name)}: goes with the policy {policy.lower()}"
    elif file is not None:
        try:
            read(file)
        except (NoConsent, InvalidFile) as error:
            yield f"{settings.where(name)}: {error}"


def _login_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with how it would log in."""
    values = settings.values
    server: Server = values["mediator"]
    exposed = secured.in_clear(server, allowed=values["allow-clear-text"])
    if exposed is not None:
        yield f"{settings.where('mediator')}: {exposed}"
    source = _password(values)
    if source is not None and values["identifier"] is not None:
        try:
            source.find()
        except InvalidFile as error:
            named = values["password-file"] is not None
            yield f"{settings.where('password-file')}: {error}" if named else str(error)


def _password(values: Any) -> Source | None:
    """Where the password comes from; nowhere, where a certificate is to do."""
    file = values["password-file"]
    if values["certificate"] is not None and file is None:
        return None
    return Source(values["identifier"], values["mediator"].text, file, Keyring.of(os.environ))


class TerminalService(Role):
    """The terminal, what it does with calls, and how it decides its status.

    :ivar terminal: the terminal
    :ivar renewal: reads the files of certificates again
    """

    log = Logger()

    def __init__(
        self, reactor: Any, options: Options, in_thread: InThread, owner: Owner | None = None
    ) -> None:
        """
        :param in_thread: runs what waits for the disk
        """
        super().__init__(owner)
        self._options = options
        folder, limit = options["receive"], options["max-load"]
        handler = None
        if folder is not None:
            handler = FileReceiver(
                folder,
                options["max-size"],
                now=lambda: datetime.now(UTC),
                in_thread=in_thread,
            )
        tls = secured.made(secured.to_mediator, options)
        self.renewal = secured.Renewal(reactor, tls)
        self._load = CpuLoad(reactor, limit) if limit is not None else None
        consent_file = options["consent-file"]
        call_password_file = options["call-password-file"]
        self._opener = make_opener(reactor) if options["open-port"] else None
        self.terminal = Terminal(
            reactor,
            options["identifier"],
            secured.endpoint(reactor, options["mediator"], tls),
            TerminalSettings(
                listen=serverFromString(reactor, options["listen"].text),
                address=options["address"],
                accept=options["accept"],
                name=options["name"],
                policy=options["policy"],
                consent=None if consent_file is None else ConsentFile(consent_file),
                call_password=(
                    None
                    if call_password_file is None
                    else knows(partial(read_password, call_password_file))
                ),
                call_back_to=options["call-back-to"],
                password=_password(options),
                allow_clear_text=options["allow-clear-text"],
                udp=options["udp"],
                hold=not options["no-hold"],
                keepalive_most=options["keepalive-most"],
                linger=options["linger"],
                opener=self._opener,
                open_port=options["open-port"],
                handler=handler,
                load=self._load,
                one_at_a_time=options["one-at-a-time"],
                trace=shared.log_trace(name_outside) if options["trace"] else None,
            ),
        )

    async def open(self) -> None:
        """Open the direct listener."""
        mediator: Server = self._options["mediator"]
        if not mediator.loopback and not mediator.tls:
            self.log.warn(
                "What is said to the mediator {mediator} is not encrypted on its way",
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


def make_opener(reactor: Any) -> VerifiedPortMapper:
    """What has ports opened in the router of this machine; to be stopped."""

    def make(changed: Changed) -> PortMapper:
        return PortMapper(reactor, randomness=os.urandom, jitter=random.random, changed=changed)

    return VerifiedPortMapper(make)


def name_outside(stream: HubMember) -> str:
    """What a terminal calls a peer: the mediator by that word, another by its address."""
    return "mediator" if isinstance(stream.receiver, MediatorClient) else shared.address_of(stream)


def makeService(config: Options) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    in_thread: InThread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    service = TerminalService(reactor, config, in_thread, owner)
    service.renewal.on_hangup(reactor)
    return service
