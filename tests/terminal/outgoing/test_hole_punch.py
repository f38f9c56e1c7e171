"""Connections from a port that another one has already (broker.terminal.outgoing.hole_punch)."""

from __future__ import annotations

import errno
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.error import (
    ConnectBindError,
    ConnectError,
    ConnectingCancelledError,
    ConnectionLost,
    ConnectionRefusedError,
    NoRouteError,
    TimeoutError,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.tcp import makeBinding
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from broker.service.reactor import EpollReactor
from broker.service.settings.tls import endpoint
from broker.service.settings.values import parse_server
from broker.terminal.outgoing.hole_punch import RETRY_DELAY, HolePunchEndpoint
from tests.integration.test_addresses import has_ipv6
from tests.support.clock import advance, settle
from tests.support.reactor import Dial, FakeReactor
from tests.support.transport import tcp_address
from tests.terminal.network import Outcome
from tests.terminal.scene import Wire
from tests.terminal.speakers import Maker

OURS = ("192.0.2.5", 40001)
THEIRS = ("198.51.100.7", 40002)
TIMEOUT = 10.0
DIAL_SECONDS = 5.0
#: Connections that have been, and lines, of a machine on which much has happened.
CROWD = 3000
LINES = 200

#: Twisted leaves a socket that it can't bind to be closed by being forgotten.
unclosed = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


class ConnectAttempt:
    """A connection from a shared port, where a test plays the network.

    :ivar outcome: what becomes of it
    """

    def __init__(self, *, ours: tuple[str, int] = OURS, theirs: tuple[str, int] = THEIRS) -> None:
        self.reactor = FakeReactor()
        self.maker = Maker()
        endpoint = HolePunchEndpoint(self.reactor, ours, theirs, TIMEOUT)
        self.outcome = Outcome(endpoint.connect(self.maker))

    @property
    def dial(self) -> Dial:
        """The last one that was made."""
        return self.reactor.dials[-1]

    @property
    def made(self) -> int:
        """How many were."""
        return len(self.reactor.dials)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.reactor, seconds)

    @property
    def at_rest(self) -> bool:
        """Whether nothing is dialled, and no timer is left."""
        return self.dial.over and not self.reactor.getDelayedCalls()


class AttemptTests:
    """One attempt after the other, until one stands, the time is over, or it is given up."""

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [(OURS, THEIRS), (("2001:db8::5", 40001), ("2001:db8:1::7", 40002))],
        ids=["IPv4", "IPv6"],
    )
    def test_from_the_shared_port(self, ours: tuple[str, int], theirs: tuple[str, int]) -> None:
        """Each dials from the port that another connection has; all have one time between them."""
        endpoint = HolePunchEndpoint(FakeReactor(), ours, theirs, TIMEOUT)
        assert verifyObject(IStreamClientEndpoint, endpoint)
        attempt = ConnectAttempt(ours=ours, theirs=theirs)
        attempt.advance(1)
        attempt.dial.refuse()
        attempt.advance(RETRY_DELAY)
        assert [dial.timeout for dial in attempt.reactor.dials] == [TIMEOUT, TIMEOUT - 1.25]
        for dial in attempt.reactor.dials:
            assert (dial.host, dial.port) == theirs
            assert dial.bind == makeBinding(*ours, reuseAddress=True)

    @pytest.mark.parametrize("refused", [0, 1, 39])
    @pytest.mark.parametrize(
        ("end", "error"),
        [
            pytest.param(None, None, id="it stands, whichever attempt it is"),
            pytest.param("silence", TimeoutError, id="silence ends with the time for all"),
            pytest.param(
                ConnectBindError(errno.EADDRINUSE, "Address already in use"),
                ConnectBindError,
                id="a port that can't be bound is not waited for",
            ),
        ],
    )
    def test_end(self, refused: int, end: Any, error: type | None) -> None:
        """Refused, it is tried again after 0.25 s, since the other side may not have begun."""
        assert RETRY_DELAY == 0.25
        attempt = ConnectAttempt()
        refusals = itertools.cycle([ConnectionRefusedError(), NoRouteError(), ConnectError()])
        for made in range(1, refused + 1):
            attempt.dial.refuse(next(refusals))
            attempt.advance(RETRY_DELAY - 0.001)
            assert attempt.made == made
            attempt.advance(0.001)
            assert attempt.made == made + 1
        assert not attempt.outcome.done
        if end is None:
            attempt.dial.accept()
            assert attempt.outcome.value is attempt.maker.made[0]
            assert attempt.outcome.value.made == 1
        elif end == "silence":
            attempt.advance(TIMEOUT - refused * RETRY_DELAY - 0.01)
            assert not attempt.outcome.done
            attempt.advance(0.01)
        else:
            attempt.dial.refuse(end)
        assert type(attempt.outcome.error) is (error or type(None))
        attempt.advance(TIMEOUT)
        assert attempt.made == 1 + refused
        assert attempt.at_rest

    def test_refused_until_the_timeout(self) -> None:
        """Not for ever; the error says what the last came to."""
        attempt = ConnectAttempt()
        for _ in range(40):
            assert not attempt.outcome.done
            attempt.dial.refuse()
            attempt.advance(RETRY_DELAY)
        assert isinstance(attempt.outcome.error, ConnectionRefusedError)
        attempt.advance(TIMEOUT)
        assert attempt.made == 40
        assert attempt.at_rest

    def test_late(self) -> None:
        """A reactor that was busy until all the time is over has no timer for less than none."""
        attempt = ConnectAttempt()
        attempt.advance(TIMEOUT - 1)
        attempt.dial.refuse()
        attempt.reactor.rightNow += 2
        settle(attempt.reactor)
        assert isinstance(attempt.outcome.error, TimeoutError)
        assert attempt.at_rest

    @pytest.mark.parametrize("refused", [False, True], ids=["on its way", "between two attempts"])
    def test_given_up(self, refused: bool) -> None:
        """It leaves neither a dial nor a timer."""
        attempt = ConnectAttempt()
        if refused:
            attempt.dial.refuse()
        attempt.outcome.deferred.cancel()
        expected = CancelledError if refused else ConnectingCancelledError
        assert isinstance(attempt.outcome.error, expected)
        assert attempt.at_rest
        attempt.advance(1)
        assert attempt.made == 1


