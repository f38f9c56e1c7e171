"""Connections from a port that another one has already (broker.terminal.simultaneous)."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectError, ConnectionLost, TimeoutError
from twisted.internet.interfaces import IStreamClientEndpoint, IWriteDescriptor
from twisted.internet.selectreactor import SelectReactor
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from broker.service.reactor import EpollReactor
from broker.terminal import simultaneous
from broker.terminal.simultaneous import AGAIN, SimultaneousEndpoint
from tests.fakes import FakeReactor, advance, settle, tcp_address
from tests.terminal.network import Outcome
from tests.terminal.speakers import Maker, Plain
from tests.terminal.test_doors import the_log
from tests.terminal.test_line import Wire

OURS = ("192.0.2.5", 40001)
THEIRS = ("198.51.100.7", 40002)
TIMEOUT = 10.0


class FakeSocket:
    """A socket whose connection comes to what a test says.

    :ivar did: what was done with it, in order
    :ivar error: what its connection has come to
    """

    def __init__(self, network: FakeSockets, family: int, number: int) -> None:
        self.did: list[tuple[Any, ...]] = [("family", family)]
        self.error = 0
        self.closed = False
        self._network = network
        self._number = number

    def setblocking(self, blocking: bool) -> None:
        self.did.append(("blocking", blocking))

    def setsockopt(self, *option: int) -> None:
        self.did.append(option)

    def bind(self, place: tuple[str, int]) -> None:
        if self._network.unbindable:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        self.did.append(("bind", place))

    def connect_ex(self, place: tuple[str, int]) -> int:
        self.did.append(("connect", place))
        return self._network.at_once

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error

    def fileno(self) -> int:
        assert not self.closed, "its descriptor may be another's by now"
        return self._number

    def close(self) -> None:
        self.closed = True


class FakeSockets:
    """The module, as far as it is used.

    :ivar made: each socket, oldest first
    :ivar at_once: what ``connect_ex`` gives
    :ivar unbindable: the port can't be shared
    :ivar none_left: there are no more descriptors
    """

    AF_INET = socket.AF_INET
    AF_INET6 = socket.AF_INET6
    SOCK_STREAM = socket.SOCK_STREAM
    SOL_SOCKET = socket.SOL_SOCKET
    SO_ERROR = socket.SO_ERROR
    SO_REUSEADDR = socket.SO_REUSEADDR

    def __init__(self) -> None:
        self.made: list[FakeSocket] = []
        self.at_once = errno.EINPROGRESS
        self.unbindable = False
        self.none_left = False

    def socket(self, family: int, kind: int) -> FakeSocket:
        """Another one."""
        assert kind == socket.SOCK_STREAM
        if self.none_left:
            raise OSError(errno.EMFILE, "Too many open files")
        made = FakeSocket(self, family, 100 + len(self.made))
        self.made.append(made)
        return made


class Reactor(FakeReactor):
    """A reactor in memory that watches and adopts what it is given.

    :ivar adopted: descriptor and family of each connection that it was given
    :ivar watched: what is to be told once it can be written to
    """

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[tuple[int, int]] = []
        self.watched: list[Any] = []

    def addWriter(self, writer: Any) -> None:
        self.watched.append(writer)

    def removeWriter(self, writer: Any) -> None:
        if writer in self.watched:
            self.watched.remove(writer)

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> None:
        self.adopted.append((fileDescriptor, addressFamily))
        protocol = factory.buildProtocol(tcp_address(*THEIRS))
        if protocol is not None:
            protocol.makeConnection(object())

    @property
    def at_rest(self) -> bool:
        """Whether nothing is watched, and no timer is left."""
        return not (self.watched or self.getDelayedCalls())


class Attempt:
    """A connection from a shared port, where a test plays the network.

    :ivar outcome: what becomes of it
    """

    def __init__(
        self,
        sockets: FakeSockets,
        *,
        ours: tuple[str, int] = OURS,
        theirs: tuple[str, int] = THEIRS,
        protocol: Callable[[], Plain | None] = Plain,
    ) -> None:
        self.sockets = sockets
        self.reactor = Reactor()
        self.maker: Any = Maker(protocol)
        endpoint = SimultaneousEndpoint(self.reactor, ours, theirs, TIMEOUT)
        self.outcome = Outcome(endpoint.connect(self.maker))

    def comes_to(self, error: int) -> None:
        """The attempt that is under way comes to this: 0, it stands."""
        self.sockets.made[-1].error = error
        (watched,) = self.reactor.watched
        watched.doWrite()
        settle(self.reactor)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.reactor, seconds)

    @property
    def left(self) -> list[FakeSocket]:
        """The sockets that are still open."""
        return [one for one in self.sockets.made if not one.closed]


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> FakeSockets:
    """The sockets of a test."""
    sockets = FakeSockets()
    monkeypatch.setattr(simultaneous, "socket", sockets)
    return sockets


class AttemptTests:
    """One attempt after the other, until one stands."""

    def test_interfaces(self) -> None:
        """It is what it says."""
        endpoint = SimultaneousEndpoint(None, OURS, THEIRS, TIMEOUT)
        verifyObject(IStreamClientEndpoint, endpoint)
        watched = simultaneous._Opening(None, OURS, THEIRS, Maker())
        verifyObject(IWriteDescriptor, watched)
        assert watched.fileno() == -1
        assert watched.logPrefix() == "simultaneous open"

    def test_from_the_shared_port(self, sockets: FakeSockets) -> None:
        """From our very port to theirs, without waiting for it."""
        Attempt(sockets)
        (made,) = sockets.made
        assert made.did == [
            ("family", socket.AF_INET),
            ("blocking", False),
            (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
            ("bind", OURS),
            ("connect", THEIRS),
        ]

    def test_ipv6(self, sockets: FakeSockets) -> None:
        """The family is that of our own address."""
        ours, theirs = ("2001:db8::5", 40001), ("2001:db8:1::7", 40002)
        attempt = Attempt(sockets, ours=ours, theirs=theirs)
        attempt.comes_to(0)
        assert attempt.reactor.adopted == [(100, socket.AF_INET6)]
        assert sockets.made[0].did[0] == ("family", socket.AF_INET6)

    def test_stands(self, sockets: FakeSockets) -> None:
        """The reactor gets the connection; nothing is left of the attempt."""
        attempt = Attempt(sockets)
        assert not attempt.outcome.done
        attempt.comes_to(0)
        (protocol,) = attempt.maker.made
        assert attempt.outcome.value is protocol
        assert protocol.made == 1
        assert attempt.reactor.adopted == [(100, socket.AF_INET)]
        assert attempt.left == []  # the reactor has a descriptor of its own
        assert attempt.reactor.at_rest

    def test_stands_at_once(self, sockets: FakeSockets) -> None:
        """It need not be waited for."""
        sockets.at_once = 0
        attempt = Attempt(sockets)
        assert attempt.outcome.value is attempt.maker.made[0]
        assert attempt.reactor.at_rest

    @pytest.mark.parametrize("error", [errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH])
    def test_refused(self, sockets: FakeSockets, error: int) -> None:
        """The other side may not have begun: it is tried again after 0.25 s, on a new socket."""
        attempt = Attempt(sockets)
        attempt.comes_to(error)
        assert AGAIN == 0.25
        assert attempt.left == []
        assert attempt.reactor.watched == []
        attempt.advance(0.249)
        assert len(sockets.made) == 1
        attempt.advance(0.001)
        assert sockets.made[1].did == sockets.made[0].did
        attempt.comes_to(0)
        assert attempt.outcome.value is not None
        assert attempt.reactor.adopted == [(101, socket.AF_INET)]

    def test_refused_at_once(self, sockets: FakeSockets) -> None:
        """So it is where the network says so before anything was waited for."""
        sockets.at_once = errno.ENETUNREACH
        attempt = Attempt(sockets)
        attempt.advance(1.0)
        assert len(sockets.made) == 5
        assert attempt.left == []
        sockets.at_once = errno.EINPROGRESS
        attempt.advance(0.25)
        attempt.comes_to(0)
        assert attempt.outcome.value is not None

    def test_until_the_timeout(self, sockets: FakeSockets) -> None:
        """Not for ever; then nothing is left."""
        sockets.at_once = errno.ECONNREFUSED
        attempt = Attempt(sockets)
        attempt.advance(TIMEOUT - 0.01)
        assert not attempt.outcome.done
        attempt.advance(0.01)
        assert isinstance(attempt.outcome.error, TimeoutError)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    def test_silence(self, sockets: FakeSockets) -> None:
        """An attempt that comes to nothing is over with the time for all of them."""
        attempt = Attempt(sockets)
        attempt.advance(TIMEOUT)
        assert isinstance(attempt.outcome.error, TimeoutError)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    @pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
    def test_forbidden(self, sockets: FakeSockets, error: int) -> None:
        """What this machine itself forbids it forbids the next time, too."""
        attempt = Attempt(sockets)
        attempt.comes_to(error)
        assert isinstance(attempt.outcome.error, ConnectError)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    @pytest.mark.parametrize("why", ["unbindable", "none_left"])
    def test_cannot_be_shared(self, sockets: FakeSockets, why: str) -> None:
        """Then there is no such way, which is said at once, and as other dials fail."""
        setattr(sockets, why, True)
        attempt = Attempt(sockets)
        assert isinstance(attempt.outcome.error, ConnectError)
        assert "the port of the line can't be shared" in str(attempt.outcome.error)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    @pytest.mark.parametrize("why", ["unbindable", "none_left"])
    def test_cannot_be_shared_now(self, sockets: FakeSockets, why: str) -> None:
        """Once it could it may be so again."""
        attempt = Attempt(sockets)
        attempt.comes_to(errno.ECONNREFUSED)
        setattr(sockets, why, True)
        with the_log() as lines:
            attempt.advance(1)
        assert lines == []
        assert not attempt.outcome.done
        assert attempt.left == []
        setattr(sockets, why, False)
        attempt.advance(0.25)
        attempt.comes_to(0)
        assert attempt.outcome.value is not None

    def test_not_wanted(self, sockets: FakeSockets) -> None:
        """A factory may want no connection after all."""
        attempt = Attempt(sockets, protocol=lambda: None)
        attempt.comes_to(0)
        assert isinstance(attempt.outcome.error, ConnectError)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    @pytest.mark.parametrize("error", [errno.ECONNREFUSED, 0])
    def test_let_go_by_the_reactor(self, sockets: FakeSockets, error: int) -> None:
        """A reactor may tell of a failure as of a loss; whatever else it says, nothing stands."""
        attempt = Attempt(sockets)
        sockets.made[0].error = error
        (watched,) = attempt.reactor.watched
        attempt.reactor.removeWriter(watched)
        watched.connectionLost(Failure(ConnectionLost()))
        assert attempt.reactor.adopted == []
        assert not attempt.outcome.done
        assert attempt.left == []
        attempt.advance(AGAIN)
        attempt.comes_to(0)
        assert attempt.outcome.value is not None

    def test_told_twice(self, sockets: FakeSockets) -> None:
        """A reactor that finds the descriptor gone says so once more: that is nothing new."""
        attempt = Attempt(sockets)
        (watched,) = attempt.reactor.watched
        attempt.comes_to(0)
        watched.connectionLost(Failure(ConnectionLost()))
        assert attempt.reactor.at_rest
        assert len(attempt.reactor.adopted) == 1


class CancelTests:
    """Giving up."""

    def test_on_its_way(self, sockets: FakeSockets) -> None:
        """The socket is closed, and no more watched."""
        attempt = Attempt(sockets)
        attempt.outcome.deferred.cancel()
        assert isinstance(attempt.outcome.error, CancelledError)
        assert attempt.left == []
        assert attempt.reactor.at_rest

    def test_between_two(self, sockets: FakeSockets) -> None:
        """There is no other attempt."""
        attempt = Attempt(sockets)
        attempt.comes_to(errno.ECONNREFUSED)
        attempt.outcome.deferred.cancel()
        assert isinstance(attempt.outcome.error, CancelledError)
        assert attempt.reactor.at_rest
        attempt.advance(1)
        assert len(sockets.made) == 1


class ShareTests:
    """Which port a line gives (``Line.share_port``)."""

    def line(self, remote: str = "192.0.2.1", **transport: Any) -> Any:
        """A line to a mediator there."""
        line = Wire().line
        line.stream.transport = SimpleNamespace(
            getPeer=lambda: tcp_address(remote, 1202), **transport
        )
        return line

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_its_own(self, host: str) -> None:
        """The address and port that it comes from; it allows others beside itself there."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as ours:
            ours.bind((host, 0))
            assert self.line(socket=ours).share_port() == ours.getsockname()[:2]
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

    @pytest.mark.parametrize("remote", ["127.0.0.1", "127.3.2.1", "::1"])
    def test_within_this_machine(self, remote: str) -> None:
        """There is no router in the way: it is of no use."""
        with socket.socket() as ours:
            assert self.line(remote, socket=ours).share_port() is None
            assert not ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

    def test_no_socket(self) -> None:
        """Some connections have none."""
        assert self.line().share_port() is None

    def test_gone(self) -> None:
        """A line that is lost has nothing to share."""
        wire = Wire()
        wire.mediator.vanish()
        assert wire.line.share_port() is None


