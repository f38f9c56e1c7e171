"""A resolver in a process of its own and a mediator's side of it, joined by a network in memory."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.python.failure import Failure

from broker.messages.message import Message
from broker.net.connection import ConnectionFactory
from broker.net.hub import ConnectionHub
from broker.resolver.locations import LocalResolver
from broker.resolver.name_lookup import NameLookup
from broker.resolver.remote import RemoteResolver
from broker.resolver.server import ResolverServer
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.locations import Binding, Contact, LocationTable
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, Pair, connect

T = TypeVar("T")

PORT = 1200


class Outcome(Generic[T]):
    """What becomes of a step that may have to wait."""

    def __init__(self, step: Awaitable[T]) -> None:
        self.values: list[T] = []
        self.errors: list[BaseException] = []

        async def done() -> T:
            return await step

        self.doing = Deferred.fromCoroutine(done())
        self.doing.addCallbacks(self.values.append, self._failed)

    def _failed(self, failure: Failure) -> None:
        assert failure.value is not None
        self.errors.append(failure.value)

    @property
    def over(self) -> bool:
        """Whether it has come to an end."""
        return bool(self.values or self.errors)

    @property
    def value(self) -> T:
        """What it gave; what it raised is raised here."""
        for error in self.errors:
            raise error
        assert self.values, "still waiting"
        return self.values[0]

    @property
    def error(self) -> type[BaseException]:
        """The kind of what it raised."""
        assert self.errors, f"no error: {self.values or 'still waiting'}"
        return type(self.errors[0])


class FakeResolver:
    """A resolver's server in full, which is connected to in memory.

    :ivar heard: every message that came in, on any connection, masked
    :param udp: it takes registrations by UDP, too
    """

    def __init__(
        self,
        clock: FakeReactor,
        *,
        secret: str | None = None,
        most: int = 1000,
        naming: NameLookup | None = None,
        udp: bool = False,
        **options: Any,
    ) -> None:
        self.clock = clock
        self.heard: list[Message] = []
        self.hub = ConnectionHub(clock, trace=self._trace)
        registrar = UdpRegistrar(clock, random.Random(1).randbytes) if udp else None
        self.local = LocalResolver(clock, LocationTable(most), naming, registrar)
        self.server = ResolverServer(
            self.hub, self.local, secret=secret, own_ports=[PORT], **options
        )
        self.factory = ConnectionFactory(self.hub, self.server.peer)

    def _trace(self, stream: object, direction: str, message: Message) -> None:
        if direction == "<":
            self.heard.append(message)

    def connect(self, host: str = "127.0.0.1", own: str = "127.0.0.1") -> Client:
        """A connection from this host."""
        return connect(self.factory, self.clock, peer_host=host, host=own, port=PORT)

    def link(self, **connection: str) -> Client:
        """A mediator's link that was taken."""
        client = self.connect(**connection)
        client.type("REGISTER\nRole:Mediator\n\n")
        assert client.text() == "NOTIFY\nRegistration Completed.\n\n"
        return client

    def told(self, identifier: str) -> tuple[str, int] | None:
        """Where the table says that a terminal is."""
        place = self.local.table.lookup(identifier, self.clock.seconds())
        return None if place is None else (place.contact.host, place.contact.port)


