"""The callee comes to meet its caller: when it dials, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from broker.messages.grammar import NOTIFY
from broker.messages.message import Message
from broker.messages.statements import PERMISSION_DENIED
from broker.terminal.calls.dial_back import DIALS_MOST
from broker.terminal.calls.place_call import DIAL_TIMEOUT
from broker.terminal.candidates import BACK, HOLE_PUNCH, Candidate
from broker.terminal.channel.records import RecordType
from broker.terminal.incoming.listener import HANDSHAKE_TIMEOUT, UNPROVEN_MOST
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.notices import ConnectBackRequest
from tests.support.clock import advance
from tests.support.log import the_log
from tests.support.transport import Client, connect
from tests.terminal.keys import ANNOUNCED, CALLER, SESSION, an_expected_call
from tests.terminal.meeting import MEETING, PUBLIC, SHARED, TAKES, WAITS, Simultaneous, stand_in
from tests.terminal.network import HOST, MEDIATOR_PORT, World
from tests.terminal.peers import Requester
from tests.terminal.speakers import Echo, HalfCloseable, Handler, Maker

#: Where the caller's line comes from, as the mediator tells.
SEEN = f"{PUBLIC} 40001"


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets."""
    return stand_in(monkeypatch)


class Home:
    """Ib, which a mediator that a test plays tells of calls.

    :ivar ib: the callee
    :ivar maker: makes what answers where its caller waits
    """

    def __init__(self, sockets: Simultaneous, **options: Any) -> None:
        self.world = sockets.world = World()
        self.sockets = sockets
        self.handler = Handler(Echo)
        self.ib = self.world.terminal("Ib", TAKES, handler=self.handler, **options)
        self.maker = Maker(HalfCloseable)
        self.world.listen(WAITS, self.maker)
        self.mediator: Any = self.world.line_of("Ib").b.protocol
        line: Any = self.ib._registration.client
        self.line: MediatorClient = line

    def announce(
        self, *, back: str | None = None, seen: str | None = None, session: str = SESSION
    ) -> Home:
        """The mediator says that Ia calls (fig. 5e)."""
        places = {"Caller Back": back, "Caller Seen": seen}
        told = {name: place for name, place in places.items() if place is not None}
        self.mediator.send(Message.of(NOTIFY, {**ANNOUNCED, "Session": session, **told}))
        self.world.run()
        return self

    def waits(self, **other: Any) -> Home:
        """Ia calls, and can be come to."""
        return self.announce(back=f"{HOST} {WAITS}", **other)

    def expects(self, session: str = SESSION, caller: str = CALLER, **other: Any) -> None:
        """Ib is told of a call, by default one whose caller is nowhere to be reached."""
        places = {"back": (PUBLIC, WAITS), "seen": MEETING, **other}
        call = replace(an_expected_call(session=session, caller=caller), **places)
        self.ib.call_announced(self.line, call)

    def requests(self, session: str = SESSION) -> Requester:
        """Ia comes along another way, and sends its REQUEST."""
        client = connect(self.world.factory_at(TAKES), self.world.clock, port=TAKES)
        return Requester(client, session=session).send()

    def connected(self, way: str) -> Client:
        """Ib has dialled: the caller's end, with what was said first read away."""
        if way == HOLE_PUNCH:
            self.announce(seen=SEEN).world.advance(0.25)
            client = self.sockets.stands()
            assert client.bytes() == b""
            return client
        self.world.leave(WAITS)
        self.waits()
        advance(self.world.clock, 0.5)
        client = self.world.clock.dials[-1].accept()
        assert client.received() == [Message(NOTIFY, Session=SESSION)]
        return client

    def ends(self, how: str) -> None:
        """The session begins or is void, the mediator is lost, or Ib stops."""
        if how == "begun":
            self.requests().prove()
            assert len(self.handler.calls) == 1
        elif how == "terminated":
            self.ib.session_terminated(SESSION)
        elif how == "line lost":
            self.world.lose_line("Ib")
        else:
            self.ib.stopService()

    @property
    def dialled(self) -> list[tuple[float, int]]:
        """When it has dialled which port, without the mediator's."""
        return [one for one in self.world.dialled if one[1] != MEDIATOR_PORT]

    def dials_nobody(self, seconds: float = 20) -> None:
        """From now on, though nothing that was announced is forgotten by then."""
        self.world.advance(seconds)
        assert (self.dialled, self.sockets.begun) == ([], [])

    @property
    def at_rest(self) -> bool:
        """Whether nothing is dialled or about to be, and no connection is unproven."""
        ib, listener = self.ib, self.ib._listener
        return not (
            ib._dial_back._timers
            or ib._dial_back._dialling
            or listener._unproven
            or listener._proving
            or len(listener._held)
        )


