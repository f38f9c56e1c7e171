"""``twistd broker-resolver``: the resolver as a server of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred

from broker.config import LISTENER, Setting, Settings
from broker.options import RoleOptions
from broker.resolver.local import LocalResolver
from broker.resolver.server import ResolverServer
from broker.service import shared
from broker.service.counting import CountLog
from broker.service.listening import Listening
from broker.service.process import Owner, Role, own_process
from broker.wire.stream import Exchange, StreamFactory


class Options(RoleOptions):
    """The resolver's options."""

    role = "broker-resolver"
    longdesc = (
        "The resolver: it keeps the terminals' present addresses, and tells them to mediators"
        " alone. A mediator beside it is named by twistd broker --resolver."
    )
    settings = (
        Setting(
            "listen",
            LISTENER,
            ["tcp:1200:interface=127.0.0.1"],
            "Where mediators and terminals connect: tcp:PORT[:interface=ADDRESS].",
            repeatable=True,
        ),
        shared.UDP_PORT,
        shared.secret_setting("the mediator"),
        shared.STORE,
        shared.AUTH,
        shared.CLEAR_TEXT,
        shared.LOGIN_TIMEOUT,
        shared.ALLOW_ADDRESS,
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        yield from shared.exposed(settings)


class ResolverService(Role):
    """The resolver and its ports.

    :ivar server: the resolver, once its ports are open
    """

    def __init__(self, reactor: Any, options: Options, owner: Owner | None = None) -> None:
        super().__init__(owner)
        self.server: ResolverServer | None = None
        self.listening = Listening(reactor, options["listen"])
        self._reactor = reactor
        self._options = options
        self._resolver = LocalResolver(reactor)
        self._counting: CountLog | None = None

    async def open(self) -> None:
        """Read the secret, then open the ports."""
        options = self._options
        exchange = Exchange(
            self._reactor,
            login_timeout=options["login-timeout"],
            trace=shared.log_trace(shared.name_inside) if options["trace"] else None,
        )
        server = ResolverServer(
            exchange,
            self._resolver,
            secret=shared.read_secret(options["mediator-secret"]),
            allowed=options["allow-address"],
            own_ports=self.listening.ports,
        )
        self.listening.open(StreamFactory(exchange, server.peer))
        self.server = server

    def serve(self) -> None:
        if self.server is not None:
            self._resolver.start()
            self._counting = CountLog(self._reactor, self.server.counts)
            self._counting.start()

    def close(self) -> Deferred[Any]:
        closing = self.listening.close()
        if self.server is not None:
            self.server.stop()
        self._resolver.stop()
        if self._counting is not None:
            self._counting.stop()
        return closing


def makeService(config: Options) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    return ResolverService(reactor, config, owner)
