"""Calls whose two sides come to meet each other: when the callee dials, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import (
    CannotListenError,
    ConnectError,
    ConnectionLost,
    TimeoutError,
)
from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.python.failure import Failure

from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal import calling, comings
from broker.terminal.calling import DIAL_TIMEOUT, Waiting, place_call
from broker.terminal.calls import ENDED_BY_MEDIATOR, Calls
from broker.terminal.comings import DIALS_MOST
from broker.terminal.connectback import (
    COMING,
    NOT_BEFORE,
    OPENING,
    CallBacks,
    place_call_back,
    place_one_call,
)
from broker.terminal.doors import HANDSHAKE_TIMEOUT, HANDSHAKES, UNPROVEN_MOST
from broker.terminal.errors import CallDenied, CallFailed
from broker.terminal.expected import ExpectedCall, WantedCall
from broker.terminal.knock import Knock
from broker.terminal.line import Line, dial
from broker.terminal.records import Kind
from broker.terminal.terminal import Terminal
from broker.terminal.ways import (
    BACK,
    DIRECT,
    LOCAL,
    SIMULTANEOUS,
    Attempt,
    Race,
    Tried,
    Way,
)
from broker.wire.grammar import NOTIFY, QUERY, REQUEST
from broker.wire.message import Message
from broker.wire.refusals import PermissionDenied
from broker.wire.statements import ADDRESS, PERMISSION_DENIED, REQUEST_ACCEPTED, TERMINATE
from broker.wire.stream import Stream
from broker.wire.timing import Deadlines
from tests.fakes import (
    Client,
    FakeReactor,
    advance,
    connect,
    connect_both,
    result_of,
    settle,
    tcp_address,
)
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    an_answer,
    framed,
)
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Outcome, World
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker
from tests.terminal.test_calling import Callee
from tests.terminal.test_connectback import Opener
from tests.terminal.test_doors import House, Knocker, the_log

#: Where the caller waits, and where the callee takes calls.
WAITS = 4000
TAKES = 1203
#: Where Ib registers, instead of where it is: nobody is there.
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
        """What ``SimultaneousEndpoint`` is."""
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


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets; and lines that share their port, though they are within this machine."""
    sockets = Simultaneous()
    for module in (calling, comings):
        monkeypatch.setattr(module, "SimultaneousEndpoint", sockets)
    monkeypatch.setattr(Line, "share_port", lambda line: SHARED)
    return sockets


class Home:
    """Ib, which a mediator that a test plays tells of calls.

    :ivar ib: the callee
    :ivar maker: makes what answers where its caller waits
    """

    def __init__(self, sockets: Simultaneous | None = None, **options: Any) -> None:
        self.world = World()
        if sockets is not None:
            sockets.world = self.world
        self.handler = Handler(Echo)
        options = {"handler": self.handler, **options}
        self.ib = self.world.terminal("Ib", TAKES, **options)
        self.maker = Maker(HalfCloseable)
        self.world.listen(WAITS, self.maker)
        pair = self.world.line_of("Ib")
        self.mediator: Any = pair.b.protocol
        line: Any = self.ib._link.conversation
        self.line: Line = line

    def announce(
        self, *, back: str | None = None, seen: str | None = None, session: str = SESSION
    ) -> Home:
        """The mediator says that Ia calls (fig. 5e)."""
        fields = {
            "Caller ID": CALLER,
            "Password": PASSWORD,
            "Encrypt Key": KEY,
            "Session": session,
            "Expires": "3600",
            "Reply Password": REPLY_PASSWORD,
        }
        if seen is not None:
            fields["Caller Seen"] = seen
        if back is not None:
            fields["Caller Back"] = back
        self.mediator.send(Message.of(NOTIFY, fields))
        self.world.run()
        return self

    def waits(self, **other: Any) -> Home:
        """Ia calls, and can be come to."""
        return self.announce(back=f"{HOST} {WAITS}", **other)

    def terminate(self, session: str = SESSION) -> None:
        """The mediator says that it is void."""
        self.mediator.send(Message.of(NOTIFY, {"Session": session, "": TERMINATE}))
        self.world.run()

    def knock(self, session: str = SESSION) -> Knocker:
        """Ia comes along another way, and sends its REQUEST."""
        client = connect(self.world.factory_at(TAKES), self.world.clock, port=TAKES)
        return Knocker(client, session=session).send()

    @property
    def dialled(self) -> list[tuple[float, int]]:
        """When it has dialled which port, beside the mediator's."""
        return [one for one in self.world.dialled if one[1] != MEDIATOR_PORT]

    @property
    def at_rest(self) -> bool:
        """Whether nothing is dialled or about to be, and nobody is at the doors."""
        ib, doors = self.ib, self.ib._doors
        return not (
            ib._comings._timers
            or ib._comings._dialling
            or doors._unproven
            or doors._attempts
            or doors._held
        )


class DialsTests:
    """When the callee dials its caller."""

    def test_half_a_second_later(self) -> None:
        """The caller's own ways have that time to lead here."""
        home = Home().waits()
        home.world.advance(0.49)
        assert home.dialled == []
        home.world.advance(0.01)
        assert home.dialled == [(0.5, WAITS)]
        home.world.advance(20)
        assert len(home.dialled) == 1

    def test_what_it_says(self) -> None:
        """For which session it has come, and nothing else, until it is spoken to."""
        home = Home().waits()
        home.world.advance(0.5)
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session=SESSION).encode()

    def test_both_dial(self, simultaneous: Simultaneous) -> None:
        """From the line's own port, a quarter of a second before; there it says nothing."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.24)
        assert simultaneous.begun == []
        home.world.advance(0.01)
        assert simultaneous.begun == [(0.25, SHARED, MEETING, DIAL_TIMEOUT)]
        assert simultaneous.stands().bytes() == b""
        assert home.dialled == []

    def test_each(self, simultaneous: Simultaneous) -> None:
        """One beside the other."""
        home = Home(simultaneous).waits(seen="198.50.100.7 40001")
        home.world.advance(0.5)
        assert [at for at, *_ in simultaneous.begun] == [0.25]
        assert home.dialled == [(0.5, WAITS)]

    def test_not_asked_for(self, simultaneous: Simultaneous) -> None:
        """A caller that says nothing of that is dialled by nobody."""
        home = Home(simultaneous).announce()
        home.world.advance(20)
        assert (home.dialled, simultaneous.begun) == ([], [])
        assert home.at_rest

    def test_no_port_to_share(
        self, simultaneous: Simultaneous, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the line's port can't be dialled from, it is not."""
        monkeypatch.setattr(Line, "share_port", lambda line: None)
        home = Home(simultaneous).waits(seen="198.50.100.7 40001")
        home.world.advance(0.5)
        assert simultaneous.begun == []
        assert home.dialled == [(0.5, WAITS)]

    @pytest.mark.parametrize("said", ["nobody 4000", "127.0.0.1", "127.0.0.1 0", "127.0.0.1:4000"])
    def test_no_place(self, said: str) -> None:
        """A mediator that tells of no place has not told of any call."""
        home = Home()
        text = Message.of(
            NOTIFY,
            {
                "Caller ID": CALLER,
                "Password": PASSWORD,
                "Encrypt Key": KEY,
                "Session": SESSION,
                "Reply Password": REPLY_PASSWORD,
            },
        ).encode()
        home.mediator.write(text[:-2] + f"Caller Back:{said}\r\n\r\n".encode())
        home.world.run()
        assert len(home.ib._expected) == 0