# With sockets, on the loopback interface.


class Site:
    """A reactor that nobody has installed, and what it has to do.

    :ivar shared: the address and port of a line of ours
    """

    def __init__(self, make: Any, host: str) -> None:
        self.reactor = make()
        self._host = host
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.opened: list[socket.socket] = []
        server = self.listens()
        line = self._keep(socket.socket(self.family))
        line.bind((host, 0))  # else the port may be one that others have, too
        line.connect(server.getsockname())
        line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.shared: tuple[str, int] = line.getsockname()[:2]

    def _keep(self, one: socket.socket) -> socket.socket:
        self.opened.append(one)
        return one

    def listens(self, port: int = 0, backlog: int = 5) -> socket.socket:
        """Somebody listens."""
        listener = self._keep(socket.socket(self.family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, port))
        listener.listen(backlog)
        listener.settimeout(5)
        return listener

    def silent(self) -> tuple[str, int]:
        """A place from which nothing comes back: as many as may be wait there already."""
        listener = self.listens(backlog=0)
        for _ in range(4):
            waiting = self._keep(socket.socket(self.family))
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        place: tuple[str, int] = listener.getsockname()[:2]
        return place

    def free_port(self) -> int:
        """A port at which nobody is."""
        with socket.socket(self.family) as one:
            one.bind((self._host, 0))
            port: int = one.getsockname()[1]
            return port

    def dials(self, port: int, timeout: float = 5.0) -> Outcome:
        """A connection from the shared port."""
        endpoint = SimultaneousEndpoint(self.reactor, self.shared, (self._host, port), timeout)
        return Outcome(endpoint.connect(Maker()))

    def runs(self, until: Callable[[], object]) -> None:
        """Let things happen until that is so."""
        end = time.monotonic() + 8
        while not until():
            assert time.monotonic() < end, "it never comes to that"
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0.05)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be watched or done."""
        return not (self.reactor.getWriters() or self.reactor.getDelayedCalls())

    def close(self) -> None:
        """Leave nothing behind."""
        for one in self.reactor.removeAll():
            one.connectionLost(Failure(ConnectionLost()))
        for one in self.opened:
            one.close()
        poller = getattr(self.reactor, "_poller", None)
        if poller is not None:
            poller.close()
        for waker in self.reactor._internalReaders:
            with suppress(OSError):
                waker.connectionLost(None)


@pytest.fixture(params=[EpollReactor, SelectReactor])
def reactor(request: pytest.FixtureRequest) -> Any:
    """What makes each kind of reactor."""
    return request.param


@pytest.fixture
def site(reactor: Any) -> Iterator[Site]:
    """A reactor of a test's own, and a line."""
    site = Site(reactor, "127.0.0.1")
    yield site
    site.close()


