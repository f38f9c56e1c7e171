"""``twistd broker-resolver``: the resolver as a server of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from twisted.application.service import IService
from twisted.internet.defer import Deferred

from broker.net.connection import ConnectionFactory
from broker.net.hub import ConnectionHub
from broker.resolver.locations import LocalResolver
from broker.resolver.server import ResolverServer
from broker.resolver.udp_registrar import UdpRegistrar
from broker.service.ports import Listening
from broker.service.process import ProcessOwner, Role, own_process
from broker.service.settings import common as shared
from broker.service.settings import tls as tls_settings
from broker.service.settings.dns import DNS_SERVERS, PROVIDER_ZONE, make_naming
from broker.service.settings.options import RoleOptions
from broker.service.settings.setting import Setting, Settings
from broker.service.settings.values import LISTENER, TOKEN
from broker.service.stats_log import CountLog

MEDIATORS: Final = Setting(
    "mediators",
    TOKEN,
    [],
    "Name of a mediator to accept, which its certificate must prove (broker-mediator:NAME).",
    repeatable=True,
)


#: Seconds in which a name must be looked up: a mediator waits one second for its answer.
ANSWER_SECONDS: Final = 0.8


class ResolverOptions(RoleOptions):
    """The resolver's options."""

    role = "broker-resolver"
    longdesc = (
        "The resolver: it keeps the current addresses of terminals, and gives them only to"
        " mediators. A mediator uses it with twistd broker --resolver."
    )
    settings = (
        Setting(
            "listen",
            LISTENER,
            ["tcp:1200:interface=127.0.0.1"],
            "Where to listen for mediators and terminals: tcp:PORT[:interface=ADDRESS].",
            repeatable=True,
        ),
        tls_settings.listen_setting(1204),
        *tls_settings.SERVER_SETTINGS,
        MEDIATORS,
        shared.UDP_PORT,
        shared.secret_setting("the mediator"),
        shared.STORE,
        shared.AUTH,
        shared.CLEAR_TEXT,
        shared.LOGIN_TIMEOUT,
        shared.ALLOW_ADDRESS,
        DNS_SERVERS,
        PROVIDER_ZONE,
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        yield from shared.exposed(settings)
        yield from tls_settings.server_problems(settings)
        values = settings.values
        if values["mediators"] and (not values["listen-tls"] or values["client-ca"] is None):
            yield (
                f"{settings.where('mediators')}: their certificates need --listen-tls"
                " and --client-ca"
            )


class ResolverService(Role):
    """The resolver and its ports.

    :ivar server: the resolver, when its ports are open
    :ivar renewal: reads the files of certificates again
    """

    def __init__(
        self, reactor: Any, options: ResolverOptions, owner: ProcessOwner | None = None
    ) -> None:
        super().__init__(owner)
        self.server: ResolverServer | None = None
        self._tls = tls_settings.at_start(tls_settings.server_tls, options)
        self.listening = Listening(reactor, options["listen"], options["listen-tls"], self._tls)
        self.renewal = tls_settings.Renewal(reactor, self._tls)
        self._reactor = reactor
        self._options = options
        naming = make_naming(reactor, options, self.listening.ports, patience=ANSWER_SECONDS)
        self._registrar = None if options["udp"] is None else UdpRegistrar(reactor, os.urandom)
        self._resolver = LocalResolver(reactor, naming=naming, registrar=self._registrar)
        self._count_logs: list[CountLog] = []

    async def open(self) -> None:
        """Read the secret, then open the ports."""
        options = self._options
        hub = ConnectionHub(
            self._reactor,
            login_timeout=options["login-timeout"],
            trace=shared.log_trace(shared.name_inside) if options["trace"] else None,
        )
        server = ResolverServer(
            hub,
            self._resolver,
            secret=shared.read_secret(options["mediator-secret"]),
            mediators=options["mediators"],
            allowed=options["allow-address"],
            own_ports=self.listening.ports,
        )
        self.listening.open(ConnectionFactory(hub, server.peer))
        if self._registrar is not None:
            self.listening.open_udp(options["udp"], self._registrar)
        self.server = server

    def serve(self) -> None:
        if self.server is not None:
            self._resolver.start()
            self.renewal.renewed = self._drop_revoked
            self.renewal.start()
            counts = [self.server.counts]
            if self._registrar is not None:
                counts.append(self._registrar.counts)
            self._count_logs = [CountLog(self._reactor, counter) for counter in counts]
            for count_log in self._count_logs:
                count_log.start()

    def _drop_revoked(self) -> None:
        """Close the links whose certificate the new revocation list revokes (I2)."""
        if self.server is not None and self._tls is not None:
            self.server.drop(self._tls.revoked)

    def close(self) -> Deferred[Any]:
        closing = self.listening.close()  # first, so that no connection comes in while it stops
        self.renewal.stop()
        if self.server is not None:
            self.server.stop()
        self._resolver.stop()
        for count_log in self._count_logs:
            count_log.stop()
        return closing


# What twistd looks for.

Options = ResolverOptions


def makeService(config: ResolverOptions) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    service = ResolverService(reactor, config, owner)
    service.renewal.on_hangup(reactor)
    return service