class NotDialledTests:
    """When it need not, or must not, any more."""

    def nobody(self, home: Home, simultaneous: Simultaneous, seconds: float = 20) -> None:
        """It dials nobody from now on."""
        home.world.advance(seconds)
        assert (home.dialled, simultaneous.begun) == ([], [])
        assert home.at_rest

    def called(self, simultaneous: Simultaneous) -> Home:
        """Ia calls, and can be come to in both ways."""
        return Home(simultaneous).waits(seen="198.50.100.7 40001")

    def test_a_request_was_shown(self, simultaneous: Simultaneous) -> None:
        """Who is about to prove itself need not be come to."""
        home = self.called(simultaneous)
        home.knock()
        home.world.advance(0.5)
        assert (home.dialled, simultaneous.begun) == ([], [])

    def test_and_came_to_nothing(self, simultaneous: Simultaneous) -> None:
        """Unless nothing has come of it by then."""
        home = self.called(simultaneous)
        knocker = home.knock()
        home.world.advance(0.3)
        knocker.client.vanish()
        home.world.advance(0.2)
        assert simultaneous.begun == []
        assert home.dialled == [(0.5, WAITS)]

    def test_begun(self, simultaneous: Simultaneous) -> None:
        """A session that is spent is spent (I7): no timer waits to no purpose."""
        home = self.called(simultaneous)
        home.knock().prove()
        assert len(home.handler.calls) == 1
        assert home.ib._comings._timers == {}
        self.nobody(home, simultaneous)

    def test_terminated(self, simultaneous: Simultaneous) -> None:
        """Nor is anybody dialled for a session that is void (I2)."""
        home = self.called(simultaneous)
        home.terminate()
        assert home.ib._comings._timers == {}
        self.nobody(home, simultaneous)

    def test_another_is(self) -> None:
        """That another session is void is nothing to this one."""
        home = Home().waits()
        home.terminate("S9")
        home.world.advance(0.5)
        assert home.dialled == [(0.5, WAITS)]

    def test_called_anew(self) -> None:
        """The same caller's new call voids the one before: it is come to once, for the new one."""
        home = Home().waits()
        home.world.advance(0.2)
        home.waits(session="S9")
        home.world.advance(5)
        assert home.dialled == [(0.7, WAITS)]
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session="S9").encode()

    @pytest.mark.parametrize("asked", [False, True], ids=["permitted", "by password"])
    def test_called_anew_on_its_way(self, asked: bool, simultaneous: Simultaneous) -> None:
        """A dial for the call that is void now is given up; that is no failure (I16)."""
        home = Home(simultaneous)
        old = replace(_call("S1", CALLER), back=(PUBLIC, WAITS), seen=MEETING)
        if asked:
            home.ib.come(WantedCall(old, PUBLIC, WAITS))
        else:
            home.ib.announced(home.line, old)
            advance(home.world.clock, 0.5)
        dial = home.world.clock.dials[-1]
        assert (dial.host, dial.over) == (PUBLIC, False)
        home.ib.announced(home.line, _call("S2", CALLER))
        assert dial.over
        assert simultaneous.given_up == (not asked)
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []

    def test_its_own_address(self, simultaneous: Simultaneous) -> None:
        """Nor does one that has named an address: whoever is dialled sees where it is (I1)."""
        home = Home(simultaneous, address=HOST).waits(seen="198.50.100.7 40001")
        assert home.ib._comings._timers == {}
        self.nobody(home, simultaneous)
        assert len(home.ib._expected) == 1
        home.knock().prove()  # it is called as ever
        assert len(home.handler.calls) == 1

    def test_expired(self, simultaneous: Simultaneous) -> None:
        """A session that is too old by then (I10)."""
        home = Home(simultaneous)
        now = home.world.clock.seconds()
        call = ExpectedCall(
            SESSION, CALLER, PASSWORD, REPLY_PASSWORD, KEY, now + 0.25, (HOST, WAITS), MEETING
        )
        home.ib.announced(home.line, call)
        self.nobody(home, simultaneous)

    def test_line_lost(self, simultaneous: Simultaneous) -> None:
        """Whom its mediator can't reach any more goes nowhere on its word (I2)."""
        home = self.called(simultaneous)
        home.world.lose_line("Ib")
        self.nobody(home, simultaneous)

    def test_stopped(self, simultaneous: Simultaneous) -> None:
        """With the terminal all of it ends, and no timer is left."""
        home = self.called(simultaneous)
        stopped = Outcome(home.ib.stopService())
        assert home.ib._comings._timers == {}
        home.world.run()
        assert stopped.done
        self.nobody(home, simultaneous)

    @pytest.mark.parametrize("way", ["back", "seen"])
    @pytest.mark.parametrize("how", ["stopService", "terminate", "begun", "line lost"])
    def test_on_its_way(self, way: str, how: str, simultaneous: Simultaneous) -> None:
        """A dial that is under way is given up, and so is its door; that is no failure."""
        home = Home(simultaneous)
        if way == "back":
            home.announce(back=f"{PUBLIC} {WAITS}")
        else:
            home.announce(seen=f"{PUBLIC} 40001")
        advance(home.world.clock, 0.5)  # and nobody answers dials
        (dials,) = home.ib._comings._dialling.values()
        assert len(dials) == 1
        dial = home.world.clock.dials[-1]
        with the_log() as lines:
            if how == "stopService":
                home.ib.stopService()
            elif how == "terminate":
                home.ib.terminated(SESSION)
            elif how == "begun":
                home.knock().prove()
            else:
                home.world.lose_line("Ib")
        assert home.ib._comings._dialling == {}
        assert len(home.ib._doors._unproven) == 0
        if way == "back":
            assert dial.over
        else:
            assert simultaneous.given_up == 1
        assert [line for line in lines if "could not be reached" in line] == []


class JudgedTests:
    """A caller must not send a terminal just anywhere (I12)."""

    def dials(
        self, host: str, simultaneous: Simultaneous, port: int = WAITS, mediator: str = ""
    ) -> tuple[bool, bool]:
        """Whether it dials there, as where its caller waits, and as where that comes from."""
        home = Home(simultaneous)
        if mediator:
            transport: Any = home.line.stream.transport
            transport.peer = IPv4Address("TCP", mediator, MEDIATOR_PORT)
        before = len(home.world.clock.dials)
        home.announce(back=f"{host} {port}", seen=f"{host} {port}")
        advance(home.world.clock, 1)
        assert len(home.ib._expected) == 1  # it is expected all the same
        return len(home.world.clock.dials) > before, bool(simultaneous.begun)

    @pytest.mark.parametrize(
        "host",
        [
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "192.168.1.9",
            "10.0.0.1",
            "169.254.1.1",
            "fd00::1",
            "64:ff9b::7f00:1",
            "::ffff:10.0.0.1",
        ],
    )
    def test_not_dialled(self, host: str, simultaneous: Simultaneous) -> None:
        """Neither what is no place nor the networks about it; the log says why."""
        with the_log() as lines:
            assert self.dials(host, simultaneous) == (False, False)
        assert [line for line in lines if "Ia is not dialled: " in line]

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "10.0.0.1"])
    def test_from_the_internet(self, host: str, simultaneous: Simultaneous) -> None:
        """Nor itself, nor what is private, where its mediator is in the Internet."""
        assert self.dials(host, simultaneous, mediator=PUBLIC) == (False, False)

    @pytest.mark.parametrize("mediator", ["", PUBLIC, "10.0.0.1"])
    def test_dialled(self, mediator: str, simultaneous: Simultaneous) -> None:
        """The Internet is."""
        assert self.dials("198.50.100.9", simultaneous, mediator=mediator) == (True, True)

    def test_where_its_mediator_is(self, simultaneous: Simultaneous) -> None:
        """So is the kind of network in which its mediator is."""
        assert self.dials("10.9.9.9", simultaneous, mediator="10.0.0.1") == (True, True)

    def test_itself(self, simultaneous: Simultaneous) -> None:
        """Its own listener is not."""
        assert self.dials(HOST, simultaneous, TAKES) == (False, False)
        assert self.dials(HOST, Simultaneous(), TAKES + 1)[0]