class Apart:
    """A ``RemoteResolver`` and the resolver that it finds at its endpoint.

    :ivar resolver: what answers there now; replace it to restart the resolver
    :ivar pairs: each connection that was made, oldest first
    """

    def __init__(
        self,
        clock: FakeReactor | None = None,
        *,
        secret: str | None = None,
        naming: NameLookup | None = None,
        **options: Any,
    ) -> None:
        """
        :param secret: what the mediator shows
        :param naming: what the mediator finds names out by
        :param options: those of ``FakeResolver``, its secret as ``wants``, its naming as ``theirs``
        """
        self.clock = clock or FakeReactor()
        reactor: Any = self.clock
        self.options = {**options, "secret": options.pop("wants", secret)}
        self.options.pop("wants", None)
        self.options["naming"] = self.options.pop("theirs", None)
        self.resolver = FakeResolver(self.clock, **self.options)
        self.remote = RemoteResolver(
            ConnectionHub.of_client(self.clock),
            TCP4ClientEndpoint(reactor, "127.0.0.1", PORT),
            jitter=random.Random(1).random,
            secret=secret,
            naming=naming,
        )
        self.pairs: list[Pair] = []
        self.away = False
        #: As a ``Pair``'s, for connections yet to be made.
        self.tamper: Callable[[int, bytes], bytes] | None = None
        self.deaf = False

    def start(self) -> Apart:
        """Connect, and let the link come up."""
        self.remote.start()
        self.pump()
        return self

    def pump(self, rounds: int = 0) -> None:
        """Answer each dial, move bytes, and run what is due, until all rests or rounds are over."""
        for _ in range(rounds or 1000):
            settle(self.clock)
            moved = False
            for dial in self.clock.dials:
                if not dial.over and dial.port == PORT:
                    moved = True
                    if self.away:
                        dial.refuse()
                    else:
                        protocol = self.resolver.factory.buildProtocol(None)
                        assert protocol is not None
                        self.pairs.append(dial.join(protocol))
                        self.pairs[-1].tamper = self.tamper
            if not self.deaf:
                for pair in self.pairs:
                    moved = pair.step() or moved
            if not moved:
                return
        if not rounds:
            raise AssertionError("the link never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, a twentieth of a second at a time, so that bytes move in good time."""
        for _ in range(round(seconds * 20)):
            self.clock.advance(0.05)
            self.pump()

    def pass_by(self, seconds: float, step: float) -> None:
        """Let long times pass in longer steps."""
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.pump()

    def cut(self) -> None:
        """The connection breaks."""
        self.pairs[-1].cut()

    def restart(self) -> None:
        """The resolver's process ends, and another begins that knows nothing."""
        self.resolver = FakeResolver(self.clock, **self.options)
        self.cut()

    def ask(self, step: Awaitable[T]) -> Outcome[T]:
        """Begin a step, and go on as far as no time passes."""
        outcome = Outcome(step)
        self.pump()
        return outcome

    def ask_only(self, step: Awaitable[T]) -> Outcome[T]:
        """Begin a step where the test itself is the resolver."""
        outcome = Outcome(step)
        settle(self.clock)
        return outcome

    def done(self, step: Awaitable[T]) -> None:
        """Do what needs no time, and see that it is done."""
        outcome = self.ask(step)
        assert outcome.over
        assert outcome.errors == []

    def registers(self, identifier: str = "Ib", host: str = "127.0.0.1", **more: Any) -> Contact:
        """The mediator registers an address there; more as for ``address``."""
        contact = address(self.clock, host, **more)
        self.done(self.remote.register(identifier, contact))
        return contact

    def elsewhere(self, host: str, more: str = "", identifier: str = "Ib") -> Client:
        """Another mediator's link registers an address there."""
        link = self.resolver.link()
        link.type(f"REGISTER\nIdentifier:{identifier}\nAddress:{host}\n{more}\n")
        assert "Registration Completed." in link.text()
        return link

    def finds(self, identifier: str = "Ib") -> Binding:
        """What a look-up gives."""
        return self.ask(self.remote.lookup(identifier)).value

    def misses(self, identifier: str = "Ib") -> type[BaseException]:
        """How a look-up fails."""
        return self.ask(self.remote.lookup(identifier)).error

    def holds_for(self, seconds: float) -> None:
        """The resolver has an address of Ib for that long from now, and not for longer."""
        self.pass_by(seconds - 1, 1)
        assert self.resolver.told("Ib") is not None
        self.pass_by(1, 1)
        assert self.resolver.told("Ib") is None

    def heard(self) -> list[list[str]]:
        """What the resolver was told since this was last asked, without transactions."""
        lines = []
        for message in self.resolver.heard:
            message.fields.pop("Transaction", None)
            lines.append(message.masked())
        self.resolver.heard.clear()
        return lines


def address(
    clock: FakeReactor,
    host: str = "127.0.0.1",
    *,
    port: int = 1203,
    expires: int = 3600,
    dialable: bool = False,
) -> Contact:
    """An address that is registered now."""
    return Contact(host, port, clock.seconds(), expires, dialable)
