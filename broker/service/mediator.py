"""``twistd broker``: the mediator, with its resolver in the same process or in another one."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from random import SystemRandom
from typing import Any, Final

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from broker.files import PRIVATE, InvalidFile, move_file, read_private
from broker.interfaces import IStore, State, StoreFailed
from broker.mediator.admin import AdminApi
from broker.mediator.auth.login import (
    Authentication,
    CertificateLogin,
    LoginMethod,
    PasswordLogin,
    UnverifiedLogin,
)
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import KEY_BYTES, Tokens
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
from broker.service.admin_socket import ADMIN, AdminSocket
from broker.service.errors import CannotStart
from broker.service.ports import Listening
from broker.service.process import ProcessOwner, Role, own_process
from broker.service.settings import common as shared
from broker.service.settings import tls as tls_settings
from broker.service.settings.dns import DNS_SERVERS, PROVIDER_ZONE, make_naming
from broker.service.settings.options import RoleOptions
from broker.service.settings.setting import Setting, Settings
from broker.service.settings.values import (
    FLAG,
    LISTENER,
    RESOLVER,
    SECONDS,
    Server,
    ValueType,
    choice,
)
from broker.service.stats_log import CountLog
from broker.store.sqlite import make_store
from broker.tables.accounts import AccountTable
from broker.tables.grants import Randomness

#: What the file of the tokens' key is called: the database's path, and this.
KEY_SUFFIX: Final = "-key"
#: The most threads that check passwords.
_THREADS_MOST: Final = 4
_log = Logger(namespace="broker")

_days = number(1, 36500)
DAYS: Final = ValueType(lambda text: int(_days(text)), (int,), "a number")
_interval = number(1, 3600)
INTERVAL: Final = ValueType(lambda text: int(_interval(text)), (int,), "a number")


class MediatorOptions(RoleOptions):
    """The mediator's options."""

    role = "broker"
    longdesc = (
        "The mediator: terminals register with it, and it decides which callers may reach them."
        " Without options it listens on this machine only, keeps addresses itself, and keeps"
        " permits in the file broker.db."
    )
    settings = (
        Setting(
            "listen",
            LISTENER,
            ["tcp:1201:interface=127.0.0.1"],
            "Where to listen for terminals: tcp:PORT[:interface=ADDRESS].",
            repeatable=True,
        ),
        tls_settings.listen_setting(1202),
        *tls_settings.SERVER_SETTINGS,
        shared.UDP_PORT,
        Setting(
            "udp-interval",
            INTERVAL,
            UDP_INTERVAL,
            "UDP keepalive interval in seconds. Must be shorter than the NAT's UDP timeout.",
        ),
        Setting(
            "resolver",
            RESOLVER,
            "inside",
            "The resolver, which knows where terminals are: tcp:HOST:PORT, tls:HOST:PORT, or"
            " inside: a part of this process.",
        ),
        *tls_settings.RESOLVER_SETTINGS,
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
            "Seconds in which a call must be decided, including the callee's status answer.",
        ),
        Setting(
            "no-status", FLAG, False, "Grant calls without asking the callee for its status first."
        ),
        Setting(
            "causes",
            choice("distinct", "uniform"),
            "distinct",
            "Refusals that a permitted caller gets: distinct: each names its cause; uniform: all"
            " look alike.",
        ),
        Setting(
            "ledger",
            choice("first", "behind"),
            "behind",
            "When to log an address disclosure: first: before the address is sent (durable);"
            " behind: just after.",
        ),
        Setting("ledger-days", DAYS, 90, "Days for which address disclosures are kept."),
        shared.ALLOW_ADDRESS,
        DNS_SERVERS,
        PROVIDER_ZONE,
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        yield from shared.exposed(settings, "resolver")
        yield from tls_settings.server_problems(settings)
        if settings.values["auth"] == "certificate":
            yield from _certificate_problems(settings)
        yield from tls_settings.resolver_problems(settings)
        if settings.values["resolver"] is None:
            if settings.values["mediator-secret"] is not None:
                yield f"{settings.where('mediator-secret')}: needs a resolver in another process"
            return
        if "udp" in settings.origins:
            yield (
                f"{settings.where('udp')}: terminals register by UDP at the resolver: leave this"
                " out if the resolver is another process"
            )
        if settings.values["provider-zone"] is not None:
            yield (
                f"{settings.where('provider-zone')}: the resolver asks the provider: set this"
                " there if the resolver is another process"
            )


def _certificate_problems(settings: Settings) -> Iterator[str]:
    """What is wrong if terminals must show certificates."""
    if not settings.values["listen-tls"] or settings.values["client-ca"] is None:
        yield (f"{settings.where('auth')}: certificates need --listen-tls and --client-ca")
    if "listen" in settings.origins and settings.values["listen"]:
        yield (
            f"{settings.where('listen')}: without TLS no terminal can show a certificate: leave it"
            " out"
        )