class CapsTests:
    """What a flood of calls can make it dial is bounded (I15)."""

    def test_dials(self, simultaneous: Simultaneous) -> None:
        """So many at a time, whatever they are for; the next call is dialled again."""
        home = Home(simultaneous)
        under_way = home.ib._comings._dialling
        for n in range(DIALS_MOST):
            under_way[f"S{n}"] = [Deferred()]
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert (home.dialled, simultaneous.begun) == ([], [])
        under_way.pop("S0")
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert len(home.dialled) + len(simultaneous.begun) == 1
        for session in [one for one in under_way if one != SESSION]:
            del under_way[session]

    def test_one_caller(self, simultaneous: Simultaneous) -> None:
        """However often one caller calls, it is dialled for its newest call alone (I16): others
        are dialled beside it.
        """
        home = Home(simultaneous)
        for n in range(DIALS_MOST):
            call = replace(_call(f"S{n}", CALLER), back=(PUBLIC, WAITS), seen=MEETING)
            home.ib.announced(home.line, call)
            assert list(home.ib._comings._timers) == [f"S{n}"]
            advance(home.world.clock, 0.5)  # and nobody answers
        dials = [dial for dial in home.world.clock.dials if dial.host == PUBLIC]
        assert [dial.over for dial in dials] == [True] * (DIALS_MOST - 1) + [False]
        assert list(home.ib._comings._dialling) == [f"S{DIALS_MOST - 1}"]
        assert (len(simultaneous.begun), len(simultaneous.waiting)) == (DIALS_MOST, 1)
        home.ib.announced(home.line, replace(_call("S9", "Ic"), back=("198.50.100.9", WAITS)))
        advance(home.world.clock, 0.5)
        last = home.world.clock.dials[-1]
        assert (last.host, last.over) == ("198.50.100.9", False)
        assert not dials[-1].over

    def test_doors(self, simultaneous: Simultaneous) -> None:
        """Nor are there more connections that have proven nothing."""
        home = Home(simultaneous)
        clients = [
            connect(home.world.factory_at(TAKES), home.world.clock, port=TAKES)
            for _ in range(UNPROVEN_MOST)
        ]
        home.waits(seen="198.50.100.7 40001")
        home.world.advance(1)
        assert (home.dialled, simultaneous.begun) == ([], [])
        clients[0].vanish()
        home.waits()
        home.world.advance(1)
        assert len(home.dialled) == 1


class ComeTests:
    """A connection that the callee has made: it serves one session, and its caller speaks first."""

    def come(self, home: Home) -> Client:
        """It has come: the caller's end, with what was said first read away."""
        home.world.leave(WAITS)
        home.waits()
        advance(home.world.clock, 0.5)
        client = home.world.clock.dials[-1].accept()
        assert client.received() == [Message(NOTIFY, Session=SESSION)]
        return client

    def test_a_call(self) -> None:
        """The caller shows its REQUEST and proves itself, as at the door (A12, A23)."""
        home = Home()
        knocker = Knocker(self.come(home)).send().prove(b"hello")
        ((caller, session, protocol),) = home.handler.calls
        assert (caller, session) == (CALLER, SESSION)
        assert protocol.transport.way == Way(BACK, HOST, WAITS)
        assert knocker.heard() == [(Kind.DATA, b"hello")]
        assert home.at_rest

    def test_a_call_where_both_dialled(self, simultaneous: Simultaneous) -> None:
        """So it does there."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.25)
        Knocker(simultaneous.stands()).send().prove()
        ((_, _, protocol),) = home.handler.calls
        assert protocol.transport.way == Way(SIMULTANEOUS, *MEETING)
        assert home.at_rest

    def test_at_its_own_door(self) -> None:
        """Who came by itself has come along no way that is known here."""
        home = Home().announce()
        home.knock().prove()
        assert home.handler.calls[0][2].transport.way is None

    def test_another_session(self) -> None:
        """Another session is not served there, though it is expected."""
        home = Home()
        client = self.come(home)
        home.ib._doors.expect(_call("S9", "Ic"))
        knocker = Knocker(client, session="S9", caller="Ic", identifier="Ic").send()
        assert knocker.shut_out
        assert home.handler.calls == []
        assert home.ib._doors._held == {}

    def test_another_session_where_both_dialled(self, simultaneous: Simultaneous) -> None:
        """Nor there."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.25)
        client = simultaneous.stands()
        home.ib._doors.expect(_call("S9", "Ic"))
        knocker = Knocker(client, session="S9", caller="Ic", identifier="Ic").send()
        assert knocker.shut_out
        assert home.handler.calls == []

    def test_nobody_comes_there(self) -> None:
        """Nor does whoever is there come for a session of ours."""
        home = Home()
        client = self.come(home)
        waits = Outcome(home.ib._call_backs.wait("S9", "Ic", lambda stream: pytest.fail("spoke")))
        client.send(Message(NOTIFY, Session="S9"))
        assert (client.closed, client.bytes()) == (True, b"")
        assert not waits.done

    def test_who_is_it_not(self) -> None:
        """Who is there must know what its mediator has given the caller."""
        home = Home()
        knocker = Knocker(self.come(home), password="guess").send()
        assert knocker.answer() == Message(NOTIFY, PERMISSION_DENIED)
        assert home.handler.calls == []
        assert len(home.ib._expected) == 1

    def test_nobody_speaks(self) -> None:
        """It is left after five seconds."""
        home = Home()
        client = self.come(home)
        advance(home.world.clock, HANDSHAKE_TIMEOUT - 0.1)
        assert not client.closed
        advance(home.world.clock, 0.1)
        assert client.closed
        assert home.at_rest

    def test_nobody_is_there(self) -> None:
        """Then the caller may come all the same: nobody is told that the call has failed."""
        home = Home()
        home.world.leave(WAITS)
        with the_log() as lines:
            home.waits().world.advance(1)
        assert [line for line in lines if "Ia could not be reached" in line]
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []
        home.knock().prove()
        assert len(home.handler.calls) == 1

    def test_it_cannot_be_dialled_so(self, simultaneous: Simultaneous) -> None:
        """Nor where the port can't be shared after all."""
        home = Home(simultaneous).announce(seen="198.50.100.7 40001")
        home.world.advance(0.25)
        simultaneous.fails()
        assert home.at_rest
        assert len(home.ib._expected) == 1

    def test_two_at_once(self) -> None:
        """A caller that proves itself along one way is closed on along the others."""
        home = Home()
        client = self.come(home)
        first, second = Knocker(client).send(), home.knock()
        second.prove()
        assert first.client.closed
        assert not second.client.closed
        assert len(home.handler.calls) == 1
        assert home.at_rest


def timers(clock: FakeReactor) -> list[Any]:
    """What is still due; deadlines of connections that are gone fall due, and find nothing."""
    calls: list[Any] = [*clock.getDelayedCalls()]
    return [
        call for call in calls if not isinstance(getattr(call.func, "__self__", None), Deadlines)
    ]


def _call(session: str, caller: str) -> ExpectedCall:
    return ExpectedCall(session, caller, PASSWORD, REPLY_PASSWORD, KEY, UNSPENT_SECONDS)


#: What the mediator gives a caller (fig. 5d).
TOLD = Message.of(
    NOTIFY,
    {
        "Callee Address": "192.0.2.7",
        "Password": PASSWORD,
        "Encrypt Key": KEY,
        "Callee Port": "1300",
        "Callee": CALLEE,
        "Session": SESSION,
        "Expires": "3600",
        "Reply Password": REPLY_PASSWORD,
    },
)


class Wait:
    """A caller that waits for its callee in a call that is permitted.

    :ivar outcome: what becomes of it
    :ivar opened: how often a channel was about to open
    :ivar over: how often it was said that one is gone
    """

    def __init__(self, house: House | None = None, maker: Any = None) -> None:
        self.house = house or House()
        self.maker = maker or Maker()
        self.opened = self.over = 0
        self.call_backs = CallBacks(self.house.clock, self.house.doors, self.house.calls)
        self.outcome = Outcome(self.call_backs.wait(SESSION, CALLEE, self._knock))

    def _knock(self, stream: Stream) -> Knock:
        return Knock(
            stream,
            self.house.clock,
            CALLER,
            CALLEE,
            TOLD,
            self.maker,
            self.house.calls,
            way=Way(BACK, HOST, WAITS),
            opening=self._opening,
            over=self._over,
        )

    def _opening(self) -> list[Tried]:
        self.opened += 1
        return [Tried(Way(DIRECT, HOST, TAKES), "no route")]

    def _over(self) -> None:
        self.over += 1

    def arrives(self, session: str = SESSION) -> Client:
        """Somebody comes."""
        client = self.house.connect()
        client.send(Message(NOTIFY, Session=session))
        return client

    def comes(self, message: Message | None = None) -> Callee:
        """The callee comes, and answers."""
        return Callee(self.arrives()).answer(message or an_answer())

    @property
    def at_rest(self) -> bool:
        """Whether nobody is waited for, and no timer is left."""
        self.house.advance(0)
        return not (
            self.call_backs._waits or self.house.doors._unproven or timers(self.house.clock)
        )


