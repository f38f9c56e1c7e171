"""``twistd broker``: the mediator, with its resolver inside or apart."""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from random import SystemRandom
from typing import Any

from twisted.application.service import IService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from broker.config import FLAG, LISTENER, RESOLVER, SECONDS, Server, Setting, Settings, choice
from broker.interfaces import IStore, StoreFailed
from broker.mediator.dial import Dialer
from broker.mediator.server import Mediator
from broker.options import RoleOptions
from broker.resolver.local import LocalResolver
from broker.resolver.remote import RemoteResolver
from broker.service import secured, shared
from broker.service.counting import CountLog
from broker.service.listening import Listening
from broker.service.process import CannotStart, Owner, Role, own_process
from broker.store.making import make_store
from broker.wire.stream import Exchange, StreamFactory


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
            "resolver",
            RESOLVER,
            "inside",
            "The resolver to ask for addresses: tcp:HOST:PORT, tls:HOST:PORT, or inside this"
            " process.",
        ),
        *secured.TO_RESOLVER,
        shared.secret_setting("the resolver"),
        shared.DURABLE_STORE,
        shared.AUTH,
        shared.CLEAR_TEXT,
        shared.LOGIN_TIMEOUT,
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
        shared.ALLOW_ADDRESS,
        shared.TRACE,
    )

    def problems(self, settings: Settings) -> Iterator[str]:
        yield from shared.exposed(settings, "resolver")
        yield from secured.server_problems(settings)
        yield from secured.resolver_problems(settings)
        if settings.values["resolver"] is None:
            if settings.values["mediator-secret"] is not None:
                yield f"{settings.where('mediator-secret')}: goes with a resolver that is apart"
        elif "udp" in settings.origins:
            yield (
                f"{settings.where('udp')}: datagrams go to the resolver: leave this out where"
                " the resolver is another process"
            )


class MediatorService(Role):
    """The mediator, its resolver, its store and its ports.

    :ivar mediator: the mediator, once the store is loaded
    :ivar renewal: reads the files of certificates again
    """

    def __init__(
        self,
        reactor: Any,
        options: Options,
        store: IStore,
        owner: Owner | None = None,
        *,
        stop_store: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """
        :param stop_store: ends the store, where it is this service's alone
        """
        super().__init__(owner)
        self.mediator: Mediator | None = None
        tls = secured.made(secured.server_side, options)
        self.listening = Listening(reactor, options["listen"], options["listen-tls"], tls)
        self._to_resolver = secured.made(secured.to_resolver, options)
        self.renewal = secured.Renewal(reactor, tls, self._to_resolver)
        self._reactor = reactor
        self._options = options
        self._store = store
        self._stop_store = stop_store
        self._dialer = Dialer(reactor)
        self._resolver: LocalResolver | RemoteResolver | None = None
        self._link: Exchange | None = None  # to a resolver that is apart
        self._counting: CountLog | None = None

    async def open(self) -> None:
        """Load what the store holds, then open the ports."""
        try:
            state = await self._store.load()
        except StoreFailed as error:
            raise CannotStart(str(error)) from None
        options = self._options
        resolver = self._make_resolver()
        exchange = Exchange(
            self._reactor,
            login_timeout=options["login-timeout"],
            trace=shared.log_trace(shared.name_inside) if options["trace"] else None,
        )
        mediator = Mediator(
            exchange,
            self._store,
            state,
            resolver,
            self._dialer,
            os.urandom,
            status=not options["no-status"],
            status_timeout=options["status-timeout"],
            uniform=options["causes"] == "uniform",
            allowed=options["allow-address"],
            own_ports=self.listening.ports,
        )
        if self.owner is not None:
            # A call makes few objects that last, and no rings of them: to look for rings every 700
            # objects, as is the default, cost a twentieth of a call.
            gc.set_threshold(20_000, 20, 20)
            gc.freeze()  # what was loaded stays: no use in looking through it again and again
        self.listening.open(StreamFactory(exchange, mediator.peer))
        self.mediator = mediator
        self._resolver = resolver

    def _make_resolver(self) -> LocalResolver | RemoteResolver:
        """The resolver that the options name."""
        options = self._options
        server: Server | None = options["resolver"]
        if server is None:
            return LocalResolver(self._reactor)
        secret = shared.read_secret(options["mediator-secret"])
        trace = shared.log_trace(lambda _: "resolver") if options["trace"] else None
        self._link = Exchange.of_client(self._reactor, trace=trace)
        endpoint = secured.endpoint(self._reactor, server, self._to_resolver)
        return RemoteResolver(self._link, endpoint, jitter=SystemRandom().random, secret=secret)

    def serve(self) -> None:
        if self.mediator is not None and self._resolver is not None:
            self._resolver.start()
            self.renewal.start()
            self._counting = CountLog(self._reactor, self.mediator.counts)
            self._counting.start()

    def close(self) -> Deferred[Any]:
        closing = [self.listening.close()]
        self.renewal.stop()
        if self.mediator is not None:
            self.mediator.stop()
        self._dialer.stop()
        if self._resolver is not None:
            stopping: Deferred[Any] = maybeDeferred(self._resolver.stop)
            closing.append(stopping.addCallback(self._left))
        if self._counting is not None:
            self._counting.stop()
        if self._stop_store is not None:
            closing.append(maybeDeferred(self._stop_store))
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