@pytest.mark.integration
class SocketTests:
    """What only real sockets and reactors show."""

    def test_from_the_shared_port(self, site: Site) -> None:
        """Whoever is dialled sees the very port from which the line comes."""
        listener = site.listens()
        outcome = site.dials(listener.getsockname()[1])
        accepted, came_from = listener.accept()
        site.opened.append(accepted)
        assert came_from == site.shared
        site.runs(lambda: outcome.done)
        protocol = outcome.value
        assert protocol.transport.getPeer().port == listener.getsockname()[1]
        assert site.reactor.getDelayedCalls() == []
        accepted.sendall(b"hello")
        site.runs(lambda: protocol.received == b"hello")
        protocol.transport.write(b"and you")
        protocol.transport.loseConnection()
        site.runs(lambda: protocol.lost)
        accepted.settimeout(5)
        assert accepted.recv(100) == b"and you"
        assert accepted.recv(100) == b""

    def test_ipv6(self, reactor: Any) -> None:
        """The same by IPv6."""
        site = Site(reactor, "::1")
        try:
            listener = site.listens()
            outcome = site.dials(listener.getsockname()[1])
            accepted, came_from = listener.accept()
            site.opened.append(accepted)
            assert came_from[:2] == site.shared
            site.runs(lambda: outcome.done)
            assert outcome.value.transport.getPeer().host == "::1"
        finally:
            site.close()

    def test_refused_and_tried_again(self, site: Site) -> None:
        """Whoever begins later is met all the same."""
        port = site.free_port()
        outcome = site.dials(port)
        site.runs(lambda: site.reactor.getWriters() == [])
        begun = time.monotonic()
        listener = site.listens(port)
        site.runs(lambda: outcome.done)
        assert outcome.error is None
        assert time.monotonic() - begun < 2
        accepted, came_from = listener.accept()
        site.opened.append(accepted)
        assert came_from == site.shared

    def test_refused_until_the_timeout(self, site: Site) -> None:
        """Then nothing is left of it."""
        outcome = site.dials(site.free_port(), timeout=0.4)
        site.runs(lambda: outcome.done)
        assert isinstance(outcome.error, TimeoutError)
        assert site.idle

    def test_silence(self, site: Site) -> None:
        """Nor is it where nobody says anything."""
        outcome = site.dials(site.silent()[1], timeout=0.2)
        assert len(site.reactor.getWriters()) == 1
        site.runs(lambda: outcome.done)
        assert isinstance(outcome.error, TimeoutError)
        assert site.idle

    def test_given_up(self, site: Site) -> None:
        """Nor where it is given up; the port is free for another attempt at once."""
        place = site.silent()
        outcome = site.dials(place[1])
        outcome.deferred.cancel()
        assert isinstance(outcome.error, CancelledError)
        assert site.idle
        again = site.dials(place[1])
        assert not again.done
        again.deferred.cancel()
        assert site.idle

    def test_the_reactor_stops(self, site: Site) -> None:
        """Whatever is under way then is neither connected nor complained of."""
        outcome = site.dials(site.silent()[1])
        with the_log() as lines:
            for one in site.reactor.removeAll():
                one.connectionLost(Failure(ConnectionLost()))
        assert not outcome.done
        assert lines == []
        outcome.deferred.cancel()

    def test_cannot_be_shared(self, site: Site) -> None:
        """Where somebody listens at the port it can't be dialled from."""
        listener = site.listens()
        site.shared = listener.getsockname()
        outcome = site.dials(site.free_port())
        assert "can't be shared" in str(outcome.error)
        assert site.idle

    def test_of_two_kinds(self, site: Site) -> None:
        """Nor is an IPv6 address dialled from an IPv4 one."""
        endpoint = SimultaneousEndpoint(site.reactor, site.shared, ("2001:db8::7", 1203), 5)
        outcome = Outcome(endpoint.connect(Maker()))
        assert isinstance(outcome.error, ConnectError)
        assert site.idle