class WaitTests:
    """The caller's side of ``BACK``, beside its other ways."""

    def test_it_comes(self) -> None:
        """The caller speaks first; the channel knows by which way, and what else was tried."""
        wait = Wait()
        callee = wait.comes()
        assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
        protocol = wait.outcome.value
        assert protocol.transport.way == Way(BACK, HOST, WAITS)
        assert protocol.transport.tried == (Tried(Way(DIRECT, HOST, TAKES), "no route"),)
        assert (wait.opened, wait.over) == (1, 0)
        assert wait.call_backs._waits == {}
        callee.client.send(callee.records.seal(Kind.END))
        protocol.transport.loseConnection()
        wait.house.advance(1)
        assert wait.over == 1
        assert wait.at_rest

    def test_it_does_not(self) -> None:
        """It is waited for as long as it dials, and a little more."""
        wait = Wait()
        assert COMING == DIAL_TIMEOUT + 2
        wait.house.advance(COMING - 0.1)
        assert not wait.outcome.done
        wait.house.advance(0.1)
        assert isinstance(wait.outcome.error, CallFailed)
        assert str(wait.outcome.error) == "Ib did not connect back in time"
        assert wait.at_rest

    def test_another_session(self) -> None:
        """Who comes for any other session is closed on without a byte."""
        wait = Wait()
        client = wait.arrives("S9")
        assert (client.closed, client.bytes()) == (True, b"")
        assert not wait.outcome.done

    def test_a_stranger_does_not_end_it(self) -> None:
        """Who has heard the session learns nothing, and the callee still comes (A23)."""
        wait = Wait()
        stranger = wait.arrives()
        assert PASSWORD.encode() not in stranger.bytes()
        stranger.send(framed(SESSION, bytes(100), verb=NOTIFY))
        assert stranger.closed
        assert wait.opened == 0
        wait.comes()
        assert wait.outcome.value is not None

    def test_so_many_strangers(self) -> None:
        """No more than four prove themselves at a time; one that goes makes room."""
        wait = Wait()
        clients = [wait.arrives() for _ in range(HANDSHAKES + 1)]
        assert [client.closed for client in clients] == [False] * HANDSHAKES + [True]
        clients[0].vanish()
        wait.comes()
        assert wait.outcome.value is not None
        assert all(client.closed for client in clients)

    def test_two_callees(self) -> None:
        """Of two connections of the callee's own the first to prove itself is the call."""
        wait = Wait()
        first, second = Callee(wait.arrives()), Callee(wait.arrives())
        second.answer(an_answer())
        assert wait.outcome.value is not None
        assert first.client.closed
        assert wait.opened == 1
        assert len(wait.maker.made) == 1

    def test_denied(self) -> None:
        """Its own word ends the wait at once, as a word of a stranger's does not."""
        wait = Wait()
        wait.comes(Message(NOTIFY, PERMISSION_DENIED))
        assert type(wait.outcome.error) is CallDenied
        assert wait.opened == 0
        assert wait.at_rest

    def test_given_up(self) -> None:
        """Who has come and proven nothing is closed on, and nobody is waited for."""
        wait = Wait()
        client = wait.arrives()
        wait.outcome.deferred.cancel()
        assert isinstance(wait.outcome.error, CancelledError)
        assert client.closed
        assert wait.at_rest
        assert wait.arrives().closed

    def test_terminated(self) -> None:
        """Nor is anybody once the session is void (I2)."""
        wait = Wait()
        client = wait.arrives()
        wait.call_backs.terminated(SESSION, None)
        assert str(wait.outcome.error) == "the mediator has ended the session"
        assert client.closed
        assert wait.at_rest

    def test_stopped(self) -> None:
        """Or the terminal stops."""
        wait = Wait()
        stopped = Outcome(Deferred.fromCoroutine(wait.call_backs.stop()))
        assert stopped.done
        assert str(wait.outcome.error) == "the terminal stops"
        assert wait.at_rest

    def test_one_session_twice(self) -> None:
        """A mediator that gives two calls one session has neither of them fall over the other."""
        wait = Wait()
        other = Outcome(wait.call_backs.wait(SESSION, CALLEE, wait._knock))
        wait.outcome.deferred.cancel()
        assert isinstance(wait.outcome.error, CancelledError)
        client = wait.arrives()
        assert not client.closed
        other.deferred.cancel()
        assert isinstance(other.error, CancelledError)
        assert client.closed
        assert wait.at_rest

    def test_no_protocol(self) -> None:
        """Where the application has none after all, the session is spent, and the call over."""
        wait = Wait(maker=Maker(lambda: None))
        wait.comes()
        assert str(wait.outcome.error) == "the application gave no protocol for the call"
        assert (wait.opened, wait.over) == (1, 1)


class Asking:
    """A caller that can be come to; a test plays its mediator, its callee, and the wait.

    :ivar waited: what it was to wait for: the session, and who
    :ivar wait: what the wait comes to
    :ivar over: when it was said that nobody is waited for any more
    """

    def __init__(self, maker: Any = None, **options: Any) -> None:
        self.clock = FakeReactor()
        reactor: Any = self.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), CALLER)
        self.mediator = self.clock.dials[0].accept()
        line: Line = result_of(dialled)
        self.maker: Any = maker or Maker()
        self.reports: list[tuple[str, str]] = []
        self.waited: list[tuple[str, str]] = []
        self.wait: Deferred[IProtocol] = Deferred()
        self.over = 0
        self.calls = Calls(lambda session, how: self.reports.append((session, how)))
        waiting = Waiting(HOST, WAITS, self._waits, self._over)
        placing = place_call(
            reactor, line, CALLEE, self.maker, calls=self.calls, waiting=waiting, **options
        )
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        (self.asked,) = self.mediator.received()

    def _waits(
        self, session: str, callee: str, knock: Callable[[Stream], Knock]
    ) -> Deferred[IProtocol]:
        self.waited.append((session, callee))
        self.knock = knock
        return self.wait

    def _over(self) -> None:
        self.over += 1

    def granted(self, **other: str) -> Asking:
        """The mediator gives the credentials (fig. 5d)."""
        self.mediator.send(Message(NOTIFY, REQUEST_ACCEPTED, Transaction="1", Code=100))
        fields = {name.replace("_", " "): value for name, value in other.items()}
        fields = {**TOLD.fields, **fields, "Transaction": "1", "Code": "200"}
        self.mediator.send(Message.of(NOTIFY, fields))
        return self

    @property
    def dials(self) -> list[tuple[str, int]]:
        """Whom it has dialled, beside the mediator."""
        return [(dial.host, dial.port) for dial in self.clock.dials[1:]]

    def comes(self) -> Callee:
        """The callee comes, is spoken to, and answers."""
        client = connect(self._stream, self.clock, port=WAITS)
        callee = Callee(client)
        callee.answer(an_answer())
        return callee

    def _stream(self) -> Any:
        class Meets(Stream):
            def makeConnection(self, transport: Any) -> None:
                super().makeConnection(transport)
                receiver: Any = self.receiver
                receiver.request().addCallbacks(meets, lambda failure: None)

        def meets(protocol: IProtocol) -> None:
            self.wait.callback(protocol)

        return Meets(calling.direct_exchange(self.clock), self.knock)


