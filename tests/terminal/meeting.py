"""Two terminals that come to meet each other: what tests of that have in common."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectError,
    TimeoutError,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.python.failure import Failure

from broker.net.timers import DeadlineQueue
from broker.terminal.calls import dial_back as comings
from broker.terminal.calls import place_call as calling
from broker.terminal.registration.client import MediatorClient
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect, connect_both
from tests.terminal.network import World

#: Where the caller waits, and where the callee takes calls.
WAITS = 4000
TAKES = 1203
#: Where Ib registers, instead of where it is: nothing listens there.
NOWHERE = 4999
#: An address of the Internet, and where two dial each other.
PUBLIC = "198.50.100.7"
MEETING = (PUBLIC, 40001)
SHARED = ("192.0.2.5", 40002)


class Simultaneous:
    """Endpoints whose connections stand where both sides have begun one, if the test lets them.

    :ivar begun: when each was begun: its own address and port, and the other side's
    :ivar given_up: how many were given up
    :ivar meets: two that are under way meet
    """

    def __init__(self) -> None:
        self.begun: list[tuple[float, tuple[str, int], tuple[str, int], float]] = []
        self.given_up = 0
        self.meets = False
        self.world: World | None = None
        self.waiting: list[tuple[IProtocolFactory, Deferred[IProtocol]]] = []

    def __call__(
        self, reactor: Any, local: tuple[str, int], remote: tuple[str, int], timeout: float
    ) -> Any:
        """What ``HolePunchEndpoint`` is."""
        sockets = self

        class Endpoint:
            def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
                sockets.begun.append((reactor.seconds(), local, remote, timeout))
                late = Failure(TimeoutError())
                return sockets.begin(factory).addTimeout(timeout, reactor, lambda *_: late)

        return Endpoint()

    def begin(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """One side begins."""
        done: Deferred[IProtocol] = Deferred(self._gives_up)
        self.waiting.append((factory, done))
        if self.meets and len(self.waiting) == 2:
            self._meet()
        return done

    def _gives_up(self, done: Deferred[IProtocol]) -> None:
        self.given_up += 1
        self.waiting = [one for one in self.waiting if one[1] is not done]

    def _meet(self) -> None:
        (a, stands_a), (b, stands_b) = self.waiting
        self.waiting.clear()
        assert self.world is not None
        address = IPv4Address("TCP", *MEETING)
        near: Any = a.buildProtocol(address)
        far: Any = b.buildProtocol(address)
        self.world.pairs.append(
            connect_both(near, far, self.world.clock, a_address=address, b_address=address)
        )
        stands_a.callback(near)
        stands_b.callback(far)

    def stands(self) -> Client:
        """The one that is under way stands: its other end."""
        ((factory, done),) = self.waiting
        self.waiting.clear()
        assert self.world is not None

        def make() -> Any:
            return factory.buildProtocol(IPv4Address("TCP", *MEETING))

        client = connect(make, self.world.clock, peer_host=PUBLIC)
        done.callback(client.protocol)
        self.world.run()
        return client

    def fails(self) -> None:
        """The one that is under way does not stand."""
        ((_, done),) = self.waiting
        self.waiting.clear()
        done.errback(ConnectError(string="the port can't be shared"))


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets; and lines that share their port, though they are within this machine."""
    sockets = Simultaneous()
    for module in (calling, comings):
        monkeypatch.setattr(module, "HolePunchEndpoint", sockets)
    monkeypatch.setattr(MediatorClient, "share_port", lambda line: SHARED)
    return sockets


def timers(clock: FakeReactor) -> list[Any]:
    """What is still due; deadlines of connections that are gone fall due, and find nothing."""
    calls: list[Any] = [*clock.getDelayedCalls()]
    return [
        call
        for call in calls
        if not isinstance(getattr(call.func, "__self__", None), DeadlineQueue)
    ]