class ResolverInUse:
    """The mediator's resolver: in this process, or the link to another one."""

    def __init__(
        self, resolver: LocalResolver | RemoteResolver, link: ConnectionHub | None = None
    ) -> None:
        """
        :param link: the connections to the other process
        """
        self.resolver = resolver
        self._link = link

    @property
    def registrar(self) -> UdpRegistrar | None:
        """Where terminals register by UDP, if it is here."""
        return self.resolver.registrar if isinstance(self.resolver, LocalResolver) else None

    def stop(self) -> Deferred[Any]:
        """Stop it; fires when that is done."""
        stopping: Deferred[Any] = maybeDeferred(self.resolver.stop)
        return stopping.addCallback(self._stop_link)

    def _stop_link(self, stopped: object) -> None:
        if self._link is not None:
            self._link.stop()


class MediatorService(Role):
    """The mediator, its resolver, its store and its ports.

    :ivar mediator: the mediator, when the store is loaded
    :ivar admin: the operator's socket
    :ivar renewal: reads the files of certificates again
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: MediatorOptions,
        store: IStore,
        owner: ProcessOwner | None = None,
        *,
        owns_store: bool = False,
        passwords: Passwords | None = None,
    ) -> None:
        """
        :param owns_store: stop the store when the service stops
        :param passwords: makes and checks verifiers; default: in threads of its own
        """
        super().__init__(owner)
        self.mediator: Mediator | None = None
        self._tls = tls = tls_settings.at_start(tls_settings.server_tls, options)
        # Terminals that must show a certificate can't log in without TLS.
        listeners = [] if options["auth"] == "certificate" else options["listen"]
        self.listening = Listening(reactor, listeners, options["listen-tls"], tls)
        self.admin = AdminSocket(reactor, options["admin"])
        self._resolver_tls = tls_settings.at_start(tls_settings.resolver_tls, options)
        self.renewal = tls_settings.Renewal(reactor, tls, self._resolver_tls)
        self._reactor = reactor
        self._options = options
        self._store = store
        self._owns_store = owns_store
        self._passwords = passwords_in_threads(reactor) if passwords is None else passwords
        self._dialer = WakeUpDialer(reactor)
        self._resolver: ResolverInUse | None = None
        self._count_logs: list[CountLog] = []

    async def open(self) -> None:
        """Load what is stored, then open the ports."""
        try:
            state = await self._store.load()
        except StoreFailed as error:
            raise CannotStart(str(error)) from None
        resolver = self._make_resolver()
        hub = self._make_hub()
        mediator = self._make_mediator(hub, resolver, state)
        if self.owner is not None:
            # A call makes few objects that last, and no reference cycles. The default of a
            # collection every 700 objects cost a twentieth of a call.
            gc.set_threshold(20_000, 20, 20)
            gc.freeze()  # what was loaded stays, so it need not be looked through each time
        self._passwords.start()
        # The operator's socket first: if another broker has it open, no terminal must connect here.
        self.admin.open(AdminApi(mediator.context, mediator.accounts))
        counts = [mediator.counts]
        try:
            self.listening.open(ConnectionFactory(hub, mediator.peer))
            if resolver.registrar is not None:
                self.listening.open_udp(self._options["udp"], resolver.registrar)
                counts.append(resolver.registrar.counts)
        except CannotStart:
            self.admin.abandon()
            raise
        self._count_logs = [CountLog(self._reactor, counter) for counter in counts]
        self.mediator = mediator
        self._resolver = resolver

    def _make_hub(self) -> ConnectionHub:
        options = self._options
        default = shared.TYPED_LOGIN if options["auth"] == "none" else shared.PROVEN_LOGIN
        return ConnectionHub(
            self._reactor,
            login_timeout=options["login-timeout"] or default,
            trace=shared.log_trace(shared.name_inside) if options["trace"] else None,
        )

    def _make_mediator(self, hub: ConnectionHub, in_use: ResolverInUse, state: State) -> Mediator:
        options, resolver = self._options, in_use.resolver
        accounts = AccountTable(state.accounts)
        services = MediatorServices(
            hub=hub,
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
        login = self._make_login(accounts, state.epoch)
        authentication = Authentication(accounts, login, self._passwords)
        return Mediator(services, state, authentication, settings)

    def _make_login(self, accounts: AccountTable, epoch: str) -> LoginMethod:
        """How terminals prove their identity, as the options say."""
        options = self._options
        if options["auth"] == "certificate" and self._tls is not None:
            return CertificateLogin(accounts, self._tls)
        if options["auth"] == "none":
            return UnverifiedLogin()
        if not len(accounts):
            self.log.warn(NO_ACCOUNT)
        key = token_key(options["store"], os.urandom)
        tokens = Tokens(key, epoch, monotonic_wall_clock(time.time, self._reactor))
        return PasswordLogin(
            accounts,
            self._passwords,
            tokens,
            self._reactor,
            clear_text=options["allow-clear-text"],
        )

    def _make_resolver(self) -> ResolverInUse:
        """The resolver that the options name."""
        options = self._options
        server: Server | None = options["resolver"]
        inside = server is None
        naming = make_naming(self._reactor, options, self.listening.ports, provider=inside)
        if server is None:
            registrar = None if options["udp"] is None else UdpRegistrar(self._reactor, os.urandom)
            return ResolverInUse(LocalResolver(self._reactor, naming=naming, registrar=registrar))
        secret = shared.read_secret(options["mediator-secret"])
        trace = shared.log_trace(lambda _: "resolver") if options["trace"] else None
        link = ConnectionHub.of_client(self._reactor, trace=trace)
        endpoint = tls_settings.endpoint(self._reactor, server, self._resolver_tls)
        remote = RemoteResolver(
            link, endpoint, jitter=SystemRandom().random, secret=secret, naming=naming
        )
        return ResolverInUse(remote, link)

    def serve(self) -> None:
        if self.mediator is not None and self._resolver is not None:
            self._resolver.resolver.start()
            self.renewal.renewed = self._drop_revoked
            self.renewal.start()
            self.mediator.start()
            for count_log in self._count_logs:
                count_log.start()

    def _drop_revoked(self) -> None:
        """Close the connections whose certificate the new revocation list revokes (I2)."""
        if self.mediator is not None and self._tls is not None:
            self.mediator.drop(self._tls.revoked)

    def close(self) -> Deferred[Any]:
        # No new connections from here on. Then the mediator ends the existing ones, and the store
        # stops last, when all their changes are written.
        closing = [self.listening.close(), self.admin.close()]
        stored: Deferred[None] = succeed(None)
        self.renewal.stop()
        if self.mediator is not None:
            stored = self.mediator.stop()
            self._passwords.stop()
        self._dialer.stop()
        if self._resolver is not None:
            closing.append(self._resolver.stop())
        for count_log in self._count_logs:
            count_log.stop()
        if self._owns_store:
            stored.addCallback(lambda _: maybeDeferred(self._store.stop))
        closing.append(stored)
        return gatherResults(closing)


# Logging in.

NO_ACCOUNT: Final = "There is no account yet: broker account add ID makes the first one"
NEW_KEY: Final = "A new key for resume tokens is in {path}"


def passwords_in_threads(reactor: Any) -> Passwords:
    """Passwords checked in threads: one for each processor, minus one for the reactor."""
    threads = max(1, min(_THREADS_MOST, len(os.sched_getaffinity(0)) - 1))
    pool = ThreadPool(minthreads=0, maxthreads=threads, name="passwords")
    return Passwords(os.urandom, pool=pool, reactor=reactor, threads=threads)


def token_key(database: str | None, randomness: Randomness) -> bytes:
    """The key of resume tokens, from a file next to the database. No backup contains it (I20).

    :param database: its path; ``None``: a new key for each run
    :raises CannotStart: the key can't be read, or others can read it
    """
    if database is None:
        return randomness(KEY_BYTES)
    path = database + KEY_SUFFIX
    try:
        key = _read_key(path)
        return _make_key(path, randomness) if key is None else key
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def _read_key(path: str) -> bytes | None:
    """The key in a file; ``None`` if there is no file."""
    try:
        key = read_private(path, KEY_BYTES + 1, follow=False)
    except FileNotFoundError:
        return None
    except InvalidFile as error:
        raise CannotStart(str(error)) from None
    if len(key) != KEY_BYTES:
        raise CannotStart(
            f"{path}: holds no key of {KEY_BYTES} bytes. Delete it to get a new one: terminals"
            " then log in with their passwords once"
        )
    return key


def _make_key(path: str, randomness: Randomness) -> bytes:
    """A new key, in a file that appears complete or not at all."""
    key = randomness(KEY_BYTES)
    temporary = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # left by a start that was interrupted
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, PRIVATE), "wb") as file:
        file.write(key)
    move_file(temporary, path)
    _log.info(NEW_KEY, path=path)
    return key


# What twistd looks for.

Options = MediatorOptions


def makeService(config: MediatorOptions) -> IService:
    """The role as ``twistd`` runs it, in a process of its own."""
    reactor, owner = own_process(config)
    store = make_store(config["store"], reactor, os.urandom)
    service = MediatorService(reactor, config, store, owner, owns_store=True)
    service.renewal.on_hangup(reactor)
    return service