class CallerTests:
    """A caller that goes all ways, and waits besides."""

    def test_asks(self) -> None:
        """It says at which port, and what else it allows (``Seen``, ``Back``)."""
        assert Asking().asked.fields == {
            "Identifier": CALLER, "Callee": CALLEE, "Back": str(WAITS), "Transaction": "1",
        }  # fmt: skip
        assert Asking(seen=True).asked.fields["Seen"] == "Yes"

    def test_not_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose port can't be dialled from does not let it be told."""
        monkeypatch.setattr(Line, "share_port", lambda line: None)
        assert "Seen" not in Asking(seen=True).asked.fields

    def test_waits_and_dials(self) -> None:
        """For whom the mediator names, at once, beside the rest."""
        call = Asking().granted(Callee="Ic")
        assert call.waited == [(SESSION, "Ic")]
        assert call.dials == [("192.0.2.7", 1300)]

    def test_each_way(self, simultaneous: Simultaneous) -> None:
        """The likeliest first: its own network, where it is registered, both dialling."""
        told = {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"}
        call = Asking(seen=True).granted(**told)
        assert call.dials == [("10.0.0.2", 1203)]
        advance(call.clock, 0.25)
        assert call.dials == [("10.0.0.2", 1203), ("192.0.2.7", 1300)]
        assert simultaneous.begun == []
        advance(call.clock, 0.25)
        assert simultaneous.begun == [(0.5, SHARED, MEETING, DIAL_TIMEOUT)]

    def test_not_allowed(self, simultaneous: Simultaneous) -> None:
        """Who has not let its own place be told does not dial from there, whatever it is told."""
        call = Asking().granted(Callee_Seen="198.50.100.7 40001")
        advance(call.clock, 1)
        assert simultaneous.begun == []
        assert not call.outcome.done

    def test_the_same_place(self) -> None:
        """One place is dialled once."""
        call = Asking().granted(Callee_Local="192.0.2.7 1300")
        advance(call.clock, 1)
        assert call.dials == [("192.0.2.7", 1300)]

    def test_refused(self) -> None:
        """Nobody is waited for: what was opened for it can be closed."""
        call = Asking()
        call.mediator.send(Message(NOTIFY, PERMISSION_DENIED, Transaction="1", Code=403))
        assert isinstance(call.outcome.error, PermissionDenied)
        assert (call.waited, call.over) == ([], 1)

    @pytest.mark.parametrize("how", ["given up", "line lost"])
    def test_no_answer(self, how: str) -> None:
        """So it is where the application gives up first, or the line is lost."""
        call = Asking()
        if how == "given up":
            call.outcome.deferred.cancel()
        else:
            call.mediator.vanish()
        assert call.outcome.error is not None
        assert (call.waited, call.over) == ([], 1)

    def test_another_way_stands(self) -> None:
        """It is closed as soon as it is of no use; the call goes on elsewhere."""
        call = Asking().granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        protocol = call.outcome.value
        assert protocol.transport.way == Way(DIRECT, "192.0.2.7", 1300)
        assert protocol.transport.tried == (
            Tried(Way(BACK, HOST, WAITS), "another way was faster"),
        )
        assert call.wait.called
        assert call.over == 1
        protocol.transport.abortConnection()
        advance(call.clock, 1)
        assert call.over == 1
        assert timers(call.clock) == []

    def test_it_comes(self) -> None:
        """It is open as long as the call lasts, and no longer; the dials are given up."""
        call = Asking().granted()
        callee = call.comes()
        protocol = call.outcome.value
        assert protocol.transport.way == Way(BACK, HOST, WAITS)
        assert [tried.way.kind for tried in protocol.transport.tried] == [DIRECT]
        assert call.clock.dials[1].over
        assert call.over == 0
        callee.client.vanish()
        advance(call.clock, 1)
        assert call.over == 1
        assert call.reports == [(SESSION, "Failed")]
        assert timers(call.clock) == []

    def test_none_leads_there(self) -> None:
        """The one error names each, and nothing is left open."""
        call = Asking().granted()
        call.clock.dials[1].refuse()
        assert not call.outcome.done
        call.wait.errback(CallFailed("Ib did not connect back in time"))
        assert str(call.outcome.error) == (
            "Ib could not be reached: directly at 192.0.2.7:1300: Connection was refused by other"
            " side; by coming to us at 127.0.0.1:4000: Ib did not connect back in time"
        )
        assert call.over == 1

    @pytest.mark.parametrize("kind", [DIRECT, BACK])
    def test_denied(self, kind: str) -> None:
        """The callee's own word ends it at once, along whichever way it comes; all is closed."""
        call = Asking().granted()
        if kind == DIRECT:
            callee = Callee(call.clock.dials[1].accept())
            callee.answer(Message(NOTIFY, PERMISSION_DENIED))
            assert call.wait.called
        else:
            call.wait.errback(CallDenied("Ib denied the call"))
            assert call.clock.dials[1].over
        assert type(call.outcome.error) is CallDenied
        assert call.over == 1
        assert timers(call.clock) == []

    def test_given_up(self) -> None:
        """All is given up."""
        call = Asking().granted()
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        assert call.wait.called
        assert call.clock.dials[1].over
        assert call.over == 1
        assert timers(call.clock) == []

    def test_terminated(self, simultaneous: Simultaneous) -> None:
        """A session that is void is tried in no way any more, begun or not (I2, S5001)."""
        told = {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"}
        call = Asking(seen=True).granted(**told)
        advance(call.clock, 0.25)
        call.calls.terminate("S9")
        assert not call.outcome.done
        call.calls.terminate(SESSION)
        assert isinstance(call.outcome.error, CallFailed)
        ended = "the mediator has ended the session"
        assert str(call.outcome.error) == ended
        tried = {one.way.kind: one.why for one in call.outcome.error.tried}
        assert tried == dict.fromkeys([BACK, LOCAL, DIRECT, SIMULTANEOUS], ended)
        assert call.wait.called
        assert call.over == 1
        assert all(dial.over for dial in call.clock.dials)
        assert timers(call.clock) == []
        advance(call.clock, 1)
        assert simultaneous.begun == []
        assert call.maker.made == []

    def test_one_session_twice(self) -> None:
        """A mediator that gives two calls one session has both of them end as they end."""
        call = Asking().granted()
        other = Race(call.clock, CALLEE, [Attempt(Way(DIRECT, HOST, TAKES), lambda _: Deferred())])
        second = Outcome(other.done)
        call.calls.racing(SESSION, other)
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        call.calls.terminate(SESSION)
        assert isinstance(second.error, CallFailed)
        assert call.calls._racing == {}
        other.give_up("it is over")  # which it is already: that is nothing new

    def test_terminated_while_they_speak(self) -> None:
        """Nor does the one end well that is being spoken to."""
        call = Asking().granted()
        client = call.clock.dials[1].accept()
        call.calls.terminate(SESSION)
        assert str(call.outcome.error) == "the mediator has ended the session"
        assert client.closed
        assert call.maker.made == []

    def test_terminated_thereafter(self) -> None:
        """Once it stands it is the channel that ends, and nothing else."""
        call = Asking().granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        call.calls.terminate(SESSION)
        assert call.outcome.error is None
        advance(call.clock, 1)
        assert call.outcome.value.why.cause == ENDED_BY_MEDIATOR
        assert call.reports == [(SESSION, "Terminated")]

    def test_no_protocol(self) -> None:
        """An application that has none ends its own call, and what was open for it."""
        call = Asking(Maker(lambda: None)).granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        assert str(call.outcome.error) == "the application gave no protocol for the call"
        assert call.over == 1


class Opens:
    """A caller that opens its doors for a call; a test plays its mediator and its callee.

    :ivar outcome: what becomes of the call
    """

    def __init__(self, seen: str = HOST, opener: Opener | None = None) -> None:
        self.house = House()
        reactor: Any = self.house.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), CALLER)
        self.mediator = reactor.dials[0].accept(local_host=seen)
        self._line: Line = result_of(dialled)
        self._call_backs = CallBacks(reactor, self.house.doors, self.house.calls)
        self.outcome = Outcome(Deferred.fromCoroutine(self._place(opener)))
        (asked,) = self.mediator.received()
        assert asked.statement == ADDRESS
        self.mediator.send(
            Message(NOTIFY, Transaction="1", Code=200, Address=seen, Port=str(50000))
        )
        (self.asked,) = self.mediator.received()

    async def _place(self, opener: Opener | None) -> IProtocol:
        port: Any = SimpleNamespace(getHost=lambda: tcp_address(HOST, WAITS))
        waiting = await self._call_backs.open(self._line, port=port, opener=opener)
        house, line = self.house, self._line
        return await place_call(
            house.clock, line, CALLEE, Maker(), calls=house.calls, waiting=waiting
        )

    def arrives(self, session: str = SESSION) -> Client:
        """Somebody comes."""
        client = self.house.connect()
        client.send(Message(NOTIFY, Session=session))
        return client

    def granted(self) -> None:
        """The mediator gives the credentials."""
        self.mediator.send(Message.of(NOTIFY, {**TOLD.fields, "Transaction": "2", "Code": "200"}))

    @property
    def takes_nobody(self) -> bool:
        """Whether somebody who comes now is closed on at once, without a byte."""
        client = self.arrives()
        return bool(client.closed) and not client.bytes()