@pytest.fixture
def home(simultaneous: Simultaneous) -> Home:
    """Ib."""
    return Home(simultaneous)


class DialsTests:
    """When the callee dials its caller."""

    def test_half_a_second_later(self, home: Home) -> None:
        """The caller's own candidates have that time; then it says for which session it has come,
        and nothing else until it is spoken to. Both dial, where that is told, in half of it: from
        the line's own port.
        """
        home.waits(seen=SEEN)
        home.dials_nobody(0.24)
        home.world.advance(0.25)
        assert home.sockets.begun == [(0.25, SHARED, MEETING, DIAL_TIMEOUT)]
        assert home.dialled == []
        home.world.advance(0.01)
        assert home.dialled == [(0.5, WAITS)]
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session=SESSION).encode()
        home.world.advance(20)
        assert (len(home.dialled), len(home.sockets.begun)) == (1, 1)

    def test_not_asked_for(self, home: Home) -> None:
        """A caller that says nothing of that is not dialled."""
        home.announce().dials_nobody()
        assert home.at_rest

    def test_no_port_to_share(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the line's port can't be dialled from, it is not."""
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: None)
        home.waits(seen=SEEN).world.advance(0.5)
        assert home.sockets.begun == []
        assert home.dialled == [(0.5, WAITS)]

    @pytest.mark.parametrize("said", ["nobody 4000", "127.0.0.1", "127.0.0.1 0", "127.0.0.1:4000"])
    def test_no_place(self, said: str, home: Home) -> None:
        """A mediator that tells of no place has not told of any call."""
        text = Message.of(NOTIFY, ANNOUNCED).encode()
        home.mediator.write(text[:-2] + f"Caller Back:{said}\r\n\r\n".encode())
        home.world.run()
        assert len(home.ib._pending) == 0


ENDS = ["begun", "terminated", "line lost", "stopped"]


class NotDialledTests:
    """When it need not, or must not."""

    @pytest.mark.parametrize("came_to_nothing", [False, True])
    def test_a_request_was_shown(self, came_to_nothing: bool, home: Home) -> None:
        """A caller that is about to prove itself need not be come to, unless nothing has come of it
        by then.
        """
        requester = home.waits(seen=SEEN).requests()
        home.world.advance(0.3)
        if came_to_nothing:
            requester.client.vanish()
        home.world.advance(0.2)
        assert home.sockets.begun == []
        assert home.dialled == ([(0.5, WAITS)] if came_to_nothing else [])

    @pytest.mark.parametrize("how", ENDS)
    def test_not_now(self, how: str, home: Home) -> None:
        """No caller is dialled for a session that has begun (I7) or is void, nor once the mediator
        is lost (I2) or the terminal stops: no timer waits to no purpose.
        """
        home.waits(seen=SEEN).ends(how)
        assert home.ib._dial_back._timers == {}
        home.dials_nobody()
        assert home.at_rest

    @pytest.mark.parametrize("way", ["back", "seen", "asked"])
    @pytest.mark.parametrize("how", ENDS)
    def test_on_its_way(self, way: str, how: str, home: Home) -> None:
        """A dial that is under way is given up, with its place at the listener; that is no
        failure.
        """
        if way == "asked":
            home.ib.dial_back(ConnectBackRequest(an_expected_call(), PUBLIC, WAITS))
        else:
            places: dict[str, Any] = {"back": None, "seen": None, way: (PUBLIC, WAITS)}
            home.expects(**places)
        advance(home.world.clock, 0.5)  # and no dial is answered
        (dials,) = home.ib._dial_back._dialling.values()
        assert len(dials) == 1
        dial = home.world.clock.dials[-1]
        with the_log() as lines:
            home.ends(how)
        assert home.ib._dial_back._dialling == {}
        assert len(home.ib._listener._unproven) == 0
        assert dial.over if way != "seen" else home.sockets.given_up == 1
        assert [line for line in lines if "could not be reached" in line] == []

    def test_another_is(self, home: Home) -> None:
        """That another session is void is nothing to this one."""
        home.waits()
        home.ib.session_terminated("S9")
        home.world.advance(0.5)
        assert home.dialled == [(0.5, WAITS)]

    def test_called_again(self, home: Home) -> None:
        """The same caller's new call voids the one before: it is come to once, for the new one."""
        home.waits()
        home.world.advance(0.2)
        home.waits(session="S9")
        home.world.advance(5)
        assert home.dialled == [(0.7, WAITS)]
        (protocol,) = home.maker.made
        assert protocol.received == Message(NOTIFY, Session="S9").encode()

    @pytest.mark.parametrize("asked", [False, True], ids=["permitted", "by password"])
    def test_called_again_on_its_way(self, asked: bool, home: Home) -> None:
        """A dial for the call that is void now is given up; that is no failure (I16)."""
        if asked:
            home.ib.dial_back(ConnectBackRequest(an_expected_call(), PUBLIC, WAITS))
        else:
            home.expects()
            advance(home.world.clock, 0.5)
        dial = home.world.clock.dials[-1]
        assert (dial.host, dial.over) == (PUBLIC, False)
        home.expects("S2", back=None, seen=None)
        assert dial.over
        assert home.sockets.given_up == (not asked)
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []

    def test_its_own_address(self, simultaneous: Simultaneous) -> None:
        """Nor does one that has named an address: the one it dials sees where it is (I1)."""
        home = Home(simultaneous, address=HOST).waits(seen=SEEN)
        assert home.ib._dial_back._timers == {}
        home.dials_nobody()
        assert home.at_rest
        home.ends("begun")  # it is called as ever

    def test_expired(self, home: Home) -> None:
        """A session that is too old by then (I10)."""
        home.expects(until=home.world.clock.seconds() + 0.25)
        home.dials_nobody()
        assert home.at_rest


class JudgedTests:
    """A caller must not send a terminal just anywhere (I12), as in ``test_connect_back``."""

    @pytest.mark.parametrize(
        ("host", "port", "mediator", "dialled"),
        [
            # Neither what is no place nor the networks about it, nor its own listener.
            *((host, WAITS, "", False) for host in ("0.0.0.0", "10.0.0.1", "::ffff:10.0.0.1")),
            (HOST, TAKES, "", False),
            (HOST, TAKES + 1, "", True),
            # Neither itself nor what is private, if its mediator is in the Internet.
            *((host, WAITS, PUBLIC, False) for host in ("127.0.0.1", "::1", "10.0.0.1")),
            # The Internet, and the kind of network in which its mediator is.
            *(("198.50.100.9", WAITS, mediator, True) for mediator in ("", PUBLIC, "10.0.0.1")),
            ("10.9.9.9", WAITS, "10.0.0.1", True),
        ],
    )
    def test_dialled(self, host: str, port: int, mediator: str, dialled: bool, home: Home) -> None:
        """Both where its caller waits, and where that comes from; the log says why not."""
        if mediator:
            transport: Any = home.line.stream.transport
            transport.peer = IPv4Address("TCP", mediator, MEDIATOR_PORT)
        before = len(home.world.clock.dials)
        with the_log() as lines:
            home.announce(back=f"{host} {port}", seen=f"{host} {port}")
            advance(home.world.clock, 1)
        assert len(home.ib._pending) == 1  # it is expected either way
        assert (len(home.world.clock.dials) > before) is dialled
        assert bool(home.sockets.begun) is dialled
        assert any("Ia is not dialled: " in line for line in lines) is not dialled


class CapsTests:
    """What a flood of calls can make it dial is bounded (I15)."""

    def test_dials(self, home: Home) -> None:
        """So many at a time, whatever they are for; the next call is dialled again."""
        under_way = home.ib._dial_back._dialling
        for n in range(DIALS_MOST):
            under_way[f"S{n}"] = [Deferred()]
        home.waits(seen=SEEN).dials_nobody(1)
        under_way.pop("S0")
        home.waits(seen=SEEN).world.advance(1)
        assert len(home.dialled) + len(home.sockets.begun) == 1
        for session in [one for one in under_way if one != SESSION]:
            del under_way[session]

    def test_one_caller(self, home: Home) -> None:
        """However often one caller calls, it is dialled for its newest call alone (I16): others
        are dialled besides.
        """
        for n in range(DIALS_MOST):
            home.expects(f"S{n}")
            assert list(home.ib._dial_back._timers) == [f"S{n}"]
            advance(home.world.clock, 0.5)  # and no dial is answered
        dials = [dial for dial in home.world.clock.dials if dial.host == PUBLIC]
        assert [dial.over for dial in dials] == [True] * (DIALS_MOST - 1) + [False]
        assert list(home.ib._dial_back._dialling) == [f"S{DIALS_MOST - 1}"]
        assert (len(home.sockets.begun), len(home.sockets.waiting)) == (DIALS_MOST, 1)
        home.expects("S9", "Ic", back=("198.50.100.9", WAITS), seen=None)
        advance(home.world.clock, 0.5)
        last = home.world.clock.dials[-1]
        assert (last.host, last.over) == ("198.50.100.9", False)
        assert not dials[-1].over

    def test_unproven(self, home: Home) -> None:
        """Nor are there more connections that have proven nothing."""
        factory = home.world.factory_at(TAKES)
        clients = [connect(factory, home.world.clock, port=TAKES) for _ in range(UNPROVEN_MOST)]
        home.waits(seen=SEEN).dials_nobody(1)
        clients[0].vanish()
        home.waits().world.advance(1)
        assert len(home.dialled) == 1


class ComeTests:
    """A connection that the callee has made: it serves one session, and its caller speaks first."""

    @pytest.mark.parametrize(
        "way", [Candidate(BACK, HOST, WAITS), Candidate(HOLE_PUNCH, *MEETING), None]
    )
    def test_a_call(self, way: Candidate | None, home: Home) -> None:
        """The caller shows its REQUEST and proves itself, as at the listener (A12, A23). One that
        came there by itself has come along no way that is known here.
        """
        if way is None:
            requester = home.announce().requests()
        else:
            requester = Requester(home.connected(way.method)).send()
        requester.prove(b"hello")
        ((caller, session, protocol),) = home.handler.calls
        assert (caller, session) == (CALLER, SESSION)
        assert protocol.transport.candidate == way
        assert requester.heard() == [(RecordType.DATA, b"hello")]
        assert home.at_rest

    @pytest.mark.parametrize("way", [BACK, HOLE_PUNCH])
    def test_another_session(self, way: str, home: Home) -> None:
        """Another session is not served there, though it is expected."""
        client = home.connected(way)
        home.ib._listener.expect(an_expected_call(session="S9", caller="Ic"))
        requester = Requester(client, session="S9", caller="Ic", identifier="Ic").send()
        assert requester.shut_out
        assert home.handler.calls == []
        assert len(home.ib._listener._held) == 0

    def test_no_callee_comes_there(self, home: Home) -> None:
        """Nor does what is there come for a session of ours."""
        client = home.connected(BACK)
        waiter = home.ib._connect_back
        call: Any = SimpleNamespace(clock=home.world.clock, session="S9", callee="Ic")
        events: Any = None  # nothing is spoken
        waits = waiter.wait(call, Candidate(BACK, HOST, WAITS), events)
        client.send(Message(NOTIFY, Session="S9"))
        assert (client.closed, client.bytes()) == (True, b"")
        assert not waits.called

    def test_who_is_it_not(self, home: Home) -> None:
        """What is there must know what its mediator has given the caller."""
        requester = Requester(home.connected(BACK), password="guess").send()
        assert requester.answer() == Message(NOTIFY, PERMISSION_DENIED)
        assert home.handler.calls == []
        assert len(home.ib._pending) == 1

    def test_silence(self, home: Home) -> None:
        """It is left after five seconds."""
        client = home.connected(BACK)
        advance(home.world.clock, HANDSHAKE_TIMEOUT - 0.1)
        assert not client.closed
        advance(home.world.clock, 0.1)
        assert client.closed
        assert home.at_rest

    @pytest.mark.parametrize("way", [BACK, HOLE_PUNCH])
    def test_not_connected(self, way: str, home: Home) -> None:
        """The caller may come by itself: the mediator is not told that the call has failed."""
        home.world.leave(WAITS)
        with the_log() as lines:
            if way == BACK:
                home.waits().world.advance(1)
            else:
                home.announce(seen=SEEN).world.advance(0.25)
                home.sockets.fails()  # the port can't be shared after all
        assert [line for line in lines if "Ia could not be reached" in line]
        assert home.at_rest
        assert [message for message in home.world.heard if "End" in message.fields] == []
        home.ends("begun")

    def test_two_at_once(self, home: Home) -> None:
        """A caller that proves itself along one way is closed on along the others."""
        first, second = Requester(home.connected(BACK)).send(), home.requests()
        second.prove()
        assert (first.client.closed, second.client.closed) == (True, False)
        assert len(home.handler.calls) == 1
        assert home.at_rest
