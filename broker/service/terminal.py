"""``twistd broker-terminal``: a terminal that keeps itself registered and takes calls."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from broker.config import (
    ADDRESS,
    ENTRY,
    FLAG,
    IDENTIFIER,
    LISTENER,
    PATH,
    PERCENT,
    SERVER,
    SIZE,
    Server,
    Setting,
    Settings,
)
from broker.credentials import Keyring, Source
from broker.options import RoleOptions
from broker.service import secured, shared
from broker.service.listening import reason
from broker.service.process import CannotStart, Owner, Role, own_process
from broker.terminal.files import FileReceiver, InThread, safe_name
from broker.terminal.line import Line
from broker.terminal.load import CpuLoad
from broker.terminal.terminal import Terminal
from broker.wire.stream import Stream
from broker.wire.tls import Unusable


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
            "accept",
            ENTRY,
            [],
            "Somebody who may call. Added once a run; what is withdrawn meanwhile stays withdrawn.",
            repeatable=True,
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
        folder = values["receive"]
        if folder is not None and not os.path.isdir(folder):
            yield f"{settings.where('receive')}: {folder} is no folder"
        elif folder is not None and not os.access(folder, os.W_OK | os.X_OK):
            yield f"{settings.where('receive')}: no file can be made in {folder}"

    def pidfile(self) -> str:
        """With the identifier in it, since several terminals may run in one folder."""
        return f"{self.role}-{safe_name(self['identifier'])}.pid"


def _login_problems(settings: Settings) -> Iterator[str]:
    """What is wrong with how it would log in."""
    values = settings.values
    server: Server = values["mediator"]
    if not (server.tls or server.loopback or values["allow-clear-text"]):
        yield (
            f"{settings.where('mediator')}: {server.text} is another machine, and the login and all"
            " that is told would go there in clear text: name it as tls:HOST:PORT, or say"
            " --allow-clear-text"
        )
    source = _password(values)
    if source is not None and values["identifier"] is not None:
        try:
            source.find()
        except Unusable as error:
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
        self.terminal = Terminal(
            reactor,
            options["identifier"],
            secured.endpoint(reactor, options["mediator"], tls),
            listen=serverFromString(reactor, options["listen"].text),
            address=options["address"],
            accept=options["accept"],
            password=_password(options),
            allow_clear_text=options["allow-clear-text"],
            handler=handler,
            load=self._load,
            one_at_a_time=options["one-at-a-time"],
            trace=shared.log_trace(name_outside) if options["trace"] else None,
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
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.log.info("Listening on {host}:{port}", host=host, port=address.port)

    def serve(self) -> None:
        self.renewal.start()
        if self._load is not None:
            self._load.start()

    def close(self) -> Deferred[Any]:
        self.renewal.stop()
        if self._load is not None:
            self._load.stop()
        return maybeDeferred(self.terminal.stopService)


def name_outside(stream: Stream) -> str:
    """What a terminal calls a peer: the mediator by that word, another by its address."""
    return "mediator" if isinstance(stream.receiver, Line) else shared.address_of(stream)


def makeService(config: Options) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    in_thread: InThread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    service = TerminalService(reactor, config, in_thread, owner)
    service.renewal.on_hangup(reactor)
    return service