class OpenTests:
    """The doors of a caller that can be come to, while its mediator has not answered."""

    def test_before_the_answer(self) -> None:
        """A callee that overtakes the answer is held, silent, and spoken to thereafter."""
        call = Opens()
        early = call.arrives()
        assert (early.closed, early.bytes()) == (False, b"")
        call.granted()
        Callee(early).answer(an_answer())
        assert call.outcome.value.transport.way == Way(BACK, HOST, WAITS)
        early.vanish()
        assert call.takes_nobody

    def test_for_another(self) -> None:
        """Who has come for any other session is closed on once nothing more is asked."""
        call = Opens()
        other = call.arrives("S9")
        call.granted()
        assert (other.closed, other.bytes()) == (True, b"")
        assert not call.outcome.done

    @pytest.mark.parametrize("how", ["refused", "line lost", "given up"])
    def test_no_answer(self, how: str) -> None:
        """Where there is no session nobody is held for it."""
        call = Opens()
        early = call.arrives()
        if how == "refused":
            call.mediator.send(Message(NOTIFY, PERMISSION_DENIED, Transaction="2", Code=403))
            assert isinstance(call.outcome.error, PermissionDenied)
        elif how == "line lost":
            call.mediator.vanish()
            assert isinstance(call.outcome.error, ConnectionLost)
        else:
            call.outcome.deferred.cancel()
            assert isinstance(call.outcome.error, CancelledError)
        assert (early.closed, early.bytes()) == (True, b"")
        assert call.takes_nobody
        call.house.advance(0)
        assert timers(call.house.clock) == []

    def test_offered(self) -> None:
        """It says where it can be come to."""
        assert Opens().asked.get("Back") == str(WAITS)

    @pytest.mark.parametrize("seen", ["169.254.1.9", "fe80::9"])
    @pytest.mark.parametrize("opened", [False, True])
    def test_link_local(self, seen: str, opened: bool) -> None:
        """An address of one link leads nobody to us: it isn't offered, and the call goes on."""
        opener = Opener() if opened else None
        call = Opens(seen, opener)
        assert "Back" not in call.asked.fields
        assert opener is None or opener.opened == []
        assert call.takes_nobody
        call.granted()
        Callee(call.house.clock.dials[1].accept()).answer(an_answer())
        assert call.outcome.value.transport.way == Way(DIRECT, "192.0.2.7", 1300)


class NoWayInTests:
    """A caller that can't be come to: its call goes on without, and it is told why (C12, D9)."""

    SEEN: ClassVar = "the mediator sees us at 127.0.0.1, and callees come to nowhere else"

    def world(self) -> World:
        """Ib is where no other way leads, and dials nobody."""
        world = World()
        options: dict[str, Any] = {"handler": Handler(Echo), "accept": ["Ia"]}
        world.terminal("Ib", TAKES, address=HOST, port=NOWHERE, **options)
        return world

    def back(self, world: World, calling: Deferred[IProtocol]) -> tuple[str | None, Outcome]:
        """The port at which Ib could come, as Ia has asked with; and what becomes of its call."""
        world.heard.clear()
        outcome = Outcome(calling)
        world.run()
        (asked,) = [one for one in world.heard if one.verb == QUERY and "Callee" in one.fields]
        return asked.get("Back"), outcome

    def fails(self, why: str, world: World, caller: Terminal, place: str = HOST) -> None:
        """Ia calls; what it waits at can't be had, for this reason, which it is told at once."""
        now = world.clock.seconds()
        back, outcome = self.back(world, caller.call("Ib", Maker()))
        assert back is None
        self.named(outcome, why, place)
        assert world.clock.seconds() == now

    def named(self, outcome: Outcome, why: str, place: str = HOST) -> None:
        """The one error names it, beside the way that was gone."""
        assert str(outcome.error) == (
            f"Ib could not be reached: by coming to us at {place}:{WAITS}: {why};"
            " directly at 127.0.0.1:4999: Connection was refused by other side"
        )

    @pytest.mark.parametrize("opens", [False, True])
    def test_its_own_address(self, opens: bool) -> None:
        """Where it has named an address at which it is not seen nobody can come to it, and no port
        is opened where it is (I1). Once it is seen there they can, at once: no router has failed.
        """
        world, opener = self.world(), Opener()
        options = {"opener": opener} if opens else {}
        caller = world.terminal("Ia", WAITS, address="127.0.0.77", **options)
        self.fails(self.SEEN, world, caller, "127.0.0.77")
        caller._address = HOST
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 0)

    @pytest.mark.parametrize("opens", [False, True])
    def test_where_it_is_seen(self, opens: bool) -> None:
        """Where it is seen at that address they come to its port there."""
        world, opener = self.world(), Opener()
        options = {"opener": opener} if opens else {}
        caller = world.terminal("Ia", 4100, address=HOST, port=WAITS, **options)
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 0)

    def one_call(self, world: World, **options: Any) -> tuple[str | None, Outcome]:
        """Ia calls once."""
        reactor: Any = world.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), "Ia")
        world.run()
        options = {"listen": Listener(world, WAITS), **options}
        placing = place_one_call(reactor, result_of(dialled), "Ib", Maker(), **options)
        return self.back(world, Deferred.fromCoroutine(placing))

    def test_one_call_elsewhere(self) -> None:
        """So it is with an address for one call."""
        back, outcome = self.one_call(self.world(), address=("127.0.0.77", WAITS))
        assert back is None
        self.named(outcome, self.SEEN, "127.0.0.77")
        assert self.one_call(self.world(), address=(HOST, 4444))[0] == "4444"

    def test_no_listener(self) -> None:
        """Where nobody can listen, that is why."""
        world = self.world()
        fails = Listener(world, fails=CannotListenError(HOST, WAITS, OSError("in use")))
        back, outcome = self.one_call(world, listen=fails, address=(HOST, WAITS))
        assert back is None
        why = "there is nowhere to wait for the callee: Couldn't listen on 127.0.0.1:4000: in use."
        self.named(outcome, why)

    def test_no_port_is_opened(self) -> None:
        """A router that has opened none is asked again after a minute; till then the reason is
        told at once.
        """
        world, opener = self.world(), Opener(fails=True)
        caller = world.terminal("Ia", WAITS, opener=opener)
        why = "no way in could be opened for the callee: no router answers"
        self.fails(why, world, caller)
        opener.fails = False
        world.advance(NOT_BEFORE - 0.1)
        self.fails(why, world, caller)
        assert opener.asked == 1
        world.advance(0.1)
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 2)

    def test_slow(self) -> None:
        """Nor is one waited for anew that has said nothing in time."""
        world, opener = self.world(), Opener()
        opener.silent = True
        caller = world.terminal("Ia", WAITS, opener=opener)
        world.heard.clear()
        outcome = Outcome(caller.call("Ib", Maker()))
        world.advance(OPENING - 0.1)
        assert not [one for one in world.heard if "Callee" in one.fields]
        world.advance(0.1)
        why = "the router has not opened a port in 4 seconds"
        self.named(outcome, why)
        for _ in range(2):
            world.advance(20)
            self.fails(why, world, caller)
        assert opener.asked == 1
        world.advance(20)  # what is told meanwhile does not put it off
        world.heard.clear()
        caller.call("Ib", Maker()).addErrback(lambda _: None)
        world.advance(OPENING)
        assert opener.asked == 2