class ShareTests:
    """Which port a line gives (``MediatorClient.share_port``)."""

    def line(self, remote: str = "192.0.2.1", **transport: Any) -> Any:
        """A line to a mediator there."""
        line = Wire().client
        line.stream.transport = SimpleNamespace(
            getPeer=lambda: tcp_address(remote, 1202), **transport
        )
        return line

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_its_own(self, host: str) -> None:
        """The address and port that it comes from; it allows others there too."""
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

    def test_nothing_to_share(self) -> None:
        """Some connections have no socket, and one that is lost has none left."""
        assert self.line().share_port() is None
        wire = Wire()
        wire.mediator.vanish()
        assert wire.client.share_port() is None


# With sockets, on the loopback interface.


class Site:
    """A reactor that is not installed, with a clock that a test sets, and a mediator's listener.

    :ivar lines: how many lines were made
    :ivar now: the reactor's time: no timer falls due because a machine is slow
    """

    def __init__(self, make: Any, host: str) -> None:
        self.reactor = make()
        self.now = 0.0
        self.reactor.seconds = lambda: self.now
        self._host = host
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._opened: list[socket.socket] = []
        self.lines = 0
        self._mediator = self.listens()

    def _keep(self, one: socket.socket) -> socket.socket:
        self._opened.append(one)
        return one

    def listens(self, port: int = 0, backlog: int = 128) -> socket.socket:
        """Listen."""
        listener = self._keep(socket.socket(self.family))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._host, port))
        listener.listen(backlog)
        listener.settimeout(5)
        return listener

    def accepts(self, listener: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        """The connection that arrives there, and where it comes from."""
        self.reactor.runUntilCurrent()  # which may be what arrives
        accepted, (host, port, *_) = listener.accept()
        return self._keep(accepted), (host, port)

    def line(self) -> tuple[str, int]:
        """A line, made and shared as a terminal's is: the address and port it comes from."""
        port = self._mediator.getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        made = endpoint(self.reactor, parse_server(f"tcp:{host}:{port}"), None)
        stands = Outcome(made.connect(Maker()))
        _, seen_from = self.accepts(self._mediator)
        self.ends(stands)
        ours = stands.value.transport.socket
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        assert ours.getsockname()[:2] == seen_from
        self.lines += 1
        return seen_from

    def crowd(self) -> None:
        """Many connections to one place have been: the kernel keeps their ports a minute."""
        place = self.listens()
        for _ in range(CROWD):
            one = socket.create_connection(place.getsockname())
            accepted, _ = place.accept()
            one.close()  # first, so that it is its own port that is kept
            accepted.close()

    def silent(self) -> int:
        """A port from which nothing comes back: as many as may be wait there already."""
        listener = self.listens(backlog=0)
        for _ in range(4):
            waiting = self._keep(socket.socket(self.family))
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        return int(listener.getsockname()[1])

    def free_port(self) -> int:
        """A port at which nothing listens."""
        with socket.socket(self.family) as one:
            one.bind((self._host, 0))
            return int(one.getsockname()[1])

    def dials(self, shared: tuple[str, int], port: int, timeout: float = DIAL_SECONDS) -> Outcome:
        """A connection from a shared port."""
        endpoint = HolePunchEndpoint(self.reactor, shared, (self._host, port), timeout)
        return Outcome(endpoint.connect(Maker()))

    def runs(self, until: Callable[[], object]) -> None:
        """Let things happen until that is so."""
        end = time.monotonic() + 8
        while not until():
            assert time.monotonic() < end, "it never comes to that"
            self.reactor.runUntilCurrent()
            self.reactor.doIteration(0.01)

    def ends(self, outcome: Outcome) -> None:
        """Let things happen until something has come of it."""
        self.runs(lambda: outcome.done)

    def refused(self) -> None:
        """Let things happen until an attempt was refused, and the next one is due."""
        reactor = self.reactor
        self.runs(lambda: len(reactor.getDelayedCalls()) == 1 and not reactor.getWriters())

    @property
    def idle(self) -> bool:
        """Whether nothing is left to be watched for, or done later, but lines."""
        self.reactor.runUntilCurrent()
        watched = [one for one in self.reactor.getReaders() if hasattr(one, "connector")]
        writers, timers = self.reactor.getWriters(), self.reactor.getDelayedCalls()
        return len(watched) == self.lines and not (writers or timers)

    def close(self) -> None:
        """Leave nothing behind."""
        for one in self.reactor.removeAll():
            one.connectionLost(Failure(ConnectionLost()))
        for opened in self._opened:
            opened.close()
        poller = getattr(self.reactor, "_poller", None)
        if poller is not None:
            poller.close()
        for waker in self.reactor._internalReaders:
            with suppress(OSError):
                waker.connectionLost(None)


@pytest.fixture
def host() -> str:
    """Where it all is."""
    return "127.0.0.1"


@pytest.fixture(params=[EpollReactor, SelectReactor])
def site(request: pytest.FixtureRequest, host: str) -> Iterator[Site]:
    """A reactor of a test's own, of each kind."""
    site = Site(request.param, host)
    yield site
    site.close()


@pytest.mark.integration
class SocketTests:
    """What only real sockets and reactors show."""

    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no ::1 here")),
        ],
    )
    def test_from_the_shared_port(self, site: Site) -> None:
        """The other side sees the very port from which the line comes, which goes on."""
        shared = site.line()
        listener = site.listens()
        outcome = site.dials(shared, listener.getsockname()[1])
        accepted, seen_from = site.accepts(listener)
        assert seen_from == shared
        site.ends(outcome)
        protocol = outcome.value
        assert protocol.transport.getPeer().port == listener.getsockname()[1]
        accepted.sendall(b"hello")
        site.runs(lambda: protocol.received == b"hello")
        protocol.transport.write(b"and you")
        protocol.transport.loseConnection()
        site.runs(lambda: protocol.lost)
        accepted.settimeout(5)
        assert accepted.recv(100) == b"and you"
        assert accepted.recv(100) == b""
        assert site.idle

    @pytest.mark.parametrize("site", [EpollReactor], indirect=True)
    def test_of_a_line_among_many(self, site: Site) -> None:
        """On a machine that has connected much, too, each line's port can be had again.

        The kernel gives a port that it wasn't asked for to several connections, each to another
        place, and of those one that stands or has stood does not share it with a new one.
        """
        site.crowd()
        listener = site.listens()
        for _ in range(LINES):
            shared = site.line()
            outcome = site.dials(shared, listener.getsockname()[1])
            assert site.accepts(listener)[1] == shared
            site.ends(outcome)
            assert outcome.error is None

    def test_refused_and_tried_again(self, site: Site) -> None:
        """A side that begins later is met too."""
        shared, port = site.line(), site.free_port()
        outcome = site.dials(shared, port)
        site.refused()
        assert not outcome.done
        listener = site.listens(port)
        site.now += RETRY_DELAY
        site.ends(outcome)
        assert outcome.error is None
        assert site.accepts(listener)[1] == shared

    def test_refused_until_the_timeout(self, site: Site) -> None:
        """Then nothing is left of it."""
        outcome = site.dials(site.line(), site.free_port(), timeout=1.5 * RETRY_DELAY)
        site.refused()
        site.now += RETRY_DELAY
        site.ends(outcome)
        assert isinstance(outcome.error, ConnectionRefusedError)
        assert site.idle

    def test_silence(self, site: Site) -> None:
        """Nor where nothing answers."""
        outcome = site.dials(site.line(), site.silent())
        site.runs(site.reactor.getWriters)
        site.now += DIAL_SECONDS
        site.ends(outcome)
        assert isinstance(outcome.error, TimeoutError)
        assert site.idle

    def test_given_up(self, site: Site) -> None:
        """Nor where it is given up; the port is free for another attempt at once."""
        shared, place = site.line(), site.silent()
        for _ in range(2):
            outcome = site.dials(shared, place)
            site.runs(site.reactor.getWriters)
            assert not outcome.done
            outcome.deferred.cancel()
            assert isinstance(outcome.error, ConnectingCancelledError)
            assert site.idle

    @unclosed
    def test_cannot_be_shared(self, site: Site) -> None:
        """A port at which a socket listens can't be dialled from: that is said at once."""
        host, port, *_ = site.listens().getsockname()
        outcome = site.dials((host, port), site.free_port())
        site.ends(outcome)
        assert isinstance(outcome.error, ConnectBindError)
        assert site.idle

    @unclosed
    def test_of_two_kinds(self, site: Site) -> None:
        """Nor is an IPv6 address dialled from an IPv4 one."""
        place = ("2001:db8::7", 1203)
        endpoint = HolePunchEndpoint(site.reactor, site.line(), place, 5)
        outcome = Outcome(endpoint.connect(Maker()))
        site.ends(outcome)
        assert isinstance(outcome.error, ConnectBindError)
        assert site.idle
