"""``twistd broker``: the mediator, with its resolver inside or apart."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from random import SystemRandom
from typing import Any, Final

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger

from broker.interfaces import IStore, StoreFailed
from broker.mediator.admin import AdminApi
from broker.mediator.auth.login import (
    Authentication,
    CertificateLogin,
    Login,
    PasswordLogin,
    UnverifiedLogin,
)
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import Tokens
from broker.mediator.context import UDP_INTERVAL, MediatorServices, MediatorSettings
from broker.mediator.server import Mediator, monotonic_wall_clock
from broker.mediator.wakeup import WakeUp
from broker.mediator.wakeup_dialer import WakeUpDialer
from broker.messages.grammar import number
from broker.net.connection import ConnectionFactory
from broker.net.hub import ConnectionHub
from broker.resolver.locations import LocalResolver
from broker.resolver.remote import RemoteResolver
from broker.resolver.udp_registrar import UdpRegistrar
from broker.service import logins
from broker.service.admin_socket import ADMIN, AdminSocket
from broker.service.ports import Listening
from broker.service.process import CannotStart, Owner, Role, own_process
from broker.service.settings import common as shared
from broker.service.settings import tls as secured
from broker.service.settings.dns import DNS_SERVERS, PROVIDER_ZONE, make_naming
from broker.service.settings.options import RoleOptions
from broker.service.settings.values import (
    FLAG,
    LISTENER,
    RESOLVER,
    SECONDS,
    Kind,
    Server,
    Setting,
    Settings,
    choice,
)
from broker.service.stats_log import CountLog
from broker.store.making import make_store
from broker.tables.accounts import AccountTable

_days = number(1, 36500)
DAYS: Final = Kind(lambda text: int(_days(text)), (int,), "a number")
_interval = number(1, 3600)
INTERVAL: Final = Kind(lambda text: int(_interval(text)), (int,), "a number")


class Options(RoleOptions):
    """The mediator's options."""

    role = "broker"
    longdesc = (
        "The mediator: terminals register with it, and it decides who may reach whom."
        " With nothing said it listens on this machine only, keeps addresses itself, and who"
        " accepts whom in the file broker.db."
    )
    settings = (
        Setting(
            "listen",
            LISTENER,
            ["tcp:1201:interface=127.0.0.1"],
            "Where terminals connect: tcp:PORT[:interface=ADDRESS].",
            repeatable=True,
        ),
        secured.listen_setting(1202),
        *secured.SERVER_SIDE,
        shared.UDP_PORT,
        Setting(
            "udp-interval",
            INTERVAL,
            UDP_INTERVAL,
            "Seconds from one datagram of a terminal to the next: less than routers keep a way open"
            " for.",
        ),
        Setting(
            "resolver",
            RESOLVER,
            "inside",
            "The resolver to ask for addresses: tcp:HOST:PORT, tls:HOST:PORT, or inside this"
            " process.",
        ),
        *secured.TO_RESOLVER,
        shared.secret_setting("the resolver"),
        shared.DURABLE_STORE,
        ADMIN,
        shared.PROVEN,
        shared.CLEAR_TEXT,
        shared.PROVEN_LOGIN_TIMEOUT,
        Setting(
            "status-timeout",
            SECONDS,
            5,
            "Seconds in which a call must be decided, the callee's status included.",
        ),
        Setting("no-status", FLAG, False, "Do not ask a callee whether it can take a call."),
        Setting(
            "causes",
            choice("distinct", "uniform"),
            "distinct",
            "What a permitted caller is told: distinct causes, or uniform refusals.",
        ),
        Setting(
            "ledger",
            choice("first", "behind"),
            "behind",
            "When it is written down who is told an address: first, and only then it is told, or"
            " behind it.",
        ),
        Setting("ledger-days", DAYS, 90, "Days for which that is kept."),
        shared.ALLOW_ADDRESS,
        DNS_SERVERS,
        PROVIDER_ZONE,
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        yield from shared.exposed(settings, "resolver")
        yield from secured.server_problems(settings)
        if settings.values["auth"] == "certificate":
            yield from _certificate_problems(settings)
        yield from secured.resolver_problems(settings)
        if settings.values["resolver"] is None:
            if settings.values["mediator-secret"] is not None:
                yield f"{settings.where('mediator-secret')}: goes with a resolver that is apart"
            return
        if "udp" in settings.origins:
            yield (
                f"{settings.where('udp')}: datagrams go to the resolver: leave this out where"
                " the resolver is another process"
            )
        if settings.values["provider-zone"] is not None:
            yield (
                f"{settings.where('provider-zone')}: it is the resolver that asks the provider:"
                " set this there where the resolver is another process"
            )


def _certificate_problems(settings: Settings) -> Iterator[str]:
    """What is wrong where terminals are to show certificates."""
    if not settings.values["listen-tls"] or settings.values["client-ca"] is None:
        yield (
            f"{settings.where('auth')}: certificates are seen only with --listen-tls and"
            " --client-ca"
        )
    if "listen" in settings.origins and settings.values["listen"]:
        yield (
            f"{settings.where('listen')}: nobody can show a certificate there, and so log in:"
            " leave it out"
        )


class MediatorService(Role):
    """The mediator, its resolver, its store and its ports.

    :ivar mediator: the mediator, once the store is loaded
    :ivar admin: the operator's socket
    :ivar renewal: reads the files of certificates again
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: Options,
        store: IStore,
        owner: Owner | None = None,
        *,
        stop_store: Callable[[], Awaitable[None]] | None = None,
        passwords: Passwords | None = None,
    ) -> None:
        """
        :param stop_store: ends the store, where it is this service's alone
        :param passwords: makes and checks verifiers; in threads of its own, without
        """
        super().__init__(owner)
        self.mediator: Mediator | None = None
        self._tls = tls = secured.made(secured.server_side, options)
        # Where certificates are shown, nothing but TLS will do.
        listeners = [] if options["auth"] == "certificate" else options["listen"]
        self.listening = Listening(reactor, listeners, options["listen-tls"], tls)
        self.admin = AdminSocket(reactor, options["admin"])
        self._to_resolver = secured.made(secured.to_resolver, options)
        self.renewal = secured.Renewal(reactor, tls, self._to_resolver)
        self._reactor = reactor
        self._options = options
        self._store = store
        self._stop_store = stop_store
        self._passwords = logins.in_threads(reactor) if passwords is None else passwords
        self._dialer = WakeUpDialer(reactor)
        self._resolver: LocalResolver | RemoteResolver | None = None
        self._link: ConnectionHub | None = None  # to a resolver that is apart
        self._counting: CountLog | None = None
        self._datagrams: CountLog | None = None  # of those that come by UDP

    async def open(self) -> None:
        """Load what the store holds, then open the ports."""
        try:
            state = await self._store.load()
        except StoreFailed as error:
            raise CannotStart(str(error)) from None
        options = self._options
        table = AccountTable(state.accounts)
        login = self._make_login(table, state.epoch)
        resolver = self._make_resolver()
        suits = shared.TYPED_LOGIN if options["auth"] == "none" else shared.PROVEN_LOGIN
        exchange = ConnectionHub(
            self._reactor,
            login_timeout=options["login-timeout"] or suits,
            trace=shared.log_trace(shared.name_inside) if options["trace"] else None,
        )
        services = MediatorServices(
            hub=exchange,
            store=self._store,
            resolver=resolver,
            wakeup=WakeUp(self._reactor, resolver, self._dialer),
            randomness=os.urandom,
            dialer=self._dialer,
        )
        settings = MediatorSettings(
            ledger_first=options["ledger"] == "first",
            ledger_days=options["ledger-days"],
            ask_status=not options["no-status"],
            status_timeout=options["status-timeout"],
            udp_interval=options["udp-interval"],
            allow_clear_text=options["allow-clear-text"],
            uniform_refusals=options["causes"] == "uniform",
            allowed_networks=options["allow-address"],
            own_ports=self.listening.ports,
        )
        authentication = Authentication(table, login, self._passwords)
        mediator = Mediator(services, state, authentication, settings)
        if self.owner is not None:
            # A call makes few objects that last, and no rings of them: to look for rings every 700
            # objects, as is the default, cost a twentieth of a call.
            gc.set_threshold(20_000, 20, 20)
            gc.freeze()  # what was loaded stays: no use in looking through it again and again
        self._passwords.start()
        self.admin.open(AdminApi(mediator.context, mediator.accounts))
        try:
            self.listening.open(ConnectionFactory(exchange, mediator.peer))
            if isinstance(resolver, LocalResolver) and resolver.registrar is not None:
                self.listening.open_udp(options["udp"], resolver.registrar)
                self._datagrams = CountLog(self._reactor, resolver.registrar.counts)
        except CannotStart:
            self.admin.abandon()
            raise
        self.mediator = mediator
        self._resolver = resolver

    def _make_login(self, table: AccountTable, epoch: str) -> Login:
        """How terminals prove who they are, as the options say."""
        options = self._options
        if options["auth"] == "certificate" and self._tls is not None:
            return CertificateLogin(table, self._tls.revoked)
        if options["auth"] == "none":
            return UnverifiedLogin()
        if not len(table):
            self.log.warn("Nobody can log in yet: broker account add ID makes the first account")
        key = logins.token_key(options["store"], os.urandom)
        tokens = Tokens(key, epoch, monotonic_wall_clock(time.time, self._reactor))
        return PasswordLogin(
            table, self._passwords, tokens, self._reactor, clear_text=options["allow-clear-text"]
        )

    def _make_resolver(self) -> LocalResolver | RemoteResolver:
        """The resolver that the options name."""
        options = self._options
        server: Server | None = options["resolver"]
        inside = server is None
        naming = make_naming(self._reactor, options, self.listening.ports, provider=inside)
        if server is None:
            registrar = None if options["udp"] is None else UdpRegistrar(self._reactor, os.urandom)
            return LocalResolver(self._reactor, naming=naming, registrar=registrar)
        secret = shared.read_secret(options["mediator-secret"])
        trace = shared.log_trace(lambda _: "resolver") if options["trace"] else None
        self._link = ConnectionHub.of_client(self._reactor, trace=trace)
        endpoint = secured.endpoint(self._reactor, server, self._to_resolver)
        return RemoteResolver(
            self._link, endpoint, jitter=SystemRandom().random, secret=secret, naming=naming
        )

    def serve(self) -> None:
        if self.mediator is not None and self._resolver is not None:
            self._resolver.start()
            self.renewal.renewed = self._drop_revoked
            self.renewal.start()
            self.mediator.context.disclosures.start()
            self._counting = CountLog(self._reactor, self.mediator.counts)
            self._counting.start()
            if self._datagrams is not None:
                self._datagrams.start()

    def _drop_revoked(self) -> None:
        """The revocation list may be newer than a connection (I2)."""
        if self.mediator is not None and self._tls is not None:
            self.mediator.drop(self._tls.revoked)

    def close(self) -> Deferred[Any]:
        closing = [self.listening.close(), self.admin.close()]
        handed_over: Deferred[None] = succeed(None)
        self.renewal.stop()
        if self.mediator is not None:
            handed_over = self.mediator.stop()
            self._passwords.stop()
        self._dialer.stop()
        if self._resolver is not None:
            stopping: Deferred[Any] = maybeDeferred(self._resolver.stop)
            closing.append(stopping.addCallback(self._left))
        for counting in (self._counting, self._datagrams):
            if counting is not None:
                counting.stop()
        if self._stop_store is not None:
            stop_store = self._stop_store
            handed_over.addCallback(lambda _: maybeDeferred(stop_store))
        closing.append(handed_over)
        return gatherResults(closing)

    def _left(self, stopped: object) -> None:
        if self._link is not None:
            self._link.stop()


def makeService(config: Options) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    store = make_store(config["store"], reactor.callFromThread, os.urandom)
    service = MediatorService(reactor, config, store, owner, stop_store=store.stop)
    service.renewal.on_hangup(reactor)
    return service