class Once:
    """One call on a line that is there for it alone; a test plays its mediator and its callee.

    :ivar outcome: what becomes of the call
    """

    def __init__(self, *, connect_back: bool = False) -> None:
        self.world = World()
        self.clock: Any = FakeReactor()
        dialled = dial(self.clock, TCP4ClientEndpoint(self.clock, HOST, MEDIATOR_PORT), CALLER)
        self.mediator: Client = self.clock.dials[0].accept()
        line: Line = result_of(dialled)
        listen = Listener(self.world, WAITS)
        maker = Maker()
        if connect_back:
            placing = place_call_back(
                self.clock, line, CALLEE, maker, password=PASSWORD, listen=listen
            )
        else:
            placing = place_one_call(self.clock, line, CALLEE, maker, listen=listen)
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        if not connect_back:
            where = {"Address": HOST, "Port": "50000"}
            self.mediator.send(Message(NOTIFY, Transaction="1", Code=200, **where))
        transaction = "1" if connect_back else "2"
        told = {**TOLD.fields, "Transaction": transaction, "Code": "200"}
        self.mediator.send(Message.of(NOTIFY, told))
        self.mediator.received()

    def terminate(self) -> None:
        """The mediator says that it is void."""
        self.mediator.send(Message.of(NOTIFY, {"Session": SESSION, "": TERMINATE}))

    def arrives(self) -> Callee:
        """The callee comes, and answers."""
        client = connect(self.world.factory_at(WAITS), self.clock, port=WAITS)
        client.send(Message(NOTIFY, Session=SESSION))
        return Callee(client).answer(an_answer())


class OneCallTests:
    """A call that is made once (``place_one_call``, ``place_call_back``)."""

    def test_terminated(self) -> None:
        """It ends with its session, too, and so does what was opened for it (I2, S5001)."""
        once = Once()
        assert once.world.listens(WAITS)
        assert not once.clock.dials[1].over
        once.terminate()
        assert str(once.outcome.error) == "the mediator has ended the session"
        assert once.clock.dials[1].over
        assert not once.world.listens(WAITS)
        assert timers(once.clock) == []

    @pytest.mark.parametrize("how", ["dialled", "came", "connect-back"])
    def test_terminated_thereafter(self, how: str) -> None:
        """So does one that stands, whichever side has dialled (I2, S5001)."""
        once = Once(connect_back=how == "connect-back")
        if how == "dialled":
            Callee(once.clock.dials[1].accept()).answer(an_answer())
        else:
            once.arrives()
        protocol = once.outcome.value
        assert protocol.transport.way.kind == (DIRECT if how == "dialled" else BACK)
        once.mediator.received()
        once.terminate()
        advance(once.clock, 1)
        assert protocol.why.cause == ENDED_BY_MEDIATOR
        ends = [one.get("End") for one in once.mediator.received() if "End" in one.fields]
        assert ends == ["Terminated"]
        assert not once.world.listens(WAITS)


class Both:
    """Ia and Ib as they are, with all ways between them that a test leaves open.

    :ivar outcome: what becomes of Ia's call to Ib
    """

    def __init__(self, sockets: Simultaneous, **callee: Any) -> None:
        self.world = sockets.world = World()
        self.sockets = sockets
        self.handler = Handler(Echo)
        self.ib = self.world.terminal("Ib", TAKES, handler=self.handler, accept=["Ia"], **callee)
        self.ia = self.world.terminal("Ia", WAITS)
        self.maker = Maker(HalfCloseable)
        self.world.run()
        self.world.dialled.clear()

    def call(self) -> Outcome:
        """Ia calls."""
        self.outcome = Outcome(self.ia.call("Ib", self.maker))
        self.world.run()
        return self.outcome

    def stands(self, way: Way) -> tuple[Any, Any]:
        """The one call stands, along a way: both sides' protocols.

        Ib was asked for once, one session is spent, once; nobody waits, dials or is about to.
        """
        assert self.outcome.error is None
        (mine,) = self.maker.made
        assert self.outcome.value is mine
        ((caller, session, served),) = self.handler.calls
        assert (caller, session) == ("Ia", mine.transport.session)
        assert mine.transport.way == way
        mine.transport.write(b"hello")
        self.world.run()
        assert mine.received == b"hello"
        heard = self.world.heard
        asked = [one for one in heard if one.verb == QUERY and "Callee" in one.fields]
        assert len(asked) == 1
        assert [one.get("Session") for one in heard if one.statement == "Begin."] == [session]
        assert (len(self.ia.calls), len(self.ib.calls)) == (1, 1)
        self._nothing_else()
        return mine, served

    def said(self) -> tuple[dict[str, str], dict[str, str]]:
        """The fields with which Ib has registered last, and with which Ia has asked for it."""
        heard = self.world.heard
        registered = [one for one in heard if one.get("Identifier") == "Ib" and one.get("Address")]
        asked = [one for one in heard if one.verb == QUERY and "Callee" in one.fields]
        return registered[-1].fields, asked[-1].fields

    def ends(self) -> None:
        """The call ends, and nothing is left of it."""
        self.maker.made[0].transport.loseConnection()
        self.world.run()
        ends = [one.get("End") for one in self.world.heard if "End" in one.fields]
        assert ends == ["Completed", "Completed"]
        assert (len(self.ia.calls), len(self.ib.calls)) == (0, 0)
        assert len(self.world.mediator.mediator.sessions) == 0
        self._nothing_else()
        assert self.maker.started == 0
        assert {pair.b.host.port for pair in self.world.open()} == {MEDIATOR_PORT}  # type: ignore[union-attr]

    def _nothing_else(self) -> None:
        self.world.silent.clear()
        self.world.run()
        assert self.sockets.waiting == []
        for terminal in (self.ia, self.ib):
            doors = terminal._doors
            assert not terminal._call_backs._waits
            assert not terminal._comings._timers
            assert not terminal._comings._dialling
            assert not doors._unproven
            assert not doors._attempts
            assert not doors._held
            assert len(terminal._expected) == 0
            assert terminal._placing == set()
        assert len([dial for dial in self.world.clock.dials if not dial.over]) == 0

    @property
    def ports(self) -> list[int]:
        """Which ports were dialled for the call, in order."""
        return [port for _, port in self.world.dialled]


