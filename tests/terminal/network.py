"""A network in memory: whoever dials is joined to whoever listens there, as time goes on."""

from __future__ import annotations

import itertools
import random
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.message import Message
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal
from tests.support.clock import ROUNDS, advance, settle
from tests.support.reactor import FakeReactor
from tests.support.server import FakeMediator, a_mediator
from tests.support.transport import Client, Pair, connect
from tests.terminal.speakers import HalfCloseable, Maker

HOST = "127.0.0.1"
MEDIATOR_PORT = 1201


class Network:
    """All that listens and all that is connected.

    :ivar clock: everybody's clock and reactor
    :ivar pairs: the connections that stand or stood, oldest first
    :ivar dialled: when whoever dialled which port, oldest first
    :ivar silent: ports where a connection is made and never moves
    """

    def __init__(self, clock: FakeReactor | None = None) -> None:
        self.clock = clock or FakeReactor()
        self.pairs: list[Pair] = []
        self.dialled: list[tuple[float, int]] = []
        self.silent: set[int] = set()
        self._places: dict[int, IProtocolFactory] = {}

    def listen(self, port: int, factory: IProtocolFactory) -> None:
        """From now on a factory answers at a port."""
        assert port not in self._places, "the port is in use"
        self._places[port] = factory

    def leave(self, port: int) -> None:
        """From now on nobody answers at a port."""
        del self._places[port]

    def listens(self, port: int) -> bool:
        """Whether anybody answers at a port."""
        return port in self._places

    def factory_at(self, port: int) -> IProtocolFactory:
        """What answers at a port."""
        return self._places[port]

    def run(self) -> None:
        """Answer dials, move bytes and do what is due until all rests; no time passes."""
        for _ in range(ROUNDS):
            settle(self.clock)
            moved = self._answer()
            for pair in list(self.pairs):
                if pair.b.host.port not in self.silent:  # type: ignore[union-attr]
                    moved = pair.step() or moved
            if not moved:
                return
        raise AssertionError("the network never comes to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, halting wherever something falls due."""
        end = self.clock.seconds() + seconds
        for _ in range(ROUNDS):
            self.run()
            now = self.clock.seconds()
            due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
            if due > end or now >= end:
                break
            advance(self.clock, due - now)
        advance(self.clock, end - self.clock.seconds())
        self.run()

    def open(self) -> list[Pair]:
        """The connections that stand."""
        return [pair for pair in self.pairs if not pair.a.disconnected]

    def between(self, port: int) -> list[Pair]:
        """The standing connections to a port, oldest first."""
        return [pair for pair in self.open() if pair.b.host.port == port]  # type: ignore[union-attr]

    def _answer(self) -> bool:
        answered = False
        for dial in [dial for dial in self.clock.dials if not dial.over]:
            self.dialled.append((self.clock.seconds(), dial.port))
            factory = self._places.get(dial.port)
            origin = IPv4Address("TCP", HOST, 50000)
            protocol = None if factory is None else factory.buildProtocol(origin)
            if protocol is None:
                dial.refuse()
            else:
                self.pairs.append(dial.join(protocol))
            answered = True
        return answered


@implementer(IListeningPort)
class Port:
    """What listens at a port of the network."""

    def __init__(self, network: Network, port: int) -> None:
        self._network = network
        self._port = port

    def startListening(self) -> None:
        """It does already."""

    def stopListening(self) -> Deferred[None]:
        """Nobody answers here any more."""
        self._network.leave(self._port)
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """Where it is."""
        return IPv4Address("TCP", HOST, self._port)


@implementer(IStreamServerEndpoint)
class Listener:
    """An endpoint of the network; port 0 takes another port each time.

    :ivar fails: what listening fails with
    """

    _free = itertools.count(2000)

    def __init__(self, network: Network, port: int = 0, fails: Exception | None = None) -> None:
        self._network = network
        self._port = port
        self.fails = fails

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen."""
        done: Deferred[IListeningPort] = Deferred()
        if self.fails is not None:
            done.errback(Failure(self.fails))
            return done
        port = self._port or next(self._free)
        self._network.listen(port, protocolFactory)
        done.callback(Port(self._network, port))
        return done


class World(Network):
    """A network with a mediator in it.

    :ivar mediator: the one that answers now
    :ivar heard: what the mediator was told, in order, whoever told it
    :ivar terminals: those that were started
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.heard: list[Message] = []
        self._options = options
        self.terminals: list[Terminal] = []
        self.mediator = self._a_mediator()
        self.listen(MEDIATOR_PORT, self.mediator.factory)

    def _a_mediator(self, **options: Any) -> FakeMediator:
        return a_mediator(self.clock, hub={"trace": self._trace}, **{**self._options, **options})

    def _trace(self, stream: object, direction: str, message: Message) -> None:
        if direction == "<":
            self.heard.append(message)

    def restart_mediator(self, *, seed: int = 2) -> None:
        """Another mediator, which has forgotten everything, answers; all lines are lost."""
        self.mediator_goes()
        self.mediator_comes(seed=seed)

    def mediator_goes(self) -> None:
        """The mediator is away: its connections are lost, and nobody answers."""
        self.leave(MEDIATOR_PORT)
        for pair in self.between(MEDIATOR_PORT):
            pair.cut()

    def mediator_comes(self, *, seed: int | None = None) -> None:
        """The mediator is back, as it was; or, with a seed, another."""
        if seed is not None:
            self.mediator = self._a_mediator(seed=seed)
        self.listen(MEDIATOR_PORT, self.mediator.factory)

    def terminal(self, identifier: str, at: int | None = None, **options: Any) -> Terminal:
        """A terminal that is started.

        :param at: the port that it listens at; it listens nowhere, without
        """
        reactor: Any = self.clock
        options.setdefault("jitter", random.Random(1).random)
        if at is not None:
            options["listen"] = Listener(self, at)
        terminal = Terminal(
            reactor,
            identifier,
            TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT),
            TerminalSettings(**options),
        )
        terminal.startService()
        self.terminals.append(terminal)
        self.run()
        return terminal

    def outcome(self, deferred: Deferred[Any]) -> Outcome:
        """What becomes of a Deferred, as far as it comes without time passing."""
        outcome = Outcome(deferred)
        self.run()
        return outcome

    def hangs_up(self, protocol: Any) -> None:
        """One side ends a call."""
        protocol.transport.loseConnection()
        self.run()

    def named(self, identifier: str = "Ia") -> Terminal:
        """One of the terminals."""
        return next(one for one in self.terminals if one.identifier == identifier)

    def called(self, caller: Terminal | None = None, callee: str = "Ib", maker: Any = None) -> Any:
        """A call that stands, by default Ia's: the caller's protocol."""
        made = (caller or self.named()).call(callee, maker or Maker(HalfCloseable))
        outcome = self.outcome(made)
        assert outcome.error is None
        assert outcome.value is not None
        return outcome.value

    def failed(self, caller: Terminal | None = None, callee: str = "Ib") -> BaseException:
        """Why a call failed."""
        outcome = self.outcome((caller or self.named()).call(callee, Maker()))
        assert outcome.error is not None
        return outcome.error

    def echoed(self, protocol: Any, data: bytes = b"hello") -> bool:
        """Whether what is said comes back."""
        protocol.received = b""
        protocol.transport.write(data)
        self.run()
        return bool(protocol.received == data)

    def client(self) -> Client:
        """A connection to the mediator, as of a person at telnet."""
        return connect(self.mediator.factory, self.clock, port=MEDIATOR_PORT)

    def accepted(self, identifier: str) -> list[str]:
        """Whom a terminal permits."""
        return list(self.mediator.mediator.context.permits.table.accepted(identifier))

    def line_of(self, identifier: str) -> Pair:
        """The connection of a terminal's line."""
        for pair in self.between(MEDIATOR_PORT):
            stream: Any = pair.a.protocol
            stream = getattr(stream, "_wrappedProtocol", stream)
            if getattr(stream.receiver, "identifier", None) == identifier:
                return pair
        raise AssertionError(f"{identifier} has no line")

    def has_line(self, identifier: str) -> bool:
        """Whether a terminal is connected."""
        return any(
            getattr(pair.b.protocol.receiver, "identifier", None) == identifier  # type: ignore[attr-defined]
            for pair in self.between(MEDIATOR_PORT)
        )

    def lose_line(self, identifier: str) -> None:
        """A terminal's line breaks."""
        pair = self.line_of(identifier)
        pair.a.lose(ConnectionLost())
        pair.b.lose(ConnectionLost())
        settle(self.clock)


class Outcome:
    """What becomes of a Deferred, looked at whenever a test likes.

    :ivar value: what it gave, once it has
    :ivar error: what it failed with
    """

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.deferred = deferred
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False
        deferred.addCallbacks(self._gave, self._failed)

    def _gave(self, value: Any) -> None:
        self.done = True
        self.value = value

    def _failed(self, failure: Failure) -> None:
        self.done = True
        self.error = failure.value