class WholeWayTests:
    """Two terminals and a mediator: one call, along whichever way leads there (I7)."""

    SLOWER: ClassVar = "another way was faster"

    def test_direct(self, simultaneous: Simultaneous) -> None:
        """Where the callee is registered: nobody is come to, and nothing else is begun."""
        both = Both(simultaneous)
        both.call()
        mine, served = both.stands(Way(DIRECT, HOST, TAKES))
        assert served.transport.way is None
        assert mine.transport.tried == (
            Tried(Way(SIMULTANEOUS, HOST, 50000), self.SLOWER),
            Tried(Way(BACK, HOST, WAITS), self.SLOWER),
        )
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES]
        assert simultaneous.begun == []

    def test_local(self, simultaneous: Simultaneous) -> None:
        """Where it listens in the network of both."""
        both = Both(simultaneous, port=NOWHERE)
        both.call()
        mine, _ = both.stands(Way(LOCAL, HOST, TAKES))
        assert {tried.way.kind for tried in mine.transport.tried} == {DIRECT, SIMULTANEOUS, BACK}
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES]

    def test_both_dial(self, simultaneous: Simultaneous) -> None:
        """Both come from their lines' ports, the caller a quarter of a second sooner or later."""
        both = Both(simultaneous, port=NOWHERE)
        simultaneous.meets = True
        both.world.leave(TAKES)
        both.call()
        both.world.advance(0.25)
        _, served = both.stands(Way(SIMULTANEOUS, HOST, 50000))
        assert served.transport.way == Way(SIMULTANEOUS, HOST, 50000)
        both.world.listen(TAKES, both.ib._doors.factory())
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES, NOWHERE]

    def test_back(self, simultaneous: Simultaneous) -> None:
        """The callee comes, half a second after it was told, where nothing else leads to it."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.call()
        both.world.advance(0.49)
        assert not both.outcome.done
        both.world.advance(0.01)
        mine, served = both.stands(Way(BACK, HOST, WAITS))
        assert served.transport.way == Way(BACK, HOST, WAITS)
        refused = "Connection was refused by other side"
        assert mine.transport.tried == (
            Tried(Way(LOCAL, HOST, TAKES), refused),
            Tried(Way(DIRECT, HOST, NOWHERE), refused),
            Tried(Way(SIMULTANEOUS, HOST, 50000), self.SLOWER),
        )
        both.world.listen(TAKES, both.ib._doors.factory())
        both.ends()
        both.world.advance(30)
        assert both.ports == [TAKES, NOWHERE, WAITS]

    def test_back_beside_silence(self, simultaneous: Simultaneous) -> None:
        """A way on which nothing ever comes back costs half a second."""
        both = Both(simultaneous)
        both.world.silent.add(TAKES)
        both.call()
        both.world.advance(0.5)
        both.stands(Way(BACK, HOST, WAITS))
        both.ends()

    @pytest.mark.parametrize("seconds", [0.0, 0.1, 0.49, 0.5, 0.51])
    def test_one_channel(self, seconds: float, simultaneous: Simultaneous) -> None:
        """Whichever way is the faster by a little, there is one channel, and one session."""
        both = Both(simultaneous)
        both.world.silent.add(TAKES)
        both.call()
        advance(both.world.clock, seconds)
        both.world.silent.clear()
        both.world.advance(0.6)
        direct, back = Way(DIRECT, HOST, TAKES), Way(BACK, HOST, WAITS)
        assert both.outcome.value.transport.way in {direct, back}
        both.stands(both.outcome.value.transport.way)
        both.ends()

    @pytest.mark.parametrize("first", [TAKES, WAITS])
    def test_both_answered(self, first: int, simultaneous: Simultaneous) -> None:
        """Two REQUESTs of one session are both answered: one channel opens, the other ends."""
        both = Both(simultaneous)
        world = both.world
        world.silent.add(TAKES)
        both.call()
        world.silent.add(WAITS)
        world.advance(0.5)
        world.silent.clear()
        (direct,), (back,) = world.between(TAKES), world.between(WAITS)
        for which, pair in ((0, direct), (0, back), (1, back)):  # two REQUESTs, what one waits for
            ends = (pair.a, pair.b) if which == 0 else (pair.b, pair.a)
            assert pair._move(which, *ends)
            settle(world.clock)
        assert direct.b.unread
        assert back.a.unread
        last = WAITS if first == TAKES else TAKES
        world.silent.add(last)
        world.run()
        kind = DIRECT if first == TAKES else BACK
        both.stands(Way(kind, HOST, first))
        both.ends()

    def test_none(self, simultaneous: Simultaneous) -> None:
        """It is said of each why not, once the last is over."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.world.leave(WAITS)
        both.call()
        both.world.advance(COMING - 0.1)
        assert not both.outcome.done
        both.world.advance(0.2)
        assert isinstance(both.outcome.error, CallFailed)
        kinds = [tried.way.kind for tried in both.outcome.error.tried]
        assert kinds == [LOCAL, DIRECT, SIMULTANEOUS, BACK]
        assert str(both.outcome.error).startswith("Ib could not be reached: within the network at")

    def test_denied(self, simultaneous: Simultaneous) -> None:
        """A callee that has no application says no for all its ways."""
        both = Both(simultaneous)
        both.ib._doors.handler = None
        both.call()
        assert type(both.outcome.error) is CallDenied
        both.world.advance(30)
        assert both.maker.made == []
        assert len(both.ib.calls) == 0

    def test_given_up(self, simultaneous: Simultaneous) -> None:
        """The caller gives up: whoever comes after that is met by nobody."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.call()
        both.outcome.deferred.cancel()
        both.world.advance(30)
        assert isinstance(both.outcome.error, CancelledError)
        assert both.handler.calls == []
        assert both.maker.made == []
        assert both.world.between(WAITS) == []

    def test_the_caller_stops(self, simultaneous: Simultaneous) -> None:
        """So it is where the terminal stops."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.call()
        stopped = Outcome(both.ia.stopService())
        both.world.run()
        assert stopped.done
        assert both.outcome.error is not None
        both.world.advance(30)
        assert both.handler.calls == []

    def test_withdrawn_meanwhile(self, simultaneous: Simultaneous) -> None:
        """A permit that is withdrawn ends the wait and the dials of both (I2)."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.call()
        both.world.advance(0.3)
        Outcome(both.ib.edit(["Delete Ia"]))
        both.world.run()
        assert str(both.outcome.error) == "the mediator has ended the session"
        assert not both.ia._call_backs._waits
        assert simultaneous.waiting == []
        both.world.advance(30)
        assert WAITS not in both.ports
        assert both.handler.calls == []

    def test_withdrawn_while_it_is_waited_for(self, simultaneous: Simultaneous) -> None:
        """Nor is it another reason where nothing else is left to be tried."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        both.world.leave(WAITS)
        both.call()
        both.world.advance(DIAL_TIMEOUT + 1)
        Outcome(both.ib.edit(["Delete Ia"]))
        both.world.run()
        assert isinstance(both.outcome.error, CallFailed)
        assert str(both.outcome.error) == "the mediator has ended the session"
        kinds = [tried.way.kind for tried in both.outcome.error.tried]
        assert kinds == [LOCAL, DIRECT, SIMULTANEOUS, BACK]

    def test_what_is_offered(self, simultaneous: Simultaneous) -> None:
        """Each says where it listens itself, that it may be seen, and where it can be come to."""
        both = Both(simultaneous, port=NOWHERE)
        both.call()
        registered, asked = both.said()
        assert (registered["Local"], registered["Seen"]) == (f"{HOST} {TAKES}", "Yes")
        assert (asked["Seen"], asked["Back"]) == ("Yes", str(WAITS))

    def test_nothing_else_than_it_was_told(self, simultaneous: Simultaneous) -> None:
        """A terminal whose operator has named its address tells no other (I1)."""
        both = Both(simultaneous, address=HOST)
        both.ia._address = HOST
        both.call()
        registered, asked = both.said()
        assert {"Local", "Seen"}.isdisjoint(registered)
        assert "Seen" not in asked
        both.stands(Way(DIRECT, HOST, TAKES))

    def test_within_this_machine(
        self, simultaneous: Simultaneous, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where no router can be in between, none of it is said."""
        monkeypatch.setattr(Line, "share_port", lambda line: None)
        both = Both(simultaneous)
        both.call()
        registered, asked = both.said()
        assert {"Local", "Seen"}.isdisjoint(registered)
        assert {"Seen", "Back"}.isdisjoint(asked)
        mine, _ = both.stands(Way(DIRECT, HOST, TAKES))
        assert mine.transport.tried == ()

    def test_one_after_the_other(self, simultaneous: Simultaneous) -> None:
        """A call that has found its way leaves the next one as free as it was."""
        both = Both(simultaneous, port=NOWHERE)
        both.world.leave(TAKES)
        for _ in range(2):
            outcome = both.call()
            both.world.advance(0.5)
            assert outcome.value.transport.way == Way(BACK, HOST, WAITS)
            outcome.value.transport.loseConnection()
            both.world.run()
        assert len(both.handler.calls) == 2
